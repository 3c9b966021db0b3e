"""The grid of models × layers × methods as one figure for print."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fedgaze.report.comparison.grid import Row
from fedgaze.xai import COLORMAP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "flag_words"]

_TILE, _NAMES, _HEAD, _GAP = 1.5, 2.3, 1.75, 0.06
_INK, _FAINT, _WARN = "#1c1c1c", "#6b6b6b", "#b3370b"
_DPI = 160


def draw(rows: Sequence[Row], kind: Literal["png", "pdf"]) -> bytes:
    """Draw the rows of one picture and class: a line a model and layer, a column a method.

    Args:
        rows: Of one picture; of each model those of one class.
        kind: The file's format.

    Returns:
        The file.
    """
    import matplotlib as mpl

    figure = _figure(rows)
    held = io.BytesIO()
    # Letters as letters, so that a PDF can be searched and edited.
    with mpl.rc_context({"pdf.fonttype": 42}):
        figure.savefig(held, format=kind, dpi=_DPI, facecolor="white", metadata=_about(kind))
    return held.getvalue()


def _about(kind: str) -> dict[str, str | None]:
    # Without a date the same maps give the same file.
    return {"CreationDate": None} if kind == "pdf" else {"Software": None}


def _figure(rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    methods = list(rows[0].cells)
    tall = _TILE * rows[0].original.height / rows[0].original.width
    width = _NAMES + len(methods) * (_TILE + _GAP) + 0.15
    models = list(dict.fromkeys(row.model for row in rows))
    between = 0.16
    height = _HEAD + len(rows) * (tall + _GAP) + (len(models) - 1) * between + 0.1
    figure = Figure(figsize=(width, height))
    _head(figure, rows, methods, width, height)
    top = height - _HEAD
    before = rows[0].model
    for row in rows:
        if row.model != before:
            top -= between
            before = row.model
        _line(figure, row, methods, (width, height, top, tall))
        top -= tall + _GAP
    return figure


def _place(figure: "Figure", box: tuple[float, float, float, float]) -> "Axes":
    """Axes without frame at (left, bottom, width, height) in inches."""
    across, down = figure.get_size_inches()
    left, bottom, width, height = box
    axes = figure.add_axes((left / across, bottom / down, width / across, height / down))
    axes.set_axis_off()
    return axes


def _head(
    figure: "Figure", rows: Sequence[Row], methods: Sequence[str], width: float, height: float
) -> None:
    """The picture itself, what it is, the colours, and the methods' names."""
    import numpy as np

    original = rows[0].original
    side = _HEAD - 0.5
    shown = side * original.width / original.height
    _place(figure, (0.12, height - 0.12 - side, shown, side)).imshow(original, aspect="auto")
    left = 0.12 + shown + 0.2
    y = height - 0.28

    def text(words: str, size: float, colour: str, weight: str = "normal") -> None:
        figure.text(
            left / width, y / height, words, size=size, color=colour, weight=weight, va="center"
        )

    text(rows[0].file.name, 12, _INK, "bold")
    said = {row.model: row for row in rows}
    for model, row in said.items():
        y -= 0.2
        sure = f"{row.target['probability']:.1%}"
        text(f"{model}: {row.target['label']} {sure}", 8, _WARN if row.random else _FAINT)
        if len(said) > 5:
            break
    bar = _place(figure, (width - 1.75, height - 0.32, 1.6, 0.1))
    bar.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=COLORMAP)
    y = (height - 0.42) / height
    small: dict[str, Any] = {"size": 6.5, "color": _FAINT, "va": "center"}
    figure.text((width - 1.75) / width, y, "did not matter", ha="left", **small)
    figure.text((width - 0.15) / width, y, "mattered most", ha="right", **small)
    for index, method in enumerate(methods):
        middle = _NAMES + index * (_TILE + _GAP) + _TILE / 2
        figure.text(
            middle / width,
            (height - _HEAD + 0.12) / height,
            method,
            size=9,
            weight="bold",
            color=_INK,
            ha="center",
            va="center",
        )


def _line(
    figure: "Figure",
    row: Row,
    methods: Sequence[str],
    place: tuple[float, float, float, float],
) -> None:
    width, height, top, tall = place
    lines = [(row.model, 9.5, _INK, "bold")]
    if row.random:
        lines.append(("random weights", 8, _WARN, "bold"))
    lines += [
        (_wrapped(row.layer, 30), 7.5, _FAINT, "normal"),
        (f"({row.asked})" if row.asked != row.layer else "", 7, _FAINT, "normal"),
    ]
    y = top - 0.14
    for words, size, colour, weight in lines:
        figure.text(
            0.12 / width, y / height, words, size=size, color=colour, weight=weight, va="top"
        )
        y -= (0.155 if size > 9 else 0.14) * (1 + words.count("\n"))
    for index, method in enumerate(methods):
        cell = row.cells[method]
        axes = _place(figure, (_NAMES + index * (_TILE + _GAP), top - tall, _TILE, tall))
        if cell is None:
            axes.text(0.5, 0.5, "explains no layer", size=7, color=_FAINT, ha="center", va="center")
            continue
        axes.imshow(cell.picture, aspect="auto")
        if cell.flags:
            axes.text(
                0.5,
                0.04,
                ", ".join(map(flag_words, cell.flags)),
                size=6.5,
                color="white",
                ha="center",
                va="bottom",
                transform=axes.transAxes,
                bbox={"facecolor": "black", "alpha": 0.65, "pad": 1.5, "linewidth": 0},
            )


def flag_words(flag: str) -> str:
    """A flag of an explanation, for people."""
    return {"no_positive_evidence": "no positive evidence"}.get(flag, flag.replace("_", " "))


def _wrapped(name: str, length: int) -> str:
    """A long name of a layer, broken after a dot."""
    lines, line = [], ""
    for part in name.split("."):
        if line and len(line) + len(part) + 1 > length:
            lines.append(f"{line}.")
            line = part
        else:
            line = f"{line}.{part}" if line else part
    return "\n".join([*lines, line])
