"""What Grad-CAM costs beside a plain forward pass, here and elsewhere.

    python benchmarks/cam_cost.py [--batches 1 16] [--repeats 15]

ResNet-50 of torchvision with random weights, its last stage, eval mode, float32, two threads, for
fedgaze, pytorch-grad-cam, Captum and torchcam, each through its public interface and as its own
documentation shows it, with an explainer that is made once where the library has one.

Time: in one process, the libraries take turns with the plain forward pass under `no_grad`, so that
what else the machine does strikes all of them. What is compared is CPU time (of all threads of the
process); a ratio is that of the medians.

Memory: one process for each library and batch, in which a thread watches the resident memory every
half millisecond. After one plain forward pass has brought the allocator to its size, the peak of
plain forward passes is taken, then that of explanations; printed is how far the second exceeds the
first. The allocator is told to give memory back at once, so that what was freed is not counted.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version

import psutil
import torch
from torch import Tensor, nn

LIBRARIES = {
    "fedgaze": "fedgaze",
    "pytorch-grad-cam": "grad-cam",
    "captum": "captum",
    "torchcam": "torchcam",
}
# Blocks from 64 KiB on come from the system and go back to it, so resident memory says what lives.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def make_model() -> nn.Module:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    model: nn.Module = resnet50(weights=None)
    return model.eval()


def make_explainer(library: str, model: nn.Module, images: Tensor) -> Callable[[], object]:
    """The explanation of the class that each image is predicted to be, as a library does it."""
    layer = model.get_submodule("layer4")
    if library == "plain":

        def plain() -> Tensor:
            with torch.no_grad():
                scores: Tensor = model(images)
                return scores

        return plain
    if library == "fedgaze":
        from fedgaze import explain

        return lambda: explain(model, images, layers="layer4")
    if library == "pytorch-grad-cam":
        from pytorch_grad_cam import GradCAM

        cam = GradCAM(model=model, target_layers=[layer])
        return lambda: cam(input_tensor=images, targets=None)
    if library == "captum":
        from captum.attr import LayerAttribution, LayerGradCam

        layer_cam = LayerGradCam(model, layer)
        # Captum asks for the classes: they are not searched for, which is in its favour.
        classes = plain_classes(model, images)

        def captum() -> Tensor:
            raw = layer_cam.attribute(images, target=classes, relu_attributions=True)
            size = (images.shape[2], images.shape[3])
            maps: Tensor = LayerAttribution.interpolate(raw, size, "bilinear")
            return maps

        return captum
    from torchcam.methods import GradCAM as TorchGradCAM

    extractor = TorchGradCAM(model, target_layer=layer)

    def torchcam() -> list[Tensor]:
        scores = model(images)
        maps: list[Tensor] = extractor(scores.argmax(1).tolist(), scores)
        return maps

    return torchcam


def plain_classes(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        scores: Tensor = model(images)
        return scores.argmax(1)


def measure_time(batch: int, repeats: int) -> dict[str, float]:
    """Median CPU time of each library as a ratio to that of the plain forward pass."""
    images = torch.rand(batch, 3, 224, 224)
    # A model each: some libraries leave hooks on theirs.
    runs = {name: make_explainer(name, make_model(), images) for name in ("plain", *LIBRARIES)}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if repeat >= 2:
                taken[name].append(time.process_time() - start)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    return {name: medians[name] / medians["plain"] for name in LIBRARIES}


def measure_memory(library: str, batch: int) -> float:
    """MiB by which the peak of explaining exceeds the peak of the plain forward pass."""
    images = torch.rand(batch, 3, 224, 224)
    model = make_model()
    plain = make_explainer("plain", model, images)
    plain()
    forward = peak(plain)
    run = make_explainer(library, model, images)
    run()
    return (peak(run) - forward) / 2**20


def peak(run: Callable[[], object], times: int = 5) -> int:
    process = psutil.Process()
    highest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, process.memory_info().rss)
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(times):
            run()
    finally:
        done.set()
        watcher.join()
    return highest


def memory_apart(library: str, batch: int) -> float:
    command = [sys.executable, __file__, "--memory-of", library, "--batches", str(batch)]
    environment = os.environ | ALLOCATOR
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description="What Grad-CAM costs beside a forward pass.")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", choices=LIBRARIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, arguments.batches[0])))
        return
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", *LIBRARIES.values()))
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads; {packages}")
    print(f"{'library':<18}{'batch':>6}{'time':>8}{'memory':>12}")
    for batch in arguments.batches:
        times = measure_time(batch, arguments.repeats)
        for library in LIBRARIES:
            memory = memory_apart(library, batch)
            print(f"{library:<18}{batch:>6}{times[library]:>8.3f}{memory:>8.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
