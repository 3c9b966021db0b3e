"""Flower's SuperNode, at a pace of its own."""

import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Pace", "run_supernode"]

PART, SHORTEST, INSIDE = 0.1, 0.3, 0.1
"""Seconds between two looks at the server, as a part of the time since the last message and at
least; and between two looks at whether the answer is ready."""


class Pace:
    """Stands in for ``time`` in Flower's loop, which looks for messages every three seconds.

    Here a node looks again after a tenth of the time that it has waited: short rounds are not
    stretched, and nodes that wait for long ask as seldom as Flower's.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep for as long as it asks for, or less."""
        waited = time.monotonic() - self._last
        limit = INSIDE if seconds < 1 else max(SHORTEST, PART * waited)
        time.sleep(min(seconds, limit))

    def noted(self, pull: Callable[..., int | None]) -> Callable[..., int | None]:
        """Flower's look for a message, which says whether there was one."""

        def pulled(*words: Any, **more: Any) -> int | None:
            found = pull(*words, **more)
            if found is not None:
                self._last = time.monotonic()
            return found

        return pulled


def run_supernode(words: list[str]) -> None:
    """Run as Flower's ``flower-supernode``.

    Args:
        words: Its options.
    """
    from flwr.supernode import start_client_internal as loop
    from flwr.supernode.cli import flower_supernode

    pace = Pace()
    pull = loop._pull_and_store_message  # noqa: SLF001
    vars(loop).update(time=pace, _pull_and_store_message=pace.noted(pull))
    sys.argv[1:] = words
    flower_supernode()
