"""The sections of a task."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

__all__ = [
    "BehaviourSpec",
    "ContributionSpec",
    "Contributions",
    "DatasetSpec",
    "FileName",
    "GateSpec",
    "ModelSpec",
    "PlantSpec",
    "Positive",
    "PrivacySpec",
    "ResourcesSpec",
    "Section",
    "SelectionSpec",
    "ServerSpec",
    "Share",
    "StrategySpec",
    "WandbSpec",
    "XaiSpec",
]

Share = Literal["none", "profile", "maps", "overlays"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
FileName = Annotated[str, Field(pattern=r"^[\w][\w.-]*$")]


class Section(BaseModel):
    """A part of a configuration, in which no key is unknown."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, use_attribute_docstrings=True)


class _Target(Section):
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


class PlantSpec(Section):
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


class DatasetSpec(Section):
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


class XaiSpec(Section):
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


class GateSpec(Section):
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


class SelectionSpec(Section):
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


class BehaviourSpec(Section):
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


class ContributionSpec(Section):
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


class PrivacySpec(Section):
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


class ServerSpec(Section):
    """The server's part: its strategy, and the privacy of what it makes."""

    strategy: Strategy = Field(default_factory=StrategySpec)
    privacy: PrivacySpec | None = None


class WandbSpec(Section):
    """Weights & Biases, as an older task file names it; the same as ``trackers: [wandb]``."""

    use: bool = False
    key: SecretStr | None = None
    account: str | None = None
    project: str | None = None

    @property
    def secret(self) -> str | None:
        """The key itself, which is written nowhere."""
        return None if self.key is None else self.key.get_secret_value()


class ResourcesSpec(Section):
    """What one client may use."""

    cpu: Positive = 1
    """Threads."""
    memory: ByteSize = Field(default=ByteSize(2 * 2**30), validate_default=True)
