"""No process of a federation outlives the one that started it, even one that will not go."""

import os
import subprocess
import sys
import time

import psutil
import pytest

STUBBORN = """
import signal, sys, time
from fedgaze.federate.deployment.flower import processes
processes.PATIENCE = 1.0
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
processes.exit_with_parent(int(sys.argv[1]))
print("ready", flush=True)
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
"""


@pytest.mark.slow
def test_an_orphan_that_ignores_signals_is_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as parent:
        orphan = subprocess.Popen(
            [sys.executable, "-c", STUBBORN, str(parent.pid)],
            stdout=subprocess.PIPE,
            env=os.environ,
        )
        try:
            assert orphan.stdout is not None
            assert orphan.stdout.readline() == b"ready\n"
            time.sleep(1)
            assert orphan.poll() is None
            parent.kill()
            parent.wait()
            assert orphan.wait(20) != 0
        finally:
            if psutil.pid_exists(orphan.pid):
                orphan.kill()
            orphan.wait()
            if orphan.stdout is not None:
                orphan.stdout.close()
