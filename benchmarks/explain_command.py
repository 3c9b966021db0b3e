"""What `fedgaze explain` costs beside a script that does no more than run the model.

    python benchmarks/explain_command.py [--quick] [--photograph FILE]

One photograph and torchvision's ResNet-50, with random weights that were saved beforehand. The
script imports torch and torchvision, loads the weights, reads the photograph and runs the model
once. The command does all of that, and explains, and writes what it found. Both are processes of
their own and take turns; what is compared is their CPU time (of all threads), and the time on the
clock, each by its median.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from common import DATA, Report, begin, parser, tell

MODEL = "resnet50"
LIMIT = 1.3

SCRIPT = """
import sys
import torch
from PIL import Image
from torchvision.models import resnet50
from torchvision.transforms.functional import center_crop, normalize, resize, to_tensor

torch.set_num_threads(int(sys.argv[3]))
model = resnet50()
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
model.eval()
picture = Image.open(sys.argv[2]).convert("RGB")
pixels = to_tensor(center_crop(resize(picture, 256), [224, 224]))
pixels = normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
with torch.no_grad():
    print(int(model(pixels[None]).argmax()))
"""


class Taken(NamedTuple):
    """Seconds of a process."""

    processor: float
    clock: float


def timed(command: list[str], folder: Path, threads: int) -> Taken:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(used, clock)


def photograph() -> Path:
    found = sorted((DATA / "photos" / "imagenet").glob("*.JPEG"))
    if not found:
        raise SystemExit(f"there are no photographs in {DATA}; give one with --photograph")
    return found[0]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--photograph", type=Path)
    options = made.parse_args()
    begin(options)
    picture = (options.photograph or photograph()).resolve()
    taken: dict[str, list[Taken]] = {"script": [], "command": []}
    with tempfile.TemporaryDirectory() as made_folder:
        folder = Path(made_folder)
        save_weights(folder / "weights.pt")
        (folder / "plain.py").write_text(SCRIPT, encoding="utf-8")
        python, threads = sys.executable, options.threads
        command = Path(python).parent / "fedgaze"
        commands = {
            "script": [python, "plain.py", "weights.pt", str(picture), str(threads)],
            "command": [
                *(str(command), "explain", str(picture), "--model", MODEL),
                *("--checkpoint", "weights.pt", "--output", "out"),
            ],
        }
        for repeat in range(options.repeats + 1):
            for name, each in commands.items():
                found = timed(each, folder, threads)
                if repeat:  # files are in the system's cache from the second on
                    taken[name].append(found)
    report = Report(
        "What `fedgaze explain` costs",
        f"One photograph, ResNet-50 with `--checkpoint`, {options.repeats} rounds, medians; beside "
        "a script that imports torch and torchvision, loads the same weights and runs the model.",
        ("", "CPU time", "on the clock"),
    )
    medians = {
        name: Taken(*(statistics.median(column) for column in zip(*each, strict=True)))
        for name, each in taken.items()
    }
    for name, median in medians.items():
        report.row(name, f"{median.processor:.2f} s", f"{median.clock:.2f} s")
    plain, ours = medians["script"], medians["command"]
    report.check("CPU time, as a ratio", ours.processor / plain.processor, at_most=LIMIT)
    report.check("time on the clock, as a ratio", ours.clock / plain.clock, at_most=LIMIT)
    tell(report, options)


def save_weights(file: Path) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    torch.save(resnet50(weights=None).state_dict(), file)


if __name__ == "__main__":
    main()
