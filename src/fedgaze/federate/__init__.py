"""Federated learning on Flower in which every client explains itself each round."""

from fedgaze.federate.demo import demo_task
from fedgaze.federate.export import FORMATS, Exported, export_run
from fedgaze.federate.run import find_unfinished, resume, start
from fedgaze.federate.server import Observer
from fedgaze.federate.setup import Setup, prepare

__all__ = [
    "FORMATS",
    "Exported",
    "Observer",
    "Setup",
    "demo_task",
    "export_run",
    "find_unfinished",
    "prepare",
    "resume",
    "start",
]
