"""The disk is full at any moment: a sentence, a record that can be read, and the same result later.

Every call that takes room on the disk is one place to fail: making a file or a folder, writing,
bringing it to the disk, giving it its name.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.federate.conftest import Silent
from tests.federate.test_resume import read

from fedgaze.config import Task, parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate import resume, start
from fedgaze.store import Run, load_tensors

Small = Callable[..., dict[str, Any]]


class Disk:
    """Counts what takes room, and has none left at one of these calls, or from there on."""

    def __init__(self, full_at: int, *, stays: bool) -> None:
        self.full_at = full_at
        self.stays = stays
        self.calls: list[str] = []

    def take(self, what: str) -> bool:
        """Whether there is room."""
        self.calls.append(what)
        count = len(self.calls)
        return count != self.full_at and not (self.stays and count > self.full_at)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("mkdir", "fsync", "rename", "replace", "open"):
                patch.setattr(os, name, self._guarded(name, getattr(os, name)))
            patch.setattr(Path, "write_bytes", self._write(Path.write_bytes))
            yield

    def _guarded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*words: Any, **more: Any) -> Any:
            makes = name == "mkdir" or (name == "open" and words[1] & os.O_CREAT)
            takes = not Path(words[0]).exists() if makes else name != "open"
            if takes and not self.take(name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(words[0]))
            return call(*words, **more)

        return guarded

    def _write(self, call: Callable[[Path, bytes], int]) -> Callable[[Path, bytes], int]:
        def write(path: Path, content: bytes) -> int:
            if self.take("write"):
                return call(path, content)
            call(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        return write


@pytest.fixture(scope="module", autouse=True)
def _page_after_each_round() -> Iterator[None]:
    """How many calls there are does not hang on how long each took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgaze.federate.page.SHARE", float("inf"))
        yield


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, _page_after_each_round: None
) -> tuple[Task, Path, list[str]]:
    """A task, its undisturbed run, and every call of it that takes room."""
    from tests.federate.conftest import SMALL, merged

    changes = {
        "num_clients": 2,
        "dataset": {"classes": ["1", "7"]},
        "xai": {"run_location": "both"},
        "strategy": {"_target_": "fedavgm", "server_momentum": 0.9},
    }
    task = parse_task(merged(SMALL, changes))
    folder = tmp_path_factory.mktemp("whole")
    start(task, folder / "warm", Silent())  # caches of others are not our writes
    disk = Disk(0, stays=False)
    with disk.mounted():
        start(task, folder / "run", Silent())
    return task, folder / "run", disk.calls


def files(path: Path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*") if each.is_file()}


def fill_up(task: Task, base: Path, undisturbed: Path, full_at: int, *, stays: bool) -> None:
    path = base / f"run-{full_at}"
    observer, ended = Silent(), False
    try:
        with Disk(full_at, stays=stays).mounted():
            start(task, path, observer)
    except FedgazeError as error:
        said, ended = str(error), True
    else:  # a round's page, which the next one replaces, is the one thing a run can do without
        [said] = [words[1] for words in observer.told if words[0] == "trouble"]
        assert said.startswith("the report could not be written")
        assert not stays
    assert "the disk is full" in said or "No space left" in said, said
    assert "\n" not in said
    if not path.exists():
        assert not list(base.iterdir())
        return
    summary = json.loads((path / "summary.json").read_text())
    if ended:
        assert f"fedgaze run --resume --output {path} goes on" in said
    for record in summary["rounds"]:
        load_tensors(path / f"checkpoints/round_{record['round']}.safetensors")
    half = [name for name in files(path) if Path(name).name.startswith(".")]
    assert set(half) <= {".lock"}
    assert ended == (summary["status"] != "complete")
    if ended:
        resume(path, None, Silent())
    assert read(path) == read(undisturbed)
    assert files(path) == files(undisturbed)
    for number in (1, 2):
        ours, theirs = (
            load_tensors(each / f"checkpoints/round_{number}.safetensors")
            for each in (path, undisturbed)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    closed = json.loads((path / "summary.json").read_text())
    assert closed["status"] == "complete"
    assert "not finished" not in (path / "report.html").read_text()
    shutil.rmtree(path)


@pytest.mark.parametrize("part", range(12))
def test_full_at_some_calls(whole: tuple[Task, Path, list[str]], tmp_path: Path, part: int) -> None:
    """A dozen of the calls, spread over the run, the first and the last among them."""
    task, undisturbed, calls = whole
    full_at = 1 + part * (len(calls) - 1) // 11
    fill_up(task, tmp_path, undisturbed, full_at, stays=part % 2 == 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_at_every_call(whole: tuple[Task, Path, list[str]], tmp_path: Path) -> None:
    """Each call once; every third time there is room again at the next one."""
    task, undisturbed, calls = whole
    for full_at in range(1, len(calls) + 1):
        fill_up(task, tmp_path, undisturbed, full_at, stays=full_at % 3 != 0)


FILLED = """
mount -t tmpfs -o size="$1" none "$2" || exit 77
"$3" -m fedgaze.cli run "$4" --output "$2/run" > "$5/said" 2>&1
echo $? > "$5/code"
cp -r "$2/run" "$5/cut"
mount -o remount,size=100m "$2" || exit 77
"$3" -m fedgaze.cli run --resume --output "$2/run" || exit 1
cp -r "$2/run" "$5/resumed"
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.3, 0.8])
def test_a_disk_that_is_really_full(
    whole: tuple[Task, Path, list[str]], tmp_path: Path, part: float
) -> None:
    """On a file system of its own, smaller than the run; then it grows."""
    task, undisturbed, _ = whole
    if shutil.which("unshare") is None:
        pytest.skip("no unshare, with which a test may mount")
    size = sum(-(-each.stat().st_size // 4096) * 4096 for each in undisturbed.rglob("*"))
    (tmp_path / "task.yaml").write_text(json.dumps(task.public()))
    place, out = tmp_path / "disk", tmp_path / "out"
    place.mkdir()
    out.mkdir()
    words = [int(part * size), place, sys.executable, tmp_path / "task.yaml", out]
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            FILLED,
            "sh",
            *map(str, words),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"},
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"a test may not mount here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    said = (out / "said").read_text()
    assert (out / "code").read_text().strip() == "2", said
    assert f"whole rounds are kept; make room, and fedgaze run --resume --output {place}" in said
    assert "Traceback" not in said
    Run.open(out / "cut").close()
    assert not [name for name in files(out / "cut") if Path(name).name.startswith(".round")]
    assert read(out / "resumed") == read(undisturbed)
    assert files(out / "resumed") == files(undisturbed)
