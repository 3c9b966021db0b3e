"""Heatmaps by round, client and class, for the gallery that a slider leafs through."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgaze.report.federated.heatmaps import Shot, read_folder
from fedgaze.report.federated.record import Record, Source, mapping
from fedgaze.report.federated.words import shown
from fedgaze.report.pictures import Album

__all__ = ["VIEWS", "Gallery", "View", "first_overlays", "make_gallery", "reason", "shots_of"]

THUMBNAIL = 112
BUDGET = 3_500_000
"""Characters of pictures after which no further round is taken in."""
MOST_CLASSES, MOST_CLIENTS = 10, 24


@dataclass(frozen=True)
class View:
    """One way to look at a round.

    Attributes:
        name: Its key on the page.
        title: What its button says.
        note: What is seen.
        source: Whose images.
        weights: Which maps of a folder.
    """

    name: str
    title: str
    note: str
    source: Source
    weights: str


VIEWS = (
    View(
        "marked",
        "Common images, marked",
        "The server’s images with the mark stamped into the corner: every client’s trained model "
        "sees the same pictures.",
        "server",
        "marked",
    ),
    View(
        "server",
        "Common images",
        "The server’s images as they are: every client’s trained model sees the same pictures.",
        "server",
        "trained",
    ),
    View(
        "own",
        "Each client’s own",
        "Images of the client’s own validation data, after its training: the pictures differ from "
        "client to client.",
        "own",
        "trained",
    ),
    View(
        "received",
        "Own, before training",
        "The client’s own images again, seen by the model as it was received, before the client "
        "trained it.",
        "own",
        "received",
    ),
)


@dataclass(frozen=True)
class Gallery:
    """What the page needs, ready for JSON.

    Attributes:
        views: Those that have any picture.
        rounds: The rounds taken in.
        left_out: Rounds that had pictures but found no room.
        classes: Names of the columns.
        more_classes: How many classes have no column.
        more_clients: How many clients have no row.
        table: Rows by view and round: ``{"client", "slot", "cells"}`` or ``{…, "reason"}``.
        pictures: Addresses, which cells name by index.
    """

    views: list[View]
    rounds: list[int]
    left_out: int
    classes: list[str]
    more_classes: int
    more_clients: int
    table: dict[str, dict[int, list[dict[str, Any]]]]
    pictures: list[str]


def reason(record: Record, round_: int, client: Any, source: Source) -> str:
    """Why a client has no picture in a round."""
    entry = record.entry(round_, client)
    if not entry:
        failure = record.failure(round_, client)
        return f"failed: {failure}" if failure else "took no part"
    explanation = record.explanation(round_, client, source)
    if "failed" in explanation:
        return f"failed: {explanation['failed']}"
    if explanation and explanation.get("shared") != "overlays":
        return "kept at the client"
    return "no picture"


def shots_of(record: Record, explanation: Any) -> list[Shot]:
    """The shots in the folder that an explanation names, where pictures were shared.

    In process a client's own pictures lie there as well.
    """
    return _shots(record.path, explanation)


def first_overlays(path: Path, explanation: Any) -> dict[int, Path]:
    """The overlays of each class's first sample, of a trained model, by class.

    Args:
        path: A run's folder.
        explanation: What its record says of the model's explanation.
    """
    return {
        shot.label: shot.picture
        for shot in _shots(path, explanation)
        if shot.first and shot.weights == "trained"
    }


def _shots(path: Path, explanation: Any) -> list[Shot]:
    said = mapping(explanation)
    folder = said.get("folder")
    if not isinstance(folder, str) or said.get("shared") != "overlays":
        return []
    return read_folder(path / Path(folder))


def make_gallery(record: Record, slots: dict[Any, int], emphasised: Sequence[Any]) -> Gallery:
    """Collect thumbnails, round by round, until the budget is spent.

    The last round comes first, then the first, then those that halve what lies between.

    Args:
        record: The run.
        slots: Each client's colour.
        emphasised: Clients that have a row whatever their number.
    """
    chosen = [*emphasised, *(each for each in record.clients if each not in emphasised)]
    clients = [each for each in record.clients if each in chosen[:MOST_CLIENTS]]
    labels = _labels(record, clients)
    album = Album(THUMBNAIL)
    table: dict[str, dict[int, list[dict[str, Any]]]] = {}
    taken: list[int] = []
    left_out = 0
    for round_ in _spread(record.rounds):
        rows = {
            view.name: _rows(record, round_, view, clients, labels, slots, album)
            for view in VIEWS
            if album.size < BUDGET
        }
        if not any(each.get("cells") for one in rows.values() for each in one):
            left_out += album.size >= BUDGET
            continue
        taken.append(round_)
        for name, one in rows.items():
            table.setdefault(name, {})[round_] = one
    seen = [
        view
        for view in VIEWS
        if any(row.get("cells") for rows in table.get(view.name, {}).values() for row in rows)
    ]
    return Gallery(
        views=seen,
        rounds=sorted(taken),
        left_out=left_out,
        classes=[_class_name(record, label) for label in labels],
        more_classes=max(0, len(record.classes) - len(labels)),
        more_clients=len(record.clients) - len(clients),
        table={view.name: table[view.name] for view in seen},
        pictures=album.pictures,
    )


def _spread(rounds: list[int]) -> list[int]:
    """The last, the first, then the middles of ever smaller parts."""
    order = [*rounds[-1:], *rounds[:1]]
    parts = [(0, len(rounds) - 1)]
    for low, high in parts:
        middle = (low + high) // 2
        if low < middle < high:
            order.append(rounds[middle])
            parts += [(low, middle), (middle, high)]
    return list(dict.fromkeys(order))


def _labels(record: Record, clients: list[Any]) -> list[int]:
    """The first classes of which the last round that has any pictures has some."""
    for round_ in reversed(record.rounds):
        found = {
            shot.label
            for client in clients
            for explanation in (
                record.explanation(round_, client, "server"),
                record.explanation(round_, client, "own"),
            )
            for shot in shots_of(record, explanation)
        }
        if found:
            return sorted(found)[:MOST_CLASSES]
    return []


def _class_name(record: Record, label: int) -> str:
    return record.classes[label] if 0 <= label < len(record.classes) else str(label)


def _rows(
    record: Record,
    round_: int,
    view: View,
    clients: list[Any],
    labels: list[int],
    slots: dict[Any, int],
    album: Album,
) -> list[dict[str, Any]]:
    rows = []
    for client in clients:
        name = record.label(client)
        about: dict[str, Any] = {"client": name, "slot": slots[client]}
        shots = shots_of(record, record.explanation(round_, client, view.source))
        cells = _cells(record, round_, name, shots, view, labels, album)
        why = {"reason": reason(record, round_, client, view.source)}
        rows.append(about | (cells or why))
    if view.source == "server":
        shots = shots_of(record, record.merged(round_).get("explanation"))
        if cells := _cells(record, round_, "Merged model", shots, view, labels, album):
            rows.append({"client": "Merged model", "slot": "merged", **cells})
    return rows


def _cells(
    record: Record,
    round_: int,
    who: str,
    shots: list[Shot],
    view: View,
    labels: list[int],
    album: Album,
) -> dict[str, Any]:
    """A cell a class, ``{"picture", "alt", "says", "wrong"}`` or None; nothing at all if none."""
    firsts = {shot.label: shot for shot in shots if shot.first and shot.weights == view.weights}
    cells: list[dict[str, Any] | None] = []
    for label in labels:
        shot = firsts.get(label)
        index = album.add(shot.picture) if shot else None
        if shot is None or index is None:
            cells.append(None)
            continue
        name = _class_name(record, label)
        wrong = shot.predicted is not None and shot.predicted != name
        says = "" if shot.probability is None else shown(shot.probability, digits=0)
        verdict = f", taken for {shot.predicted}" if wrong else ""
        sure = f", {says} sure of {name}" if says else ""
        cells.append(
            {
                "picture": index,
                "alt": f"{who}, class {name}, round {round_}{sure}{verdict}",
                "says": f"{says} → {shot.predicted}" if wrong else says,
                "wrong": wrong,
            }
        )
    return {"cells": cells} if any(cells) else {}
