"""A task: everything a run needs to know."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from fedgaze.config.sections import (
    BehaviourSpec,
    Contributions,
    ContributionSpec,
    DatasetSpec,
    FileName,
    GateSpec,
    ModelSpec,
    Positive,
    ResourcesSpec,
    Section,
    SelectionSpec,
    ServerSpec,
    WandbSpec,
    XaiSpec,
)
from fedgaze.errors import FedgazeError

__all__ = ["Task"]

_IN_ONE_PLACE = (
    "behaviour is for a laboratory, where all clients are one's own: leave it out, or use "
    "engine=local or engine=simulation"
)


class Task(Section):
    """A task: everything a run needs to know. Every key has a default but ``model``."""

    task_id: FileName = "task"
    """Names the run: its record is written to ``runs/<task_id>``."""
    random_seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    model_type: Literal["Pytorch", "Tensorflow", "Huggingface"] = "Pytorch"
    model: ModelSpec
    dataset: DatasetSpec = Field(default_factory=DatasetSpec)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    """Of local training; ``sgd`` is plain, without momentum."""
    batch_size: Positive = 32
    num_epochs: Positive = 1
    """Local epochs a round."""
    num_rounds: Positive = 5
    num_clients: Positive = 4
    clients_per_round: Positive | None = None
    """How many clients train in a round; all by default."""
    selection: SelectionSpec | None = None
    """Who they are; by default drawn at random."""
    server: ServerSpec = Field(default_factory=ServerSpec)
    contribution: Contributions = Field(default_factory=ContributionSpec)
    """What each client adds, on the server's held-out images; not computed by default."""
    xai: XaiSpec = Field(default_factory=XaiSpec)
    gate: GateSpec = Field(default_factory=GateSpec)
    behaviour: BehaviourSpec | None = None
    """How some clients misbehave; everybody is honest by default."""
    engine: Literal["local", "simulation", "deployment"] = "local"
    device: str = "auto"
    round_timeout: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds that a round waits for its clients."""
    join_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a run waits for clients to be there: for all at its start, and before each
    round for ``min_clients``."""
    min_clients: Positive | None = None
    """With how many clients a round may begin; by default ``gate.floor``, or all if fewer."""
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    storage: str | None = None
    """An fsspec URL (``s3://bucket/prefix``): each whole round's model is stored there, too."""
    trackers: list[Literal["mlflow", "tensorboard", "wandb"]] = Field(default_factory=list)
    wandb: WandbSpec = Field(default_factory=WandbSpec)

    _directory: Path | None = PrivateAttr(default=None)

    def on_a_server(self) -> Self:
        """The same task for clients on other machines.

        They bring their own images, unless the task says how they share those that it names.

        Raises:
            FedgazeError: The task lets clients misbehave.
        """
        if self.behaviour is not None:
            raise FedgazeError(_IN_ONE_PLACE)
        dataset = self.dataset
        if "partition" not in dataset.model_fields_set:
            changes = {"partition": "own", "alpha": None, "shards_per_client": None}
            dataset = dataset.model_copy(update=changes)
        changed = self.model_copy(update={"engine": "deployment", "dataset": dataset})
        return changed.in_directory(self.directory)

    @property
    def least_clients(self) -> int:
        """With how many clients a round may begin."""
        return self.min_clients or min(self.gate.floor, self.num_clients)

    @property
    def directory(self) -> Path | None:
        """The task's own directory, from which its models and data sets are read."""
        return self._directory

    def in_directory(self, directory: Path | None) -> Self:
        """The same task, with this as its own directory."""
        self._directory = directory
        return self

    @model_validator(mode="before")
    @classmethod
    def _short_strategy(cls, values: Any) -> Any:
        if isinstance(values, dict) and "strategy" in values:
            if "strategy" in (values.get("server") or {}):
                raise ValueError("the strategy is given twice: 'strategy' and 'server.strategy'")
            values = {k: v for k, v in values.items() if k != "strategy"} | {
                "server": {**(values.get("server") or {}), "strategy": values["strategy"]}
            }
        return values

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        kind, _, index = value.partition(":")
        if kind not in ("auto", "cpu", "cuda", "mps") or (index and not index.isdigit()):
            raise ValueError("allowed are auto, cpu, cuda, cuda:0 … and mps")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.clients_per_round is not None and self.clients_per_round > self.num_clients:
            raise ValueError(
                f"clients_per_round={self.clients_per_round} is more than "
                f"num_clients={self.num_clients}"
            )
        if self.min_clients is not None and self.min_clients > self.num_clients:
            raise ValueError(
                f"min_clients={self.min_clients} is more than num_clients={self.num_clients}"
            )
        self._check_selection()
        self._check_behaviour()
        plant = self.dataset.plant
        if plant and max(plant.clients) >= self.num_clients:
            raise ValueError(
                f"dataset.plant.clients={plant.clients} names a client that is not there: "
                f"they are counted from 0 to {self.num_clients - 1}"
            )
        if self.gate.policy != "report" and self.xai.run_location == "client":
            raise ValueError(
                f"gate.policy={self.gate.policy} needs the server's own look: "
                "set xai.run_location to server or both, or gate.policy to report"
            )
        return self

    def _check_behaviour(self) -> None:
        spec = self.behaviour
        if spec is None:
            return
        if max(spec.clients) >= self.num_clients:
            raise ValueError(
                f"behaviour.clients={spec.clients} names a client that is not there: "
                f"they are counted from 0 to {self.num_clients - 1}"
            )
        if self.engine == "deployment":
            raise ValueError(_IN_ONE_PLACE)

    def _check_selection(self) -> None:
        spec, said = self.selection, self.clients_per_round
        if spec is None:
            return
        named = spec.clients or []
        if spec.count is not None and spec.count > self.num_clients:
            raise ValueError(
                f"selection.count={spec.count} is more than num_clients={self.num_clients}"
            )
        if named and max(named) >= self.num_clients:
            raise ValueError(
                f"selection.clients={named} names a client that is not there: "
                f"they are counted from 0 to {self.num_clients - 1}"
            )
        meant = self.selected
        if spec.by in ("random", "metric") and meant is None:
            raise ValueError(f"selection.by={spec.by} needs selection.count: how many train")
        if meant and spec.candidates is not None and spec.candidates < meant:
            raise ValueError(
                f"selection.candidates={spec.candidates} are fewer than the {meant} that train"
            )
        if said not in (None, meant):
            raise ValueError(
                f"clients_per_round={said} and selection, by which {meant} clients train, "
                "contradict each other: keep one"
            )

    @property
    def selected(self) -> int | None:
        """How many clients train in a round, as far as ``selection`` or its short form says it."""
        spec = self.selection
        if spec is None or (spec.by in ("random", "metric") and spec.count is None):
            return self.clients_per_round
        return {"all": self.num_clients, "explicit": len(spec.clients or [])}.get(
            spec.by, spec.count
        )

    def public(self) -> dict[str, Any]:
        """The task as plain values for records, pages and logs: without its secrets."""
        values = self.model_dump(mode="json", by_alias=True, exclude={"wandb": {"key"}})
        values["xai"]["save_dir"] = str(self.xai.save_dir)
        return values
