"""From cells to tables: what each defence saw, did and cost, setting by setting and over all."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedgaze.federate.lab.defences import REFERENCES
from fedgaze.federate.lab.plan import GATE, Setting, beside_gate, gated
from fedgaze.federate.lab.scenarios import HONEST
from fedgaze.measure import Summary, summarise
from fedgaze.store import atomic

__all__ = ["NUMBERS", "Results", "Row", "Run"]

KEPT = 0.02
"""An attacker keeps clean accuracy if it costs no more of it than this."""
NUMBERS = (
    "auc",
    "tpr_1",
    "tpr_5",
    "own_auc",
    "own_tpr_1",
    "own_tpr_5",
    "benign_rejected",
    "detected",
    "rounds_to_detection",
    "attack_success",
    "accuracy",
    "accuracy_lost",
    "cost",
)
"""What a row says; :data:`fedgaze.report.lab.columns.COLUMNS` says what each means."""
Suspicion = tuple[float, float]
"""What a defence thinks of an update, so that the greater is the more suspect."""


@dataclass(frozen=True, eq=False)
class Run:
    """A cell's result.

    Attributes:
        found: What :func:`fedgaze.federate.lab.cell.carry_out` returned.
    """

    found: Mapping[str, Any]

    @cached_property
    def setting(self) -> Setting:
        """Where it was."""
        own = dict(self.found["cell"])
        return Setting(**{key: own[key] for key in Setting.__dataclass_fields__})

    @property
    def defence(self) -> str:
        """Against what attackers did."""
        return str(self.found["cell"]["defence"])

    @property
    def seed(self) -> int:
        """Of all that was drawn."""
        return int(self.found["cell"]["seed"])

    @property
    def adaptive(self) -> bool:
        """Whether attackers knew of heatmaps."""
        return bool((self.found["task"]["behaviour"] or {}).get("kind") == "adaptive")

    def suspicions(self, defence: str) -> tuple[list[bool], list[Suspicion]]:
        """Of all updates that a defence has an opinion on: who attacked, and what it thought."""
        pairs = [
            (bool(each["attacker"]), found)
            for record in self.found["rounds"]
            for each in record["clients"]
            if (found := _suspicion(each, defence)) is not None
        ]
        return [attacked for attacked, _ in pairs], [found for _, found in pairs]

    @property
    def scored(self) -> list[str]:
        """The defences that had an opinion on any update."""
        names = (
            name
            for record in self.found["rounds"]
            for each in record["clients"]
            for name in each["scores"]
        )
        return list(dict.fromkeys(names))

    @property
    def benign_rejected(self) -> float:
        """Which part of the honest updates was left out."""
        out = [
            each["factor"] == 0
            for record in self.found["rounds"]
            for each in record["clients"]
            if not each["attacker"]
        ]
        return sum(out) / len(out) if out else math.nan

    @property
    def detections(self) -> list[int | None]:
        """Of each attacker, in which of its rounds it was left out first; None for never."""
        seen: dict[int, list[bool]] = {}
        for record in self.found["rounds"]:
            for each in record["clients"]:
                if each["attacker"]:
                    seen.setdefault(each["client"], []).append(each["factor"] == 0)
        return [out.index(True) + 1 if any(out) else None for out in seen.values()]

    def cost(self, defence: str) -> float:
        """CPU time of a defence as a part of what the rounds take without any.

        What the gate costs is the looks at the updates, too. The look at the merged model is for
        the record only, and is left out of both.
        """
        plain = spent = 0.0
        for record in self.found["rounds"]:
            took = record["cpu_seconds"]
            each = took["defences"]
            plain += took["round"] - took["looks"] - took["merged_look"] - sum(each.values())
            spent += each.get(beside_gate(defence) or GATE, 0.0)
            if gated(defence):
                spent += took["looks"] + (each.get(GATE, 0.0) if beside_gate(defence) else 0.0)
        return spent / plain if plain > 0 else math.nan


def _suspicion(client: Mapping[str, Any], defence: str) -> Suspicion | None:
    """What a defence thinks of an update; who is out by the gate comes before all others."""
    scores, beside = client["scores"], beside_gate(defence)
    if beside is None or (gated(defence) and client["factors"].get(GATE) == 0):
        return (1.0, scores[GATE]) if GATE in scores else None
    return (0.0, scores[beside]) if beside in scores else None


def _ranks(suspicions: Sequence[Suspicion]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Their places among each other, equal ones together."""
    places = {each: place for place, each in enumerate(sorted(set(suspicions)))}
    return np.array([places[each] for each in suspicions], dtype=np.int64)


def auc(attacked: Sequence[bool], suspicions: Sequence[Suspicion]) -> float:
    """The area under the ROC curve; NaN where all did the same."""
    from sklearn.metrics import roc_auc_score

    if len(set(attacked)) < 2:
        return math.nan
    return float(roc_auc_score(attacked, _ranks(suspicions)))


