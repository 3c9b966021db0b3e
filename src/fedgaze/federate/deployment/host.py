"""A server: its SuperLink and superexec kept running, and every run carried to its end."""

import os
import signal
import sysconfig
import threading
from pathlib import Path
from types import FrameType

from fedgaze.errors import FedgazeError
from fedgaze.federate.deployment.door import make_secret
from fedgaze.federate.deployment.flower import ENVIRONMENT, Control
from fedgaze.federate.deployment.homes import ServerHome, ServerSettings
from fedgaze.federate.deployment.jobs import Jobs
from fedgaze.federate.deployment.keys import (
    issue_server,
    make_authority,
    make_publisher,
    publisher_name,
)
from fedgaze.federate.deployment.processes import Child, Children, note_owner, owner_of, part
from fedgaze.federate.deployment.registry import Invite, Registry
from fedgaze.federate.deployment.roster import SERVER_HOME

__all__ = ["control_of", "main", "make_certificates", "make_invite", "prepare_home"]

PAUSE = 1.0


def make_certificates(home: ServerHome, hosts: list[str]) -> None:
    """Make what TLS needs: a local authority, once, and a server's certificate for some hosts."""
    home.prepare()
    if not home.authority.exists():
        make_authority(home.path)
    issue_server(home.path, hosts)


def prepare_home(home: ServerHome, settings: ServerSettings) -> None:
    """Make ready what a server needs to start.

    Raises:
        FedgazeError: It runs already, or has no certificates.
    """
    home.prepare()
    if owner_of(home.state) is not None:
        raise FedgazeError(f"the server in {home.path} is running already")
    if settings.secure and not (home.path / "server.crt").exists():
        host = settings.name.rpartition(":")[0]
        make_certificates(home, [host.strip("[]")])
    make_secret(home.token)
    make_secret(home.secret)
    if not home.publisher.exists():
        make_publisher(home.publisher)
    home.jobs.mkdir(exist_ok=True)
    home.write(settings)


def make_invite(home: ServerHome, name: str, hours: float) -> Invite:
    """Make an invite to a server.

    Args:
        home: The server's.
        name: What the client is to be called; empty to let it choose.
        hours: How long it can be used.
    """
    settings = home.settings()
    secret = Registry(home.registry).invite(name, hours)
    authority = home.authority.read_text(encoding="utf-8") if settings.secure else ""
    return Invite(settings.name, authority, secret, name, publisher_name(home.publisher))


def control_of(home: ServerHome) -> Control:
    """Flower's Control API of a running server.

    Raises:
        FedgazeError: It does not run.
    """
    if owner_of(home.state) is None:
        raise FedgazeError(f"the server in {home.path} is not running: `fedgaze server start`")
    return Control(home.settings().control, home.token.read_text(encoding="utf-8"))


def main(folder: Path) -> None:
    """Keep a server running until told to stop.

    Args:
        folder: The server's.
    """
    home = ServerHome(folder)
    settings, stopping = home.settings(), threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    scripts = Path(sysconfig.get_path("scripts"))
    environment = ENVIRONMENT | {
        "FLWR_HOME": str(home.flower),
        SERVER_HOME: str(home.path),
        # Threads that come and go fetch the answers; with a heap each, memory would creep up.
        "MALLOC_ARENA_MAX": "2",
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",  # where flwr-serverapp lies
    }
    superexec = [
        str(scripts / "flower-superexec"),
        *("--insecure", "--runtime-api-address", f"127.0.0.1:{settings.control}"),
        *("--superexec-auth-secret-file", str(home.secret)),
        *("--parent-pid", str(os.getpid())),
    ]
    superlink = part("superlink", str(home.path))
    children = Children(
        {
            "superlink": Child(lambda: superlink, home.log("superlink"), environment),
            "superexec": Child(lambda: superexec, home.log("runs"), environment),
        },
        home.path,
    )
    control, jobs = Control(settings.control, home.token.read_text(encoding="utf-8")), Jobs(home)
    fresh, noted = True, False
    try:
        children.tend()
        while not stopping.wait(PAUSE):
            children.tend()
            try:
                if not noted:
                    control.nodes()  # does it answer?
                    note_owner(home.state)
                    noted = True
                _tend(jobs, control, fresh=fresh)
                fresh = False
            except FedgazeError as error:
                if noted:
                    print(error, flush=True)
    finally:
        children.stop()
        home.state.unlink(missing_ok=True)


def _tend(jobs: Jobs, control: Control, *, fresh: bool) -> None:
    """Carry on with the first job that is not done; the others wait for it."""
    for job in jobs.all():
        if job.status == "running":
            jobs.tend(job, control, fresh=fresh)
            return
