"""The record of an evaluation: what was asked, and a line a picture; a run goes on where it was."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from fedgaze.errors import FedgazeError
from fedgaze.measure import Column, Table
from fedgaze.store import write_json, write_text

__all__ = ["EvaluationRecord"]

ASKED, LINES = "evaluation.json", "values.jsonl"


class EvaluationRecord:
    """A folder that holds an evaluation.

    Args:
        folder: Made if it is not there.
        asked: What decides about the numbers. A folder that has a record of the same is gone on
            with.

    Raises:
        FedgazeError: The folder holds something else.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder = folder
        self.asked = json.loads(json.dumps(asked))
        self.lines: list[dict[str, Any]] = []
        if folder.exists() and not folder.is_dir():
            raise FedgazeError(f"the output {folder} is there already and is no folder")
        begun = (folder / ASKED).is_file()
        if not begun and folder.exists() and any(folder.iterdir()):
            raise FedgazeError(
                f"the output {folder} is there already and holds no evaluation; choose another"
            )
        if begun:
            self._read()
        # One that came to nothing is no evaluation yet.
        if self.lines:
            self._check()

    def begin(self) -> None:
        """Write down what was asked."""
        write_json(self.folder / ASKED, self.asked)

    def _check(self) -> None:
        try:
            before = json.loads((self.folder / ASKED).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FedgazeError(f"{self.folder / ASKED} cannot be read: {error}") from error
        for key in self.asked:
            if before.get(key) != self.asked[key]:
                raise FedgazeError(
                    f"the output {self.folder} holds an evaluation with another {key} "
                    f"({_short(before.get(key))} instead of {_short(self.asked[key])}); choose "
                    "another --output"
                )

    def _read(self) -> None:
        """Take in the lines that are whole; what a run that was killed left behind them goes."""
        file = self.folder / LINES
        if not file.is_file():
            return
        text = file.read_text(encoding="utf-8")
        whole = [each for each in text.splitlines(keepends=True) if each.endswith("\n")]
        found = [_parsed(each) for each in whole]
        self.lines = [each for each in takewhile(lambda line: line is not None, found) if each]
        kept = "".join(whole[: len(self.lines)])
        if kept != text:
            write_text(file, kept)

    def keep(self, count: int) -> None:
        """Forget all but the first lines: those of a batch that is not whole."""
        if count < len(self.lines):
            self.lines = self.lines[:count]
            write_text(self.folder / LINES, "".join(map(_line, self.lines)))

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write down the lines of a batch, so that they outlast a power cut."""
        new = [dict(each) for each in lines]
        try:
            with (self.folder / LINES).open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, new)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FedgazeError(f"{self.folder / LINES} cannot be written: {error}") from error
        self.lines += new

    @property
    def makers(self) -> list[str]:
        """Names of the methods and baselines."""
        return [each["name"] for each in self.asked["makers"]]

    @property
    def baselines(self) -> list[str]:
        """Those of the makers that know nothing of the model."""
        return [each["name"] for each in self.asked["makers"] if each["baseline"]]

    @property
    def columns(self) -> list[Column]:
        """What was measured."""
        return [Column(**each) for each in self.asked["columns"]]

    @property
    def judged(self) -> list[dict[str, Any]]:
        """The lines of pictures that could be read."""
        return [each for each in self.lines if "error" not in each]

    def table(self) -> Table:
        """Means, intervals and ranks."""
        values = {
            (maker, column.name): [
                _number(line["values"][maker].get(column.name)) for line in self.judged
            ]
            for maker in self.makers
            for column in self.columns
        }
        return Table(self.makers, self.columns, values, seed=self.asked["seed"])

    def rows(self) -> list[dict[str, Any]]:
        """A row a picture, method and metric, as data frames like them."""
        return [
            {
                "file": line["file"],
                "group": line.get("group"),
                "target": line["target"]["label"],
                "predicted": line["predicted"]["label"],
                "method": maker,
                "metric": column.name,
                "value": line["values"][maker].get(column.name),
                "reason": line["reasons"].get(maker, {}).get(column.name),
            }
            for line in self.judged
            for maker in self.makers
            for column in self.columns
        ]

    def write_rows(self) -> list[Path]:
        """Write ``metrics.parquet`` and ``metrics.csv``, and return where they lie."""
        import pyarrow as pa
        from pyarrow import csv, parquet

        from fedgaze.store import atomic

        texts = ("file", "group", "target", "predicted", "method", "metric")
        fields = [(name, pa.string()) for name in texts]
        schema = pa.schema([*fields, ("value", pa.float64()), ("reason", pa.string())])
        rows = pa.Table.from_pylist(self.rows(), schema)
        paths = [self.folder / "metrics.parquet", self.folder / "metrics.csv"]
        for path, write in zip(paths, (parquet.write_table, csv.write_csv), strict=True):
            with atomic(path) as temporary:
                write(rows, str(temporary))
        return paths

    def reasons(self, maker: str, column: str) -> dict[str, int]:
        """Why images have no value, and how many."""
        found: dict[str, int] = {}
        for line in self.judged:
            reason = line["reasons"].get(maker, {}).get(column)
            if reason:
                found[reason] = found.get(reason, 0) + 1
        return found

    def groups(self) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Which images belong to each group, by name."""
        named = [line.get("group") for line in self.judged]
        names = sorted({each for each in named if each is not None})
        return {name: np.array([each == name for each in named]) for name in names}


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _line(line: Mapping[str, Any]) -> str:
    # In ASCII, so that no name of a file ends a line, and a write cut short is still text.
    return json.dumps(line, allow_nan=False) + "\n"


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = ", ".join(
            str(each.get("name", each)) if isinstance(each, Mapping) else str(each)
            for each in value
        )
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