def true_positives(
    runs: Sequence[tuple[Sequence[bool], Sequence[Suspicion]]], most: float
) -> list[float]:
    """Which part of the attacking updates of each run lies at or above one threshold for all.

    The threshold is the lowest at which no more than a part of the honest updates, those of all
    runs together, does: a single run has too few of them to tell 1 % apart.

    Args:
        runs: Of one setting: who attacked, and what was thought.
        most: The part.
    """
    from sklearn.metrics import roc_curve

    attacked = np.array([each for labels, _ in runs for each in labels], dtype=bool)
    if len(set(attacked.tolist())) < 2:
        return [math.nan] * len(runs)
    ranks = _ranks([each for _, found in runs for each in found])
    false, _, thresholds = roc_curve(attacked, ranks, drop_intermediate=False)
    threshold = thresholds[false <= most].min()
    found, start = [], 0
    for labels, _ in runs:
        part = slice(start, start := start + len(labels))
        above = ranks[part][attacked[part]] >= threshold
        found.append(float(above.mean()) if len(above) else math.nan)
    return found


@dataclass(frozen=True, eq=False)
class Row:
    """What a defence came to in one setting.

    Attributes:
        setting: Which.
        defence: Which.
        runs: How many with this defence.
        values: By number and seed.
    """

    setting: Setting
    defence: str
    runs: int
    values: Mapping[str, Mapping[int, float]]

    @cached_property
    def numbers(self) -> dict[str, Summary]:
        """Means over seeds, of the numbers that there are."""
        sums = {name: summarise(list(each.values())) for name, each in self.values.items()}
        return {name: each for name, each in sums.items() if each.n}


