"""A server and clients as people start them: processes, found and stopped by their ids."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

Condition = Callable[[], Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` one federation at a time: two are too much for two cores."""
    for item in items:
        if {"farm", "network"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("federation"))


def wait_for(condition: Condition, seconds: float, what: str) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not happen within {seconds} s")


class Farm:
    """A folder with a server and clients, all on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"COLUMNS": "200"}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def call(self, *words: str, fails: bool = False) -> str:
        """Run `fedgaze`, and return what it printed."""
        done = subprocess.run(
            [*self.machine(words), sys.executable, "-m", "fedgaze.cli", *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            env=self.environment,
            check=False,
        )
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, said
        assert "Traceback" not in said, said
        return said

    def machine(self, words: Sequence[str]) -> list[str]:
        """What leads to the machine that a command is for: here all are one."""
        del words
        return []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def task(self, **values: Any) -> str:
        """Write a task's file, and return its name."""
        (self.folder / "task.yaml").write_text(yaml.safe_dump(values))
        return "task.yaml"

    def start(self, *words: str) -> str:
        return self.call("server", "start", "--listen", self.address, *words)

    def join(self, name: str, *words: str) -> str:
        invite = self.folder / f"{name}.invite"
        self.call("server", "invite", "--name", name, "--output", str(invite))
        return self.call("client", "join", str(invite), *words)

    def record(self, run: str) -> dict[str, Any]:
        """A run's summary; it may be asked for before there is one."""
        try:
            found: dict[str, Any] = json.loads(
                (self.folder / "runs" / run / "summary.json").read_text()
            )
        except FileNotFoundError:
            return {"rounds": [], "status": "none"}
        return found

    def rounds(self, run: str) -> int:
        return len(self.record(run)["rounds"])

    def log(self, run: str) -> str:
        path = self.folder / "runs" / run / "run.log"
        return path.read_text() if path.exists() else ""

    @property
    def server(self) -> Path:
        return self.folder / ".fedgaze" / "server"

    def client(self, name: str) -> Path:
        return self.folder / ".fedgaze" / "clients" / name

    @staticmethod
    def owner(home: Path) -> psutil.Process | None:
        """The process that runs in a folder."""
        try:
            noted = json.loads((home / "state.json").read_text())
            process = psutil.Process(noted["pid"])
            return process if abs(process.create_time() - noted["created"]) < 1 else None
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None

    def part(self, home: Path, name: str) -> psutil.Process:
        """A process below the one that runs in a folder, by a word of its command."""

        def found() -> psutil.Process | None:
            owner = self.owner(home)
            if owner is None:
                return None
            for each in owner.children(recursive=True):
                try:
                    if any(name in word for word in each.cmdline()):
                        return each
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
            return None

        process: psutil.Process = wait_for(found, 60, f"a process {name}")
        return process

    def kill(self, home: Path) -> None:
        """Kill everything that runs in a folder, as a power cut does."""
        owner = self.owner(home)
        if owner is None:
            return
        family = [owner, *owner.children(recursive=True)]
        for each in family:
            try:
                each.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=20)

    def close(self) -> None:
        for path in self.folder.glob(".fedgaze/**/state.json"):
            self.kill(path.parent)


class Network(Farm):
    """The same with machines of their own: a network namespace each, joined by a bridge."""

    def __init__(self, folder: Path, clients: Sequence[str]) -> None:
        super().__init__(folder)
        self._mark = f"fg{os.getpid() % 100000}"
        self._clients = list(clients)
        self._run("ip", "link", "add", self._mark, "type", "bridge")
        self._run("ip", "link", "set", self._mark, "up")
        for place, name in enumerate(["server", *clients]):
            space, cable = f"{self._mark}-{name}", f"{self._mark}{place}"
            self._run("ip", "netns", "add", space)
            self._run(
                "ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space
            )
            self._run("ip", "link", "set", cable, "master", self._mark, "up")
            inside = ("ip", "-n", space)
            self._run(*inside, "addr", "add", f"10.77.0.{place + 1}/24", "dev", "eth0")
            self._run(*inside, "link", "set", "eth0", "up")
            self._run(*inside, "link", "set", "lo", "up")

    @staticmethod
    def _run(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    @property
    def address(self) -> str:
        return f"10.77.0.1:{self.port}"

    def machine(self, words: Sequence[str]) -> list[str]:
        name = "server"
        if words[0] == "client":
            name = next(each for each in self._clients if any(each in word for word in words[2:3]))
        return ["ip", "netns", "exec", f"{self._mark}-{name}"]

    def cable(self, client: str, state: str) -> None:
        """Pull a client's cable (`down`), or put it back (`up`)."""
        self._run("ip", "link", "set", f"{self._mark}{self._clients.index(client) + 1}", state)

    def close(self) -> None:
        super().close()
        for name in ["server", *self._clients]:
            subprocess.run(["ip", "netns", "del", f"{self._mark}-{name}"], check=False)
        subprocess.run(["ip", "link", "del", self._mark], check=False)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    names = ["north", "east", "south", "west"]
    allowed = shutil.which("ip") and os.geteuid() == 0
    if not allowed or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("this machine allows no network namespaces")
    made = None
    try:
        made = Network(tmp_path, names)
        yield made
    finally:
        if made is not None:
            made.close()


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    made = Farm(tmp_path)
    try:
        yield made
    finally:
        made.close()
