"""What Score-CAM and Ablation-CAM cost, and what a budget of channels keeps.

    python benchmarks/rerun_cost.py [--channels 64] [--repeats 3] [--photographs 4]

ResNet-50 of torchvision with random weights, one image, the 2,048 channels of its last stage, for
fedgaze, pytorch-grad-cam and torchcam, each through its public interface with its own defaults.

Time: in plain fp32 forward passes under `no_grad`, with which all take turns. All channels would
take many minutes. So each library explains the same ResNet-50 at the first `--channels` channels of
its last stage, which a module puts beside the forward pass; what it takes above one plain pass is
divided by the channels, and told for 2,048. The same goes for Ablation-CAM of pytorch-grad-cam.
With `--channels 2048` nothing is extrapolated. Budgets of channels, and Ablation-CAM of fedgaze,
run in full.

Memory: the peers have all 2,048 channels, and are stopped after six passes, when all that they hold
is made; fedgaze runs to the end, at 256 channels where it runs all of them. A faster copy of the
model, which is made once, is not counted.

Agreement: SqueezeNet 1.1 with its real weights on photographs from FEDGAZE_DATA: the rank
correlation (Spearman) of heatmaps by a twentieth of the 512 channels with those by all.
"""

import json
import os
import statistics
import time
import warnings
from argparse import Namespace
from contextlib import redirect_stderr, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import DATA, MIB, Report, Run, alone, begin, parser, peak, tell
from subjects import forward, pictures, subject, trained

ALL = 2048
BUDGET = 100
STOP = 6
PEERS = {"pytorch-grad-cam": "grad-cam", "torchcam": "torchcam"}
OURS: dict[str, dict[str, Any]] = {
    "fedgaze": {},
    "fedgaze, fast": {"precision": "fast"},
    "fedgaze, bf16": {"precision": "bf16"},
}
BUDGETS = {f"{name}, {BUDGET} channels": {**OURS[name], "channels": BUDGET} for name in OURS}
AT_LEAST = {"fedgaze, fast": 1.25, "fedgaze, bf16": 2.2, f"fedgaze, fast, {BUDGET} channels": 20}
MEMORY = 512


class EnoughError(Exception):
    """So many passes as were wanted."""


class First(nn.Module):
    """The first channels, so many as were asked for."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.count].clone()


class Tapped(nn.Module):
    """A ResNet-50 that puts some of its last stage's channels into a module beside its way."""

    def __init__(self, channels: int = ALL) -> None:
        super().__init__()
        whole = subject("ResNet-50").model
        self.body = nn.Sequential(*list(whole.children())[:-2])
        self.pool = whole.get_submodule("avgpool")
        self.fc = whole.get_submodule("fc")
        self.tap = First(channels)
        self.left: int | None = None
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise EnoughError
        features = self.body(x)
        self.tap(features)
        scores: Tensor = self.fc(self.pool(features).flatten(1))
        return scores


def score_cam(name: str, model: Tapped, image: Tensor) -> Run:
    if name not in PEERS:
        from fedgaze.xai import explain

        options = {**OURS, **BUDGETS}[name]
        return lambda: explain(model, image, "scorecam", layers="tap", **options)
    if name == "pytorch-grad-cam":
        from pytorch_grad_cam import ScoreCAM

        cam = ScoreCAM(model=model, target_layers=[model.tap])
        return lambda: cam(input_tensor=image, targets=None)
    from torchcam.methods import ScoreCAM as TorchScoreCAM

    extractor = TorchScoreCAM(model, target_layer=model.tap)

    def torchcam() -> object:
        with torch.no_grad():
            scores = model(image)
            return extractor(int(scores[0].argmax()), scores)

    return torchcam


def ablation_cam(name: str, model: nn.Module, image: Tensor, count: int) -> Run:
    if name in OURS:
        from fedgaze.xai import explain

        return lambda: explain(model, image, "ablationcam", layers="layer4", **OURS[name])
    import numpy as np
    from pytorch_grad_cam import AblationCAM
    from pytorch_grad_cam.ablation_layer import AblationLayer

    class Some(AblationLayer):  # type: ignore[misc]
        def activations_to_be_ablated(self, *_: object) -> object:
            self.indices = np.arange(count)
            return self.indices

    layers = [model.get_submodule("layer4")]
    cam = AblationCAM(model=model, target_layers=layers, ablation_layer=Some())
    return lambda: cam(input_tensor=image, targets=None)


def quietly(run: Run) -> float:
    """The CPU time of something that draws progress bars."""
    start = time.process_time()
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        run()
    return time.process_time() - start


