"""Runs the benchmarks, and writes docs/benchmarks.md: what `make bench` does.

    python benchmarks/run_all.py [--quick] [--only cam_cost leak] [--write docs/benchmarks.md]

Each script runs in a process of its own, one after the other, and hands back its report; then the
page is written whole, or not at all. What fails is named at the end, and the page says so. Run it
on a machine that has nothing else to do. It takes an hour and a half; with `--resume FOLDER` it may
be done in parts: reports are kept there, and what lies there is not measured again.
"""

import argparse
import datetime as dt
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

from common import Report, markdown, read_report, table

HERE = Path(__file__).parent
SCRIPTS = (
    "cam_cost",
    "fast_cost",
    "gradient_cost",
    "rerun_cost",
    "pointing",
    "measure_cost",
    "ground_truth",
    "explain_command",
    "leak",
    "round_cost",
    "many_clients",
    "soak",
)
PACKAGES = ("torch", "torchvision", "numpy", "captum", "grad-cam", "torchcam", "quantus", "fedgaze")
# What says how fast a processor can be at this kind of work.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def processor() -> tuple[str, list[str]]:
    """Its model, and those of the instruction sets that it has; as far as Linux tells."""
    told: dict[str, str] = {}
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), value.strip())
    has = told.get("flags", "").split()
    model = told.get("model name") or platform.processor() or platform.machine()
    return model, [each for each in INSTRUCTIONS if each in has]


def machine(threads: int) -> str:
    model, sets = processor()
    memory = psutil.virtual_memory().total / 2**30
    versions = [f"{each} {version(each)}" for each in PACKAGES]
    facts = [
        ("processor", f"{model}, {os.cpu_count()} cores; {', '.join(sets) or 'no AVX2'}"),
        ("memory", f"{memory:.0f} GiB"),
        ("system", platform.platform()),
        ("versions", ", ".join([f"Python {platform.python_version()}", *versions])),
        ("threads", str(threads)),
        ("load before", f"{os.getloadavg()[0]:.1f}"),
    ]
    return table(("", ""), [list(each) for each in facts])


def run(script: str, arguments: argparse.Namespace, folder: Path) -> Report | None:
    file = folder / f"{script}.json"
    if file.exists():
        return dated(file)
    command = [sys.executable, str(HERE / f"{script}.py"), "--json", str(file)]
    command += ["--threads", str(arguments.threads)]
    command += ["--quick"] if arguments.quick else []
    command += ["--keep", str(folder)] if script == "cam_cost" and arguments.resume else []
    print(f"== {script}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    print(f"   {time.perf_counter() - start:.0f} s", flush=True)
    return dated(file) if done.returncode == 0 and file.exists() else None


def dated(file: Path) -> Report:
    """A report that says when it was made."""
    report = read_report(file)
    made = dt.datetime.fromtimestamp(file.stat().st_mtime, tz=dt.UTC)
    report.lead += f" Measured {made:%Y-%m-%d %H:%M} UTC."
    return report


def page(head: str, reports: dict[str, Report | None], *, quick: bool) -> str:
    checks = [each for report in reports.values() if report for each in report.checks]
    met = sum(each.met for each in checks)
    lead = (
        "Written by `make bench`, which runs the scripts in `benchmarks/`; each says how it "
        "measures. Ratios come from one run, in which all that is compared takes turns."
    )
    missed = f", and {len(checks) - met} missed" if met < len(checks) else ""
    parts = ["# Benchmarks", lead, head, f"Of {len(checks)} targets {met} are met{missed}."]
    if quick:
        parts.append("**A quick trial, to see that the scripts work: no number here counts.**")
    for script, report in reports.items():
        if report is None:
            parts.append(f"## {script}\n\n`benchmarks/{script}.py` failed.")
            continue
        title, _, rest = markdown(report).partition("\n\n")
        if f"{script}.py" not in title:
            title += f" (`benchmarks/{script}.py`)"
        parts.append(f"{title}\n\n{rest.strip()}")
    return "\n\n".join(parts) + "\n"


def write(file: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as new:
        new.write(text)
    Path(new.name).chmod(0o644)
    Path(new.name).replace(file)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only see that all work")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="the page; by default it is printed")
    parser.add_argument("--resume", type=Path, help="a folder where reports are kept")
    arguments = parser.parse_args()
    head = machine(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.resume or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        reports = {each: run(each, arguments, folder) for each in arguments.only}
    text = page(head, reports, quick=arguments.quick)
    if arguments.write:
        write(arguments.write, text)
    else:
        print(text)
    failed = [name for name, report in reports.items() if report is None]
    missed = [
        f"{name}: {each.name}"
        for name, report in reports.items()
        if report
        for each in report.checks
        if not each.met
    ]
    for what, which in (("failed", failed), ("missed", missed)):
        if which:
            print(f"{what}:", *which, sep="\n  ", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
