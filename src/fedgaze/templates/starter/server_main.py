"""Serves this task to clients on other machines, and ends when its run is over.

    python server_main.py --listen 0.0.0.0:8443 --name fl.example.org

Then, in another terminal, an invite for each client: `fedgaze server invite --name hospital-a`.
"""

import sys

from fedgaze.cli import main

if __name__ == "__main__":
    main(["server", "start", "--foreground", "--task", "conf/config.yaml", *sys.argv[1:]])
