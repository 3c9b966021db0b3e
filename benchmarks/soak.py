"""A hundred rounds with four clients on loopback: does any process grow?

    python benchmarks/soak.py [--quick] [--rounds 100]

A server with TLS and four clients, as people start them. After each round the resident memory of
every process is taken down. What counts is the second half of the rounds: how much each process
would grow in another hundred.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import yaml
from scipy.stats import theilslopes

from common import MIB, Report, begin, parser, tell

NAMES = "abcd"
GROWTH = 16.0
"""MiB in a hundred rounds: less than what an allocator keeps or gives back in between."""
NOTHING: dict[str, Any] = {"rounds": [], "status": "running"}
PARTS = (
    "superlink",
    "flower-superexec",
    "flwr-serverapp",
    "host",
    "manager",
    "supernode",
    "worker",
)


def call(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fedgaze.cli", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def processes(folder: Path) -> dict[str, psutil.Process]:
    """Every process of the server and of the clients, by what it is."""
    found = {}
    for state in folder.glob(".fedgaze/**/state.json"):
        owner = psutil.Process(json.loads(state.read_text())["pid"])
        for each in [owner, *owner.children(recursive=True)]:
            words = [Path(word).name for word in each.cmdline()]
            part = next((name for name in PARTS if name in words), None)
            if part:
                found[f"{part} of {state.parent.name}"] = each
    return found


def slope(values: list[float]) -> float:
    """MiB in a hundred rounds: the median of the slopes between any two of the second half."""
    half = values[len(values) // 2 :]
    return float(theilslopes(half).slope) * 100


def soak(folder: Path, rounds: int) -> dict[str, list[float]]:
    task = {
        "task_id": "soak",
        "model": {"_target_": "fedgaze.models.DigitsNet"},
        "dataset": {"name": "digits", "partition": "iid"},
        "num_clients": len(NAMES),
        "num_rounds": rounds,
        "round_timeout": 120,
        "xai": {"layer": "conv3", "samples_per_class": 1, "run_location": "both"},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    call(folder, "server", "start", "--listen", "127.0.0.1:8473", "--task", "task.yaml")
    for name in NAMES:
        call(folder, "server", "invite", "--name", name, "--output", f"{name}.invite")
        call(folder, "client", "join", f"{name}.invite")
    held: dict[str, list[float]] = defaultdict(list)
    seen, summary = 0, folder / "runs" / "soak" / "summary.json"
    while True:
        record = json.loads(summary.read_text()) if summary.exists() else NOTHING
        if len(record["rounds"]) > seen:
            seen = len(record["rounds"])
            for name, process in processes(folder).items():
                held[name].append(process.memory_info().rss / MIB)
            print(f"round {seen}", file=sys.stderr, flush=True)
        if record["status"] != "running":
            return held
        time.sleep(0.5)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=100)
    options = made.parse_args()
    begin(options)
    rounds = 6 if options.quick else options.rounds
    report = Report(
        "A soak",
        f"Four clients, {rounds} rounds on loopback with TLS, explanations of both sides. MiB of "
        "resident memory, and growth in a hundred rounds by the second half.",
        ("process", "after round 1", "at the end", "growth"),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            held = soak(folder, rounds)
        finally:
            for command in [*(["client", "stop", each] for each in NAMES), ["server", "stop"]]:
                subprocess.run(
                    [sys.executable, "-m", "fedgaze.cli", *command],
                    cwd=folder,
                    check=False,
                    capture_output=True,
                )
    for process, values in sorted(held.items()):
        growth = slope(values)
        report.row(process, f"{values[0]:.0f}", f"{values[-1]:.0f}", f"{growth:+.1f}")
        report.check(f"{process}: growth in a hundred rounds", growth, "MiB", at_most=GROWTH)
    tell(report, options)


if __name__ == "__main__":
    main()
