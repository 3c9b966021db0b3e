"""Is each method what its paper says? Measures the table of docs/methods.md.

    python benchmarks/agreement.py [--methods gradcam layercam] [--write docs/methods.md]

Every method of `fedgaze.xai.list_methods` is run on seeded random weights and on trained ones, and
its raw maps are held against those of others on the same weights: see `oracles`. Told is the
deviation ``max |a - b| / max |b|``, the greatest of all images, where b is the oracle's. A method
for which there is no oracle is an error, and so is one that deviates by more than it may. It takes
some ten minutes; with `--resume FILE` it may be done in parts.

`--write` replaces what stands between the two marks of a page, and nothing else.
"""

import argparse
import datetime as dt
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common import DATA, table
from fedgaze.xai import explain, find_method, list_methods
from oracles import EQUATIONS, ORACLES, Oracle
from oracles.cases import Array, Case, random_cases, real_cases, wide

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
LIBRARIES = {
    "captum": "captum",
    "pytorch-grad-cam": "grad-cam",
    "torchcam": "torchcam",
    "zennit": "zennit",
}


class Found(NamedTuple):
    """How far fedgaze and an oracle are apart, by the name of the case."""

    method: str
    oracle: Oracle
    deviations: dict[str, float]

    def worst(self, cases: Sequence[Case], *, real: bool) -> str:
        told = [
            self.deviations[c.name] for c in cases if c.real == real and c.name in self.deviations
        ]
        return f"{max(told):.0e}" if told else ""

    @property
    def fits(self) -> bool:
        values = np.array(list(self.deviations.values()))
        return bool(self.oracle.differs) or bool((values <= self.oracle.tolerance).all())


def deviation(ours: Array, theirs: Array, oracle: Oracle) -> float:
    """The greatest of the images' ``max |a - b| / max |b|``; not a number if any is not.

    Of an oracle that differs, maps are scaled to a largest absolute value of 1 first.
    """
    if oracle.sorted:
        ours = np.sort(ours, axis=None)[None]
    if ours.shape != theirs.shape:
        raise ValueError(f"maps of the shapes {ours.shape} and {theirs.shape} cannot be compared")
    apart = []
    for a, b in zip(ours, theirs, strict=True):
        if oracle.differs:
            a, b = a / np.abs(a).max(), b / np.abs(b).max()  # noqa: PLW2901
        signs = (1, -1) if oracle.any_sign else (1,)
        apart.append(min(float(np.abs(a - sign * b).max() / np.abs(b).max()) for sign in signs))
    return float(np.max(apart))


def ours(case: Case, method: str, oracle: Oracle) -> Array:
    """Signed, as the oracle's: attributions where the method judges each number of the image."""
    explanation = explain(
        case.model,
        case.images,
        method,
        case.classes,
        case.layer if find_method(method).layers else None,
        relu=False,
        **oracle.options,
    )
    found = explanation.raw if explanation.attributions is None else explanation.attributions
    return wide(found)


def measure(method: str, cases: Sequence[Case]) -> list[Found]:
    named = {each.name: each for each in cases}
    found = []
    for oracle in ORACLES[method]:
        deviations = {}
        for name in oracle.on:
            if name in named:
                case = named[name]
                theirs = oracle.maps(case)
                deviations[name] = deviation(ours(case, method, oracle), theirs, oracle)
        found.append(Found(method, oracle, deviations))
    return found


def missing() -> list[str]:
    """Methods that nothing is held against."""
    return [
        each.name
        for each in list_methods()
        if all(oracle.differs for oracle in ORACLES.get(each.name, ()))
        or each.name not in EQUATIONS
    ]


