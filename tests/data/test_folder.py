"""A folder's table says what its images belong to."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from fedgaze.data import load_dataset, partition
from fedgaze.errors import FedgazeError


def fill(root: Path, count: int = 10, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """Images of one grey a class; number i of each."""
    for tone, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 100 * tone + i).save(root / name / f"{i}.png")


def table(file: Path, lines: list[str], encoding: str = "utf-8") -> None:
    file.write_text("\n".join(lines) + "\n", encoding=encoding)


def hospital(i: int) -> str:
    return ("Bergen", "Oslo", "Tromsø")[i % 3]


def test_groups_are_those_of_the_table_whatever_is_held_out(tmp_path: Path) -> None:
    fill(tmp_path)
    lines = [
        f"{i},{separator.join((name, f'{i}.png'))},{hospital(i)}"
        for i in range(10)
        for name, separator in (("cat", "/"), ("dog", "\\"))
    ]
    # As spreadsheets write it: with a mark before the first line.
    table(tmp_path / "metadata.csv", ["age,file_name,hospital", *lines], "utf-8-sig")
    found = load_dataset("folder", tmp_path, 3, "hospital")
    assert found.groups is not None
    assert len(found.groups) == len(found.train.labels) == 16
    # The grey of an image says its number.
    numbers = (found.train[torch.arange(16)][:, 0, 0, 0] * 255).round().int() % 100
    assert list(found.groups) == [hospital(i) for i in numbers.tolist()]
    parts = partition(found.train.labels.repeat(3), 3, "natural", groups=[*found.groups] * 3)
    every = [*found.groups] * 3
    assert [{every[i] for i in own.tolist()} for own in parts] == [{"Bergen"}, {"Oslo"}, {"Tromsø"}]


@pytest.mark.parametrize("inside", [True, False])
def test_with_train_and_test_the_table_lies_beside_or_inside(tmp_path: Path, inside: bool) -> None:
    fill(tmp_path / "train", 2)
    fill(tmp_path / "test", 2)
    start = "" if inside else "train/"
    lines = [f"{start}{name}/{i}.png,{name}{i}" for name in ("cat", "dog") for i in range(2)]
    place = tmp_path / "train" if inside else tmp_path
    table(place / "metadata.csv", ["file_name,device", *lines])
    found = load_dataset("folder", tmp_path, partition_by="device")
    assert found.groups == ["cat0", "cat1", "dog0", "dog1"]


def test_without_a_column_the_table_is_not_read(tmp_path: Path) -> None:
    fill(tmp_path)
    table(tmp_path / "metadata.csv", ["whatever"])
    assert load_dataset("folder", tmp_path).groups is None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, r"hospital is a column of .*metadata.csv, which is not there: a table with a col"),
        (["file_name,hospitl", "cat/0.png,a"], "no column hospital; .*did you mean 'hospitl'"),
        (["file,hospital", "cat/0.png,a"], "no column file_name; .*did you mean"),
        (
            ["file_name,hospital", "cat/0.png,a", "cat/1.png,a", "dog/0.png,b", "dog/11.png,b"],
            "has no line for dog/1.png; did you mean 'dog/11.png'",
        ),
        (
            ["file_name,hospital", "cat/0.png,a", "cat/1.png, ", "dog/0.png,b", "dog/1.png,b"],
            "has nothing of cat/1.png",
        ),
        (["file_name,hospital", "cat/0.png,a", "cat\\0.png,b"], "cat/0.png .* is a and b"),
        (["file_name,hospital", '"cat/0.png'], "cannot be read as a table: unexpected end"),
    ],
)
def test_tables_that_do_not_say_it(tmp_path: Path, lines: list[str] | None, said: str) -> None:
    fill(tmp_path / "train", 2)
    fill(tmp_path / "test", 2)
    if lines is not None:
        table(tmp_path / "train" / "metadata.csv", lines)
    with pytest.raises(FedgazeError, match=said) as caught:
        load_dataset("folder", tmp_path, partition_by="hospital")
    assert "\n" not in str(caught.value)


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (tmp_path / "metadata.csv").write_bytes(b"file_name,hospital\ncat/0.png,\xff\xfe\n")
    with pytest.raises(FedgazeError, match="cannot be read as a table"):
        load_dataset("folder", tmp_path, partition_by="hospital")


def test_sets_without_a_table_have_no_groups() -> None:
    with pytest.raises(FedgazeError, match=r"dataset.partition_by=writer: digits has no table"):
        load_dataset("digits", partition_by="writer")


def test_a_clients_folder_is_numbered_as_the_federation_numbers_its_classes(tmp_path: Path) -> None:
    """A client that has no dogs must not call its eels class 1."""
    fill(tmp_path, classes=("cat", "eel"))
    found = load_dataset("folder", tmp_path)
    greys = found.train[torch.arange(16)][:, 0, 0, 0]
    there = found.numbered_as(("fox", "eel", "dog", "cat"))
    assert there.classes == ("fox", "eel", "dog", "cat")
    # An eel's grey is 100 and above.
    assert torch.equal(there.train.labels == 1, greys > 0.3)
    assert torch.equal(there.train.labels == 3, greys < 0.3)
    assert torch.equal(there.train[torch.arange(16)][:, 0, 0, 0], greys)
    assert sorted(there.test.labels.unique().tolist()) == [1, 3]
    with pytest.raises(FedgazeError, match="has a class 'eel' that the federation has not"):
        found.numbered_as(("cat", "dog"))
