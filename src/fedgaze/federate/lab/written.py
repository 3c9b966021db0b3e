"""An experiment's table and page, of the cells that are done."""

import os
import platform
from importlib.metadata import version
from typing import Any

from fedgaze import __version__
from fedgaze.errors import FedgazeError
from fedgaze.federate.lab.results import Results
from fedgaze.federate.lab.runner import LabFolder
from fedgaze.report import write_lab_report
from fedgaze.store import write_json

__all__ = ["write_results"]

PACKAGES = ("torch", "flwr", "numpy", "scikit-learn")


def write_results(folder: LabFolder, command: str) -> dict[str, Any]:
    """Write ``results.parquet``, ``results.csv``, ``summary.json`` and ``report.html``.

    Args:
        folder: Where the cells lie.
        command: How the experiment is made.

    Returns:
        What ``summary.json`` holds.

    Raises:
        FedgazeError: No cell is done.
    """
    found = folder.results()
    results = Results(found)
    if not results.runs:
        why = f": {results.failed[0]['failed']}" if results.failed else ""
        raise FedgazeError(f"no cell of {folder.path} is done under today's conditions{why}")
    whole = {
        "fedgaze": __version__,
        "made": {
            "command": command,
            "versions": {"Python": platform.python_version()}
            | {name: version(name) for name in PACKAGES},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        },
        "experiment": folder.asked,
        "cells": {
            "planned": len(folder.plan.cells),
            "done": len(results.runs),
            "failed": len(results.failed),
        },
        **results.summary(),
    }
    results.write(folder.path)
    write_json(folder.path / "summary.json", whole)
    write_lab_report(folder.path, whole)
    return whole
