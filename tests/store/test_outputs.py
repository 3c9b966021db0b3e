"""Results are written whole or not at all, and over nobody's file."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedgaze.errors import FedgazeError
from fedgaze.store import OutputFolder, write_folder

OVERLAY = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
HEATMAP = np.array([[0.0, 0.25], [0.5, 1.0]], dtype=np.float32)


def write(folder: OutputFolder, stem: str, heatmap: Any = HEATMAP) -> tuple[Path, Path]:
    paths = folder.write_together(
        stem,
        {
            ".overlay.png": lambda file: Image.fromarray(OVERLAY).save(file, "png"),
            ".heatmap.npy": lambda file: np.save(file, heatmap),
        },
    )
    return paths[".overlay.png"], paths[".heatmap.npy"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_what_was_given(tmp_path: Path) -> None:
    picture, array = write(OutputFolder(tmp_path / "a" / "b"), "cat.old")
    assert (picture.name, array.name) == ("cat.old.overlay.png", "cat.old.heatmap.npy")
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), OVERLAY)
    np.testing.assert_array_equal(np.load(array), HEATMAP)
    lines = OutputFolder(tmp_path).write_lines("all", [{"label": "Köter"}, {"b": 2}])
    assert lines.read_text().splitlines() == ['{"label": "Köter"}', '{"b": 2}']


def test_a_name_that_is_taken_is_not_used_again(tmp_path: Path) -> None:
    (tmp_path / "cat.heatmap.npy").write_text("mine")
    (tmp_path / "cat-2.overlay.png").write_text("mine too")
    folder = OutputFolder(tmp_path)
    pairs = [write(folder, "cat") for _ in range(2)]
    pairs.append(write(OutputFolder(tmp_path), "cat"))
    assert [pair[0].name for pair in pairs] == [f"cat-{n}.overlay.png" for n in (3, 4, 5)]
    assert (tmp_path / "cat.heatmap.npy").read_text() == "mine"
    assert (tmp_path / "cat-2.overlay.png").read_text() == "mine too"
    assert folder.write_lines("all", []).name == "all.jsonl"
    assert folder.write_lines("all", []).name == "all-2.jsonl"
    assert len(names(tmp_path)) == 2 + 6 + 2


def test_several_at_once_take_different_names(tmp_path: Path) -> None:
    """Each thread has its own folder object, as two programs have."""
    start = threading.Barrier(4)

    def work(number: int) -> None:
        folder = OutputFolder(tmp_path)
        start.wait()
        for _ in range(10):
            write(folder, "cat", np.full((1, 1), number, dtype=np.float32))

    # The name of a part holds the process; threads of one stand for processes here.
    original = os.getpid
    try:
        os.getpid = threading.get_ident
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.getpid = original
    found = sorted(int(np.load(path).item()) for path in tmp_path.glob("*.npy"))
    assert found == sorted([0, 1, 2, 3] * 10)
    assert len(list(tmp_path.glob("*.png"))) == len(names(tmp_path)) - 40 == 40


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    folder = OutputFolder(tmp_path)
    write(folder, "cat")
    write(folder, "cat")
    assert names(tmp_path) == [
        "cat-2.heatmap.npy", "cat-2.overlay.png", "cat.heatmap.npy", "cat.overlay.png",
    ]  # fmt: skip


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, _: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(FedgazeError, match=r"cat\.heatmap\.npy cannot be written: No space left"):
        write(OutputFolder(tmp_path), "cat")
    assert names(tmp_path) == []


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(json.dumps({}))
    with pytest.raises(FedgazeError, match="is there already and is no folder"):
        OutputFolder(tmp_path / "out")


def fill(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "a.txt").write_text("whole")


def test_a_folder_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    def watch(folder: Path) -> None:
        assert not (tmp_path / "x").exists()
        fill(folder)
        assert not (tmp_path / "x").exists()

    assert write_folder(tmp_path / "x" / "y", watch) == tmp_path / "x" / "y"
    assert (tmp_path / "x" / "y" / "below" / "a.txt").read_text() == "whole"
    assert (tmp_path / "x" / "y").stat().st_mode & 0o777 == 0o755
    assert names(tmp_path) == ["x"]


def test_a_folders_name_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("mine")
    (tmp_path / "x-2").write_text("a file")
    (tmp_path / "x-3").symlink_to(tmp_path / "x")
    (tmp_path / "x-4").mkdir()  # empty: as good as not there
    assert [write_folder(tmp_path / "x", fill).name for _ in range(2)] == ["x-4", "x-5"]
    assert names(tmp_path / "x") == ["mine"]
    assert (tmp_path / "x-2").read_text() == "a file"


def test_a_folder_in_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert write_folder(Path("a/b"), fill) == Path("a/b")
    assert write_folder(Path(), fill) == tmp_path / "here-2"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyError("x")])
def test_a_folder_that_fails_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    def broken(folder: Path) -> None:
        fill(folder)
        raise error

    said = (FedgazeError, "y cannot be written: No space left")
    kind, match = said if isinstance(error, OSError) else (KeyError, "x")
    with pytest.raises(kind, match=match):
        write_folder(tmp_path / "x" / "y", broken)
    assert names(tmp_path) == []


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FedgazeError, match="y cannot be written"):
        write_folder(tmp_path / "x" / "y", fill)
    assert names(tmp_path) == ["x"]
