"""What the benchmarks share: how time and memory are measured, and how results are told.

Time is CPU time of all threads of the process. What is compared takes turns, so that what else the
machine does strikes all of it; a ratio is that of the medians. Threads that wait for each other
spin, which counts as CPU time: `steadied` runs a script on one thread, and with an allocator that
keeps what was freed, since to get it anew from the system takes up to a third of a forward pass.

Memory is resident memory, watched by a thread every half millisecond, in a process of its own for
each thing measured. Its allocator gives memory back at once, so what was freed is not counted.

A script measures, fills a `Report` and hands it to `tell`, which prints it as Markdown and, with
`--json FILE`, writes it for `run_all.py`:

    options = parser(__doc__).parse_args()
    begin(options)
    medians = interleaved({"plain": forward, "ours": explain_it}, options.repeats)
    ratio = medians["ours"] / medians["plain"]
    report = Report("What it costs", "How it was measured.", ("library", "time"))
    report.row("fedgaze", f"{ratio:.3f}")
    report.check("Grad-CAM, batch 1", ratio, at_most=1.05)
    tell(report, options)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Run = Callable[[], object]

DATA = Path(os.environ.get("FEDGAZE_DATA", Path(__file__).parents[2] / "shared" / "data"))
# Blocks from 64 KiB on come from the system and go back to it, so resident memory says what lives.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
ALLOCATOR["MALLOC_TOP_PAD_"] = "0"
# And the other way round: what was freed stays.
STEADY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
STEADY["MALLOC_TOP_PAD_"] = str(2**28)
MIB = 2**20


@dataclass(frozen=True)
class Check:
    """A target, and what was measured."""

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        below = self.at_most is None or self.value <= self.at_most
        return below and (self.at_least is None or self.value >= self.at_least)

    @property
    def target(self) -> str:
        bounds = (("≤", self.at_most), ("≥", self.at_least))
        return ", ".join(f"{sign} {amount(b, self.unit)}" for sign, b in bounds if b is not None)


@dataclass
class Report:
    """What one benchmark found: a table of all numbers, and the targets."""

    title: str
    lead: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, *cells: object) -> None:
        """Add a row, and show that work goes on."""
        self.rows.append([str(each) for each in cells])
        print("  ".join(self.rows[-1]), file=sys.stderr, flush=True)

    def check(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        self.checks.append(Check(name, value, unit, at_most, at_least))

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


def amount(value: float, unit: str = "") -> str:
    """A number for people: `1.05`, `512 MiB`."""
    shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{shown} {unit}".strip()


def parser(description: str | None) -> argparse.ArgumentParser:
    """What all scripts can be asked for."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="only see that it works: less of all")
    made.add_argument("--repeats", type=int, default=11, help="how often each takes its turn")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--json", type=Path, help="write the report for run_all.py, too")
    # What a script measures in a process of its own: its name and what it needs, as JSON.
    made.add_argument("--alone", help=argparse.SUPPRESS)
    return made


def begin(options: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(options.threads)
    if options.quick:
        options.repeats = min(options.repeats, 3)


def steadied(options: argparse.Namespace) -> None:
    """Start the script anew where the allocator is not the steady one; then take one thread."""
    import torch

    if options.alone:  # for its memory
        return
    if not os.environ.items() >= STEADY.items():
        again = [sys.executable, *sys.argv]
        os.execve(sys.executable, again, os.environ | STEADY)  # noqa: S606
    torch.set_num_threads(1)


def interleaved(runs: Mapping[str, Run], repeats: int, warmup: int = 2) -> dict[str, float]:
    """Median CPU time in seconds of each run; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + warmup):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if repeat >= warmup:
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def peak(run: Run, times: int = 5) -> int:
    """The most bytes that the process held while something ran."""
    import psutil

    process = psutil.Process()
    highest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, process.memory_info().rss)
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(times):
            run()
    finally:
        done.set()
        watcher.join()
    return int(highest)


def extra_memory(plain: Run, run: Run, times: int = 5) -> float:
    """MiB by which the peak of something exceeds that of a plain run; ask for it through `alone`.

    Both have run once before, so that what is made once is not counted.
    """
    plain()
    forward = peak(plain, times)
    run()
    return (peak(run, times) - forward) / MIB


def alone(
    script: str,
    options: argparse.Namespace,
    *,
    allocator: Mapping[str, str] = ALLOCATOR,
    **what: Any,
) -> Any:
    """Measure in a process of its own: the script runs with `--alone`, and prints JSON last."""
    command = [sys.executable, script, "--alone", json.dumps(what)]
    command += ["--threads", str(options.threads), "--repeats", str(options.repeats)]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(
        command, env={**os.environ, **allocator}, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{Path(script).name} failed on {what}")
    return json.loads(done.stdout.splitlines()[-1])


def tell(report: Report, options: argparse.Namespace) -> None:
    """Print the report as Markdown; write it as JSON where asked to."""
    print(markdown(report))
    if options.json:
        options.json.write_text(json.dumps(asdict(report)), encoding="utf-8")


def markdown(report: Report, level: int = 2) -> str:
    parts = [f"{'#' * level} {report.title}", report.lead]
    if report.checks:
        rows = [
            [each.name, each.target, amount(each.value, each.unit), "met" if each.met else "missed"]
            for each in report.checks
        ]
        parts.append(table(("", "target", "measured", ""), rows))
    if report.rows:
        parts.append(table(report.columns, report.rows))
    parts += [f"- {each}" for each in report.notes]
    return "\n\n".join(parts) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(columns), ["---"] * len(columns), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_report(file: Path) -> Report:
    held = json.loads(file.read_text(encoding="utf-8"))
    return Report(**held | {"checks": [Check(**each) for each in held["checks"]]})
