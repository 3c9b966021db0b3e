"""Does the map's maximum lie on the object? The pointing game, beside the centre and a peer.

Real weights (SqueezeNet 1.1, and for CAM, which asks for another kind of classifier, MobileNetV2)
on photographs with boxes from FEDGAZE_DATA: 60 of kangaroos (class 104) and 39 of COCO.
Counted are the photographs in which one of the model's five likeliest classes has a box; that class
is explained, and a hit is a maximum inside one of its boxes (Zhang et al., "Top-down Neural
Attention by Excitation Backprop", IJCV 2018, without their margin of 15 pixels). Photographs are
prepared as for these weights: the shorter side to 256, and of that the middle 224 × 224. The
baseline is its middle.

pytorch-grad-cam is asked for the same classes on the same layer, with its defaults. Methods that
run the model once a channel or mask take the first photographs of each set only; those that run it
dozens of times a channel, 32 of the channels.
"""

import argparse
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import torch
from PIL import Image
from torch import Tensor, nn

from common import DATA, Report, begin, parser, tell
from fedgaze.models import IMAGENET
from fedgaze.xai import explain, find_method, list_methods
from subjects import trained

SIDE = 224
KANGAROO = 104
# Those that both have: by our name, the peer's class.
PEERS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "gradcam_elementwise": "GradCAMElementWise",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "kpcacam": "KPCA_CAM",
    "shapleycam": "ShapleyCAM",
    "finercam": "FinerCAM",
    "fullgrad": "FullGrad",
    "scorecam": "ScoreCAM",
    "ablationcam": "AblationCAM",
}
# Their layers, and which methods are asked of them; None for all that work there.
MODELS: dict[str, tuple[list[str], list[str] | None]] = {
    "squeezenet1_1": (["features", "classifier.1"], None),
    "mobilenet_v2": (["features.18"], ["cam", "gradcam"]),
}
# What runs the model once a channel or mask: on so many photographs of each set, and one layer.
RERUNS = 8
OPTIONS: dict[str, dict[str, Any]] = {
    "sscam": {"channels": 32, "samples": 8},
    "iscam": {"channels": 32},
    "rise": {"masks": 500},
}
Box = tuple[float, float, float, float]


class Photograph(NamedTuple):
    """A prepared picture, the class that the model gives it, and the boxes of that object."""

    pixels: Tensor
    label: int
    boxes: list[Box]


