"""An experiment: every combination of data, split, behaviour, defence and seed is a cell."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedgaze import __version__
from fedgaze.config import Task, parse_task, read_values, sentence_of
from fedgaze.errors import FedgazeError
from fedgaze.federate.gate import find_measures
from fedgaze.federate.gate.calibrated import HEIGHT, MEMORY
from fedgaze.federate.lab.defences import REFERENCES, find_defence
from fedgaze.federate.lab.presets import PRESETS, preset
from fedgaze.federate.lab.scenarios import HONEST, Scenario, read_scenario
from fedgaze.federate.limits import lacking

__all__ = [
    "GATE",
    "Cell",
    "Experiment",
    "Plan",
    "Setting",
    "beside_gate",
    "gated",
    "parse_plan",
    "read_plan",
]

GATE = "gate"
TRIAL_ROUNDS = 5
"""Of the small trial, which is to end in a few minutes."""
SAMPLES = 5
"""Probe images of each class, on which the server looks at updates."""


def _listed(value: object) -> object:
    """One alone needs no brackets."""
    return value if isinstance(value, list) else [value]


def _counted(value: object) -> object:
    """``0-9`` are ten seeds, and ``0-4,7`` six."""
    found: list[object] = []
    for each in value if isinstance(value, list) else str(value).split(","):
        first, dash, last = str(each).strip().partition("-")
        if dash and first.isdigit() and last.isdigit():
            found += range(int(first), int(last) + 1)
        else:
            found.append(int(first) if not dash and first.isdigit() else each)
    return found


Name = Annotated[str, Field(pattern=r"^[\w][\w.-]*$")]
Split = Annotated[str, Field(pattern=r"^(iid|dirichlet-\d+(\.\d+)?)$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class DataSpec(_Section):
    """Data and how models learn from it: keys of a task, and a preset to begin with."""

    name: Name
    """What it is called."""
    preset: Literal["digits", "scenes", "mnist", "fashion_mnist", "cifar10"] | None = None
    """By default the one of its name, if there is one."""
    root: Path | None = None
    """The folder of local files, of presets that need it; by default FEDGAZE_DATA."""
    dataset: dict[str, Any] = {}
    model: dict[str, Any] = {}
    xai: dict[str, Any] = {}
    learning_rate: float | None = None
    optimizer: str | None = None
    batch_size: int | None = None
    num_epochs: int | None = None
    num_rounds: int | None = None


class Experiment(_Section):
    """What is tried; each of these may be one or a list. Left out, a small trial is made."""

    data: Annotated[list[str | dict[str, Any]], BeforeValidator(_listed)] = ["digits"]
    """Names of presets, or mappings: ``name``, ``preset``, ``root``, and keys of a task."""
    splits: Annotated[list[Split], BeforeValidator(_listed)] = ["iid", "dirichlet-0.5"]
    """``iid``, or ``dirichlet-`` and its concentration."""
    behaviours: Annotated[list[str | dict[str, Any]], BeforeValidator(_listed)] = [
        HONEST,
        "patch",
        "shortcut",
    ]
    """Kinds, or keys of a task's ``behaviour`` without its clients; ``none`` are honest ones."""
    clients: Annotated[list[Annotated[int, Field(ge=2)]], BeforeValidator(_listed)] = [10]
    """How many there are."""
    attackers: Annotated[list[Share], BeforeValidator(_listed)] = [0.3]
    """Which part of them attacks, rounded; who, the seed draws."""
    seeds: Annotated[list[Seed], BeforeValidator(_counted)] = [0, 1]
    """A list, or ``0-9``."""
    defences: Annotated[list[str], BeforeValidator(_listed)] = ["none", GATE]
    """Names; ``gate+NAME`` is the gate, and another on what it leaves."""
    rounds: Annotated[int, Field(ge=1)] | None = None
    """Of every run; by default as each data set says."""


