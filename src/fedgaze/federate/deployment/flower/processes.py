"""How Flower's processes are started, and how they end."""

import os
import threading
import time

import psutil

__all__ = ["ENVIRONMENT", "exit_with_parent"]

PATIENCE = 10.0
"""Seconds that a process has to end in good order."""
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}
"""What Flower's processes are started with: nothing is counted, asked for or installed."""


def exit_with_parent(pid: int) -> None:
    """End this process when another one is gone: as by Ctrl-C, and if that does not do, by force.

    Flower's own exit waits for a server that may be gone as well, without an end.
    """
    from flwr.supercore.app_utils import start_parent_process_monitor

    def force() -> None:
        while psutil.pid_exists(pid):
            time.sleep(1)
        time.sleep(PATIENCE)
        os._exit(1)

    start_parent_process_monitor(pid)
    threading.Thread(target=force, daemon=True).start()
