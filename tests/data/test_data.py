"""Data sets, splits and the planted mark."""

import gzip
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits as sklearn_digits
from torch import Tensor

from fedgaze.data import (
    PlantedImages,
    StackedImages,
    hold_back,
    load_dataset,
    load_digits,
    mark_mask,
    partition,
    probe_indices,
    read_folder,
    stamp,
)
from fedgaze.errors import FedgazeError

LABELS = torch.arange(1000) % 10


def test_digits_are_scikit_learns() -> None:
    digits = load_digits(seed=3)
    assert len(digits.train.labels) + len(digits.test.labels) == 1797
    every = torch.arange(len(digits.train.labels))
    images = digits.train[every]
    assert images.shape[1:] == (1, 24, 24)
    assert images.min() >= 0
    assert images.max() <= 1
    # Each doubled digit has the mean brightness of one of the originals of its class.
    originals, labels = sklearn_digits(return_X_y=True)
    for i in range(0, 200, 20):
        same = originals[labels == digits.train.labels[i].item()].reshape(-1, 64).mean(1) / 16
        assert (abs(same - images[i, 0, 4:20, 4:20].mean().item()) < 1e-5).any()
    assert images[:, :, :4].max() == 0  # the canvas around them is empty


def test_held_out_digits_are_held_out() -> None:
    digits = load_digits(seed=1)
    train, test = (part[torch.arange(len(part.labels))] for part in (digits.train, digits.test))
    together = torch.cat([train, test]).flatten(1)
    twins = len(together) - len(together.unique(dim=0))
    assert twins == 1797 - len(torch.tensor(sklearn_digits().data).unique(dim=0))
    assert not torch.equal(digits.test.labels, load_digits(seed=2).test.labels)


def test_object_of_a_digit_is_near_its_strokes() -> None:
    digits = load_digits()
    images = digits.test[torch.arange(50)]
    assert digits.object_masks is not None
    mask = digits.object_masks(images)
    assert (images[:, 0] > 0.25)[~mask].sum() == 0
    assert 0.1 < mask.float().mean() < 0.7
    assert not mask[:, 0, 0].any()


@pytest.mark.parametrize("scheme", ["dirichlet", "iid"])
def test_each_sample_goes_to_one_client(scheme: str) -> None:
    parts = partition(LABELS, 7, scheme, alpha=0.3, seed=5)  # type: ignore[arg-type]
    assert torch.cat(parts).sort().values.tolist() == list(range(1000))
    assert {len(part) for part in parts} == {142, 143}
    again = partition(LABELS, 7, scheme, alpha=0.3, seed=5)  # type: ignore[arg-type]
    assert all(map(torch.equal, parts, again))


def skew(parts: list[Tensor]) -> float:
    """Mean total variation of the clients' class shares from even ones."""
    counts = torch.stack([LABELS[part].bincount(minlength=10) for part in parts]).float()
    return ((counts / counts.sum(1, keepdim=True) - 0.1).abs().sum(1) / 2).mean().item()


def test_a_smaller_alpha_is_more_skewed() -> None:
    skews = [skew(partition(LABELS, 5, "dirichlet", alpha, seed=0)) for alpha in (0.1, 1, 100)]
    assert skews[0] > skews[1] > skews[2]
    assert skews[2] < 0.1
    assert skew(partition(LABELS, 5, "iid", seed=0)) < 0.15


def test_too_many_clients_are_refused() -> None:
    with pytest.raises(FedgazeError, match="num_clients=101 is too many for 1000"):
        partition(LABELS, 101)


def test_hold_back_takes_its_part_of_each_class() -> None:
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 2 + [3])
    kept, held = hold_back(labels, 0.2, seed=0)
    assert torch.cat([kept, held]).sort().values.tolist() == list(range(33))
    assert labels[held].bincount(minlength=4).tolist() == [4, 2, 1, 0]
    assert [len(part) for part in hold_back(torch.arange(12), 0.2, seed=0)] == [11, 1]


