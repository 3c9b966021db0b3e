"""Sets of the Hugging Face Hub, here from folders with files as the hub has them."""

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedgaze.config import parse_task
from fedgaze.data import Dataset, StackedImages, load_dataset
from fedgaze.errors import FedgazeError

WRITERS = ["ada", "bo", "cy"]

needs_hub = pytest.mark.skipif(
    find_spec("flwr_datasets") is None,
    reason="flwr-datasets is not installed: it cannot be beside the transformers of dev",
)


@pytest.fixture
def no_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` keeps, it keeps here."""
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def grey(number: int, size: tuple[int, int] = (7, 5), mode: str = "L") -> Image.Image:
    return Image.new("L", size, number).convert(mode)


def columns(count: int, mode: str = "L", **others: list[Any]) -> dict[str, list[Any]]:
    return {
        "pixels": [grey(i, mode=mode) for i in range(count)],
        "label": [i % 2 for i in range(count)],
        "writer": [WRITERS[i % 3] for i in range(count)],
        **others,
    }


@pytest.fixture
def parquet(tmp_path: Path, no_traces: None) -> Callable[..., Path]:
    """Writes splits as parquet files; number i of a split has the grey i."""
    import datasets

    def write(
        labels: Any = None, without: tuple[str, ...] = (), **splits: dict[str, list[Any]]
    ) -> Path:
        label = labels or datasets.ClassLabel(names=["even", "odd"])
        kinds = {"pixels": datasets.Image(), "label": label, "writer": datasets.Value("string")}
        folder = tmp_path / "set"
        folder.mkdir()
        for split, held in splits.items():
            shown = {name: held[name] for name in held if name not in without}
            features = datasets.Features({name: kinds[name] for name in shown})
            table = datasets.Dataset.from_dict(shown, features)
            table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
        return folder

    return write


def numbers(images: Any) -> list[int]:
    pixels = images[torch.arange(len(images.labels))]
    return [round(each * 255) for each in pixels[:, 0, 0, 0].tolist()]


@needs_hub
def test_images_classes_and_groups(parquet: Callable[..., Path]) -> None:
    root = parquet(train=columns(12), test=columns(6))
    found = load_dataset("flwr:me/greys", root, partition_by="writer")
    assert (found.name, found.classes) == ("me/greys", ("even", "odd"))
    assert isinstance(found.train, StackedImages)
    assert found.train[torch.tensor([3, 1])].shape == (2, 1, 5, 7)
    assert numbers(found.train) == list(range(12))
    assert found.train.labels.tolist() == [0, 1] * 6
    assert numbers(found.test) == list(range(6))
    assert found.groups == [WRITERS[i % 3] for i in range(12)]
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"


@needs_hub
def test_many_images_stay_packed_and_are_the_same(
    parquet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = parquet(train=columns(12, "RGB"), test=columns(6, "RGB"))
    stacked = load_dataset("flwr:x", root)
    monkeypatch.setattr("fedgaze.data.hub.IN_MEMORY", 100)
    packed = load_dataset("flwr:x", root)
    assert not isinstance(packed.train, StackedImages)
    some = torch.tensor([7, 0, 7, 11])
    assert packed.train[some].shape == (4, 3, 5, 7)
    assert torch.equal(packed.train[some], stacked.train[some])
    few = packed.train.select(torch.tensor([5, 2]), torch.tensor([1, 0]))
    assert numbers(few) == [5, 2]
    kept = packed.keep(["odd"])
    assert numbers(kept.train) == [1, 3, 5, 7, 9, 11]


@needs_hub
def test_without_test_images_a_fifth_is_held_out_and_groups_follow(
    parquet: Callable[..., Path],
) -> None:
    root = parquet(train=columns(20))
    found = load_dataset("flwr:x", root, 1, "writer")
    assert (len(found.train.labels), len(found.test.labels)) == (16, 4)
    own = numbers(found.train)
    assert sorted(own + numbers(found.test)) == list(range(20))
    assert found.groups == [WRITERS[i % 3] for i in own]
    assert found.train.labels.tolist() == [i % 2 for i in own]
    assert own != numbers(load_dataset("flwr:x", root, 2).train)


@needs_hub
def test_labels_that_are_words(parquet: Callable[..., Path]) -> None:
    import datasets

    words = {"label": ["b", "a", "c", "a"] * 3}
    root = parquet(
        datasets.Value("string"),
        train=columns(12, **words),
        validation=columns(4, label=["c", "a", "a", "b"]),
    )
    found = load_dataset("flwr:x", root)
    assert found.classes == ("a", "b", "c")
    assert found.train.labels[:4].tolist() == [1, 0, 2, 0]
    assert found.test.labels.tolist() == [2, 0, 0, 1]


@needs_hub
def test_images_of_several_sizes_are_brought_to_one(tmp_path: Path, no_traces: None) -> None:
    for split in ("train", "test"):
        for tone, name in ((10, "bee"), (200, "ant")):
            place = tmp_path / "set" / split / name
            place.mkdir(parents=True)
            for i in range(3):
                grey(tone, (30 + 10 * i, 30), "RGB").save(place / f"{i}.png")
    found = load_dataset("flwr:insects", tmp_path / "set")
    assert found.classes == ("ant", "bee")
    images = found.train[torch.arange(6)]
    assert images.shape == (6, 3, 224, 224)
    tones = torch.tensor([200, 10])[found.train.labels] / 255
    torch.testing.assert_close(images.mean((1, 2, 3)), tones)


@needs_hub
def test_of_a_picture_the_middle_is_kept(parquet: Callable[..., Path]) -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    pixels = [Image.fromarray(wide), Image.new("L", (10, 10))]
    held = {"pixels": pixels, "label": [0, 1]}
    found = load_dataset("flwr:x", parquet(train=held, test=held))
    image = found.train[torch.tensor([0])][0, 0]
    assert image.shape == (224, 224)
    assert image[:, 20:-20].min() == 1


@needs_hub
@pytest.mark.parametrize(
    ("how", "by", "said"),
    [
        ({}, "writr", "flwr:x has the columns pixels, label, writer; did you mean 'writer'"),
        ({"without": ("pixels",)}, None, "flwr:x has no column of images; it has label, writer"),
        ({"without": ("label",)}, None, "flwr:x has no column label and none of class labels"),
    ],
)
def test_tables_that_do_not_fit(
    parquet: Callable[..., Path], how: dict[str, Any], by: str | None, said: str
) -> None:
    root = parquet(train=columns(12), test=columns(6), **how)
    with pytest.raises(FedgazeError, match=said):
        load_dataset("flwr:x", root, partition_by=by)


@needs_hub
def test_images_without_a_label_are_refused(parquet: Callable[..., Path]) -> None:
    root = parquet(train=columns(4), test=columns(4, label=[0, 1, -1, 0]))
    with pytest.raises(FedgazeError, match="images without a label in label"):
        load_dataset("flwr:x", root)


@needs_hub
def test_damaged_images_are_named(parquet: Callable[..., Path]) -> None:
    damaged = {"pixels": [grey(1), {"bytes": b"no picture", "path": None}], "label": [0, 1]}
    absent = {"pixels": [grey(1), None], "label": [0, 1]}
    for bad, said in ((damaged, "column pixels cannot be read"), (absent, "no image in the colu")):
        for train, test in ((bad, columns(2)), (columns(2), bad)):
            root = parquet(train=train, test=test, without=("writer",))
            with pytest.raises(FedgazeError, match=said):
                load_dataset("flwr:x", root)
            shutil.rmtree(root)


@needs_hub
def test_folders_without_the_files(tmp_path: Path, no_traces: None) -> None:
    with pytest.raises(FedgazeError, match=r"dataset.root=.*nowhere is no folder with the files"):
        load_dataset("flwr:me/greys", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FedgazeError, match=r"flwr:me/greys could not be loaded: .*any data"):
        load_dataset("flwr:me/greys", tmp_path / "empty")


@needs_hub
def test_what_the_hub_is_asked_and_what_its_silence_means(
    no_traces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def silent(**how: Any) -> None:
        asked.append((how["path"], how["name"]))
        raise ConnectionError("Couldn't reach it.\nRetry")

    monkeypatch.setattr("flwr_datasets.federated_dataset.datasets.load_dataset", silent)
    for name in ("me/greys", "me/greys:small"):
        with pytest.raises(FedgazeError, match=r"reach it; dataset.root may name") as caught:
            load_dataset(f"flwr:{name}")
        assert "\n" not in str(caught.value)
    assert asked == [("me/greys", None), ("me/greys", "small")]


@needs_hub
def test_a_federation_of_writers(parquet: Callable[..., Path], tmp_path: Path) -> None:
    """A dot in the name leads to the hub as well, not into the task's own files."""
    from fedgaze.federate import prepare

    root = parquet(train=columns(60), test=columns(6))
    values = {
        "model": {"_target_": "fedgaze.models.DigitsNet"},
        "num_clients": 3,
        "dataset": {
            "name": "flwr:me/greys.v2",
            "root": str(root),
            "partition": "natural",
            "partition_by": "writer",
        },
        "xai": {"enabled": False},
    }
    setup = prepare(parse_task(values, tmp_path))
    assert [own.tolist() for own in setup.parts] == [list(range(i, 60, 3)) for i in range(3)]


def test_without_flwr_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(FedgazeError, match=r"flwr:ylecun/mnist needs .*'fedgaze\[datasets\]'"):
        load_dataset("flwr:ylecun/mnist")


def test_groups_of_a_set_of_ones_own(tmp_path: Path) -> None:
    """`data_preparation.load` gives them, and no column is asked for."""
    from fedgaze.federate import prepare

    (tmp_path / "data_preparation.py").write_text(
        "from dataclasses import replace\n"
        "from fedgaze.data import load_digits\n"
        "def load(root, seed):\n"
        "    digits = load_digits(root, seed)\n"
        "    return replace(digits, groups=[i % 3 for i in range(len(digits.train.labels))])\n"
    )
    own: dict[str, Any] = {"name": "data_preparation.load", "partition": "natural"}
    values = {"model": {"_target_": "fedgaze.models.DigitsNet"}, "num_clients": 3}
    setup = prepare(parse_task(values | {"dataset": own}, tmp_path))
    assert isinstance(setup.dataset, Dataset)
    assert [(each % 3).unique().tolist() for each in setup.parts] == [[0], [1], [2]]
    own["partition_by"] = "writer"
    with pytest.raises(FedgazeError, match=r"partition_by=writer: data_preparation.load gives the"):
        prepare(parse_task(values | {"dataset": own}, tmp_path))
