"""The command line: commands parse, call one function of the rooms below, and print."""

import os
import sys

__all__ = ["main"]

# fedgaze calls nobody unasked, so neither do the libraries that it brings along. They read these
# when they are imported.
_QUIET = {
    "DO_NOT_TRACK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_SILENT": "true",
}


def main(words: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 done in part, 2 refused, 130 interrupted.

    Args:
        words: The command and its options; by default those of this process.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        from fedgaze.cli.app import app

        app(words, prog_name="fedgaze")
    except KeyboardInterrupt:
        sys.exit(130)