def prepared(file: Path) -> tuple[Tensor, Callable[[Box], Box]]:
    """The picture, and the way from boxes in the file to boxes in it."""
    picture = Image.open(file).convert("RGB")
    left, top, right, bottom = IMAGENET.frame_box(picture.size)
    across, down = SIDE / (right - left), SIDE / (bottom - top)

    def moved(box: Box) -> Box:
        x0, y0, x1, y1 = box
        return (x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down

    return IMAGENET.tensor(IMAGENET.view(picture)), moved


def kangaroos() -> Iterator[tuple[Tensor, dict[int, list[Box]]]]:
    folder = DATA / "boxes" / "kangaroo"
    for note in sorted((folder / "annots").glob("*.xml")):
        pixels, moved = prepared(folder / "images" / f"{note.stem}.jpg")
        boxes: list[Box] = []
        for box in ET.parse(note).getroot().iter("bndbox"):  # noqa: S314 - our own files
            left, top, right, bottom = (
                float(box.findtext(k, "0")) for k in ("xmin", "ymin", "xmax", "ymax")
            )
            boxes.append(moved((left, top, right, bottom)))
        yield pixels, {KANGAROO: boxes}


def coco() -> Iterator[tuple[Tensor, dict[int, list[Box]]]]:
    folder = DATA / "boxes" / "coco"
    held = json.loads((folder / "instances.json").read_text())
    names = {each["id"]: each["name"] for each in held["categories"]}
    ids = {each["file_name"]: each["id"] for each in held["images"]}
    for entry in json.loads((folder / "manifest.json").read_text()):
        pixels, moved = prepared(folder / "images" / entry["file"])
        by_class: dict[int, list[Box]] = {}
        for each in held["annotations"]:
            if each["image_id"] != ids[entry["file"]]:
                continue
            left, top, width, height = each["bbox"]
            box = moved((left, top, left + width, top + height))
            for label in entry["imagenet_map"].get(names[each["category_id"]], ()):
                by_class.setdefault(label, []).append(box)
        yield pixels, by_class


SETS = {"kangaroo": kangaroos, "COCO": coco}


def known_to(
    model: nn.Module, photographs: Iterator[tuple[Tensor, dict[int, list[Box]]]]
) -> list[Photograph]:
    """The photographs of which one of the five likeliest classes has a box."""
    found: list[Photograph] = []
    for pixels, boxes in photographs:
        with torch.no_grad():
            likeliest = model(pixels[None])[0].topk(5).indices.tolist()
        label = next((each for each in likeliest if each in boxes), None)
        if label is not None:
            found.append(Photograph(pixels, label, boxes[label]))
    return found


def hits(heatmaps: Tensor, photographs: list[Photograph]) -> int:
    """How many maxima lie in a box. Where a whole patch is the maximum, its middle counts."""
    count = 0
    for heatmap, photograph in zip(heatmaps, photographs, strict=True):
        y, x = (float(each) + 0.5 for each in (heatmap == heatmap.max()).nonzero().float().mean(0))
        count += any(
            left <= x <= right and top <= y <= bottom
            for left, top, right, bottom in photograph.boxes
        )
    return count


def ours(model: nn.Module, layer: str, method: str) -> Callable[[list[Photograph]], Tensor]:
    layers = layer if find_method(method).layers else None

    def run(photographs: list[Photograph]) -> Tensor:
        images = torch.stack([each.pixels for each in photographs])
        labels = [each.label for each in photographs]
        options = OPTIONS.get(method, {})
        return explain(model, images, method, labels, layers, **options).heatmaps

    return run


def peers(model: nn.Module, layer: str, method: str) -> Callable[[list[Photograph]], Tensor]:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def run(photographs: list[Photograph]) -> Tensor:
        maps: list[Any] = []
        make = getattr(pytorch_grad_cam, PEERS[method])
        cam = make(model=model, target_layers=[model.get_submodule(layer)])
        # It draws progress bars.
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere), cam:
            for each in photographs:
                targets = None
                if method != "finercam":
                    targets = [ClassifierOutputTarget(each.label)]
                maps.append(torch.from_numpy(cam(each.pixels[None], targets)[0]))
        return torch.stack(maps)

    return run


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments.add_argument("--methods", nargs="+", help="by default all but those of attention")
    options = arguments.parse_args()
    begin(options)
    warnings.filterwarnings("ignore")
    report = Report(
        "Does the maximum lie on the object? (`benchmarks/pointing.py`)",
        " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
        ("model", "method", "layer", *(text for n in SETS for text in (n, "pytorch-grad-cam"))),
    )
    for name in options.models:
        play(report, name, options)
    tell(report, options)


def play(report: Report, name: str, options: argparse.Namespace) -> None:
    """All methods that are asked of a model."""
    model, (layers, asked) = trained(name), MODELS[name]
    sets = {which: known_to(model, photographs()) for which, photographs in SETS.items()}
    if options.quick:
        sets = {which: photographs[:4] for which, photographs in sets.items()}
    middle = torch.zeros(SIDE, SIDE)
    middle[SIDE // 2, SIDE // 2] = 1
    cells: list[str] = []
    for each in sets.values():
        cells += [f"{hits(middle.expand(len(each), -1, -1), each)}/{len(each)}", ""]
    report.row(name, "the middle", "", *cells)
    every = [
        each.name for each in list_methods() if each.kind != "attention" and each.name != "cam"
    ]
    for method in options.methods or asked or every:
        reruns = find_method(method).many and not find_method(method).gradients
        for layer in layers[: 1 if reruns else None] if find_method(method).layers else [""]:
            some = {n: each[: RERUNS if reruns else None] for n, each in sets.items()}
            report.row(name, method, layer, *judged(report, model, method, layer, some))


def judged(
    report: Report, model: nn.Module, method: str, layer: str, sets: dict[str, list[Photograph]]
) -> list[str]:
    """Judge a method at a layer, beside the peer where that has it."""
    cells: list[str] = []
    for name, photographs in sets.items():
        found = hits(ours(model, layer, method)(photographs), photographs)
        cells += [f"{found}/{len(photographs)}", ""]
        if method in PEERS:
            theirs = hits(peers(model, layer or "features", method)(photographs), photographs)
            cells[-1] = f"{theirs}/{len(photographs)}"
            where = f"{type(model).__name__}, {method}, {layer or 'input'}, {name}"
            report.check(f"hits fewer than pytorch-grad-cam: {where}", theirs - found, at_most=1)
    return cells


if __name__ == "__main__":
    main()
