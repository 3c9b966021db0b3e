"""What lasts: files that are whole or not there, and the record of a run."""

from fedgaze.store.files import (
    atomic,
    load_tensors,
    save_tensors,
    write_bytes,
    write_json,
    write_text,
)
from fedgaze.store.outputs import OutputFolder, write_folder
from fedgaze.store.run import Run, checkpoint_of, find_run, task_directory, unfinished_runs
from fedgaze.store.tracking import TRACKERS, Tracker, check_tracker, open_tracker

__all__ = [
    "TRACKERS",
    "OutputFolder",
    "Run",
    "Tracker",
    "atomic",
    "check_tracker",
    "checkpoint_of",
    "find_run",
    "load_tensors",
    "open_tracker",
    "save_tensors",
    "task_directory",
    "unfinished_runs",
    "write_bytes",
    "write_folder",
    "write_json",
    "write_text",
]
