"""Figures, the record and the page of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from fedgaze.report.comparison.figure import draw, flag_words
from fedgaze.report.comparison.grid import Row
from fedgaze.report.html import render
from fedgaze.report.pictures import data_uri, webp
from fedgaze.store import OutputFolder

__all__ = ["Comparison", "write_comparison"]

_THUMB = 208
BUDGET = 3_500_000
"""Characters that the page's pictures may take together."""


@dataclass(frozen=True)
class Comparison:
    """What was written.

    Attributes:
        figures: PNG and PDF of each picture and class.
        page: The page.
        record: A JSON line a heatmap.
    """

    figures: Sequence[Path]
    page: Path
    record: Path


def write_comparison(folder: OutputFolder, rows: Sequence[Row]) -> Comparison:
    """Write the figures, the record and the page. Nothing that is there is overwritten.

    Args:
        folder: Where.
        rows: Of all models, pictures and classes.
    """
    groups: dict[tuple[Path, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.file, row.rank), []).append(row)
    several = {file for file, rank in groups if rank}
    figures: list[Path] = []
    lines: list[dict[str, Any]] = []
    for (file, rank), group in groups.items():
        middle = f".{rank + 1}" if file in several else ""
        paths = folder.write_together(
            f"{file.stem}{middle}.comparison",
            {f".{kind}": partial(_write, group, kind) for kind in ("png", "pdf")},
        )
        figures += paths.values()
        lines += [_line(row, method, paths[".png"].name) for row in group for method in row.cells]
    record = folder.write_lines("comparison", lines)
    page = folder.write_together("comparison.report", {".html": partial(_page, groups)})[".html"]
    return Comparison(figures, page, record)


def _write(rows: Sequence[Row], kind: Any, file: BinaryIO) -> None:
    file.write(draw(rows, kind))


def _line(row: Row, method: str, figure: str) -> dict[str, Any]:
    cell = row.cells[method]
    return {
        "file": str(row.file),
        "model": row.model,
        "weights": row.weights,
        "layer": row.layer,
        "method": method,
        "explained": row.target,
        "predicted": row.predicted,
        "flags": [] if cell is None else list(cell.flags),
        "shown": cell is not None,
        "figure": figure,
    }


def _page(groups: dict[tuple[Path, int], list[Row]], file: BinaryIO) -> None:
    sections = []
    size = left_out = 0
    for (path, _), rows in groups.items():
        if size > BUDGET:
            left_out += 1
            continue
        shown = [_shown(row) for row in rows]
        size += sum(len(cell["picture"]) for row in shown for cell in row["cells"] if cell)
        sections.append(
            {
                "name": path.name,
                "original": _thumbnail(rows[0].original),
                "target": rows[0].target,
                "rows": shown,
                "models": _models(rows),
            }
        )
    first = next(iter(groups.values()))
    methods = list(first[0].cells)
    models = list(dict.fromkeys(row.model for row in first))
    random = list(dict.fromkeys(row.model for row in first if row.random))
    layers = list(dict.fromkeys(row.asked for row in first))
    counts = (len(models), "model"), (len(layers), "layer"), (len(methods), "method")
    text = render(
        "comparison.html.j2",
        title=" × ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts),
        models=models,
        random=random,
        methods=methods,
        sections=sections,
        left_out=left_out,
        flag_words=flag_words,
    )
    file.write(text.encode())


def _models(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What each model says of the picture."""
    found = {row.model: row for row in rows}
    return [
        {"name": name, "weights": row.weights, "random": row.random, "predicted": row.predicted}
        | {"target": row.target}
        for name, row in found.items()
    ]


def _shown(row: Row) -> dict[str, Any]:
    return {
        "model": row.model,
        "random": row.random,
        "layer": row.layer,
        "asked": row.asked,
        "target": row.target,
        "cells": [
            None
            if cell is None
            else {"method": method, "picture": _thumbnail(cell.picture), "flags": cell.flags}
            for method, cell in row.cells.items()
        ],
    }


def _thumbnail(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_THUMB, _THUMB), Image.Resampling.LANCZOS)
    return data_uri(webp(small, 78))
