"""``python -m fedgaze.cli`` is ``fedgaze``."""

from fedgaze.cli import main

main()
