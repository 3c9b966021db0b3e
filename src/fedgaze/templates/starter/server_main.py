"""Serves a federation to clients on other machines."""

import sys


def main() -> int:
    """Say what stands in for it until fedgaze's deployment engine is there."""
    print(
        "server_main.py gets its work with fedgaze's deployment engine, which is not there yet; "
        "`fedgaze run conf/config.yaml` runs the server and all clients on this machine.",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
