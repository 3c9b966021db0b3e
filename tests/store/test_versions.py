"""A version is recorded only after what is stored was read back; nothing is lost on the way."""

import hashlib
import itertools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from tests.flaky import Flaky

from fedgaze.errors import FedgazeError
from fedgaze.store import Run, Versions, check_storage, not_stored, versions
from fedgaze.store.storage import Storage

FOREVER = itertools.repeat("raise")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PAUSE", 0.01)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "r", {"task_id": "r", "storage": "flaky:///x"}, ("a",))


def commit(run: Run, number: int) -> None:
    run.commit({"round": number}, {"w": torch.full((64,), float(number))}, {})


def recorded(run: Run) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run.path / "summary.json").read_text())
    return summary


def check(run: Run, stored: list[int], pending: list[int]) -> None:
    """The record names each round once, and what it calls stored is there, byte for byte."""
    summary = recorded(run)
    assert [each["round"] for each in summary["versions"]] == stored
    assert [each["round"] for each in summary["versions_pending"]] == pending
    for each in summary["versions"]:
        content = fsspec.open(each["uri"]).open().read()
        assert content == run.checkpoint(each["round"]).read_bytes()
        assert each["bytes"] == len(content)
        assert each["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "place", ["memory://bucket/prefix", "file://{}/deep/share", "flaky://{}/s"]
)
def test_each_round_is_stored_and_nothing_else(
    run: Run, tmp_path: Path, flaky: type[Flaky], place: str
) -> None:
    url = place.format(tmp_path)
    stored = Versions(run, url)
    assert recorded(run)["versions"] == recorded(run)["versions_pending"] == []
    for number in (1, 2, 3):
        commit(run, number)
        stored.offer(run.summary["rounds"][-1])
    stored.finish()
    check(run, [1, 2, 3], [])
    assert not_stored(recorded(run)) is None
    files, root = fsspec.url_to_fs(url)
    folder = f"r-{json.loads((run.path / 'run.json').read_text())['mark']}"
    names = [f"{root.rstrip('/')}/{folder}/round_{number}.safetensors" for number in (1, 2, 3)]
    assert files.find(root) == names
    assert [each["uri"] for each in recorded(run)["versions"]] == [
        f"{url}/{folder}/round_{number}.safetensors" for number in (1, 2, 3)
    ]


def test_runs_of_the_same_name_do_not_meet(run: Run, tmp_path: Path) -> None:
    other = Run.create(tmp_path / "elsewhere" / "r", {"task_id": "r"}, ("a",))
    for each, number in ((run, 1), (other, 2)):
        commit(each, 1)
        each.checkpoint(1).write_bytes(bytes([number]) * 9)
        Versions(each, f"file://{tmp_path}/share").finish()
    check(run, [1], [])
    check(other, [1], [])


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"put": "raise"}, "ConnectionResetError: the line went dead"),
        ({"put": "half"}, "bytes with SHA-256 .* arrived instead of"),
        ({"open": "half"}, "bytes with SHA-256 .* arrived instead of"),
        ({"mv": "raise"}, "PermissionError: no moving here"),
        ({"mv": "half"}, "100 bytes instead of .* were left by a move"),
    ],
)
def test_what_fails_is_pending_and_stored_after_the_next_round(
    run: Run, tmp_path: Path, flaky: type[Flaky], faults: dict[str, str], reason: str
) -> None:
    flaky.plan(**{name: [fault] for name, fault in faults.items()})
    stored = Versions(run, f"flaky://{tmp_path}/s")
    commit(run, 1)
    assert recorded(run)["versions_pending"] == [{"round": 1, "reason": "not stored yet"}]
    stored.offer()
    wait(stored)
    check(run, [], [1])
    [pending] = recorded(run)["versions_pending"]
    assert re.search(reason, pending["reason"]), pending
    assert "\n" not in pending["reason"]
    assert not [path for path in (tmp_path / "s").rglob("*") if path.is_file()]
    commit(run, 2)
    stored.offer()
    wait(stored)
    check(run, [1, 2], [])
    assert flaky.calls.count("put") == 3  # the first one again, and then the second


def wait(stored: Versions) -> None:
    """What is under way ends; nothing is tried again."""
    attempt = stored._attempt
    assert attempt is not None
    attempt.join(10)
    assert not attempt.is_alive()
    stored.close()


def test_the_third_attempt_at_the_end_succeeds(
    run: Run, tmp_path: Path, flaky: type[Flaky]
) -> None:
    flaky.plan(put=["raise", "raise"])
    commit(run, 1)
    Versions(run, f"flaky://{tmp_path}/s").finish()
    check(run, [1], [])
    assert flaky.calls.count("put") == 3


def test_what_never_succeeds_is_told_and_stored_another_day(
    run: Run, tmp_path: Path, flaky: type[Flaky]
) -> None:
    flaky.plan(put=itertools.chain([None], FOREVER))
    stored = Versions(run, f"flaky://{tmp_path}/s")
    for number in (1, 2, 3):
        commit(run, number)
    stored.finish()
    check(run, [1], [2, 3])
    assert flaky.calls.count("put") == 3 + (versions.TRIES - 1) * 2
    said = not_stored(recorded(run))
    assert said == (
        "versions that are not stored in flaky:///x: rounds 2, 3: ConnectionResetError: the line "
        "went dead"
    )
    run.close()
    flaky.plan()
    again = Run.open(run.path)
    Versions(again, f"flaky://{tmp_path}/s").finish()
    check(again, [1, 2, 3], [])


