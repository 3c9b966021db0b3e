"""Invites, each good for one client, and who joined."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fedgaze.errors import FedgazeError
from fedgaze.federate.deployment.registry import Invite, Registry, read_invite


def register(key: str, name: str) -> int:
    del name
    return 1000 + int(key.removeprefix("key"))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "clients.json")


def test_an_invite_is_good_for_one_key(registry: Registry) -> None:
    secret = registry.invite("hospital", 1)
    client = registry.redeem(secret, "key1", "me", register)
    assert (client.number, client.name, client.node) == (0, "hospital", 1001)
    with pytest.raises(PermissionError, match="was used already"):
        registry.redeem(secret, "key2", "me", register)
    assert registry.redeem(secret, "key1", "me", register) == client, "an answer can get lost"
    assert registry.clients() == [client]


def test_a_wrong_secret_opens_nothing(registry: Registry) -> None:
    secret = registry.invite("", 1)
    for wrong in ("", secret[:-1], secret + "a", secret.swapcase()):
        with pytest.raises(PermissionError, match="knows no such invite"):
            registry.redeem(wrong, "key1", "", register)
    assert registry.clients() == []


def test_an_invite_ends(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = registry.invite("", 2)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * 3600 + 1)
    with pytest.raises(PermissionError, match="is over"):
        registry.redeem(secret, "key1", "", register)


def test_no_secret_is_kept(registry: Registry, tmp_path: Path) -> None:
    secret = registry.invite("", 1)
    assert secret not in (tmp_path / "clients.json").read_text()


def test_names_and_numbers_belong_to_one_client(registry: Registry) -> None:
    for place in range(3):
        registry.redeem(registry.invite("", 1), f"key{place}", f"n{place}", register)
    with pytest.raises(PermissionError, match="called 'n1' already"):
        registry.redeem(registry.invite("", 1), "key7", "n1", register)
    with pytest.raises(FedgazeError, match="called 'n2' already"):
        registry.invite("n2", 1)
    assert registry.remove("n1").number == 1
    new = registry.redeem(registry.invite("", 1), "key8", "new", register)
    assert new.number == 1, "a free number is given again"
    assert [each.number for each in registry.clients()] == [0, 1, 2]
    with pytest.raises(FedgazeError, match=r"no client 'n0x'; there are n0, new, n2.*'n0'"):
        registry.remove("n0x")


def test_a_registration_that_fails_leaves_the_invite_open(registry: Registry) -> None:
    secret = registry.invite("a", 1)

    def fails(key: str, name: str) -> int:
        raise OSError("no database")

    with pytest.raises(OSError, match="no database"):
        registry.redeem(secret, "key1", "", fails)
    assert registry.redeem(secret, "key1", "", register).name == "a"


def test_of_many_that_redeem_at_once_one_gets_in(registry: Registry) -> None:
    secret = registry.invite("", 1)
    joined: list[int] = []

    def redeem(number: int) -> None:
        with suppress(PermissionError):
            joined.append(registry.redeem(secret, f"key{number}", "", register).node)

    threads = [threading.Thread(target=redeem, args=(number,)) for number in range(12)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(joined) == 1
    assert [client.node for client in registry.clients()] == joined


INVITE = Invite("fl.example.org:8443", "-----BEGIN …", "s3cret", "hospital", "publisher")


def test_an_invite_travels_as_a_line_or_a_file(tmp_path: Path) -> None:
    text = INVITE.text()
    assert "\n" not in text
    assert read_invite(f"  {text}\n") == INVITE
    (tmp_path / "invite").write_text(f"{text}\n")
    assert read_invite(str(tmp_path / "invite")) == INVITE


@pytest.mark.parametrize("change", [lambda t: t[:-9], lambda t: t[:30] + "!" + t[31:]])
def test_a_damaged_invite(change: object) -> None:
    with pytest.raises(FedgazeError, match="the invite is damaged"):
        read_invite(change(INVITE.text()))  # type: ignore[operator]


def test_what_is_no_invite(tmp_path: Path) -> None:
    with pytest.raises(FedgazeError, match="neither an invite"):
        read_invite("invited")
    (tmp_path / "other").write_text("something else")
    with pytest.raises(FedgazeError, match="the invite is damaged"):
        read_invite(str(tmp_path / "other"))
