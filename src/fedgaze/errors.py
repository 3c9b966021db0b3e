"""What is told to a person who gave us something that cannot be used."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

__all__ = ["FedgazeError", "check_names", "nearest"]


class FedgazeError(ValueError):
    """A value from outside cannot be used.

    The message is one sentence for the person who gave the value: it names the value, says what
    is allowed and, where one exists, the nearest right one. The command line prints it as it is
    and exits with code 2.
    """


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of the allowed names, or an empty string.

    >>> nearest("layer5", ["layer3", "layer4", "fc"])
    "; did you mean 'layer4'?"
    """
    close = get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def check_names(files: Iterable[Path]) -> None:
    """Refuse names that are not UTF-8, which no record could hold.

    Raises:
        FedgazeError: A file has such a name.
    """
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError as error:
            raise FedgazeError(
                f"the name {os.fsencode(file)!r} is not UTF-8, and no record could hold it; rename "
                "the file"
            ) from error
