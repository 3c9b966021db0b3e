"""The page's first picture: the same few images, one row a client."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedgaze.report.federated.gallery import VIEWS, View, shots_of
from fedgaze.report.federated.heatmaps import Shot, mean_heat
from fedgaze.report.federated.record import Record
from fedgaze.report.federated.verdict import Finding
from fedgaze.report.federated.words import Measure, shown
from fedgaze.report.pictures import data_uri, thumbnail

__all__ = ["Row", "Strip", "make_strip"]

SIDE, HEAT_SIDE = 160, 280
MOST_IMAGES, MOST_ROWS, MOST_MEASURES = 6, 8, 3


@dataclass(frozen=True)
class Row:
    """A client in the strip.

    Attributes:
        client: Who.
        heat: The average of all its maps, an address, or None.
        pictures: An address an image, None where there is none.
        values: ``(measure, text, share)`` each; the share fills a bar.
    """

    client: Any
    heat: str | None
    pictures: list[str | None]
    values: list[tuple[Measure, str, float | None]]


@dataclass(frozen=True)
class Strip:
    """Rows of the same images.

    Attributes:
        view: Which images.
        round: When.
        classes: Names of the images' classes.
        chosen: Whether these are the images on which the clients differ most, out of more.
        rows: One a client.
        heat: Whether any row has an average.
        count: Of how many maps each average is made, at most.
    """

    view: View
    round: int
    classes: list[str]
    chosen: bool
    rows: list[Row]
    heat: bool
    count: int


def make_strip(record: Record, found: Sequence[Finding], emphasised: Sequence[Any]) -> Strip | None:
    """The strip of the last round that has pictures; None where no pictures are at hand."""
    for round_ in reversed(record.rounds):
        for view in VIEWS[:3]:
            shots = {
                client: [
                    shot
                    for shot in shots_of(record, record.explanation(round_, client, view.source))
                    if shot.weights == view.weights
                ]
                for client in record.clients
            }
            shots = {client: each for client, each in shots.items() if each}
            if shots:
                return _strip(record, round_, view, _shortened(shots, emphasised), found)
    return None


def _shortened(shots: dict[Any, list[Shot]], emphasised: Sequence[Any]) -> dict[Any, list[Shot]]:
    first = [each for each in emphasised if each in shots]
    keep = [*first, *(each for each in shots if each not in first)][:MOST_ROWS]
    return {client: each for client, each in shots.items() if client in keep}


def _strip(
    record: Record,
    round_: int,
    view: View,
    shots: dict[Any, list[Shot]],
    found: Sequence[Finding],
) -> Strip:
    labels = sorted({shot.label for each in shots.values() for shot in each if shot.first})
    shown_labels = _most_different(record, round_, view, list(shots), labels)
    heats = mean_heat(list(shots.values()), HEAT_SIDE)
    measures = [each for each in found if each.round == round_][:MOST_MEASURES]
    rows = []
    for (client, each), heat in zip(shots.items(), heats, strict=True):
        firsts = {shot.label: shot for shot in each if shot.first}
        files = [firsts[label].picture if label in firsts else None for label in shown_labels]
        small = [thumbnail(file, SIDE) if file else None for file in files]
        values = [(one.measure, one.values.get(client)) for one in measures]
        rows.append(
            Row(
                client,
                heat,
                [None if picture is None else data_uri(picture) for picture in small],
                [(one, shown(value, one.unit, bare=True), value) for one, value in values],
            )
        )
    names = record.classes
    return Strip(
        view=view,
        round=round_,
        classes=[names[i] if 0 <= i < len(names) else str(i) for i in shown_labels],
        chosen=len(shown_labels) < len(labels),
        rows=rows,
        heat=any(heats),
        count=max(len(each) for each in shots.values()),
    )


def _most_different(
    record: Record, round_: int, view: View, clients: list[Any], labels: list[int]
) -> list[int]:
    """The classes whose first images divide the clients most, by heat on the mark or object."""
    if len(labels) <= MOST_IMAGES:
        return labels
    name = "mark_mass" if view.name == "marked" else "object_mass"
    values: dict[int, list[float]] = {label: [] for label in labels}
    for client in clients:
        # The mark's measures stand beside the trained weights' maps of the same samples.
        for shot in shots_of(record, record.explanation(round_, client, view.source)):
            value = (shot.measures or {}).get(name)
            if shot.first and shot.label in values and isinstance(value, float):
                values[shot.label].append(value)
    spread = {label: max(each) - min(each) if each else 0.0 for label, each in values.items()}
    return sorted(sorted(labels, key=lambda label: -spread[label])[:MOST_IMAGES])