class Results:
    """All that came of an experiment.

    Args:
        found: What :func:`fedgaze.federate.lab.cell.carry_out` returned, of every cell that is
            done; those that failed are told, and count nowhere.
    """

    def __init__(self, found: Iterable[Mapping[str, Any]]) -> None:
        every = list(found)
        self.failed = [each for each in every if "failed" in each]
        self.runs = [Run(each) for each in every if "failed" not in each]
        self._by: dict[tuple[Setting, str], dict[int, Run]] = {}
        for run in self.runs:
            self._by.setdefault((run.setting, run.defence), {})[run.seed] = run
        self.settings = list(dict.fromkeys(run.setting for run in self.runs))

    @cached_property
    def rows(self) -> list[Row]:
        """A row a setting and defence, those with runs of their own first."""
        return [
            self._row(setting, defence)
            for setting in self.settings
            for defence in dict.fromkeys([*self._defences(setting), *self._scored(setting)])
        ]

    def _of(self, setting: Setting, defence: str) -> dict[int, Run]:
        """Runs by seed."""
        return self._by.get((setting, defence), {})

    def _defences(self, setting: Setting) -> list[str]:
        return [defence for at, defence in self._by if at == setting]

    def _scored(self, setting: Setting) -> list[str]:
        """What defences think is of interest where somebody attacks."""
        if setting.behaviour == HONEST:
            return []
        return [name for run in self._of(setting, "none").values() for name in run.scored]

    def _row(self, setting: Setting, defence: str) -> Row:
        own, same = self._of(setting, defence), self._of(setting, "none")
        values: dict[str, Mapping[int, float]] = {}
        if defence not in REFERENCES and "+" not in defence:
            values |= _told_apart(same, defence, "")
        if defence not in REFERENCES:
            values |= _told_apart(own, defence, "own_")
            values["cost"] = _each(own or same, lambda run: run.cost(defence))
            values["benign_rejected"] = _each(own, lambda run: run.benign_rejected)
            values["detected"] = _each(own, _detected)
            values["rounds_to_detection"] = _each(own, _rounds_to_detection)
        values["attack_success"] = _each(own, lambda run: _number(run.found["attack_success"]))
        values["accuracy"] = _each(own, lambda run: _number(run.found["accuracy"]))
        values["accuracy_lost"] = self._lost(setting, defence)
        return Row(setting, defence, len(own), values)

    def _lost(self, setting: Setting, defence: str) -> dict[int, float]:
        """Final accuracy, against a run of the same seed without attackers and without defence."""
        best = self._of(setting.honest, "none")
        return {
            seed: _number(best[seed].found["accuracy"]) - _number(run.found["accuracy"])
            for seed, run in self._of(setting, defence).items()
            if seed in best
        }

    def keeps_accuracy(self, setting: Setting) -> bool | None:
        """Whether attackers, where nobody defends, cost no more than 2 points; None: not known."""
        lost = summarise(list(self._lost(setting, "none").values()))
        return bool(lost.mean <= KEPT) if lost.n else None

    def kind(self, setting: Setting) -> str:
        """To which group of settings one belongs: see :meth:`groups`."""
        if setting.behaviour == HONEST:
            return HONEST
        if any(run.adaptive for run in self.runs if run.setting == setting):
            return "adaptive"
        return {True: "kept", False: "costly", None: "unknown"}[self.keeps_accuracy(setting)]

    def groups(self) -> dict[str, list[Setting]]:
        """The settings with attackers: ``kept`` and ``costly`` by what they do to clean accuracy.

        ``adaptive`` are those who know of heatmaps, and ``unknown`` those of whom a run without a
        defence is missing.
        """
        found: dict[str, list[Setting]] = {}
        for kind in ("kept", "costly", "adaptive", "unknown"):
            if chosen := [each for each in self.settings if self.kind(each) == kind]:
                found[kind] = chosen
        return found

    def total(self, settings: Sequence[Setting], defence: str) -> dict[str, Any]:
        """A defence over several settings: means of each seed's means, and the worst AUC."""
        rows = [each for each in self.rows if each.defence == defence and each.setting in settings]
        whole = {name: _over(row.values.get(name, {}) for row in rows) for name in NUMBERS}
        beside = {each.honest for each in settings}
        honest = [each for each in self.rows if each.defence == defence and each.setting in beside]
        whole["benign_rejected_honest"] = _over(
            row.values.get("benign_rejected", {}) for row in honest
        )
        sums = {name: summarise(list(each.values())) for name, each in whole.items()}
        known = [row for row in rows if "auc" in row.numbers]
        worst = min(known, key=lambda row: row.numbers["auc"].mean, default=None)
        return {
            "defence": defence,
            "numbers": {name: shown(each) for name, each in sums.items() if each.n},
            "worst": None
            if worst is None
            else {"auc": worst.numbers["auc"].mean, "setting": asdict(worst.setting)},
        }

    def summary(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "groups": [
                {
                    "name": name,
                    "settings": [asdict(each) for each in settings],
                    "rows": [
                        self.total(settings, defence)
                        for defence in dict.fromkeys(
                            row.defence for row in self.rows if row.setting in settings
                        )
                    ],
                }
                for name, settings in self.groups().items()
            ],
            "settings": [
                {
                    **asdict(setting),
                    "kind": self.kind(setting),
                    "rows": [
                        {
                            "defence": row.defence,
                            "runs": row.runs,
                            "numbers": {name: shown(each) for name, each in row.numbers.items()},
                        }
                        for row in self.rows
                        if row.setting == setting
                    ],
                }
                for setting in self.settings
            ],
            "failed": [{"id": each["id"], "reason": each["failed"]} for each in self.failed],
            "failures": [
                {"id": run.found["id"], **each}
                for run in self.runs
                for each in run.found["failures"]
            ],
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``results.parquet`` and ``results.csv``, a row a setting and defence."""
        import pyarrow as pa
        from pyarrow import csv, parquet

        texts = ("data", "split", "behaviour", "kind", "defence")
        fields = [(name, pa.string()) for name in texts]
        fields += [(name, pa.int64()) for name in ("clients", "attackers", "runs")]
        ends = ("", "_low", "_high")
        fields += [(f"{name}{end}", pa.float64()) for name in NUMBERS for end in ends]
        rows = pa.Table.from_pylist([self._flat(row) for row in self.rows], pa.schema(fields))
        paths = [folder / "results.parquet", folder / "results.csv"]
        for path, write in zip(paths, (parquet.write_table, csv.write_csv), strict=True):
            with atomic(path) as temporary:
                write(rows, str(temporary))
        return paths

    def _flat(self, row: Row) -> dict[str, Any]:
        found = {**asdict(row.setting), "kind": self.kind(row.setting)}
        found |= {"defence": row.defence, "runs": row.runs}
        for name, total in row.numbers.items():
            for end, value in (("", total.mean), ("_low", total.low), ("_high", total.high)):
                found[f"{name}{end}"] = value if math.isfinite(value) else None
        return found


def _told_apart(runs: Mapping[int, Run], defence: str, before: str) -> dict[str, dict[int, float]]:
    """How well a defence tells attackers from others, by number and seed."""
    found = {seed: run.suspicions(defence) for seed, run in runs.items()}
    areas = {seed: auc(*each) for seed, each in found.items()}
    rates = {
        percent: dict(zip(found, true_positives(list(found.values()), percent / 100), strict=True))
        for percent in (1, 5)
    }
    return {
        f"{before}auc": areas,
        **{f"{before}tpr_{percent}": each for percent, each in rates.items()},
    }


def _each(runs: Mapping[int, Run], number: Callable[[Run], float]) -> dict[int, float]:
    return {seed: number(run) for seed, run in runs.items()}


def _detected(run: Run) -> float:
    """Which part of the attackers was left out at all."""
    found = run.detections
    return sum(each is not None for each in found) / len(found) if found else math.nan


def _rounds_to_detection(run: Run) -> float:
    """After how many rounds of attack those who were left out were so, in the mean."""
    found = [each for each in run.detections if each is not None]
    return sum(found) / len(found) if found else math.nan


def _over(parts: Iterable[Mapping[int, float]]) -> dict[int, float]:
    """The mean over settings of each seed, of those that have a value."""
    gathered: dict[int, list[float]] = {}
    for part in parts:
        for seed, value in part.items():
            if math.isfinite(value):
                gathered.setdefault(seed, []).append(value)
    return {seed: sum(each) / len(each) for seed, each in gathered.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def shown(total: Summary) -> dict[str, Any]:
    """A mean with its interval, as JSON."""
    ends = {"mean": total.mean, "low": total.low, "high": total.high}
    return {name: value if math.isfinite(value) else None for name, value in ends.items()} | {
        "n": total.n
    }
