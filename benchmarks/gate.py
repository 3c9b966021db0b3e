"""The gate's weights, from runs of the laboratory in which nobody let the attackers in.

    fedgaze lab seeds=0-9 defences=oracle behaviours=[…] --output calibration
    python benchmarks/gate.py calibration

prints what belongs in ``src/fedgaze/federate/gate/calibrated.py``. Weights are those of a logistic
regression without negative ones: every run counts alike, and in it attackers as much as honest
clients. The height is where no more than a part of the honest client-rounds of runs without
attackers get, in each split. ``--folds`` fits on even seeds and judges on odd ones, and the other
way round.
"""

import argparse
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score

from fedgaze.federate.gate.calibrated import MEMORY
from fedgaze.federate.gate.gate import strength_of

PENALTY = 0.001
"""On the sum of the weights."""
LEAST = {
    "degenerate": 0.5,
    "light": 0.7,
    "contrast": 0.5,
    "own_border_mass": 1.5,
    "pull": 0.3,
    "pattern": 0.2,
}
"""Weights that are no less. The runs have models with BatchNorm, attackers who forge nothing of
what it counted, and clients who say nothing of themselves. That of ``light`` comes from runs of
which nothing that was counted was used, those of ``contrast`` and ``own_border_mass`` from the demo
with seeds 20 to 35."""
REJECTED = 0.005
"""Of honest client-rounds without attackers, in each split: half of what is promised."""
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Trial:
    """A run: evidence by round, client and measure, and who attacked.

    Attributes:
        where: Data, split, and behaviour with the number of clients.
        seed: Of the run.
        strengths: Of each measure, ``(rounds, clients, measures)``.
        attacked: bool ``(rounds, clients)``.
    """

    where: tuple[str, str, str]
    seed: int
    strengths: Array
    attacked: np.ndarray[Any, np.dtype[np.bool_]]

    @cached_property
    def remembered(self) -> Array:
        """Of each round, with what is remembered of those before."""
        found = [self.strengths[0]]
        for each in self.strengths[1:]:
            found.append(MEMORY * found[-1] + each)
        return np.stack(found)


def read(folder: Path) -> tuple[list[str], list[Trial]]:
    """All runs of the oracle in a laboratory's folder."""
    found, names = [], None
    for file in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(file.read_text())
        if "failed" in cell or cell["cell"]["defence"] != "oracle":
            continue
        rounds = [each["clients"] for each in cell["rounds"]]
        names = names or list(rounds[0][0]["spreads"])
        spreads = np.array([[[one["spreads"][n] for n in names] for one in r] for r in rounds])
        at = cell["cell"]
        found.append(
            Trial(
                (at["data"], at["split"], f"{at['behaviour']} of {at['clients']}"),
                at["seed"],
                np.vectorize(strength_of)(spreads),
                np.array([[one["attacker"] for one in r] for r in rounds]),
            )
        )
    if names is None:
        raise SystemExit(f"{folder} holds no run of the oracle")
    return names, found


def fit(names: list[str], trials: list[Trial]) -> Array:
    """Weights of the measures, and the bias as the last."""
    x = np.concatenate([each.remembered.reshape(-1, each.strengths.shape[2]) for each in trials])
    y = np.concatenate([each.attacked.ravel() for each in trials])
    counts = np.concatenate([_alike(each.attacked.ravel()) for each in trials])
    counts /= counts.sum()
    x = np.column_stack([x, np.ones(len(x))])

    def loss(w: Array) -> tuple[float, Array]:
        margin = x @ w
        value = counts @ (np.logaddexp(0, margin) - y * margin) + PENALTY * w[:-1].sum()
        slope = x.T @ (counts * (1 / (1 + np.exp(-margin)) - y))
        slope[:-1] += PENALTY
        return float(value), slope

    bounds = [(LEAST.get(name, 0.0), None) for name in names] + [(None, None)]
    weights: Array = minimize(loss, np.zeros(len(bounds)), jac=True, bounds=bounds).x
    return weights


def _alike(attacked: np.ndarray[Any, np.dtype[np.bool_]]) -> Array:
    """Attackers together count as much as the honest ones together."""
    parts = np.where(attacked, 1 / max(1, attacked.sum()), 1 / max(1, (~attacked).sum()))
    shares: Array = parts / parts.sum()
    return shares


def evidence(trial: Trial, weights: Array) -> Array:
    """As the gate has it, ``(rounds, clients)``: without the bias, which is in the height."""
    whole: Array = trial.remembered @ weights[:-1]
    return whole


def height(trials: list[Trial], weights: Array) -> float:
    """Where no more than ``REJECTED`` of the honest client-rounds get, whatever the split."""
    honest = defaultdict(list)
    for each in trials:
        if not each.attacked.any():
            honest[each.where].append(evidence(each, weights).ravel())
    found = (np.quantile(np.concatenate(some), 1 - REJECTED) for some in honest.values())
    return float(max(found, default=math.nan))


def judged(trials: list[Trial], weights: Array, at: float) -> dict[tuple[str, str, str], Array]:
    """By setting: ROC-AUC and true positives (NaN without attackers), and false positives."""
    rows = defaultdict(list)
    for each in trials:
        found, bad = evidence(each, weights), each.attacked
        over = found >= at
        auc = roc_auc_score(bad.ravel(), found.ravel()) if bad.any() else math.nan
        caught = over[bad].mean() if bad.any() else math.nan
        rows[each.where].append((auc, caught, over[~bad].mean()))
    return {where: np.array(some).mean(0) for where, some in sorted(rows.items())}


def table(rows: dict[tuple[str, str, str], Array]) -> None:
    print(f"{'':44}   AUC  true  false")
    for where, (auc, caught, wrong) in rows.items():
        print(f"{' '.join(where):44} {auc:.3f} {caught:.3f} {wrong:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", action="store_true")
    asked = parser.parse_args()
    names, trials = read(asked.folder)
    if asked.folds:
        for fold in (0, 1):
            weights = fit(names, own := [each for each in trials if each.seed % 2 != fold])
            table(judged([t for t in trials if t.seed % 2 == fold], weights, height(own, weights)))
    weights = fit(names, trials)
    at = height(trials, weights)
    table(judged(trials, weights, at))
    print(f"\nHEIGHT = {at:.1f}")
    for value, name in sorted(zip(weights[:-1], names, strict=True), reverse=True):
        if value >= 0.05:
            print(f'"{name}": {value:.2f},')


if __name__ == "__main__":
    main()
