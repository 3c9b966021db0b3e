"""`fedgaze evaluate` on a model whose Grad-CAM is the brightness of the picture."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import Result

BRIGHT = ["--model-code", "net.py:Net", "--checkpoint", "net.pt", "--classes", "names.txt"]
PLACES = "pointing_game,energy_pointing_game"
Call = Callable[..., Result]


def summary(folder: str = "evaluation") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text())
    return found


def test_heat_on_the_square_is_all_in_its_box(bright: Path, fedgaze: Call) -> None:
    done = fedgaze(
        "evaluate", "pictures", *BRIGHT, "--boxes", "voc", "voc", "--metrics", PLACES,
        "--target", "bright",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = summary()
    assert found["pictures"] == 5
    own = found["table"]["gradcam"]
    for metric in PLACES.split(","):
        assert own[metric]["mean"] == pytest.approx(1)
        assert own[metric]["n"] == 5
        assert own[metric]["rank"] == 1
    # Of a mean, the baselines know nothing: 24 of 576 pixels are the box's.
    assert found["table"]["noise"]["energy_pointing_game"]["mean"] < 0.2
    assert found["leads"]["gradcam"]["noise"]["energy_pointing_game"]["low"] > 0.8
    assert "square are of no class" in done.output
    assert "(1) 1.000" in done.output
    assert {each.name for each in Path("evaluation").iterdir()} == {
        "evaluation.json", "values.jsonl", "metrics.parquet", "metrics.csv", "summary.json",
        "report.html", "pictures",
    }  # fmt: skip


def test_pictures_show_what_is_seen_under_the_heat(bright: Path, fedgaze: Call) -> None:
    done = fedgaze("evaluate", "pictures", *BRIGHT, "--metrics", "gini")
    assert done.exit_code == 0, done.output

    def pixel(name: str, x: int, y: int) -> tuple[int, ...]:
        with Image.open(f"evaluation/pictures/00000.{name}.webp") as picture:
            scale = picture.width / 24
            found: Any = picture.convert("RGB").getpixel((int(x * scale), int(y * scale)))
        return tuple(found)

    # The square of the first picture begins at (2, 12); the rest is black, and without heat.
    for name in ("original", "gradcam"):
        assert min(pixel(name, 5, 14)) > 150
        assert max(pixel(name, 20, 2)) < 20
    # Under the weak heat that the centre's baseline has there, the square's white shines through.
    assert min(pixel("centre", 5, 14)) > 120
    assert min(pixel("centre", 5, 9)) < 60


def test_a_class_without_heat_has_no_value_and_says_why(bright: Path, fedgaze: Call) -> None:
    done = fedgaze(
        "evaluate", "pictures", *BRIGHT, "--boxes", "voc", "voc", "--target", "dark",
        "--metrics", "pointing_game,deletion",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    own = summary()["table"]["gradcam"]
    assert own["deletion"] == {
        "mean": None, "low": None, "high": None, "n": 0, "missing": 5, "rank": None,
        "best": False, "reasons": {"the heatmap is the same everywhere": 5},
    }  # fmt: skip
    rows = pq.read_table("evaluation/metrics.parquet").to_pylist()
    empty = [each for each in rows if each["method"] == "gradcam"]
    assert {each["value"] for each in empty} == {None}
    assert {each["reason"] for each in empty} == {"the heatmap is the same everywhere"}
    with Path("evaluation/metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows) == 5 * 4 * 2


def test_boxes_of_another_class_do_not_count(bright: Path, fedgaze: Call) -> None:
    Path("map.yaml").write_text("square: [dark]\n")
    words = ["evaluate", "pictures", *BRIGHT, "--boxes", "voc", "voc", "--metrics", PLACES]
    assert fedgaze(*words, "--box-classes", "map.yaml").exit_code == 0
    reasons = summary()["table"]["gradcam"]["pointing_game"]["reasons"]
    assert reasons == {"no box of the explained class": 5}
    # The class that the boxes are of may be what is explained.
    more = ["--box-classes", "map.yaml", "--target", "box", "--output", "second"]
    assert fedgaze(*words, *more).exit_code == 0
    rows = pq.read_table("second/metrics.parquet").to_pylist()
    assert {each["target"] for each in rows} == {"dark"}
    Path("wrong.yaml").write_text("square: [light]\n")
    wrong = fedgaze(*words, "--box-classes", "wrong.yaml", "--output", "third")
    assert wrong.exit_code == 2
    assert "no class is called 'light'; did you mean 'bright'?" in wrong.output
    assert not Path("third").exists()


def test_a_run_that_was_killed_goes_on_where_it_was(bright: Path, fedgaze: Call) -> None:
    command = [
        "evaluate", "pictures", *BRIGHT, "--metrics", "deletion,road,max_sensitivity,random_logit",
        "--batch-size", "1", "--method", "gradcam,layercam",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-m", "fedgaze.cli", *command, "--output", "killed"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lines = Path("killed/values.jsonl")
    until = time.monotonic() + 120
    while not (lines.is_file() and lines.read_text().count("\n") >= 2):
        assert started.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.wait()
    done = lines.read_text().count("\n")
    # What was being written when the power went.
    with lines.open("a") as file:
        file.write('{"file": "4.pn')
    resumed = fedgaze(*command, "--output", "killed")
    assert resumed.exit_code == 0, resumed.output
    assert f"{done} of 5 pictures are done already" in resumed.output
    assert fedgaze(*command, "--output", "whole").exit_code == 0
    assert lines.read_text() == Path("whole/values.jsonl").read_text()
    assert summary("killed") == summary("whole")
    # Of a batch that was begun, all is judged again, since what is drawn is drawn for a batch.
    batched = [*command, "--batch-size", "2"]
    assert fedgaze(*batched, "--output", "batched").exit_code == 0
    half = Path("batched/values.jsonl")
    text = half.read_text()
    half.write_text("".join(text.splitlines(keepends=True)[:3]))
    assert "3 of 5 pictures are done already" in fedgaze(*batched, "--output", "batched").output
    assert half.read_text() == text
    # Once more: nothing is judged again.
    before = lines.stat().st_mtime_ns
    again = fedgaze(*command, "--output", "killed")
    assert "5 of 5 pictures are done already" in again.output
    assert lines.stat().st_mtime_ns == before


def test_another_evaluation_s_folder_is_left_alone(bright: Path, fedgaze: Call) -> None:
    words = ["evaluate", "pictures", *BRIGHT, "--metrics", "gini"]
    assert fedgaze(*words).exit_code == 0
    before = {each: each.read_bytes() for each in Path("evaluation").rglob("*") if each.is_file()}
    other = fedgaze(*words, "--method", "layercam")
    assert other.exit_code == 2
    assert "holds an evaluation with another makers (gradcam, noise, edges, centre" in other.output
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    taken = fedgaze(*words, "--output", "mine")
    assert taken.exit_code == 2
    assert "holds no evaluation" in taken.output
    after = {each: each.read_bytes() for each in Path("evaluation").rglob("*") if each.is_file()}
    assert before == after
    assert [each.name for each in Path("mine").iterdir()] == ["notes.txt"]


def test_an_attack_is_told_picture_by_picture(bright: Path, fedgaze: Call) -> None:
    done = fedgaze(
        "evaluate", "pictures", *BRIGHT, "--attack", "contrast", "--severity", "2", "--no-baselines"
    )
    assert done.exit_code == 0, done.output
    told = [line for line in done.output.splitlines() if line.startswith(tuple("01234"))]
    assert [each.split()[0] for each in told] == [f"{index}.png" for index in range(5)]
    # Less contrast is an affine change of brightness: after scaling, places keep their order.
    assert all("spearman 1.000, pearson 1.000, top_k 1.000" in each for each in told)
    assert summary()["table"]["gradcam"]["contrast_spearman"]["mean"] == pytest.approx(1)
    assert "the model changes its mind on" in done.output


def test_groups_are_compared_with_their_intervals(bright: Path, fedgaze: Call) -> None:
    rows = "".join(f"{index}.png,{'a' if index < 3 else 'b'}\n" for index in range(5))
    Path("groups.csv").write_text(f"file,group\n{rows}")
    words = ["evaluate", "pictures", *BRIGHT, "--boxes", "voc", "voc", "--metrics", PLACES]
    done = fedgaze(*words, "--groups", "groups.csv")
    assert done.exit_code == 0, done.output
    groups = summary()["groups"]
    assert groups["a"]["gradcam"]["pointing_game"]["n"] == 3
    assert groups["b"]["gradcam"]["pointing_game"]["n"] == 2
    assert "No metric differs between the groups" in done.output
    Path("groups.csv").write_text("file,group\n0.png,a\n1.png,b\n2.png,b\n")
    alone = fedgaze(*words, "--groups", "groups.csv", "--output", "alone")
    assert "The groups cannot be compared" in alone.output
    assert "2 of 5 pictures are in no group" in alone.output


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("picture,who\n0.png,a\n", "has the columns picture, who; needed are file and group"),
        ("file,group\n0.png,a\n0.png,b\n", "puts 0.png into two groups, a and b"),
        ("file,group\n0.png,\n", "puts no file into a group"),
        ("file,group\n7.png,a\n", "named in the groups: they are called 0.png and so on"),
    ],
)
def test_groups_that_make_no_sense(rows: str, message: str, bright: Path, fedgaze: Call) -> None:
    Path("groups.csv").write_text(rows)
    wrong = fedgaze("evaluate", "pictures", *BRIGHT, "--metrics", "gini", "--groups", "groups.csv")
    assert wrong.exit_code == 2
    assert message in wrong.output
    assert not Path("evaluation").exists()


def test_json_is_all_that_is_printed(bright: Path, fedgaze: Call) -> None:
    done = fedgaze("evaluate", "pictures", *BRIGHT, "--metrics", "gini", "--json")
    assert json.loads(done.stdout) == summary()
    quiet = fedgaze("evaluate", "pictures", *BRIGHT, "--metrics", "gini", "--quiet")
    assert quiet.exit_code == 0
    assert quiet.stdout == ""


def test_a_broken_picture_is_named_and_the_others_count(bright: Path, fedgaze: Call) -> None:
    Path("pictures/2.png").write_bytes(b"no picture")
    done = fedgaze("evaluate", "pictures", *BRIGHT, "--metrics", "gini")
    assert done.exit_code == 1
    assert "2.png is not a picture that can be read" in done.output
    assert summary()["pictures"] == 4
    assert summary()["failed"] == 1
    assert "1 picture could not be read" in done.output


def test_pictures_that_the_model_cannot_take_are_named(bright: Path, fedgaze: Call) -> None:
    net = Path("net.py").read_text()
    Path("net.py").write_text(net.replace("(x)", "(x.view(-1, 3, 24, 24))"))
    Image.new("RGB", (9, 7), "white").save("pictures/odd.png")
    done = fedgaze("evaluate", "pictures", *BRIGHT, "--metrics", "gini")
    assert done.exit_code == 1
    assert "odd.png: the model could not run on 3 × 7 × 9 numbers" in done.output
    assert summary()["pictures"] == 5


def test_the_smallest_box_is_drawn(bright: Path, fedgaze: Call) -> None:
    text = Path("voc/0.xml").read_text()
    Path("voc/0.xml").write_text(
        text.replace("<xmax>8<", "<xmax>3<").replace("<ymax>16<", "<ymax>13<")
    )
    words = ["--boxes", "voc", "voc", "--metrics", "pointing_game"]
    assert fedgaze("evaluate", "pictures", *BRIGHT, *words).exit_code == 0
    assert summary()["table"]["gradcam"]["pointing_game"]["n"] == 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--metrics", "delete"], "there is no metric 'delete'; did you mean 'deletion'?"),
        (["--method", "gradcm"], "did you mean 'gradcam'?"),
        (["--metrics", "pointing_game"], "pointing_game needs to know where objects are"),
        (["--attack", "pdg"], "--attack is 'pdg'; allowed are fgsm, pgd"),
        (["--attack", "pgd", "--epsilon", "8"], "--epsilon is 8; allowed is above 0, up to 1"),
        (["--attack", "pgd", "--epsilon", "a/b"], "allowed is a number or a fraction"),
        (["--metric-option", "deletion.stps=3"], "deletion has no option 'stps'"),
        (["--metric-option", "deletion.steps=0"], "steps is 0; allowed is 1 and more"),
        (["--metric-option", "random_logit.similarity=ssmi"], "did you mean 'ssim'?"),
        (["--metric-option", "steps=3"], "should be METRIC.NAME=VALUE"),
        (["--option", "steps=3"], "gradcam has no option 'steps'"),
        (["--target", "brigt"], "no class is called 'brigt'; did you mean 'bright'?"),
        (["--target", "box"], "--target box needs --boxes"),
        (["--boxes", "voc", "nowhere"], "nowhere is no folder"),
        (["--tracker", "tensorbord"], "did you mean 'tensorboard'?"),
        (["--layer", "cnov"], "did you mean 'conv'?"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(
    bright: Path, fedgaze: Call, words: list[str], says: str
) -> None:
    done = fedgaze("evaluate", "pictures", *BRIGHT, *words)
    assert done.exit_code == 2
    assert says in done.output
    assert "Traceback" not in done.output
    assert not Path("evaluation/report.html").exists()
    # What came to nothing is in nobody's way.
    assert fedgaze("evaluate", "pictures", *BRIGHT, "--metrics", "gini").exit_code == 0


def test_metrics_are_listed(fedgaze: Call) -> None:
    done = fedgaze("evaluate", "--list-metrics")
    assert done.exit_code == 0
    assert "deletion" in done.output
    assert "localisation" in done.output
    # Written as --metric-option takes it, and no word broken.
    assert 'around={"radius": 0.05, "samples": 10,' in done.output
    assert "Chattopadhay et al., WACV 2018" in done.output


def test_tensorboard_gets_the_means(bright: Path, fedgaze: Call) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["evaluate", "pictures", *BRIGHT, "--metrics", "gini", "--tracker", "tensorboard"]
    assert fedgaze(*words).exit_code == 0
    held = EventAccumulator("evaluation/tensorboard")
    held.Reload()
    (event,) = held.Scalars("gradcam/gini")
    assert event.value == pytest.approx(summary()["table"]["gradcam"]["gini"]["mean"], abs=1e-6)


@pytest.mark.slow
def test_photographs_with_boxes_rank_grad_cam_over_noise_and_edges(
    real_data: Path, tmp_path: Path, fedgaze: Call
) -> None:
    for name in ("00001", "00005", "00014", "00021"):
        with Image.open(real_data / "boxes" / "kangaroo" / "images" / f"{name}.jpg") as picture:
            (tmp_path / "few").mkdir(exist_ok=True)
            picture.save(tmp_path / "few" / f"{name}.jpg", quality=95)
    done = fedgaze(
        "evaluate", tmp_path / "few", "--boxes", "voc", real_data / "boxes" / "kangaroo" / "annots",
        "--model", "squeezenet1_1", "--target", "wallaby", "--output", tmp_path / "out",
        "--checkpoint", real_data / "weights" / "squeezenet1_1_imagenet.safetensors",
        "--metrics", "deletion,insertion,energy_pointing_game,relevance_rank_accuracy",
        "--metric-option", "deletion.steps=12", "--metric-option", "insertion.steps=12",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    ranks = summary(str(tmp_path / "out"))["mean_ranks"]
    for axis in ("faithfulness", "localisation"):
        assert ranks["gradcam"][axis] < min(ranks["noise"][axis], ranks["edges"][axis])


def test_boxes_that_are_named_in_no_file_count_for_none(bright: Path, fedgaze: Call) -> None:
    for name in ("1.xml", "2.xml"):
        file = Path("voc", name)
        file.write_text(file.read_text().replace("square", "thing"))
    Path("map.yaml").write_text("square: bright\n")
    words = ["evaluate", "pictures", *BRIGHT, "--boxes", "voc", "voc", "--metrics", PLACES]
    done = fedgaze(*words, "--target", "bright", "--box-classes", "map.yaml")
    assert done.exit_code == 0, done.output
    assert "Boxes called thing are of no class of the model, by name or by" in done.output
    for metric in PLACES.split(","):
        own = summary()["table"]["gradcam"][metric]
        assert (own["n"], own["missing"], own["mean"]) == (3, 2, pytest.approx(1))


def test_all_of_a_table_is_printed_however_narrow(bright: Path, fedgaze: Call) -> None:
    done = fedgaze("evaluate", "pictures", *BRIGHT, "--metrics", "complexity,faithfulness")
    assert done.exit_code == 0, done.output
    # The dots are those of intervals.
    assert not re.search(r"[a-z_]…", done.output)
    drawn = [each for each in done.output.splitlines() if each[:1] in "┏┃┡│└"]
    assert max(map(len, drawn)) <= 80
    assert done.output.count("Faithfulness") > 2


@pytest.mark.parametrize("command", ["evaluate", "explain", "compare"])
def test_a_picture_s_name_that_is_no_text_is_named(
    command: str, bright: Path, fedgaze: Call
) -> None:
    odd = Path("pictures", os.fsdecode(b"\xff.png"))
    odd.write_bytes(Path("pictures/0.png").read_bytes())
    folder = ["pictures"] if command == "evaluate" else ["--image-dir", "pictures"]
    done = fedgaze(command, *folder, *BRIGHT, "--output", "out")
    assert done.exit_code == 2
    assert r"the name b'pictures/\xff.png' is not UTF-8" in done.stderr
    assert not Path("out").exists()
