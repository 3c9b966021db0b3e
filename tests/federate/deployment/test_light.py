"""Processes that look after others are light: torch takes seconds, and half a gigabyte."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("part", ["host", "manager", "superlink", "service", "flower.supernode"])
def test_supervisors_import_no_torch(part: str) -> None:
    code = f"import sys, fedgaze.federate.deployment.{part}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
