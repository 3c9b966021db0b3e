"""The processes of a federation: ``python -m fedgaze.federate.deployment PART …``."""

import os
import sys
from pathlib import Path

from fedgaze.federate.deployment import host, manager, superlink, worker
from fedgaze.federate.deployment.flower import exit_with_parent, run_supernode


def _superlink(words: list[str]) -> None:
    exit_with_parent(os.getppid())
    superlink.main(Path(words[0]))


def _supernode(words: list[str]) -> None:
    exit_with_parent(os.getppid())
    run_supernode(words)


PARTS = {
    "host": lambda words: host.main(Path(words[0])),
    "manager": manager.main,
    "superlink": _superlink,
    "supernode": _supernode,
    "worker": worker.main,
}

if __name__ == "__main__":
    PARTS[sys.argv[1]](sys.argv[2:])
