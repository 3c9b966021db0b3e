"""Images and labels in a file of NumPy arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgaze.data import load_dataset
from fedgaze.errors import FedgazeError

GREY = np.arange(40 * 6, dtype=np.uint8).reshape(40, 2, 3)


def write(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "ours.npz", **arrays)
    return folder / "ours.npz"


def test_a_fifth_is_held_out_where_there_are_no_test_images(tmp_path: Path) -> None:
    file = write(tmp_path, x=GREY, y=np.arange(40) % 3)
    found = load_dataset("npz", file, seed=1)
    assert (found.name, found.classes) == ("ours", ("0", "1", "2"))
    assert (len(found.train.labels), len(found.test.labels)) == (32, 8)
    seen = []
    for part in (found.train, found.test):
        images = part[torch.arange(len(part.labels))]
        assert images.shape[1:] == (1, 2, 3)
        numbers = (images[:, 0, 0, 0] * 255 / 6).round().int()  # an image's first pixel says which
        assert torch.equal(part.labels, (numbers % 3).long())
        torch.testing.assert_close(images * 255, torch.tensor(GREY)[numbers][:, None].float())
        seen += numbers.tolist()
    assert sorted(seen) == list(range(40))
    assert found.train.labels.dtype == torch.int64
    again, other = (load_dataset("npz", file, seed=seed).test.labels for seed in (1, 2))
    assert torch.equal(found.test.labels, again)
    assert not torch.equal(found.test.labels, other)


def test_colours_and_parts_of_its_own(tmp_path: Path) -> None:
    x = np.zeros((5, 4, 6, 3), np.uint8)
    x[3, 1, 2] = (255, 51, 0)
    arrays = {"x_train": x, "y_train": np.array([0, 1, 2, 4, 0]), "x_test": x[:2]}
    found = load_dataset("npz", write(tmp_path, **arrays, y_test=np.array([3, 1], np.uint8)))
    assert found.classes == ("0", "1", "2", "3", "4")
    assert found.test.labels.tolist() == [3, 1]
    image = found.train[torch.tensor([3])]
    assert image.shape == (1, 3, 4, 6)
    assert image[0, :, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert image.sum().item() == pytest.approx(1.2)


Y = np.arange(40) % 3


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": GREY}, "lacks y: it has x, and allowed are x, y, or x_train, y_train, x_test"),
        ({"images": GREY, "y": Y}, "lacks x_train, y_train, x_test, y_test: it has images, y"),
        ({"x_train": GREY, "y_train": Y}, "lacks x_test, y_test"),
        ({"x": GREY.astype(float), "y": Y}, r"x of 2×3 \(float64\); allowed are uint8 images"),
        ({"x": GREY[:, 0, 0], "y": Y}, r"x of single numbers \(uint8\)"),
        ({"x": GREY[..., None, None], "y": Y}, "x of 2×3×1×1"),
        ({"x": np.zeros((40, 2, 3, 4), np.uint8), "y": Y}, "of one or three channels"),
        ({"x": GREY, "y": Y[:30]}, r"40 images in x, and y is int64 \(30,\); allowed is a whole"),
        ({"x": GREY, "y": Y / 2}, r"y is float64 \(40,\)"),
        ({"x": GREY, "y": Y[:, None]}, r"y is int64 \(40, 1\)"),
        ({"x": GREY, "y": Y - 1}, "a whole number from 0"),
        ({"x": GREY[:0], "y": Y[:0]}, "0 images in x"),
        ({"x": GREY, "y": np.array([{}] * 40)}, "cannot be read: Object arrays cannot be loaded"),
        (
            {"x_train": GREY, "y_train": Y, "x_test": GREY[:, :1], "y_test": Y},
            "training images of 2×3 and test images of 1×3: one size is allowed",
        ),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(FedgazeError, match=said) as caught:
        load_dataset("npz", write(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FedgazeError, match=r"dataset.root is missing: an npz file with the arrays"):
        load_dataset("npz")
    with pytest.raises(FedgazeError, match=r"ours.npz is not a file"):
        load_dataset("npz", tmp_path / "ours.npz")
    (tmp_path / "ours.npz").write_text("no arrays")
    with pytest.raises(FedgazeError, match=r"ours.npz is no npz file, as numpy.savez writes it"):
        load_dataset("npz", tmp_path / "ours.npz")


def test_real_cifar(real_data: Path) -> None:
    found = load_dataset("npz", real_data / "arrays" / "cifar10_test_jpeg_2000.npz")
    assert (len(found.train.labels), len(found.test.labels)) == (1600, 400)
    assert found.classes == tuple("0123456789")
    assert found.train[torch.tensor([0])].shape == (1, 3, 32, 32)
