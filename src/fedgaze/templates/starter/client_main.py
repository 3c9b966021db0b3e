"""The client of this machine: it trains and explains itself when its manager starts it.

    python client_main.py

It answers `GET /online` and `POST /start` on http://127.0.0.1:8004, to whoever shows the client's
token. Its manager, client_manager_main.py, joins the server and has to come first.
"""

import sys

from fedgaze.cli import main

if __name__ == "__main__":
    main(["client", "work", *sys.argv[1:]])
