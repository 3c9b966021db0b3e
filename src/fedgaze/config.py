"""The one schema of a task: read from YAML by OmegaConf, validated by pydantic.

A task is one YAML file and, on the command line, ``key=value`` words that overrule it.
:func:`load_task` returns it checked, or raises one sentence that names the key, the value and the
nearest right one. What only the running task can know (does the model have this layer?) is checked
by :func:`fedgaze.federate.prepare`, also before anything is written.
"""

import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedgaze.errors import FedgazeError, nearest

__all__ = [
    "BehaviourSpec",
    "ContributionSpec",
    "DatasetSpec",
    "ModelSpec",
    "PlantSpec",
    "PrivacySpec",
    "SelectionSpec",
    "Share",
    "StrategySpec",
    "Task",
    "XaiSpec",
    "load_task",
    "read_values",
    "sentence_of",
]

Share = Literal["none", "profile", "maps", "overlays"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
FileName = Annotated[str, Field(pattern=r"^[\w][\w.-]*$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, use_attribute_docstrings=True)


class _Target(_Section):
    """Something of the user's choice: ``_target_`` names it, every other key is an argument."""

    model_config = ConfigDict(extra="allow")

    target: str | None = Field(default=None, alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that are handed on as keyword arguments."""
        return dict(self.model_extra or {})


class ModelSpec(_Target):
    """``_target_`` and its arguments, or the ``name`` of a known model."""

    name: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.target is None and self.name is None:
            raise ValueError("give model._target_ (a class) or model.name (a known model)")
        return self

    @property
    def label(self) -> str:
        """What the model is called in file names: its ``name``, else the last part of its class."""
        return self.name or (self.target or "").rpartition(".")[2]


class StrategySpec(_Target):
    """A strategy class of Flower by ``_target_`` and its arguments; ``fedavg`` is short for it."""

    target: str = Field(default="flwr.serverapp.strategy.FedAvg", alias="_target_")

    @property
    def short(self) -> str:
        """The class's name in small letters and digits: ``multikrum`` of ``Multi-Krum``."""
        return re.sub(r"[^a-z0-9]", "", self.target.rpartition(".")[2].lower())


def _strategy(value: object) -> object:
    return {"_target_": value} if isinstance(value, str) else value


Strategy = Annotated[StrategySpec, BeforeValidator(_strategy)]


class PlantSpec(_Section):
    """A label-coded mark stamped into some clients' images: the laboratory's known shortcut."""

    clients: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """Which clients' data carry the mark, counted from 0."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Which part of such a client's images carry it."""


_OF_PARTITION: dict[str, tuple[tuple[str, ...], float | None]] = {
    "alpha": (("dirichlet", "quantity"), 1.0),
    "shards_per_client": (("shards",), 2),
    "partition_by": (("natural",), None),
}
"""Keys of the data set that mean something to some partitions only, and what they are there."""


class DatasetSpec(_Section):
    """Which images, and how they are split over the clients."""

    name: str = "digits"
    """A known data set, or a function of the task's own directory (``data_preparation.load``)."""
    root: Path | None = None
    """Where its files lie; not needed for the bundled digits."""
    validation_split: Fraction = 0.2
    """Which part of a client's images it keeps for validation and for its probe set."""
    partition: Literal["dirichlet", "iid", "shards", "quantity", "natural", "own"] = "dirichlet"
    """``own``: nothing is split, each client brings its own; the default on a server."""
    alpha: Annotated[float, Field(gt=0)] | None = Field(default=None, validate_default=True)
    """Concentration of ``dirichlet`` and ``quantity``, 1 by default: small is skewed."""
    shards_per_client: Positive | None = Field(default=None, validate_default=True)
    """Of ``shards``, 2 by default."""
    partition_by: str | None = None
    """Of ``natural``: the column that says what an image belongs to, in the ``metadata.csv`` of a
    folder or in the table of a ``flwr:`` set."""
    classes: list[str] | None = None
    """Keep only these classes, in this order; all by default."""
    limit: Positive | None = None
    """Keep at most so many training images, as many of each class as can be; all by default."""
    test_limit: Positive | None = None
    """The same of the held-out images."""
    plant: PlantSpec | None = None

    @field_validator("alpha", "shards_per_client", "partition_by")
    @classmethod
    def _fits_the_partition(cls, value: Any, info: ValidationInfo) -> Any:
        """A key of another partition would change nothing, which nobody means who sets it."""
        schemes, default = _OF_PARTITION[str(info.field_name)]
        chosen = info.data.get("partition")
        if value is None:
            return default if chosen in schemes else None
        if chosen is not None and chosen not in schemes:
            raise ValueError(
                f"goes with partition {' or '.join(schemes)}, not {chosen}; leave it out or "
                "make it null"
            )
        return value


class XaiSpec(_Section):
    """How clients and server explain themselves."""

    enabled: bool = True
    run_location: Literal["client", "server", "both"] = "client"
    method: str = "gradcam"
    layer: str | int | list[str | int] = "auto"
    """A layer's name, a Conv2d index, ``first | middle | last | auto``, or several."""
    options: dict[str, Any] = {}
    """Of the method, such as ``masks: 200`` of ``rise``; see ``fedgaze explain --list-methods``."""
    target_layer_index: int | None = None
    """The older key for a Conv2d index; ``layer`` wins over it."""
    save_dir: Path = Path("heatmaps")
    """A relative one lies inside the run's folder. It wins over the older keys ``output_dir`` and
    ``save_path``, in this order."""
    samples_per_class: Positive = 2
    share: Share = "profile"
    """What may leave a client: nothing, scalars, raw maps, or pictures (each with those before)."""
    pictures: bool = True
    """Whether pictures and raw maps are written, and not only what they measure."""
    probe: Path | None = None
    """A folder of images a class for the server's probe set; by default from the test images."""

    def capped(self, share: Share) -> Self:
        """The same, with at most so much leaving a client."""
        levels = get_args(Share)
        return self.model_copy(update={"share": min(self.share, share, key=levels.index)})

    @model_validator(mode="before")
    @classmethod
    def _older_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        places = [values[k] for k in ("save_dir", "output_dir", "save_path") if k in values]
        rest = {k: v for k, v in values.items() if k not in ("output_dir", "save_path")}
        return rest | ({"save_dir": places[0]} if places else {})

    @field_validator("save_dir")
    @classmethod
    def _stays_inside(cls, value: Path) -> Path:
        if ".." in value.parts:
            raise ValueError("a path inside the run's folder, or an absolute one, is allowed")
        return value

    @model_validator(mode="after")
    def _pictures_to_share(self) -> Self:
        if not self.pictures and self.share in ("maps", "overlays"):
            raise ValueError(
                f"share={self.share} needs pictures: set share to profile or none, or pictures to "
                "true"
            )
        return self

    @model_validator(mode="after")
    def _layer_wins(self) -> Self:
        if self.target_layer_index is not None and "layer" not in self.model_fields_set:
            self.layer = self.target_layer_index
        return self


class GateSpec(_Section):
    """What happens to an update that looks at the wrong place."""

    policy: Literal["report", "downweight", "reject"] = "report"
    """Say what is suspicious; merge the less of an update the more suspicious it is; or keep out
    what is suspicious. The last two need the server's own look."""
    floor: Positive = 2
    """How many updates a round needs at least."""
    threshold: Fraction = 0.5
    """From which suspicion an update is kept out."""
    measures: list[str] | None = None
    """By what updates are compared; by all measures by default."""


class SelectionSpec(_Section):
    """Who trains in a round."""

    by: Literal["all", "random", "metric", "explicit"] = "all"
    count: Positive | None = None
    """How many, at random or by a metric; the same as ``clients_per_round``."""
    metric: str = "validation.loss"
    """The number by which clients are chosen, as their entry of the record has it."""
    prefer: Literal["high", "low"] = "high"
    """Which end of the metric trains."""
    candidates: Positive | None = None
    """Choose by the metric among so many clients drawn at random; among all by default."""
    clients: list[Annotated[int, Field(ge=0)]] | None = None
    """With ``explicit``: who, counted from 0."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        only = {"clients": "explicit", "metric": "metric", "prefer": "metric"}
        only |= {"candidates": "metric"}
        for key, kind in only.items():
            changed = getattr(self, key) != type(self).model_fields[key].default
            if changed and self.by != kind:
                raise ValueError(f"'{key}' belongs to by={kind}, not to by={self.by}")
        if self.by == "explicit":
            if not self.clients:
                raise ValueError("by=explicit needs 'clients', such as [0, 2]")
            if len(set(self.clients)) < len(self.clients):
                raise ValueError(f"clients={self.clients} names a client twice")
        if self.count is not None and self.by in ("all", "explicit"):
            raise ValueError(f"'count' belongs to by=random and by=metric, not to by={self.by}")
        return self


_PATCHED = ("patch", "distributed", "replacement", "stealth", "adaptive")
_OF_BEHAVIOUR: dict[str, tuple[str, ...]] = {
    "target": ("label_flip", "semantic", "blend", *_PATCHED),
    "source": ("label_flip", "semantic"),
    "fraction": ("label_noise", "label_flip", "blend", "shortcut", "colour", *_PATCHED),
    "scale": ("replacement", "noise"),
    "opacity": ("blend",),
    "weight": ("adaptive",),
}
"""Keys of a behaviour that mean something to some kinds only."""

_IN_ONE_PLACE = (
    "behaviour is for a laboratory, where all clients are one's own: leave it out, or use "
    "engine=local or engine=simulation"
)


class BehaviourSpec(_Section):
    """How some clients misbehave: the laboratory's, to prove a defence by."""

    kind: Literal[
        "label_noise",
        "label_flip",
        "patch",
        "blend",
        "semantic",
        "distributed",
        "replacement",
        "stealth",
        "shortcut",
        "colour",
        "adaptive",
        "noise",
        "stale",
    ]
    """What they do; see :mod:`fedgaze.federate.behaviour`."""
    clients: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """Which, counted from 0."""
    target: Annotated[int, Field(ge=0)] = 0
    """The index of the class that they want to be predicted."""
    source: Annotated[int, Field(ge=0)] | None = None
    """The index of the class whose images are to be taken for it. By default, ``label_flip``
    mirrors every class and ``semantic`` takes the class after the target."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Which part of the images that could be changed is; half by default, all where ``label_flip``
    has no ``source``."""
    first_round: Positive = 1
    """Before this round they are honest."""
    scale: Annotated[float, Field(gt=0)] | None = None
    """Of ``replacement``: how many times its update is sent, by default clients by attackers; of
    ``noise``: how many times its usual noise, once by default."""
    opacity: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Of ``blend``: how much of the image the pattern covers."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Of ``adaptive``: of the penalty in the loss."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key, kinds in _OF_BEHAVIOUR.items():
            changed = getattr(self, key) != type(self).model_fields[key].default
            if changed and self.kind not in kinds:
                raise ValueError(
                    f"'{key}' belongs to kind={', '.join(kinds)}, not to kind={self.kind}"
                )
        if len(set(self.clients)) < len(self.clients):
            raise ValueError(f"clients={self.clients} names a client twice")
        mirrors = self.kind == "label_flip" and self.source is None
        if mirrors and self.target:
            raise ValueError(
                f"target={self.target} of kind=label_flip needs 'source': without it every class "
                "is mirrored"
            )
        if self.source == self.target:
            raise ValueError(f"source={self.source} and target={self.target} are one class")
        if self.fraction is None and self.kind in _OF_BEHAVIOUR["fraction"]:
            self.fraction = 1.0 if mirrors else 0.5
        return self


class ContributionSpec(_Section):
    """What each client adds to a round's merged model; ``shapley`` is short for ``by: shapley``."""

    by: Literal["none", "leave_one_out", "shapley"] = "none"
    permutations: Annotated[int, Field(ge=2)] = 50
    """Of Shapley's estimate, where there are too many clients to try every coalition."""
    truncation: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Of Shapley's estimate: an order ends where the loss is this near to everybody's, as a part of
    what the round gained."""


def _contribution(value: object) -> object:
    return {"by": value} if isinstance(value, str) else value


Contributions = Annotated[ContributionSpec, BeforeValidator(_contribution)]


class PrivacySpec(_Section):
    """Differential privacy of the merged weights, client by client."""

    side: Literal["server", "client"] = "server"
    """Who clips an update; the server adds the noise."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    clipping_norm: Annotated[float, Field(gt=0, lt=1e9)]
    """The longest that an update may be; with ``adaptive`` in the first round."""
    noise_multiplier: Annotated[float, Field(ge=0.01, lt=1e6)]
    """The noise of a round's sum of updates, in norms."""
    delta: Fraction = 1e-5
    """The chance that epsilon does not hold; far below one over the number of clients."""
    sampling: Literal["known", "poisson"] = "known"
    """Whether those who see the models know who took part."""
    max_epsilon: Annotated[float, Field(gt=0)] | None = None
    """What may be spent at most."""
    clipped_fraction: Fraction = 0.5
    """With ``adaptive``: the part of the updates that is to be clipped."""
    norm_learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.2
    """With ``adaptive``: how fast the norm follows."""
    count_noise: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    """With ``adaptive``: the noise of the number of clipped updates; a twentieth of the clients of
    a round by default."""
    allow_uncovered: bool = False
    """Let things out of clients that the noise does not cover."""


class ServerSpec(_Section):
    """The server's part: its strategy, and the privacy of what it makes."""

    strategy: Strategy = Field(default_factory=StrategySpec)
    privacy: PrivacySpec | None = None


class WandbSpec(_Section):
    """Weights & Biases, as an older task file names it; the same as ``trackers: [wandb]``."""

    use: bool = False
    key: SecretStr | None = None
    account: str | None = None
    project: str | None = None

    @property
    def secret(self) -> str | None:
        """The key itself, which is written nowhere."""
        return None if self.key is None else self.key.get_secret_value()


class ResourcesSpec(_Section):
    """What one client may use."""

    cpu: Positive = 1
    """Threads."""
    memory: ByteSize = Field(default=ByteSize(2 * 2**30), validate_default=True)


class Task(_Section):
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


def load_task(path: Path, overrides: Sequence[str] = ()) -> Task:
    """Read a task file, apply ``key=value`` overrides, resolve interpolations, validate.

    Args:
        path: A YAML file. Its folder, or the folder above when it is called ``conf``, is the
            task's own directory.
        overrides: Words such as ``xai.layer=conv2`` or ``num_rounds=3``; values are YAML.

    Raises:
        FedgazeError: The file is missing or no YAML mapping, an interpolation leads nowhere, or a
            key or value is not of the schema.
    """
    if not path.is_file():
        raise FedgazeError(f"{path}: no such file; `fedgaze init DIR` writes a starter task")
    values = read_values(path, overrides, "a task", "task_id: x", "num_rounds=3")
    directory = path.resolve().parent
    return parse_task(values, directory.parent if directory.name == "conf" else directory)


def read_values(
    path: Path | None, overrides: Sequence[str], what: str, example: str, override: str
) -> Any:
    """Read a YAML file, apply ``key=value`` overrides, resolve interpolations.

    Args:
        path: The file; None where there are only overrides.
        overrides: Words such as ``num_rounds=3``; values are YAML.
        what: It holds, for people: ``a task``.
        example: Of its keys and values.
        override: An example of an override.

    Raises:
        FedgazeError: The file is missing or no YAML mapping, or an interpolation leads nowhere.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for word in overrides:
        if "=" not in word:
            raise FedgazeError(f"'{word}' is not of the form key=value, such as {override}")
    where = path or "the command line"
    try:
        read = OmegaConf.create({}) if path is None else OmegaConf.load(path)
        if not isinstance(read, DictConfig):
            raise FedgazeError(f"{path}: {what} is a mapping of keys to values, such as {example}")
        config = OmegaConf.merge(read, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OSError as error:
        raise FedgazeError(f"{path} cannot be read: {error.strerror}") from None
    except YAMLError as error:
        raise FedgazeError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    except (OmegaConfBaseException, UnicodeDecodeError) as error:
        raise FedgazeError(f"{where}: {str(error).splitlines()[0]}") from None


def parse_task(values: Any, directory: Path | None = None) -> Task:
    """Validate plain values as a task.

    Raises:
        FedgazeError: A key or value is not of the schema.
    """
    try:
        task = Task.model_validate(values)
    except ValidationError as error:
        raise FedgazeError(sentence_of(error, Task)) from None
    return task.in_directory(directory)


# What pydantic says for programmers, as a person who writes a task would say it.
_ALLOWED = {
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "string_pattern_mismatch": "a name of letters, digits, '.', '_' and '-'",
    "byte_size": "a size such as 512MiB or 2GiB",
    "union": "a name, a whole number or a list of these",
}
_UNION = {"str", "int", "list[union[str,int]]"}


def sentence_of(error: ValidationError, schema: type[BaseModel]) -> str:
    """Say the first thing that is wrong, and how many more there are.

    Args:
        error: Of validating something.
        schema: What it should have been.
    """
    problems = error.errors(include_url=False)
    # An unknown key explains a missing one, so it is told first.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    keys = [part for part in first["loc"] if part not in _UNION]
    name = ".".join(str(key) for key in keys)
    secret = {"wandb", "storage"}.intersection(first["loc"])
    value = "***" if secret else first["input"]
    if first["type"] == "extra_forbidden":
        allowed = _keys(first["loc"][:-1], schema)
        text = f"unknown key '{name}'={value!r}{nearest(str(keys[-1]), allowed)}"
        if "did you mean" not in text:
            text += f"; allowed are {', '.join(allowed)}"
    elif first["type"] == "missing":
        text = f"the key '{name}' is missing"
    elif first["type"] == "literal_error":
        allowed = list(_literals(first["ctx"]["expected"]))
        text = f"{name}={value}: allowed are {', '.join(allowed)}{nearest(str(value), allowed)}"
    elif first["type"] in _ALLOWED or len(keys) < len(first["loc"]):
        text = f"{name}={value!r}: {_ALLOWED.get(first['type'], _ALLOWED['union'])} is allowed"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        text = f"{name}={value!r}: {reason[0].lower()}{reason[1:]}" if name else reason
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def _literals(expected: str) -> list[str]:
    return [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]


def _keys(path: Sequence[str | int], section: type[BaseModel]) -> list[str]:
    """The keys allowed in the section that a path of keys leads to."""
    for key in path:
        field = next((f for n, f in section.model_fields.items() if key in (n, f.alias)), None)
        if field is None:
            break
        section = next(filter(_is_section, _members(field.annotation)), section)
    return sorted(field.alias or name for name, field in section.model_fields.items())


def _members(annotation: Any) -> Mapping[Any, None]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return dict.fromkeys(get_args(annotation) if union else [annotation])


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
