from .demo import demo_task
from .export import FORMATS, Exported, export_run
from .run import find_unfinished, resume, start
from .server import Observer
from .setup import Setup, prepare

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
