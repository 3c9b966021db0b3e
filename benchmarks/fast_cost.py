"""What `precision="fast"` and `"bf16"` cost beside a plain forward pass, and what they keep.

    python benchmarks/fast_cost.py [--only cost fidelity] [--batches 16]

Cost: Grad-CAM through `explain`, random weights, 224 x 224 pixels; the copies are made beforehand.
What is compared takes turns with a plain float32 forward pass under `no_grad`.

Fidelity: real weights and photographs. Of each layer the maps of the predicted classes: how far
"fast" is from "full", relative to the maximum of a map, and the Spearman correlation of bf16 with
"full"; where bf16 is refused, the reason is told.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import DATA, Report, begin, interleaved, parser, tell
from subjects import forward, pictures, subject, trained

# Of the plain forward pass, at batch 16.
TARGETS = {
    ("ResNet-50", "fast"): 0.80,
    ("SqueezeNet 1.1", "fast"): 0.65,
    ("MobileNetV2", "fast"): 0.55,
    ("ResNet-50", "bf16"): 0.45,
}
PRECISIONS = ("full", "fast", "bf16")
LAYERS = {
    "squeezenet1_1": ("features", "features.12", "features.9"),
    "mobilenet_v2": ("features.18", "features.17", "features.13"),
}
LAST = {"squeezenet1_1": ("features",), "mobilenet_v2": ("features.18",)}


def cost(report: Report, options: argparse.Namespace) -> None:
    from fedgaze import explain

    for name in dict.fromkeys(name for name, _ in TARGETS):
        model, layer, _ = subject(name)
        for batch in options.batches:
            images = pictures(batch)
            runs = {"plain": forward(model, images)}
            ran: dict[str, str] = {}
            for precision in PRECISIONS:
                # Also makes the copy.
                ran[precision] = _explained(model, images, layer, precision).precision
                runs[precision] = lambda m=model, i=images, at=layer, p=precision: explain(
                    m, i, layers=at, precision=p
                )
            medians = interleaved(runs, options.repeats)
            for precision in PRECISIONS:
                ratio = medians[precision] / medians["plain"]
                report.row(
                    name, layer, f"{precision}, batch {batch}", f"{ratio:.3f}", ran[precision]
                )
                target = TARGETS.get((name, precision))
                if batch == 16 and target is not None and ran[precision] == precision:
                    report.check(f"{name}, {precision}, batch 16", ratio, at_most=target)


def fidelity(report: Report, options: argparse.Namespace) -> None:
    for name, layers in LAYERS.items():
        model, images = trained(name), photographs(16 if options.quick else 60)
        for layer in layers:
            maps = {each: _explained(model, images, layer, each) for each in PRECISIONS}
            full = maps["full"].raw.flatten(1)
            apart = (maps["fast"].raw.flatten(1) - full).abs().amax(1) / full.amax(1)
            worst = float(apart.max())
            report.row(name, layer, "fast", f"at most {worst:.1e} off", maps["fast"].precision)
            if layer in LAST[name]:
                report.check(f"{name} {layer}: fast, greatest difference", worst, at_most=1e-3)
            ran = maps["bf16"].precision
            if ran != "bf16":
                report.row(name, layer, "bf16", "not run", ran)
                continue
            order = spearman(maps["bf16"].raw.flatten(1), full)
            median, least = float(order.median()), float(order.min())
            report.row(name, layer, "bf16", f"Spearman {median:.4f}, worst {least:.4f}", ran)
            report.check(f"{name} {layer}: bf16, median Spearman", median, at_least=0.995)
            report.check(f"{name} {layer}: bf16, worst Spearman", least, at_least=0.99)


def _explained(model: nn.Module, images: Tensor, layer: str, precision: Any) -> Any:
    from fedgaze import explain

    return explain(model, images, layers=layer, precision=precision)


def spearman(one: Tensor, two: Tensor) -> Tensor:
    """Rank correlation of each row; equal numbers share their mean rank."""
    from scipy.stats import spearmanr

    pairs = zip(one.tolist(), two.tolist(), strict=True)
    return torch.tensor([spearmanr(a, b).statistic for a, b in pairs])


def photographs(count: int) -> Tensor:
    from PIL import Image
    from torchvision.transforms import v2

    load = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    files: Sequence[Path] = sorted((DATA / "photos" / "imagenet").glob("*.[jJ][pP]*"))[:count]
    return torch.stack([load(Image.open(file).convert("RGB")) for file in files])


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    options_of.add_argument("--only", nargs="+", choices=("cost", "fidelity"))
    options = options_of.parse_args()
    begin(options)
    report = Report(
        "Below one forward: fast copies",
        "Grad-CAM at the last stage. Cost: CPU time as a ratio to the plain float32 forward pass, "
        "by turns. Fidelity: real weights on photographs, maps of the predicted classes.",
        ("model", "layer", "precision", "measured", "ran"),
    )
    wanted = options.only or ("cost", "fidelity")
    if "cost" in wanted:
        cost(report, options)
    if "fidelity" in wanted:
        if DATA.is_dir():
            fidelity(report, options)
        else:
            report.note(f"Fidelity was not measured: there is no {DATA}.")
    tell(report, options)


if __name__ == "__main__":
    main()
