"""What metrics cost beside Quantus, at the same steps and with each library's defaults.

At the same steps: a ResNet-18 of torchvision (random weights), 4 images of 224 × 224 and 32 of
32 × 32, as many pixels a step (a thirty-second of the image), as many samples, and the same
heatmaps; where a metric explains again, both call fedgaze's Grad-CAM, at the last stage that has
more than one place. Quantus counts the channels of an image as pixels of their own and goes on for
three times as many steps, of which the last two thirds change nothing; that is its way, and part of
what is measured.

With defaults: pixel flipping of CIFAR-10's photographs by a trained ResNet-20 (FEDGAZE_DATA), where
Quantus takes one pixel a step and fedgaze a fiftieth of the image; compared are time, and the order
in which both rank methods of different kinds by the area under the curve. (CAM methods among
themselves are too much alike there for a few images to tell them apart.)

One thread; time is CPU time. ROAD is not compared: Quantus' fails on images of three channels.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import DATA, Report, begin, interleaved, parser, steadied, tell
from fedgaze import measure
from fedgaze.xai import Runner, explain, open_runner
from oracles.cases import resnet20
from subjects import subject

STEPS, SAMPLES, RUNS = 32, 10, 50
QUIET: dict[str, Any] = {
    "normalise": False, "abs": False, "disable_warnings": True, "display_progressbar": False,
}  # fmt: skip
RANKED = ("integrated_gradients", "gradcam", "saliency", "random")
Ours = Callable[[Runner], Tensor]


def pairs(
    model: nn.Module, heatmaps: Tensor, pixels: int, layer: str
) -> dict[str, tuple[Ours, Any]]:
    """The same metric of both libraries, with the same steps."""
    quantus: Any = import_module("quantus")

    def again(images: Tensor, classes: Tensor) -> Tensor:
        return explain(model, images, "gradcam", classes, layer).heatmaps

    step = {"features_in_step": pixels // STEPS, "perturb_baseline": "black"}
    around = measure.Around(samples=SAMPLES)
    return {
        "pixel flipping": (
            lambda r: measure.pixel_flipping(r, heatmaps, steps=STEPS, baseline=0.0),
            quantus.PixelFlipping(**step, **QUIET),
        ),
        "faithfulness estimate": (
            lambda r: measure.faithfulness_estimate(r, heatmaps, steps=STEPS, baseline=0.0),
            quantus.FaithfulnessEstimate(**step, **QUIET),
        ),
        "faithfulness correlation": (
            lambda r: measure.faithfulness_correlation(r, heatmaps, samples=RUNS, baseline=0.0),
            quantus.FaithfulnessCorrelation(
                nr_runs=RUNS, subset_size=pixels // 10, perturb_baseline="black", **QUIET
            ),
        ),
        "max-sensitivity": (
            lambda r: measure.max_sensitivity(r, heatmaps, again, around=around),
            quantus.MaxSensitivity(nr_samples=SAMPLES, lower_bound=0.05, **QUIET),
        ),
    }


def asked(
    metric: Any,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    maps: Tensor,
    layer: str | None = None,
) -> Any:
    """What Quantus says; it changes some of what it is given."""

    def again(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
        pixels, classes = torch.as_tensor(inputs), torch.as_tensor(targets)
        return explain(model, pixels, "gradcam", classes, layer).heatmaps[:, None].numpy()

    return metric(
        model=model,
        x_batch=images.numpy().copy(),
        y_batch=labels.numpy(),
        a_batch=maps[:, None].numpy().copy(),
        explain_func=again,
        device="cpu",
        batch_size=len(images),
    )


def same_steps(report: Report, side: int, count: int, repeats: int) -> None:
    model = subject("ResNet-18").model
    torch.manual_seed(0)
    images, labels = torch.rand(count, 3, side, side), torch.arange(count)
    layer = "layer4" if side == 224 else "layer3"
    heatmaps = explain(model, images, "gradcam", labels, layer).heatmaps

    for name, (ours, theirs) in pairs(model, heatmaps, side * side, layer).items():

        def run(ours: Ours = ours) -> None:
            with open_runner(model, images, labels, precision="fast") as runner:
                ours(runner)

        def peer(theirs: Any = theirs) -> None:
            asked(theirs, model, images, labels, heatmaps, layer)

        taken = interleaved({"fedgaze": run, "quantus": peer}, repeats, warmup=1)
        ratio = taken["quantus"] / taken["fedgaze"]
        cells = [f"{taken[each]:.2f} s" for each in ("fedgaze", "quantus")]
        report.row("same steps", f"{side} × {side}, {count}", name, *cells, f"{ratio:.2f}")
        if name == "pixel flipping":
            least = 2 if side == 224 else 3.5
            report.check(f"{name}, {side} × {side}: times faster", ratio, at_least=least)


def defaults(report: Report, count: int) -> None:
    quantus: Any = import_module("quantus")
    model = resnet20(DATA)
    held = np.load(DATA / "arrays" / "cifar10_test_jpeg_2000.npz")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    pictures = torch.from_numpy(held["x"][:200]).permute(0, 3, 1, 2).float() / 255
    images, labels = (pictures - mean) / std, torch.from_numpy(held["y"][:200]).long()
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).nonzero()[:count, 0]
    images, labels = images[right], labels[right]
    # Its own area needs a function that NumPy 2 has no more; the mean of the curve is as good.
    metric = quantus.PixelFlipping(**QUIET)
    taken = {"fedgaze": 0.0, "quantus": 0.0}
    found: dict[str, dict[str, float]] = {"fedgaze": {}, "quantus": {}}
    for method in RANKED:
        maps = explain(model, images, method, labels)
        heat = maps.heatmaps.clamp(min=0)

        def run(method: str = method, heat: Tensor = heat) -> None:
            with open_runner(model, images, labels, precision="fast") as runner:
                score = -measure.pixel_flipping(runner, heat).mean()
            found["fedgaze"][method] = float(score)

        def peer(method: str = method, heat: Tensor = heat) -> None:
            found["quantus"][method] = float(np.mean(asked(metric, model, images, labels, heat)))

        for name, each in interleaved({"fedgaze": run, "quantus": peer}, 1, warmup=0).items():
            taken[name] += each
    orders = [sorted(RANKED, key=found[name].__getitem__) for name in taken]
    ratio = taken["quantus"] / taken["fedgaze"]
    cells = [f"{taken[each]:.1f} s" for each in taken]
    what = f"pixel flipping of {len(RANKED)} methods"
    report.row("defaults", f"32 × 32, {count}", what, *cells, f"{ratio:.0f}")
    report.check("defaults: times faster", ratio, at_least=50)
    report.check("defaults: methods ranked alike", float(orders[0] == orders[1]), at_least=1)
    for name, order in zip(taken, orders, strict=True):
        report.note(f"{name}, from the best by pixel flipping: {', '.join(order)}.")


def main() -> None:
    options = parser(__doc__).parse_args()
    steadied(options)
    begin(options)
    torch.set_num_threads(1)
    report = Report(
        "What metrics cost",
        "CPU time of metrics, beside Quantus. At the same steps: ResNet-18 with random weights, "
        "heatmaps of Grad-CAM, 32 steps or 50 sets or 10 samples. With defaults: a trained "
        "ResNet-20 on CIFAR-10's photographs.",
        ("steps", "images", "metric", "fedgaze", "Quantus", "times faster"),
    )
    repeats = 1 if options.quick else 5
    same_steps(report, 32, 4 if options.quick else 32, repeats)
    same_steps(report, 224, 1 if options.quick else 4, repeats)
    defaults(report, 2 if options.quick else 16)
    tell(report, options)


if __name__ == "__main__":
    main()