@dataclass(frozen=True)
class Setting:
    """Where a defence is tried: all cells of a setting differ in seed and defence only.

    Attributes:
        data: Name of the data.
        split: ``iid`` or ``dirichlet-ALPHA``.
        clients: How many.
        attackers: How many of them attack; where nobody does, how many defences are told to expect.
        behaviour: Name of what attackers do.
    """

    data: str
    split: str
    clients: int
    attackers: int
    behaviour: str

    @property
    def honest(self) -> "Setting":
        """The same without attackers."""
        return Setting(self.data, self.split, self.clients, self.attackers, HONEST)


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        setting: Where.
        defence: Against what attackers do.
        seed: Of all that is drawn.
        values: The task.
        directory: The task's own.
    """

    setting: Setting
    defence: str
    seed: int
    values: Mapping[str, Any]
    directory: Path | None = None

    @property
    def id(self) -> str:
        """A name for files: the same for the same cell of another plan."""
        at = self.setting
        parts = (at.data, at.split, at.behaviour, f"{at.attackers}of{at.clients}", self.defence)
        return re.sub(r"[^\w.,=+-]+", "-", "_".join([*parts, f"seed{self.seed}"]))

    @cached_property
    def task(self) -> Task:
        """The task, checked.

        Raises:
            FedgazeError: A key or value is not of the schema.
        """
        return parse_task(dict(self.values), self.directory)

    @property
    def attackers(self) -> list[int]:
        """Who attacks."""
        spec = self.task.behaviour
        return [] if spec is None else list(spec.clients)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides the result."""
        decides = {
            "fedgaze": __version__,
            "task": self.task.public(),
            "defence": self.defence,
            "attackers": self.setting.attackers,
            "gate": _gate() if self.defence in REFERENCES or gated(self.defence) else None,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _gate() -> list[Any]:
    """What decides what the gate thinks, other than the updates."""
    measures = [
        (each.name, each.per, each.suspect, each.floor, each.weight, each.against)
        for each in find_measures(None)
    ]
    return [HEIGHT, MEMORY, *measures]


@dataclass(frozen=True)
class Plan:
    """An experiment that can be carried out.

    Attributes:
        experiment: As it was given.
        data: Keys of a task by the data's name.
        scenarios: What attackers do.
        directory: Of the file, where models and data sets of one's own are.
    """

    experiment: Experiment
    data: Mapping[str, Mapping[str, Any]]
    scenarios: Sequence[Scenario]
    directory: Path | None = None

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All of them, seed by seed, so that what is done after a while is a smaller experiment.

        Raises:
            FedgazeError: A task cannot be.
        """
        asked = self.experiment
        crowds = [
            (each, round(share * each)) for each in asked.clients for share in asked.attackers
        ]
        found = {}
        for seed, data, split, (clients, attackers), scenario, defence in product(
            asked.seeds,
            self.data,
            asked.splits,
            dict.fromkeys(crowds),
            self.scenarios,
            asked.defences,
        ):
            setting = Setting(data, split, clients, attackers, scenario.name)
            cell = self._cell(setting, scenario, defence, seed)
            found[cell.id] = cell
        for cell in found.values():
            _ = cell.task
        return tuple(found.values())

    def _cell(self, setting: Setting, scenario: Scenario, defence: str, seed: int) -> Cell:
        own = dict(self.data[setting.data])
        kind, _, alpha = setting.split.partition("-")
        split = {"partition": kind} | ({"alpha": float(alpha)} if alpha else {})
        other = find_defence(beside_gate(defence) or "none")
        values = own | {
            "task_id": "lab",
            "random_seed": seed,
            "dataset": {**own.get("dataset", {}), **split},
            "num_clients": setting.clients,
            "server": {"strategy": other.strategy(setting.clients, setting.attackers)},
            # Some defences keep a single update.
            "gate": {"floor": 1, "policy": "reject" if gated(defence) else "report"},
            "xai": {
                "samples_per_class": SAMPLES,
                **own.get("xai", {}),
                "enabled": gated(defence) or defence in (*REFERENCES, "probe_accuracy"),
                "run_location": "server",
                "pictures": False,
            },
            "device": "cpu",
        }
        if self.experiment.rounds is not None:
            values["num_rounds"] = self.experiment.rounds
        if scenario.values:
            drawn = np.random.default_rng([seed, setting.clients]).permutation(setting.clients)
            who = sorted(drawn[: setting.attackers].tolist())
            values["behaviour"] = {**scenario.values, "clients": who}
        return Cell(setting, defence, seed, values, self.directory)


def gated(defence: str) -> bool:
    """Whether the gate is a defence, or part of it."""
    return defence.partition("+")[0] == GATE


def beside_gate(defence: str) -> str | None:
    """What works behind the gate, or without it; None where the gate is alone."""
    first, _, second = defence.partition("+")
    return (second or None) if first == GATE else first


def read_plan(path: Path | None, overrides: Sequence[str] = ()) -> Plan:
    """Read an experiment's file, and what overrules it; with neither, the small trial.

    Args:
        path: A YAML file, or None.
        overrides: Words such as ``seeds=0-9``; values are YAML.

    Raises:
        FedgazeError: The file is missing or no YAML mapping, or something in it cannot be.
    """
    if path is not None and not path.is_file():
        raise FedgazeError(f"{path}: no such file; without one, fedgaze lab makes a small trial")
    if path is None and not overrides:
        return parse_plan({"rounds": TRIAL_ROUNDS})
    values = read_values(path or {}, overrides, "an experiment", "data: [digits]", "seeds=0-9")
    return parse_plan(values, None if path is None else path.resolve().parent)


def parse_plan(values: Any, directory: Path | None = None) -> Plan:
    """Check plain values as an experiment.

    Raises:
        FedgazeError: Something in it cannot be.
    """
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        raise FedgazeError(sentence_of(error, Experiment)) from None
    for key in Experiment.model_fields:
        if getattr(experiment, key) == []:
            raise FedgazeError(f"{key}=[]: at least one is needed")
    data = dict(map(_read_data, experiment.data))
    scenarios = [read_scenario(each) for each in experiment.behaviours]
    names = [each.name for each in scenarios]
    for key, count in (("data", len(data)), ("behaviours", len(set(names)))):
        if count < len(getattr(experiment, key)):
            raise FedgazeError(f"{key}: each needs a name of its own")
    for defence in experiment.defences:
        for clients, share in product(experiment.clients, experiment.attackers):
            _check(defence, clients, round(share * clients), share, attacked=names != [HONEST])
    return Plan(experiment, data, scenarios, directory)


def _check(defence: str, clients: int, attackers: int, share: float, *, attacked: bool) -> None:
    """See that a defence can do anything at all, and that there is something to do."""
    if attacked and not 0 < attackers < clients:
        raise FedgazeError(
            f"attackers={share:g} of {clients} clients makes {attackers}: at least 1, and one less "
            "than there are clients, is allowed"
        )
    other = beside_gate(defence)
    if ("+" in defence and not gated(defence)) or (other in REFERENCES and other != defence):
        raise FedgazeError(f"defences: '{defence}' is none: allowed are NAME, gate and gate+NAME")
    if other is None:
        return
    strategy = find_defence(other).strategy(clients, attackers)
    arguments = {key: value for key, value in strategy.items() if key != "_target_"}
    kind = strategy["_target_"]
    if other in ("krum", "multi_krum"):  # which choose among updates themselves
        kind, arguments = "Krum", {"num_malicious_nodes": attackers}
    if why := lacking(kind, arguments, clients):
        raise FedgazeError(f"defences: {defence} can do nothing: {why}")


_OURS = {"dataset": ("partition", "alpha"), "xai": ("enabled", "run_location", "pictures")}
"""Keys of a task that an experiment decides."""


def _read_data(said: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    try:
        spec = DataSpec.model_validate({"name": said} if isinstance(said, str) else said)
    except ValidationError as error:
        raise FedgazeError(f"data: {sentence_of(error, DataSpec)}") from None
    name = spec.preset or (spec.name if spec.name in PRESETS else None)
    changes = spec.model_dump(exclude_unset=True, exclude={"name", "preset", "root"})
    for key, ours in _OURS.items():
        for each in ours:
            if each in changes.get(key, {}):
                raise FedgazeError(
                    f"data: {spec.name} sets {key}.{each}, which is the experiment's"
                )
    if name is None and not ("model" in changes and "dataset" in changes):
        raise FedgazeError(
            f"data: {spec.name} is none of {', '.join(PRESETS)}, so it needs 'dataset' and 'model'"
        )
    return spec.name, preset(name, changes, spec.root)
