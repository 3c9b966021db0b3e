"""Does anything remain of an explanation: memory, objects, or a slower model?

    python benchmarks/leak.py [--quick] [--count 10000]

A small network (two convolutions with BatchNorm) is explained again and again, by several methods
in turn. Resident memory and the number of objects that Python's collector knows are taken after a
tenth of all calls and at the end, in a process of its own (see `common`). Then the model itself is
timed, beside a copy that was never explained, in turns.
"""

import copy
import gc
import json
from collections.abc import Sequence
from itertools import cycle, islice

import psutil
import torch
from torch import Tensor, nn

from common import MIB, Report, alone, begin, interleaved, parser, tell
from fedgaze import explain

METHODS = ("gradcam", "gradcam++", "layercam", "eigencam", "ablationcam", "saliency")
FORWARDS = 300


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


def explain_often(model: nn.Module, images: Tensor, count: int, methods: Sequence[str]) -> None:
    for method in islice(cycle(methods), count):
        layers = None if method == "saliency" else "6"
        explain(model, images, method, layers=layers)


def held() -> tuple[int, int]:
    """Bytes that are resident, and objects."""
    gc.collect()
    # First the objects: the list of them leaves its own mark in resident memory.
    objects = len(gc.get_objects())
    return int(psutil.Process().memory_info().rss), objects


def forwards(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        for _ in range(FORWARDS):
            model(images)


def growth(count: int) -> tuple[float, int]:
    """MiB and objects by which explanations grow from a tenth of the calls to the end."""
    model, images = small_network(), torch.rand(1, 3, 32, 32)
    explain_often(model, images, count // 10, METHODS)
    before = held()
    explain_often(model, images, count - count // 10, METHODS)
    after = held()
    return (after[0] - before[0]) / MIB, after[1] - before[1]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--count", type=int, default=10_000)
    options = made.parse_args()
    options.threads = 1  # so small a network loses time by being shared
    begin(options)
    if options.alone:
        print(json.dumps(growth(**json.loads(options.alone))))
        return
    count = 600 if options.quick else options.count
    grown, objects = alone(__file__, options, count=count)
    model, images = small_network(), torch.rand(1, 3, 32, 32)
    untouched = copy.deepcopy(model)
    explain_often(model, images, count, METHODS)
    runs = {
        "explained": lambda: forwards(model, images),
        "untouched": lambda: forwards(untouched, images),
    }
    medians = interleaved(runs, max(options.repeats, 5))
    report = Report(
        "What remains of explanations",
        f"A small network, explained {count:,} times by {', '.join(METHODS)} in turn; memory and "
        "objects as they grow from a tenth of the calls to the end; then the time of plain forward "
        "passes, as a ratio to that of a copy which was never explained.",
        (),
    )
    report.check("growth of resident memory", grown, "MiB", at_most=1)
    report.check("growth of the number of objects", objects, at_most=100)
    report.check(
        "time of a forward pass afterwards",
        medians["explained"] / medians["untouched"],
        at_most=1.02,
    )
    tell(report, options)


if __name__ == "__main__":
    main()
