"""What is told with ``--verbose``: how long each step takes."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["LOGGER", "timed"]

LOGGER = logging.getLogger("fedgaze")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long something took, once it is done.

    Args:
        what: In words.
    """
    start = time.perf_counter()
    yield
    LOGGER.info("%s: %.2f s", what, time.perf_counter() - start)
