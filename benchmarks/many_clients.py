"""A federation of a hundred clients, ten a round, on one machine: how much memory does it take?

    python benchmarks/many_clients.py [--quick] [--clients 100]

MNIST in a hundred parts, ten clients a round that train, judge and explain themselves, in process
and on Flower's simulation. What counts is the memory of the process and of all that it starts
(Ray's server and actors), each page shared out among those that hold it, looked at every fifth of a
second; and the processes themselves, not what the system keeps of files.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from common import DATA, MIB, Report, begin, parser, tell

LIMIT = 4096.0


def task_of(engine: str, clients: int, rounds: int) -> dict[str, object]:
    return {
        "task_id": "many",
        "model": {"_target_": "fedgaze.models.DigitsNet"},
        "dataset": {"name": "mnist", "root": str(DATA / "mnist"), "partition": "iid"},
        "learning_rate": 2e-3,
        "num_clients": clients,
        "clients_per_round": clients // 10,
        "num_rounds": rounds,
        "engine": engine,
        "device": "cpu",
        "xai": {"layer": "conv3", "samples_per_class": 1, "run_location": "both"},
    }


def held(process: psutil.Process) -> float:
    """MiB of a process and of all below it."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue
    return total / MIB


def most(folder: Path, task: dict[str, object]) -> tuple[float, dict[str, Any]]:
    """The most memory that a run took, in MiB, and its record."""
    (folder / "task.json").write_text(json.dumps(task))
    command = [sys.executable, "-m", "fedgaze.cli", "run", "task.json", "--output", "run"]
    started = psutil.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    peak = 0.0
    while started.poll() is None:
        try:
            peak = max(peak, held(started))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.2)
    if started.wait():
        raise RuntimeError(f"the run failed: {command}")
    return peak, json.loads((folder / "run" / "summary.json").read_text())


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--clients", type=int, default=100)
    options = made.parse_args()
    begin(options)
    rounds = 2 if options.quick else 5
    report = Report(
        "A hundred clients on one machine",
        f"{options.clients} clients, {options.clients // 10} a round, {rounds} rounds of MNIST "
        "with heatmaps of each client. MiB at most, of all processes together.",
        ("engine", "memory", "seconds a round", "accuracy"),
    )
    for engine in ("local", "simulation"):
        with tempfile.TemporaryDirectory() as name:
            peak, record = most(Path(name), task_of(engine, options.clients, rounds))
        whole = record["rounds"]
        seconds = [each["seconds"] for each in whole]
        accuracy = whole[-1]["global"]["accuracy"]
        report.row(engine, f"{peak:,.0f}", f"{sum(seconds) / len(seconds):.1f}", f"{accuracy:.3f}")
        report.check(f"{engine}: memory", peak, "MiB", at_most=LIMIT)
    tell(report, options)


if __name__ == "__main__":
    main()
