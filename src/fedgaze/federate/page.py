"""A run's report while the run goes on."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedgaze.federate.setup import reason
from fedgaze.report import write_federated_report

__all__ = ["Page"]

SHARE = 0.1
"""The part of the rounds' time that their reports may take."""


class Page:
    """Keeps ``report.html`` up to date, as long as that costs little beside the rounds themselves.

    Args:
        run: The run's folder.
        trouble: Told where the report cannot be written, once.
        always: Write it after each round whatever it costs.
    """

    def __init__(self, run: Path, trouble: Callable[[str], None], *, always: bool) -> None:
        self._run = run
        self._trouble = trouble
        self._always = always
        self._spent = self._rounds = 0.0
        self._failed = False

    def after_round(self, record: Mapping[str, Any]) -> None:
        """Write the report as it stands after a round, all or nothing.

        Args:
            record: The round's entry of the summary.
        """
        self._rounds += record["seconds"]
        if not self._always and self._spent > SHARE * self._rounds:
            return
        began = time.monotonic()
        try:
            write_federated_report(self._run)
        except Exception as error:  # noqa: BLE001 - the page of a round ends no training
            if not self._failed:
                self._trouble(f"the report could not be written: {reason(error)}; the run goes on")
            self._failed = True
        self._spent += time.monotonic() - began