def test_pending_is_whatever_is_whole_and_not_recorded(run: Run, tmp_path: Path) -> None:
    """A process was killed between a round and its version, or between a version and its record."""
    url = f"file://{tmp_path}/s"
    Versions(run, url)
    commit(run, 1)
    commit(run, 2)
    before = recorded(run)
    Versions(run, url).finish()
    uri = recorded(run)["versions"][0]["uri"]
    modified = fsspec.open(uri).fs.modified(uri)
    run.close()
    before["versions_pending"] = []  # as an older fedgaze, or none at all, left it
    (run.path / "summary.json").write_text(json.dumps(before))
    again = Run.open(run.path)
    Versions(again, url).finish()
    check(again, [1, 2], [])
    assert fsspec.open(uri).fs.modified(uri) == modified  # it was there already, and is the same


def test_what_is_there_already_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    stored = Versions(run, f"file://{tmp_path}/s")
    commit(run, 1)
    taken = tmp_path / "s" / f"r-{run.description['mark']}" / "round_1.safetensors"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"somebody else's")
    stored.finish()
    check(run, [], [1])
    [pending] = recorded(run)["versions_pending"]
    assert pending["reason"] == f"file://{taken} is there already and is something else"
    assert taken.read_bytes() == b"somebody else's"


def test_the_rest_of_a_killed_attempt_is_tidied_away(run: Run, tmp_path: Path) -> None:
    stored = Versions(run, f"file://{tmp_path}/s")
    commit(run, 1)
    folder = tmp_path / "s" / f"r-{run.description['mark']}"
    folder.mkdir(parents=True)
    (folder / ".round_1.safetensors.0a1b2c3d.part").write_bytes(b"half")
    (folder / ".round_11.safetensors.0a1b2c3d.part").write_bytes(b"another round's")
    stored.finish()
    left = {path.name for path in folder.iterdir()}
    assert left == {"round_1.safetensors", ".round_11.safetensors.0a1b2c3d.part"}


def test_a_storage_that_hangs_is_left(
    run: Run, tmp_path: Path, flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "STALL", 0.2)
    flaky.plan(put=["hang"])
    stored = Versions(run, f"flaky://{tmp_path}/s")
    commit(run, 1)
    began = time.monotonic()
    stored.finish()
    assert time.monotonic() - began < 5
    check(run, [], [1])
    assert recorded(run)["versions_pending"][0]["reason"] == (
        "the storage gave no sign of life for 0 s"
    )
    stored.finish()
    check(run, [1], [])
    flaky.go_on.set()  # the attempt that was left wakes up, and changes nothing
    time.sleep(0.2)
    check(run, [1], [])


def test_rounds_do_not_wait_for_the_storage(run: Run, tmp_path: Path, flaky: type[Flaky]) -> None:
    flaky.plan(put=["hang"])
    stored = Versions(run, f"flaky://{tmp_path}/s")
    began = time.monotonic()
    for number in (1, 2, 3):
        commit(run, number)
        stored.offer()
    assert time.monotonic() - began < 1
    check(run, [], [1, 2, 3])
    flaky.go_on.set()
    stored.finish()
    check(run, [1, 2, 3], [])


def test_without_a_storage_nothing_is_said(run: Run) -> None:
    stored = Versions(run, None)
    commit(run, 1)
    stored.offer()
    stored.finish()
    stored.close()
    assert not {"versions", "versions_pending"} & set(recorded(run))


def test_large_files_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgaze.store.storage.BLOCK", 1000)
    content = bytes(range(256)) * 100
    (tmp_path / "f").write_bytes(content)
    signs: list[None] = []
    stored = Storage(f"file://{tmp_path}", "r").put(tmp_path / "f", "g", lambda: signs.append(None))
    assert (stored.sha256, stored.bytes) == (hashlib.sha256(content).hexdigest(), 25600)
    assert len(signs) >= 26
    assert (tmp_path / "r" / "g").read_bytes() == content


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s4://bucket/x", "fsspec knows no protocol 's4'; did you mean 's3'"),
        ("S3://bucket/x", "fsspec knows no protocol 'S3'"),
        ("/mnt/share", "did you mean 'file:///mnt/share'"),
        ("file://mnt/share", "an absolute path is allowed"),
        ("s3:/bucket", "one fsspec URL is allowed, such as s3://bucket/prefix"),
        ("s3://", "one fsspec URL is allowed"),
        ("", "one fsspec URL is allowed"),
        ("simplecache::s3://bucket", "one fsspec URL is allowed"),
        ("ftp://me:hunter2@host/x", "credentials belong in the environment"),
        ("s3://AKIA:hun/ter2@bucket/x", "credentials belong in the environment"),
        ("abfs://c@account/x?sig=hunter2", "credentials belong in the environment"),
    ],
)
def test_what_is_no_storage_is_told_in_one_sentence(url: str, said: str) -> None:
    with pytest.raises(FedgazeError) as error:
        check_storage(url)
    assert said in str(error.value)
    assert "hunter2" not in str(error.value)
    assert "hun/ter2" not in str(error.value)


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(FedgazeError, match=r"storage=s3://b/x cannot be used: Install s3fs"):
        check_storage("s3://b/x")


@pytest.mark.parametrize("url", ["memory://b", "file:///mnt/share", "sftp://me@host:22/x"])
def test_what_is_a_storage(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import _registry

    monkeypatch.setitem(_registry, "sftp", fsspec.get_filesystem_class("memory"))
    check_storage(url)
