"""Is what the demo shows true for other seeds? Prints the table of docs/demo.md.

For each seed the demo is carried out, and the last round is judged as the server measures it, on
its own probe set: of all clients the planted one has to show the least heat on the strokes of
unmarked images and the largest causal drop of the mark.

    python benchmarks/demo_seeds.py 0 10
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fedgaze.federate import demo_task, start


class Silent:
    """Watches in silence."""

    def run_started(self, rounds: int, done: int) -> None: ...
    def round_started(self, number: int, clients: list[int]) -> None: ...
    def client_started(self, client: int, kind: str) -> None: ...
    def round_done(self, record: dict[str, Any]) -> None: ...
    def trouble(self, text: str) -> None: ...


def main(first: int, last: int) -> None:
    print("| seed | accuracy | heat on strokes, clients 0 to 3 | drop of the mark | stands out |")
    print("|---:|---:|---|---|---|")
    stood_out, accuracies, seconds = [], [], []
    for seed in range(first, last):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            task = demo_task(seed)
            summary = start(task, Path(folder) / "demo", Silent(), demo=True).summary
        seconds.append(time.monotonic() - began)
        round_ = summary["rounds"][-1]
        looks = [each["server_explanation"] for each in round_["clients"]]
        masses = [look["object_mass"] for look in looks]
        drops = [look["mark_drop"] for look in looks]
        planted = task.dataset.plant.clients[0] if task.dataset.plant else -1
        stood_out.append(min(masses) == masses[planted] and max(drops) == drops[planted])
        accuracies.append(round_["global"]["accuracy"])
        print(
            f"| {seed} | {accuracies[-1]:.3f} | {bold(masses, planted)} | {bold(drops, planted)} "
            f"| {'yes' if stood_out[-1] else 'no'} |",
            flush=True,
        )
    print(
        f"\nStands out in {sum(stood_out)} of {len(stood_out)}; accuracy at least "
        f"{min(accuracies):.3f}; {sorted(seconds)[len(seconds) // 2]:.0f} s a run (median)."
    )


def bold(values: list[float], planted: int) -> str:
    shown = [f"{value:.3f}" for value in values]
    shown[planted] = f"**{shown[planted]}**"
    return " ".join(shown)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
