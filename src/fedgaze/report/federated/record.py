"""A run's ``summary.json`` as the report reads it: whatever is missing is None, never an error."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fedgaze.errors import FedgazeError
from fedgaze.report.federated.words import join

__all__ = ["Record", "Source", "mapping", "number", "read_record"]

Source = Literal["server", "own"]
"""On which images a client's model was measured: the server's common ones or the client's own."""

MOST_NAMES = 8
"""Of more clients, a sentence says how many they are."""

_KEYS: dict[Source, str] = {"server": "server_explanation", "own": "explanation"}


def number(value: Any) -> float | None:
    """A finite number, or None for anything else that a record may hold in its place."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


@dataclass(frozen=True, eq=False)
class Record:
    """A run, with lookups by round and client.

    Attributes:
        path: The run's folder.
        summary: What ``summary.json`` holds.
        rounds: Numbers of the rounds, in order.
        clients: Every client that appears anywhere, in order.
        planted: The clients in whose data the task planted a mark.
        misbehaving: The clients that the task lets misbehave.
        classes: Class names by index.
    """

    path: Path
    summary: Mapping[str, Any]
    rounds: list[int]
    clients: list[Any]
    planted: list[Any]
    misbehaving: list[Any]
    classes: list[str]

    @property
    def task(self) -> Mapping[str, Any]:
        """The task's settings."""
        return mapping(self.summary.get("task"))

    @property
    def name(self) -> str:
        """What the run is called."""
        return str(self.task.get("task_id") or self.path.name)

    @cached_property
    def _names(self) -> Mapping[str, Any]:
        return mapping(self.summary.get("names"))

    def called(self, client: Any) -> str:
        """What a client is called within a sentence."""
        return str(self._names.get(str(client)) or f"client {client}")

    def label(self, client: Any) -> str:
        """What a client is called where it stands alone, or begins a sentence."""
        return str(self._names.get(str(client)) or f"Client {client}")

    def listed(self, clients: Sequence[Any]) -> str:
        """Some clients as a sentence lists them; of many, how many they are."""
        if len(clients) > MOST_NAMES:
            return f"{len(clients)} clients"
        if len(clients) > 1 and not any(str(each) in self._names for each in clients):
            return f"clients {join([str(each) for each in clients])}"
        return join([self.called(each) for each in clients])

    @property
    def behaviour(self) -> str:
        """How the clients misbehave that the task lets misbehave, in short."""
        said = mapping(self.task.get("behaviour"))
        first = number(said.get("first_round")) or 1
        return f"{said.get('kind')}{f' from round {first:.0f} on' if first > 1 else ''}"

    @property
    def judged_by_clients(self) -> bool:
        """Whether the merged model was judged by the clients, each with layers of its own."""
        return any(self.merged(each).get("judged_by") == "clients" for each in self.rounds)

    @cached_property
    def _by_round(self) -> dict[int, Mapping[str, Any]]:
        return {each["round"]: each for each in _rounds(self.summary)}

    @cached_property
    def _by_client(self) -> dict[tuple[int, Any], Mapping[str, Any]]:
        return {
            (round_, entry["client"]): entry
            for round_, each in self._by_round.items()
            for entry in map(mapping, each.get("clients") or [])
            if isinstance(entry.get("client"), int | str)
        }

    def round(self, number_: int) -> Mapping[str, Any]:
        """A round's entry."""
        return self._by_round.get(number_, {})

    def until(self, number_: int) -> "Record":
        """The run as it stood after a round."""
        rounds = [each for each in _rounds(self.summary) if each["round"] <= number_]
        return _record(self.path, {**self.summary, "rounds": rounds})

    def nameless(self) -> "Record":
        """The same run, its clients known by their numbers only."""
        return _record(self.path, {**self.summary, "names": {}})

    def merged(self, number_: int) -> Mapping[str, Any]:
        """What a round says of the merged model; round 0 is before the first."""
        if number_ == 0:
            return mapping(self.summary.get("initial"))
        return mapping(self.round(number_).get("global"))

    def entry(self, number_: int, client: Any) -> Mapping[str, Any]:
        """What a round says of a client; empty where it took no part."""
        return self._by_client.get((number_, client), {})

    def failure(self, number_: int, client: Any) -> str | None:
        """Why a client failed in a round, if it did."""
        for each in map(mapping, self.round(number_).get("failures") or []):
            if each.get("client") == client:
                return str(each.get("reason") or "no reason given")
        return None

    def explanation(self, number_: int, client: Any, source: Source) -> Mapping[str, Any]:
        """What a client's trained model showed in a round."""
        return mapping(self.entry(number_, client).get(_KEYS[source]))

    def measure(self, number_: int, client: Any, source: Source, name: str) -> float | None:
        """One mean of :meth:`explanation`."""
        return number(self.explanation(number_, client, source).get(name))

    def measures_of_round(self, number_: int, source: Source, name: str) -> dict[Any, float]:
        """One mean of every client that has it in a round."""
        found = {each: self.measure(number_, each, source, name) for each in self.clients}
        return {client: value for client, value in found.items() if value is not None}


def read_record(path: Path, summary: Mapping[str, Any] | None = None) -> Record:
    """Read a run's record.

    Args:
        path: The run's folder.
        summary: What ``summary.json`` is about to hold; by default what it holds.

    Raises:
        FedgazeError: There is none, or it is no JSON object.
    """
    if summary is not None:
        return _record(path, summary)
    file = path / "summary.json"
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FedgazeError(f"{path} holds no summary.json of a run") from None
    except (OSError, ValueError) as error:
        raise FedgazeError(f"{file} cannot be read: {error}") from None
    if not isinstance(summary, dict):
        raise FedgazeError(f"{file} holds no record of a run")
    return _record(path, summary)


def _record(path: Path, summary: Mapping[str, Any]) -> Record:
    rounds = _rounds(summary)
    plant = mapping(mapping(mapping(summary.get("task")).get("dataset")).get("plant"))
    planted = list(plant.get("clients") or [])
    misbehaving = list(mapping(mapping(summary.get("task")).get("behaviour")).get("clients") or [])
    seen = [
        mapping(entry).get("client")
        for each in rounds
        for entry in [*(each.get("clients") or []), *(each.get("failures") or [])]
    ]
    return Record(
        path=path,
        summary=summary,
        rounds=sorted({each["round"] for each in rounds}),
        clients=_ordered([*seen, *([*planted, *misbehaving] if seen else [])]),
        planted=planted,
        misbehaving=misbehaving,
        classes=[str(each) for each in summary.get("classes") or []],
    )


def _rounds(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rounds = map(mapping, summary.get("rounds") or [])
    return [each for each in rounds if isinstance(each.get("round"), int)]


def _ordered(clients: Iterable[Any]) -> list[Any]:
    """Each client once, numbers before names."""
    known = dict.fromkeys(each for each in clients if isinstance(each, int | str))
    return sorted(known, key=lambda each: (isinstance(each, str), each))
