"""What lasts: the record of a run, written so that it is whole after every round."""

from fedgaze.store.files import (
    atomic,
    load_tensors,
    save_tensors,
    write_bytes,
    write_json,
    write_text,
)
from fedgaze.store.run import Run, unfinished_runs

__all__ = [
    "Run",
    "atomic",
    "load_tensors",
    "save_tensors",
    "unfinished_runs",
    "write_bytes",
    "write_json",
    "write_text",
]
