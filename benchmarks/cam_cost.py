"""What the CAM family costs beside a plain forward pass, here and elsewhere.

    python benchmarks/cam_cost.py [--quick] [--models "ResNet-50"] [--batches 1 16] [--keep FOLDER]

ResNet-50 and ViT-B/16 of torchvision with random weights, the layer of the automatic choice, eval
mode, float32, for fedgaze, pytorch-grad-cam, Captum and torchcam, each through its public interface
and as its own documentation shows it, with an explainer that is made once where the library has
one. How time and memory are measured is said in `common`; time is that on one thread. It takes
three quarters of an hour; with `--keep` the parts, a model and a batch each, are kept there, and
what lies there is not measured again.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import (
    MIB,
    Report,
    Run,
    alone,
    begin,
    interleaved,
    parser,
    peak,
    read_report,
    steadied,
    tell,
)
from subjects import Subject, forward, pictures, subject

FEDGAZE = "fedgaze"
PACKAGES = {"pytorch-grad-cam": "grad-cam", "captum": "captum", "torchcam": "torchcam"}
# By fedgaze's name: that of each peer's class.
METHODS: dict[str, dict[str, str]] = {
    "gradcam": {"pytorch-grad-cam": "GradCAM", "captum": "LayerGradCam", "torchcam": "GradCAM"},
    "gradcam++": {"pytorch-grad-cam": "GradCAMPlusPlus", "torchcam": "GradCAMpp"},
    "xgradcam": {"pytorch-grad-cam": "XGradCAM", "torchcam": "XGradCAM"},
    "hirescam": {"pytorch-grad-cam": "HiResCAM"},
    "layercam": {"pytorch-grad-cam": "LayerCAM", "torchcam": "LayerCAM"},
    "eigencam": {"pytorch-grad-cam": "EigenCAM"},
    "eigengradcam": {"pytorch-grad-cam": "EigenGradCAM"},
}
SPECTRAL = ("eigencam", "eigengradcam")
# The peers' full SVD takes many times a forward pass: few turns are enough to see that.
FEW = 3
LIMITS = {"ResNet-50": 1.05, "ViT-B/16": 1.15}
MEMORY = {1: 16.0, 16: 64.0}


def explainer(library: str, method: str, given: Subject, images: Tensor) -> Run:
    """The explanation of the class that each image is predicted to be, as a library does it."""
    model, name, _ = given
    if library == FEDGAZE:
        from fedgaze import explain

        return lambda: explain(model, images, method, layers=name)
    peer = METHODS[method][library]
    reshape = laid_out(given)
    if library == "captum":
        return captum(given, images)
    if library == "pytorch-grad-cam":
        import pytorch_grad_cam

        cam = getattr(pytorch_grad_cam, peer)(model, [model.get_submodule(name)], reshape)
        return lambda: cam(input_tensor=images, targets=None)
    from torchcam import methods

    extractor = getattr(methods, peer)(model, target_layer=name, reshape_transform=reshape)

    def torchcam() -> object:
        scores = model(images)
        return extractor(scores.argmax(1).tolist(), scores)

    return torchcam


def captum(given: Subject, images: Tensor) -> Run:
    from captum.attr import LayerAttribution, LayerGradCam

    layer_cam = LayerGradCam(given.model, given.model.get_submodule(given.layer))
    # Captum asks for the classes: they are not searched for, which is in its favour.
    classes = forward(given.model, images)().argmax(1)

    def run() -> object:
        raw = layer_cam.attribute(images, target=classes, relu_attributions=True)
        size = (images.shape[2], images.shape[3])
        return LayerAttribution.interpolate(raw, size, "bilinear")

    return run


def laid_out(given: Subject) -> Callable[[Tensor], Tensor] | None:
    """What peers have to be told of tokens; fedgaze finds it out."""
    grid = given.grid
    if grid is None:
        return None
    return lambda tokens: tokens[:, 1:].mT.unflatten(2, grid)


def libraries(method: str, given: Subject) -> list[str]:
    # Captum takes channels to be second, which those of tokens are not.
    return [each for each in METHODS[method] if each != "captum" or given.grid is None]


def measure_time(model: str, batch: int, repeats: int) -> dict[tuple[str, str], float]:
    """Median CPU time of each method and library as a ratio to that of the plain forward pass."""
    images = pictures(batch)
    # fedgaze leaves its model as it was; peers have one each, since some leave hooks on theirs.
    first = subject(model)
    runs: dict[str, Run] = {"plain": forward(first.model, images)}
    runs |= {f"{FEDGAZE} {m}": explainer(FEDGAZE, m, first, images) for m in METHODS}
    for library in libraries("gradcam", first):
        runs[f"{library} gradcam"] = explainer(library, "gradcam", subject(model), images)
    found = ratios(interleaved(runs, repeats, warmup=1))
    # The other methods of peers have no limits to be held to, and are told of less precisely.
    for method in METHODS:
        for library in libraries(method, first):
            if method != "gradcam":
                peer = explainer(library, method, subject(model), images)
                few = {"plain": runs["plain"], f"{library} {method}": peer}
                found |= ratios(interleaved(few, FEW if batch == 1 else 1, warmup=int(batch == 1)))
    return found


def ratios(medians: Mapping[str, float]) -> dict[tuple[str, str], float]:
    named = {tuple(name.split()): value for name, value in medians.items() if name != "plain"}
    return {(library, method): v / medians["plain"] for (library, method), v in named.items()}


def measure_memory(
    library: str, method: str, model: str, batch: int, repeats: int
) -> tuple[float, float]:
    """MiB above the plain forward pass: of five explanations, and of five after so many more."""
    images = pictures(batch)
    given = subject(model)
    plain, run = forward(given.model, images), explainer(library, method, given, images)
    # Both beside the forward pass of the beginning: what leaks must not be in what it is beside.
    plain()
    forward_peak = peak(plain)
    run()
    before = peak(run)
    for _ in range(repeats):
        run()
    after = peak(run)
    return (before - forward_peak) / MIB, (after - forward_peak) / MIB


def report_of(options: argparse.Namespace) -> Report:
    versions = ", ".join(f"{name} {version(package)}" for name, package in PACKAGES.items())
    report = Report(
        "What the CAM family costs",
        "The last layer of ResNet-50 and the last block of ViT-B/16 (torchvision, random weights, "
        "224 × 224, float32, eval mode). Time is the median CPU time, on one thread, as a ratio to "
        "that of a plain forward pass under `no_grad`, all taking turns; memory is how far the "
        "peak of resident memory exceeds that of the forward pass, at first and after more calls. "
        f"{versions}.",
        ("model", "batch", "method", "library", "time", "memory", "memory later"),
    )
    for model in options.models:
        for batch in options.batches:
            part = part_of(model, batch, options)
            report.rows += part.rows
            report.checks += part.checks
    report.note(
        "fedgaze is given its layer by name. The automatic choice runs an image more, once."
    )
    report.note("Captum is handed the classes to explain, the others look for the predicted ones.")
    report.note("An earlier layer costs more, in every library: the way back is longer.")
    return report


def part_of(model: str, batch: int, options: argparse.Namespace) -> Report:
    """The rows and checks of a model and a batch, measured or kept."""
    kept = options.keep and options.keep / f"cam_cost, {model.replace('/', '-')}, {batch}.json"
    if kept and kept.exists():
        return read_report(kept)
    part = Report("", "", ())
    # As many calls as are needed to see a leak, fewer where the models take long.
    later = 2 if options.quick else 100
    # What one image takes above the forward pass is little: more turns are needed to tell.
    repeats = options.repeats * 3 if batch == 1 else max(3, options.repeats // 2)
    for (library, method), ratio in measure_time(model, batch, repeats).items():
        cells = ["", ""]
        if library == FEDGAZE or method == "gradcam":
            what: dict[str, Any] = {
                "library": library,
                "method": method,
                "model": model,
                "batch": batch,
            }
            many = later if library == FEDGAZE and method == "gradcam" else 0
            found = alone(__file__, options, **what, later=many)
            cells = [f"{each:,.0f} MiB" for each in found[: 1 + bool(many)]]
            cells += [""] * (2 - len(cells))
            check(part, what, ratio, max(found))
        part.row(model, batch, method, library, f"{ratio:.3f}", *cells)
    if kept:
        kept.write_text(json.dumps(asdict(part)), encoding="utf-8")
    return part


def check(report: Report, what: Mapping[str, Any], ratio: float, memory: float) -> None:
    if what["library"] != FEDGAZE:
        return
    limit = 1.10 if what["method"] in SPECTRAL else LIMITS[what["model"]]
    name = f"{what['method']}, {what['model']}, batch {what['batch']}"
    report.check(f"{name}: time", ratio, at_most=limit)
    if what["method"] not in SPECTRAL and what["batch"] in MEMORY:
        report.check(f"{name}: memory", memory, "MiB", at_most=MEMORY[what["batch"]])


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--models", nargs="+", choices=LIMITS, default=list(LIMITS))
    made.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    made.add_argument("--keep", type=Path, help="a folder where each part is kept")
    options = made.parse_args()
    begin(options)
    steadied(options)
    if options.alone:
        what = json.loads(options.alone)
        print(json.dumps(measure_memory(repeats=what.pop("later"), **what)))
        return
    if options.quick:
        options.batches = options.batches[:1]
    torch.manual_seed(0)
    tell(report_of(options), options)


if __name__ == "__main__":
    main()
