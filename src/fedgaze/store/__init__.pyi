from .files import (
    PART,
    atomic,
    load_tensors,
    no_room,
    remove_parts,
    save_tensors,
    write_bytes,
    write_json,
    write_text,
)
from .outputs import OutputFolder, write_folder
from .run import Run, checkpoint_of, find_run, task_directory, unfinished_runs
from .storage import check_storage
from .tracking import TRACKERS, Tracker, check_tracker, open_tracker
from .versions import Versions, not_stored

__all__ = [
    "PART",
    "TRACKERS",
    "OutputFolder",
    "Run",
    "Tracker",
    "Versions",
    "atomic",
    "check_storage",
    "check_tracker",
    "checkpoint_of",
    "find_run",
    "load_tensors",
    "no_room",
    "not_stored",
    "open_tracker",
    "remove_parts",
    "save_tensors",
    "task_directory",
    "unfinished_runs",
    "write_bytes",
    "write_folder",
    "write_json",
    "write_text",
]