def measure_times(channels: int, repeats: int) -> dict[tuple[str, str], float]:
    """Median CPU time of all of a method, in plain forward passes."""
    image = pictures(1)
    runs: dict[tuple[str, str], Run] = {}
    for name in (*OURS, *BUDGETS, *PEERS):
        # A model each: some libraries leave hooks on theirs.
        run = score_cam(name, Tapped(ALL if name in BUDGETS else channels), image)
        if name not in PEERS:
            quietly(run)  # what is done once: faster copies, the cost of a pass
        runs["Score-CAM", name] = run
    for name in (*OURS, "pytorch-grad-cam"):
        run = ablation_cam(name, subject("ResNet-50").model, image, channels)
        if name in OURS:
            quietly(run)
        runs["Ablation-CAM", name] = run
    in_part = {key for key in runs if key[1] in PEERS or key == ("Score-CAM", key[1])}
    in_part -= {("Score-CAM", name) for name in BUDGETS}
    plain = forward(Tapped(), image)
    plain()
    passes: list[float] = []
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            passes += [quietly(plain) for _ in range(3)]
            taken[key].append(quietly(run))
    one = statistics.median(passes)
    found = {key: statistics.median(each) / one for key, each in taken.items()}
    return {
        key: 1 + (each - 1) * ALL / channels if key in in_part else each
        for key, each in found.items()
    }


def measure_memory(name: str) -> float:
    """MiB by which the peak of Score-CAM exceeds the peak of plain forward passes."""
    image, model = pictures(1), Tapped(256 if name in OURS else ALL)
    run, plain = score_cam(name, model, image), forward(model, image)

    def once() -> None:
        model.left = STOP if name in PEERS else None
        with suppress(EnoughError):
            quietly(run)

    if name not in PEERS:
        once()  # a faster copy is made
    plain()
    forwards = peak(plain)
    return (peak(once, 1) - forwards) / MIB


def measure_agreement(photographs: int) -> list[float]:
    """The rank correlation of heatmaps by a twentieth of the channels with those by all."""
    from scipy.stats import spearmanr

    from fedgaze.xai import explain
    from pointing import prepared

    model = trained("squeezenet1_1")
    files = sorted((DATA / "photos" / "imagenet").glob("*.JPEG"))
    files = files[:: max(1, len(files) // photographs)][:photographs]
    found: list[float] = []
    for file in files:
        image = prepared(file)[0][None]
        maps = [
            explain(
                model, image, "scorecam", layers="features", precision="fast", channels=channels
            )
            for channels in (None, 512 // 20)
        ]
        pair = [each.heatmaps.flatten().numpy() for each in maps]
        found.append(float(spearmanr(*pair).statistic))
    return found


def report_of(options: Namespace) -> Report:
    versions = ", ".join(f"{name} {version(package)}" for name, package in PEERS.items())
    report = Report(
        "What methods cost that run the model again and again",
        "ResNet-50 (torchvision, random weights, 224 × 224, one image), the 2,048 channels of "
        "layer4. Time is in plain fp32 forward passes under `no_grad`, by medians of CPU time, all "
        f"taking turns; methods that run all channels were measured over {options.channels} of "
        "them (see the script), budgets and Ablation-CAM of fedgaze in full. Memory is how far the "
        f"peak exceeds that of a forward pass. {versions}.",
        ("method", "library", "forward passes", "as fast as the fastest peer", "memory"),
    )
    times = measure_times(options.channels, options.repeats)
    for (method, name), taken in times.items():
        fastest = min(each for key, each in times.items() if key[0] == method and key[1] in PEERS)
        memory = ""
        if method == "Score-CAM":
            extra = alone(__file__, options, name=name)
            memory = f"{extra:,.0f} MiB"
            if name not in PEERS:
                report.check(f"Score-CAM, {name}: memory", extra, "MiB", at_most=MEMORY)
            if name in AT_LEAST:
                report.check(
                    f"Score-CAM, {name}: times as fast", fastest / taken, at_least=AT_LEAST[name]
                )
        elif name == "fedgaze":
            report.check("Ablation-CAM: times as fast", fastest / taken, at_least=5)
        report.row(method, name, f"{taken:,.1f}", f"{fastest / taken:.2f}", memory)
    if options.photographs and DATA.exists():
        found = measure_agreement(options.photographs)
        report.check(
            f"Score-CAM by a twentieth of the channels: median Spearman of {len(found)} heatmaps",
            statistics.median(found),
            at_least=0.95,
        )
        report.note(
            "Rank correlations with all channels (SqueezeNet 1.1, photographs): "
            + ", ".join(f"{each:.3f}" for each in sorted(found))
            + "."
        )
    return report


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(repeats=3)
    made.add_argument("--channels", type=int, default=64, help="measured of 2,048")
    made.add_argument("--photographs", type=int, default=8, help="0 for none, 60 for all")
    options = made.parse_args()
    begin(options)
    warnings.filterwarnings("ignore")
    if options.alone:
        print(json.dumps(measure_memory(**json.loads(options.alone))))
        return
    if options.quick:
        options.channels, options.repeats, options.photographs = 16, 1, 1
    tell(report_of(options), options)


if __name__ == "__main__":
    main()
