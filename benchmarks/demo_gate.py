"""Whom does the gate keep out of the demo? Prints the table of docs/gate.md.

For each seed the demo is carried out with ``gate.policy=reject``, with the planted client and with
nothing planted.

    python benchmarks/demo_gate.py 0 20
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from demo_seeds import Silent
from fedgaze.federate import demo_task, start
from fedgaze.federate.demo import PLANTED

QUIET = ("gate.policy=reject", "xai.pictures=false", "xai.share=profile")


def carried_out(seed: int, *more: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        summary: dict[str, Any] = start(
            demo_task(seed, [*QUIET, *more]), Path(folder) / "demo", Silent()
        ).summary
    return summary


def kept_out(summary: dict[str, Any]) -> list[list[int]]:
    """The clients that were kept out, round by round."""
    rounds = [each["gate"]["clients"] for each in summary["rounds"]]
    return [[one["client"] for one in each if one["factor"] == 0] for each in rounds]


def cost(summary: dict[str, Any]) -> float:
    """CPU time of the gate, as a part of what the rounds took."""
    systems = [each["system"] for each in summary["rounds"]]
    spent: float = sum(s["gate_cpu_seconds"] for s in systems)
    whole: float = sum(s["cpu_seconds"] for s in systems)
    return spent / whole


def main(first: int, last: int) -> None:
    print(
        "| seed | planted client kept out in rounds | others | nothing planted: kept out | cost |"
    )
    print("|---:|---|---|---|---:|")
    named = wrong = clean = 0
    costs = []
    for seed in range(first, last):
        planted, none = carried_out(seed), carried_out(seed, "dataset.plant=null")
        out, innocent = kept_out(planted), kept_out(none)
        rounds = [number for number, each in enumerate(out, 1) if PLANTED in each]
        others = sorted({one for each in out for one in each} - {PLANTED})
        nobody = sorted({one for each in innocent for one in each})
        named, wrong, clean = named + bool(rounds), wrong + bool(others), clean + (not nobody)
        costs += [cost(planted), cost(none)]
        shown = (", ".join(map(str, each)) or "–" for each in (rounds, others, nobody))
        print(f"| {seed} | {' | '.join(shown)} | {costs[-2]:.1%} |", flush=True)
    count = last - first
    print(
        f"\nThe planted client is kept out in {named} of {count} runs, another with it in {wrong}. "
        f"With nothing planted nobody is in {clean} of {count}. The gate takes "
        f"{sum(costs) / len(costs):.1%} of the CPU time (at most {max(costs):.1%})."
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
