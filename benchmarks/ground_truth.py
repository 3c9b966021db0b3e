"""Where the answer is known: do methods look at what decides, in grids, scenes and planted marks?

Three tasks, bundled and made of scikit-learn's handwritten digits, each with a small network that
is trained here, from a seed, until it is right:

- *grids*: four digits laid out as one image of twice the size; of the heat for a digit, the share
  in its cell (Böhle et al., CVPR 2021). An even map has 0.25.
- *scenes*: three digits on a canvas, and the network says which are there; of the heat for a
  digit, the share in its box. An even map has 0.059.
- *marks*: the network tells the class by a mark of 6 × 6 pixels, among digits that say nothing; of
  the heat for it, the share on the mark. An even map has 0.008. Maps of the network's last layer
  have cells of 4 × 4 pixels, and are blurred beyond the mark.

The network ends in average pooling and a linear layer, so that `cam` works on it; its positions are
16 × 16. Beside them, 60 photographs of kangaroos with boxes (FEDGAZE_DATA): the share of heat in
the boxes, of SqueezeNet and, for methods of attention, of ViT-tiny.
`--write FILE` puts a table of all methods, with what they need and cost, between two lines of a
page. Cost is CPU time on one image of 224 × 224, over that of a forward pass.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import DATA, Report, begin, parser, table, tell
from fedgaze.data import (
    Images,
    find_images,
    load_digits,
    make_grids,
    make_scenes,
    read_boxes,
    read_image,
)
from fedgaze.measure import mass_on, pointing_game, summarise
from fedgaze.models import IMAGENET, Preprocess, build_model
from fedgaze.store import load_tensors
from fedgaze.xai import Method, explain, find_method, list_methods
from subjects import subject, trained

BEGIN, END = "<!-- chosen: begin -->", "<!-- chosen: end -->"
FEW, MANY, SCENES, WALLABY = 32, 200, 4000, 104
# What would run the model thousands of times an image.
OPTIONS: dict[str, dict[str, Any]] = {
    "sscam": {"samples": 8},
    "rise": {"masks": 1000},
}
PARTS = {"sscam": 35 / 8, "rise": 4}
CHANGED = {
    "guided_backprop": "other rules at ReLU",
    "deconvnet": "other rules at ReLU",
    "guided_gradcam": "other rules at ReLU",
    "lrp": "other rules at every layer",
    "cam": "needs pooling and one linear layer at its end",
}
Loss = Callable[[Tensor, Tensor], Tensor]


class Task(NamedTuple):
    """Images, the classes that are explained, and where what decides lies."""

    images: Tensor
    classes: Tensor
    truth: Tensor


def network() -> nn.Module:
    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

    layers = [*block(1, 16), nn.MaxPool2d(2), *block(16, 32), nn.MaxPool2d(2)]
    layers += [*block(32, 48), *block(48, 48), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(48, 10))


def learn(model: nn.Module, images: Tensor, wanted: Tensor, loss: Loss, epochs: int) -> nn.Module:
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    steps = epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64)[: len(images) // 64]:
            optimiser.zero_grad()
            loss(model(images[rows]), wanted[rows]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def boxed(boxes: Tensor, side: int) -> Tensor:
    """Where boxes ``(N, 4)`` lie: bool ``(N, side, side)``."""
    places = torch.arange(side) + 0.5
    left, top, right, bottom = (each[:, None] for each in boxes.unbind(1))
    rows = (places >= top) & (places < bottom)
    return rows[:, :, None] & ((places >= left) & (places < right))[:, None]


def grids(quick: bool) -> tuple[nn.Module, Task, float]:
    digits = load_digits()
    torch.manual_seed(0)
    pixels = all_of(digits.train)
    model = learn(network(), pixels, digits.train.labels, F.cross_entropy, 6 if quick else 12)
    with torch.no_grad():
        chances, said = model(all_of(digits.test)).softmax(1).max(1)
    right = said == digits.test.labels
    sure = (right & (chances > (0 if quick else 0.9))).nonzero()[:, 0]
    made = make_grids(all_of(digits.test)[sure], digits.test.labels[sure], MANY)
    task = Task(made.images, made.labels[:, 0], made.masks()[:, 0])
    return model, task, float(right.float().mean())


def scenes(epochs: int) -> tuple[nn.Module, Task, float]:
    digits = load_digits()
    torch.manual_seed(0)
    train, test = make_scenes(digits.train, SCENES), make_scenes(digits.test, MANY, seed=1)
    loss = F.binary_cross_entropy_with_logits
    model = learn(network(), train.images, train.present(), loss, epochs)
    with torch.no_grad():
        said = model(test.images) > 0
    accuracy = float((said == test.present().bool()).float().mean())
    return model, Task(test.images, test.labels[:, 0], boxed(test.boxes[:, 0], 66)), accuracy


def marks(epochs: int) -> tuple[nn.Module, Task, float]:
    digits = load_digits()
    torch.manual_seed(0)
    train = make_scenes(digits.train, SCENES, marked=True)
    test = make_scenes(digits.test, MANY, marked=True, seed=1)
    model = learn(network(), train.images, train.marks, F.cross_entropy, epochs)
    with torch.no_grad():
        accuracy = float((model(test.images).argmax(1) == test.marks).float().mean())
    return model, Task(test.images, test.marks, boxed(test.mark_boxes, 66)), accuracy


def photographs(name: str, weights: str, count: int) -> tuple[nn.Module, Task]:
    """Photographs of kangaroos, with boxes of all that are in them."""
    folder = DATA / "boxes" / "kangaroo"
    held = read_boxes("voc", folder / "annots")
    if name.startswith("timm:"):
        model = build_model(None, name)
        tensors = load_tensors(DATA / "weights" / weights)
        model.load_state_dict({key: each.float() for key, each in tensors.items()})
        how = Preprocess(resize=256, crop=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
    else:
        model, how = trained(name), IMAGENET
    images, masks = [], []
    for file in find_images(folder / "images")[:count]:
        picture = read_image(file)
        left, top, right, bottom = how.frame_box(picture.size)
        across, down = 224 / (right - left), 224 / (bottom - top)
        found = [
            (
                (each.left - left) * across,
                (each.top - top) * down,
                (each.right - left) * across,
                (each.bottom - top) * down,
            )
            for each in held[file.name]
        ]
        images.append(how.tensor(how.view(picture)))
        masks.append(boxed(torch.tensor(found), 224).any(0))
    classes = torch.full((len(images),), WALLABY)
    return model.eval(), Task(torch.stack(images), classes, torch.stack(masks))


def all_of(images: Images) -> Tensor:
    return images[torch.arange(len(images.labels))]


def judged(model: nn.Module, task: Task, method: Method, count: int) -> tuple[str, str, float]:
    """Mean share of heat on what decides, how often the maximum is there, and the mean itself."""
    images, classes, truth = (each[:count] for each in task)
    options = OPTIONS.get(method.name, {})
    heat = explain(model, images, method.name, classes, **options).heatmaps
    share = summarise(mass_on(heat, truth).tolist())
    hits = summarise(pointing_game(heat, truth).tolist())
    return f"{share.mean:.2f}", f"{hits.mean:.2f}", share.mean


def cost(method: Method) -> float:
    """CPU time over that of a forward pass."""
    if method.kind == "attention":
        torch.manual_seed(0)
        model = build_model(None, "timm:vit_tiny_patch16_224").eval()
    else:
        model = subject("ResNet-18").model
    torch.manual_seed(0)
    image = torch.rand(1, 3, 224, 224)

    def taken(run: Callable[[], object], times: int) -> float:
        found = []
        for _ in range(times):
            start = time.process_time()
            run()
            found.append(time.process_time() - start)
        return sorted(found)[len(found) // 2]

    @torch.no_grad()
    def forward() -> None:
        model(image)

    forward()
    plain = taken(forward, 15)
    slow = method.many or method.name == "attention_flow"

    def run() -> None:
        explain(model, image, method.name, 1, **OPTIONS.get(method.name, {}))

    if not slow:
        run()
    # Of samples and masks left out, each would have cost as much.
    times = PARTS.get(method.name, 1)
    return times * taken(run, 1 if slow else 9) / plain


def write(page: Path, rows: list[list[str]]) -> None:
    """Put the table between the two lines of a page."""
    columns = ["method", "gradients", "model", "cost", "scenes", "marks", "boxes"]
    text = page.read_text(encoding="utf-8")
    made = f"{BEGIN}\n\n{table(columns, rows)}\n\n{END}"
    found, count = re.subn(f"{BEGIN}.*{END}", lambda _: made, text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{page} has no place for the table, between {BEGIN} and {END}")
    page.write_text(found, encoding="utf-8")


def measured(
    quick: bool, report: Report
) -> tuple[dict[str, dict[str, tuple[str, str, float]]], dict[str, float]]:
    """By method and task what `judged` says; and by task what an even map has."""
    epochs = 1 if quick else 8
    tasks = {"grids": grids(quick), "scenes": scenes(epochs), "marks": marks(epochs)}
    for name, (_, _, accuracy) in tasks.items():
        report.check(f"{name}: the network is right", accuracy, at_least=0 if quick else 0.95)
    count = 4 if quick else 60
    seen = photographs("squeezenet1_1", "", count)
    tokens = photographs(
        "timm:vit_tiny_patch16_224", "vit_tiny_patch16_224_imagenet_fp16.safetensors", count
    )
    even = {name: float(task.truth.float().mean()) for name, (_, task, _) in tasks.items()}
    even["boxes"] = float(seen[1].truth.float().mean())
    found: dict[str, dict[str, tuple[str, str, float]]] = {}
    for method in list_methods():
        count = 4 if quick else FEW if method.many else MANY
        own = found.setdefault(method.name, {})
        if method.kind == "attention":
            count = len(tokens[1].images)
            own["boxes"] = judged(*tokens, method, count)
        else:
            for name, (model, task, _) in tasks.items():
                own[name] = judged(model, task, method, count)
            # Hundreds of passes a photograph: `pointing` asks these, of fewer.
            if not method.many and method.name != "cam":
                own["boxes"] = judged(*seen, method, len(seen[1].images))
        cells = [own.get(name, ("–", "–", 0))[:2] for name in even]
        report.row(method.name, count, *[each for pair in cells for each in pair])
    report.row("an even map", "", *[each for name in even for each in (f"{even[name]:.2f}", "")])
    return found, even


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--write", type=Path, help="a page with a place for the table of methods")
    options = made.parse_args()
    begin(options)
    report = Report(
        "Where the answer is known",
        "Three tasks made of handwritten digits, of which it is known what decides: a cell of a "
        "grid of four digits, a digit's box in a scene of three, a mark among digits that say "
        "nothing. And 60 photographs of kangaroos with boxes, as SqueezeNet sees them, for methods "
        "of attention ViT-tiny. For each the share of the heat that lies there, and how often the "
        "maximum does. Methods at their automatic layer and defaults (`sscam` with 8 samples, "
        "`rise` with 1,000 masks).",
        ("method", "images", "grids", "hits", "scenes", "hits", "marks", "hits", "boxes", "hits"),
    )
    quick = options.quick
    found, even = measured(quick, report)
    for name, share in even.items():
        ours, drawn = (found[each][name][2] / share for each in ("gradcam", "random"))
        least = 0 if quick else 1.2 if name == "boxes" else 2
        report.check(f"{name}: Grad-CAM over an even map", ours, at_least=least)
        report.check(f"{name}: random over an even map", drawn, at_most=1.25)
    if options.write:
        rows = []
        for name, places in found.items():
            method = find_method(name)
            needs = "yes" if method.gradients else "no"
            price = "–" if quick else f"{cost(method):,.1f}"
            cells = [places.get(each, ("–", "–", 0))[0] for each in ("scenes", "marks", "boxes")]
            rows.append([f"`{name}`", needs, CHANGED.get(name, "as it is"), price, *cells])
            print(rows[-1], flush=True)
        write(options.write, rows)
    tell(report, options)


if __name__ == "__main__":
    main()
