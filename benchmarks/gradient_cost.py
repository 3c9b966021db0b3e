"""What Integrated Gradients and SmoothGrad cost beside as many gradients at the image.

    python benchmarks/gradient_cost.py [--quick] [--models "ResNet-50" "ViT-B/16"] [--batches 1 16]

ResNet-50 of torchvision with random weights, eval mode, float32; 20 steps or samples, one class.
They are compared with 20 times the plain gradient of the score at the batch of images, as autograd
gives it. Captum is asked for the same, as its documentation shows it; at batch 16 it makes all
variants in one pass, which takes more memory than most machines have, so there it is left out. How
time and memory are measured is said in `common`.

A pass over 16 images and 20 steps takes a minute or so: there each takes its turn only once or
twice, and the plain gradient more often. Memory does not grow with the steps once they fill a few
passes, so it is measured with as many as do.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common import Report, Run, alone, begin, extra_memory, parser, tell
from subjects import forward, pictures, subject

STEPS = 20
CLASS = 3
# By the name of the method: its option that counts.
METHODS = {"integrated_gradients": "steps", "smoothgrad": "samples"}
BUDGET = 512
LIMIT = 1.05
SPREAD = 0.15


def plain_gradient(model: nn.Module, images: Tensor) -> Run:
    def plain() -> Tensor:
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad(model(leaf)[:, CLASS].sum(), leaf)[0]

    return plain


def explainer(library: str, method: str, model: nn.Module, images: Tensor, steps: int) -> Run:
    """The attribution of one class, as a library does it."""
    if library == "fedgaze":
        from fedgaze import explain

        options: dict[str, Any] = {METHODS[method]: steps}
        return lambda: explain(model, images, method, CLASS, **options)
    from captum.attr import IntegratedGradients, NoiseTunnel, Saliency

    if method == "integrated_gradients":
        integrated = IntegratedGradients(model)
        return lambda: integrated.attribute(images, target=CLASS, n_steps=steps)
    tunnel = NoiseTunnel(Saliency(model))
    noise = SPREAD * float(images.max() - images.min())
    options = {"nt_samples": steps, "stdevs": noise, "target": CLASS, "abs": False}
    return lambda: tunnel.attribute(images, **options)


def libraries(batch: int) -> tuple[str, ...]:
    return ("fedgaze", "captum") if batch == 1 else ("fedgaze",)


def ratios(model: nn.Module, images: Tensor, repeats: int, steps: int) -> Mapping[str, float]:
    """CPU time as a ratio to that of as many plain gradients, taken before and after each."""
    batch = len(images)
    plain = plain_gradient(model, images)
    runs = {
        f"{library} {method}": explainer(library, method, model, images, steps)
        for method in METHODS
        for library in libraries(batch)
    }
    around = max(2, steps // (2 * batch))
    for run in (plain, *(explainer("fedgaze", each, model, images[:1], 2) for each in METHODS)):
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        before = [seconds(plain) for _ in range(around)]
        for name, run in runs.items():
            own = seconds(run)
            after = [seconds(plain) for _ in range(around)]
            taken[name].append(own / (steps * statistics.mean(before + after)))
            before = after
    return {name: statistics.median(each) for name, each in taken.items()}


def seconds(run: Run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def memory(name: str, library: str, method: str, batch: int, quick: bool) -> float:
    """MiB by which an explanation's peak exceeds that of a plain forward pass."""
    model, images = subject(name).model, pictures(batch)
    # 20 variants of one image, and as many of 16, fill several passes.
    steps = STEPS if batch == 1 and not quick else 2
    run = explainer(library, method, model, images, steps)
    return extra_memory(forward(model, images), run, times=1)


def report(options: argparse.Namespace) -> Report:
    found = Report(
        "Gradients along a path and under noise",
        f"Integrated Gradients and SmoothGrad with {STEPS} steps; time as a ratio to {STEPS} plain "
        "gradients at the images, memory beyond that of a plain forward pass.",
        ("model", "batch", "method", "library", "time", "memory"),
    )
    steps = 4 if options.quick else STEPS
    for name in options.models:
        for batch in options.batches:
            repeats = max(1, options.repeats // (4 if batch == 1 else 10))
            times = ratios(subject(name).model, pictures(batch), repeats, steps)
            for method in METHODS:
                for library in libraries(batch):
                    what = {"name": name, "library": library, "method": method, "batch": batch}
                    extra = alone(__file__, options, **what)
                    ratio = times[f"{library} {method}"]
                    found.row(name, batch, method, library, f"{ratio:.3f}", f"{extra:,.0f} MiB")
                    if library == "fedgaze":
                        title = f"{method}, {name}, batch {batch}"
                        found.check(title, ratio, at_most=LIMIT)
                        found.check(f"{title}, memory", extra, "MiB", at_most=BUDGET)
    found.note(
        "Captum makes all variants of all images in one pass; at batch 16 that is 320 images with "
        "their graph, which was not tried."
    )
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", default=["ResNet-50"])
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    options = arguments.parse_args()
    begin(options)
    if options.alone:
        print(json.dumps(memory(**json.loads(options.alone), quick=options.quick)))
        return
    tell(report(options), options)


if __name__ == "__main__":
    main()
