"""MedMNIST's files, made by hand and one real one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgaze.data import load_dataset
from fedgaze.errors import FedgazeError


def write(file: Path, shape: tuple[int, ...] = (8, 8), classes: int = 2, **changes: Any) -> Path:
    """A file in MedMNIST's layout: image i has the value i everywhere, and the class i mod k."""
    arrays: dict[str, Any] = {}
    for part, count in (("train", 12), ("val", 5), ("test", 6)):
        numbers = np.arange(count, dtype=np.uint8)
        arrays[f"{part}_images"] = np.broadcast_to(
            numbers.reshape(-1, *[1] * len(shape)), (count, *shape)
        )
        arrays[f"{part}_labels"] = (numbers % classes)[:, None]
    arrays |= changes
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **{name: value for name, value in arrays.items() if value is not None})
    return file


def test_grey_images_and_the_names_of_their_classes(tmp_path: Path) -> None:
    write(tmp_path / "pneumoniamnist.npz")
    found = load_dataset("pneumoniamnist", tmp_path)
    assert found.classes == ("normal", "pneumonia")
    assert found.train.labels.tolist() == [0, 1] * 6
    assert len(found.test.labels) == 6  # the validation images are neither here nor there
    images = found.train[torch.arange(12)]
    assert images.shape == (12, 1, 8, 8)
    torch.testing.assert_close(images[:, 0, 3, 4], torch.arange(12) / 255)


def test_coloured_images_keep_their_colours(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 5, 3), np.uint8)
    pixels[0, 1, 2] = (255, 51, 0)
    labels = np.arange(4, dtype=np.uint8)[:, None]
    file = write(
        tmp_path / "bloodmnist_64.npz",
        (6, 5, 3),
        train_images=pixels,
        train_labels=labels,
    )
    for found in (load_dataset("bloodmnist", tmp_path), load_dataset("medmnist", file)):
        assert len(found.classes) == 8
        assert found.classes[7] == "platelet"
        image = found.train[torch.tensor([0])]
        assert image.shape == (1, 3, 6, 5)
        assert image[0, :, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
        assert image.sum().item() == pytest.approx(1.2)


def test_classes_without_names_have_numbers(tmp_path: Path) -> None:
    write(tmp_path / "ours.npz", classes=4)
    assert load_dataset("medmnist", tmp_path).classes == ("0", "1", "2", "3")


def test_of_several_files_the_one_of_the_name_is_taken(tmp_path: Path) -> None:
    write(tmp_path / "octmnist.npz", classes=4)
    write(tmp_path / "octmnist_128.npz", (9, 9), classes=4)
    assert load_dataset("octmnist", tmp_path).train[torch.tensor([0])].shape == (1, 1, 8, 8)
    (tmp_path / "octmnist.npz").rename(tmp_path / "octmnist_64.npz")
    with pytest.raises(FedgazeError, match=r"has 2 files of octmnist \(octmnist_128.npz, octmn"):
        load_dataset("octmnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "how", "said"),
    [
        ("pneumoniamnist", None, {}, "has not pneumoniamnist.npz; MedMNIST's files are at"),
        ("medmnist", None, {}, "has not a file such as pneumoniamnist.npz"),
        ("pneumoniamnist", "pneumonamnist.npz", {}, "did you mean 'pneumonamnist.npz'"),
        ("chestmnist", None, {}, "chestmnist: it has 14 labels an image; fedgaze takes"),
        ("organmnist3d", None, {}, "organmnist3d: it has volumes; fedgaze takes"),
        ("medmnist", "x.npz", {"train_labels": np.zeros((12, 14), int)}, "has 14 labels an image"),
        ("medmnist", "x.npz", {"shape": (8, 8, 8)}, r"images of 8x8x8 \(uint8\)"),
        ("medmnist", "x.npz", {"train_images": np.zeros((12, 8, 8))}, r"of 8x8 \(float64\)"),
        ("medmnist", "x.npz", {"test_labels": None}, "lacks test_labels"),
        ("medmnist", "x.npz", {"test_labels": np.zeros((5, 1), int)}, "6 test_images and 5 test"),
        ("pneumoniamnist", "pneumoniamnist.npz", {"classes": 3}, "up to 2, but .* has 2 classes"),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, name: str, file: str | None, how: dict[str, Any], said: str
) -> None:
    if file:
        write(tmp_path / file, **how)
    with pytest.raises(FedgazeError, match=said) as caught:
        load_dataset(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_set_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "breastmnist_224.npz")
    with pytest.raises(FedgazeError, match=r"dataset.name=octmnist: .* is a file of breastmnist"):
        load_dataset("octmnist", file)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "octmnist.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + b"?" * 400 + whole[500:])
    with pytest.raises(FedgazeError, match=r"octmnist.npz cannot be read"):
        load_dataset("octmnist", tmp_path)
    file.write_text("<html>not found</html>")
    with pytest.raises(FedgazeError, match=r"octmnist.npz is no npz file"):
        load_dataset("octmnist", tmp_path)


def test_real_pneumonia(real_data: Path) -> None:
    file = real_data / "arrays" / "pneumoniamnist_resplit.npz"
    found = load_dataset("medmnist", file)
    with np.load(file) as arrays:
        assert found.train.labels.tolist() == arrays["train_labels"][:, 0].tolist()
        expected = arrays["test_images"][17] / 255
    assert found.classes == ("normal", "pneumonia")
    seen = found.test[torch.tensor([17])][0, 0]
    torch.testing.assert_close(seen, torch.tensor(expected, dtype=torch.float32))
    with pytest.raises(FedgazeError, match="it has x, y and lacks train_images, train_labels"):
        load_dataset("medmnist", real_data / "arrays" / "cifar10_test_jpeg_2000.npz")