def test_probe_set_is_ordered_by_class_and_chosen_by_seed() -> None:
    labels = LABELS[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    chosen = probe_indices(labels, 3, seed=1)
    assert labels[chosen].tolist() == [c for c in range(10) for _ in range(3)]
    assert len(chosen.unique()) == 30
    assert torch.equal(chosen, probe_indices(labels, 3, seed=1))
    assert not torch.equal(chosen, probe_indices(labels, 3, seed=2))


def test_mark_is_in_the_corner_and_tells_the_class() -> None:
    images = torch.rand(10, 1, 24, 24)
    marked = stamp(images, torch.arange(10))
    changed = (marked != images)[:, 0]
    assert not changed[~mark_mask(images)].any()
    corners = marked[:, 0, -6:, -6:]
    assert corners.flatten(1).unique(dim=0).shape[0] == 10
    assert (corners.mean((1, 2)) * 9).round().tolist() == [4.0] * 10  # none is brighter
    assert images.max() < 1 or not torch.equal(images, marked)


def test_planted_images_carry_their_own_mark_and_stay_whole_when_selected() -> None:
    clean = StackedImages(torch.zeros(100, 1, 24, 24), LABELS[:100])
    planted = PlantedImages.some(clean, 0.5, seed=0)
    everything = planted[torch.arange(100)]
    assert (everything.flatten(1).sum(1) > 0).sum() == 50
    some = torch.tensor([5, 17, 60])
    assert torch.equal(planted.select(some, LABELS[some])[torch.arange(3)], everything[some])
    full = PlantedImages.some(clean, 1.0, seed=0)
    assert torch.equal(full[some], stamp(clean[some], LABELS[some]))


def test_classes_can_be_chosen_and_reordered() -> None:
    digits = load_digits().keep(["7", "1"])
    assert digits.classes == ("7", "1")
    assert digits.train.labels.unique().tolist() == [0, 1]
    sevens = load_digits().train
    assert (digits.train.labels == 0).sum() == (sevens.labels == 7).sum()
    with pytest.raises(FedgazeError, match=r"has no class '77'.*did you mean '7'"):
        load_digits().keep(["77"])
    with pytest.raises(FedgazeError, match="names '1' twice"):
        load_digits().keep(["1", "1"])


def picture(path: Path, colour: str, size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_folder_of_images(tmp_path: Path) -> None:
    for i in range(10):
        picture(tmp_path / "red" / f"{i}.png", "red")
        picture(tmp_path / "blue" / f"{i}.jpg", "blue", (20, 40))
    found = load_dataset("folder", tmp_path, seed=0)
    assert found.classes == ("blue", "red")
    assert (len(found.train.labels), len(found.test.labels)) == (16, 4)
    images = found.train[torch.arange(16)]
    assert images.shape == (16, 3, 224, 224)
    reds = found.train.labels == 1
    torch.testing.assert_close(images[reds].mean((0, 2, 3)), torch.tensor([1.0, 0.0, 0.0]))
    grey, _ = read_folder(tmp_path, 8, channels=1)
    assert grey[torch.tensor([0])].shape == (1, 1, 8, 8)


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    for part in ("train", "test"):
        picture(tmp_path / part / "a" / "1.png", "red")
    assert load_dataset("folder", tmp_path).classes == ("a",)
    picture(tmp_path / "test" / "b" / "1.png", "red")
    with pytest.raises(FedgazeError, match="differ in classes: b"):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mnits", "did you mean 'mnist'"),
        ("folder", "dataset.root is missing"),
        ("data.load", "own"),
    ],
)
def test_data_sets_that_are_not_there(name: str, said: str) -> None:
    with pytest.raises(FedgazeError, match=said):
        load_dataset(name)


def test_a_download_that_fails_says_where_the_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", unreachable)
    with pytest.raises(FedgazeError, match=r"MNIST is not in dataset.root=.*could not be downl"):
        load_dataset("mnist", tmp_path)


def idx(values: Tensor) -> bytes:
    """Bytes in the format of MNIST's files: type, number of sides, the sides, the values."""
    sides = b"".join(side.to_bytes(4, "big") for side in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sides + values.byte().numpy().tobytes()


IDX = {
    "train-images-idx3-ubyte": idx(torch.arange(4 * 28 * 28).view(4, 28, 28) % 251),
    "train-labels-idx1-ubyte": idx(torch.tensor([3, 1, 4, 1])),
    "t10k-images-idx3-ubyte": idx(torch.full((2, 28, 28), 51)),
    "t10k-labels-idx1-ubyte": idx(torch.tensor([5, 9])),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_from_its_files_as_they_are(tmp_path: Path, name: str, packed: bool) -> None:
    for file, content in IDX.items():
        if packed:
            (tmp_path / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / file).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    found = load_dataset(name, tmp_path)
    assert found.train.labels.tolist() == [3, 1, 4, 1]
    assert found.test.labels.tolist() == [5, 9]
    expected = (torch.arange(4 * 28 * 28).view(4, 1, 28, 28) % 251) / 255
    torch.testing.assert_close(found.train[torch.arange(4)], expected)
    assert found.test[torch.tensor([1])].unique().tolist() == pytest.approx([0.2])
    assert sorted(tmp_path.rglob("*")) == before


def test_files_of_mnist_that_lack_something(tmp_path: Path) -> None:
    for file, content in IDX.items():
        (tmp_path / f"{file}.gz").write_bytes(gzip.compress(content))
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    for damaged in (file.read_bytes()[:20], b"no gzip", gzip.compress(b"no idx")):
        file.write_bytes(damaged)
        with pytest.raises(FedgazeError, match="holds files of MNIST that cannot be read"):
            load_dataset("mnist", tmp_path)
    file.unlink()
    with pytest.raises(FedgazeError, match=r"files of MNIST, but lacks t10k-images-idx3-ubyte.gz"):
        load_dataset("mnist", tmp_path)


def test_real_fashion_mnist_as_it_lies_there(real_data: Path) -> None:
    fashion = load_dataset("fashion_mnist", real_data / "fashion_mnist")
    assert (len(fashion.train.labels), len(fashion.test.labels)) == (60000, 10000)
    assert [fashion.classes[i] for i in fashion.test.labels[:3]] == [
        "Ankle boot", "Pullover", "Trouser",
    ]  # fmt: skip
    assert fashion.train.labels.bincount().tolist() == [6000] * 10
    everything = fashion.train[torch.arange(0, 60000, 10)]
    assert abs(everything.mean().item() - 0.2860) < 0.003  # its well-known mean


def test_real_mnist_is_the_same_through_torchvisions_folders(
    real_data: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (real_data / "mnist").glob("*.gz"):
        with gzip.open(packed) as source, (raw / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    mnist = load_dataset("mnist", tmp_path)
    assert (len(mnist.train.labels), len(mnist.test.labels)) == (60000, 10000)
    assert mnist.classes[:3] == ("zero", "one", "two")
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]  # as everybody knows them
    packed = load_dataset("mnist", real_data / "mnist")
    assert isinstance(packed.train, StackedImages)
    assert isinstance(mnist.train, StackedImages)
    assert torch.equal(packed.train.pixels, mnist.train.pixels)
    assert torch.equal(packed.test.labels, mnist.test.labels)
    images = mnist.train[torch.arange(1000)]
    assert images.shape == (1000, 1, 28, 28)
    assert abs(images.mean().item() - 0.1307) < 0.01  # MNIST's well-known mean
