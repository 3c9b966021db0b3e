"""Looks after the client of this machine: waits for the server, starts the client, reports.

    python client_manager_main.py --invite INVITE --data DIR     (the first time)
    python client_manager_main.py                                (from then on)

`GET http://127.0.0.1:8003/online` says how things stand, to whoever shows the client's token.
"""

import sys

from fedgaze.cli import main

if __name__ == "__main__":
    main(["client", "manage", *sys.argv[1:]])