def page(found: Sequence[Found], cases: Sequence[Case]) -> str:
    rows: list[list[str]] = []
    peers: list[list[str]] = []
    for each in found:
        cells = [each.worst(cases, real=real) for real in (False, True)]
        source = each.oracle.source
        if each.oracle.differs:
            if each.deviations:
                peers.append([f"`{each.method}`", source, *cells, each.oracle.differs])
            continue
        first = not rows or all(row[0] != f"`{each.method}`" for row in rows)
        paper = find_method(each.method).paper
        cells = cells if each.deviations else ["not measured yet"] * 2
        head = [f"`{each.method}`", paper, EQUATIONS[each.method]] if first else ["", "", ""]
        rows.append([*head, source, *cells])
    versions = ", ".join(f"{name} {version(package)}" for name, package in LIBRARIES.items())
    measured = [each for each in found if each.deviations and not each.oracle.differs]
    within = sum(each.fits for each in measured)
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    told = (
        f"Measured by `benchmarks/agreement.py` on {today}: torch {torch.__version__}, {versions}. "
        f"{within} of {len(measured)} comparisons are within what is allowed (1e-4; for "
        "`random`, whose oracle is a distribution, 0.03)."
    )
    columns = ("method", "paper", "equation", "oracle", "random weights", "real weights")
    elsewhere = (
        "Where others compute something else under the same name; so that only shapes count, each "
        "signed map is divided by its largest absolute value first:"
    )
    others = table(("method", "library", "random weights", "real weights", "why"), peers)
    return "\n\n".join(
        (told, table(columns, rows), elsewhere, others, "### Options and cost", options())
    )


def options() -> str:
    """What each method can be told, and what it costs, as the methods themselves say."""
    rows = []
    for method in list_methods():
        told = ", ".join(f"`{name}={value!r}`" for name, value in method.options.items())
        yes = ["yes" if each else "" for each in (method.layers, method.differentiable)]
        rows.append([f"`{method.name}`", told, *yes, method.cost])
    return table(("method", "options", "of a layer", "can be trained with", "cost"), rows)


def write(file: Path, block: str) -> None:
    """Replace what stands between the marks, or leave the file as it is."""
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file} has no marks {BEGIN} and {END}")
    made = f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as new:
        new.write(made)
    Path(new.name).chmod(file.stat().st_mode)
    Path(new.name).replace(file)


def recalled(file: Path | None) -> dict[str, list[dict[str, float]]]:
    """What an earlier run measured: for each method, the deviations from each of its oracles."""
    if file is None or not file.exists():
        return {}
    found: dict[str, list[dict[str, float]]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", help="by default all")
    parser.add_argument("--resume", type=Path, help="what was measured is kept there, as JSON")
    parser.add_argument("--write", type=Path, help="the page whose table is replaced")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.write and arguments.methods:
        parser.error("a page is written of all methods")
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    if nothing := missing():
        parser.error(f"there is no oracle for {', '.join(nothing)}")
    cases = random_cases() + (real_cases(DATA) if DATA.is_dir() else [])
    if not DATA.is_dir() and arguments.write:
        parser.error(f"real weights are not in {DATA}; set FEDGAZE_DATA")
    found: list[Found] = []
    known = recalled(arguments.resume)
    for name in arguments.methods or [each.name for each in list_methods()]:
        start = time.perf_counter()
        if name in known:
            pairs = zip(ORACLES[name], known[name], strict=True)
            measured = [Found(name, oracle, told) for oracle, told in pairs]
        else:
            measured = measure(name, cases)
        for each in measured:
            told = "  ".join(f"{n} {value:.1e}" for n, value in each.deviations.items())
            mark = "  (differs)" if each.oracle.differs else "" if each.fits else "  TOO FAR"
            print(f"{name:<20} {each.oracle.source:<18} {told}{mark}", flush=True)
        found += measured
        known[name] = [each.deviations for each in measured]
        if arguments.resume:
            arguments.resume.write_text(json.dumps(known), encoding="utf-8")
        print(f"{'':<20} {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if arguments.write:
        write(arguments.write, page(found, cases))
    return 0 if all(each.fits for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
