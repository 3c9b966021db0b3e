"""The processes of a federation: ``python -m fedgaze.federate.deployment PART …``.

Each imports its own part only: those that look after others need no torch.
"""

import os
import sys
from pathlib import Path


def _host(words: list[str]) -> None:
    from fedgaze.federate.deployment import host

    host.main(Path(words[0]))


def _manager(words: list[str]) -> None:
    from fedgaze.federate.deployment import manager

    manager.main(words)


def _superlink(words: list[str]) -> None:
    from fedgaze.federate.deployment import superlink
    from fedgaze.federate.deployment.flower import exit_with_parent

    exit_with_parent(os.getppid())
    superlink.main(Path(words[0]))


def _supernode(words: list[str]) -> None:
    from fedgaze.federate.deployment.flower import exit_with_parent, run_supernode

    exit_with_parent(os.getppid())
    run_supernode(words)


def _worker(words: list[str]) -> None:
    from fedgaze.federate.deployment import worker

    worker.main(words)


PARTS = {
    "host": _host,
    "manager": _manager,
    "superlink": _superlink,
    "supernode": _supernode,
    "worker": _worker,
}

if __name__ == "__main__":
    PARTS[sys.argv[1]](sys.argv[2:])
