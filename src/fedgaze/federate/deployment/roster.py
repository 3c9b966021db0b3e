"""Which node is which client, by the keys that the server registered."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.serverapp import Grid

from fedgaze.config import Task
from fedgaze.federate.deployment.homes import ServerHome
from fedgaze.federate.deployment.registry import Registry
from fedgaze.federate.ordered import AskedRoster, Roster

__all__ = ["SERVER_HOME", "RegisteredRoster", "find_roster"]

SERVER_HOME = "FEDGAZE_SERVER"
"""The environment variable that names the server's folder."""


class RegisteredRoster:
    """Trusts nobody's word: a node is the client whose key it was registered with.

    Args:
        registry: The server's file of clients.
    """

    def __init__(self, registry: Path) -> None:
        self._registry = Registry(registry)

    def numbers(self, grid: Grid, nodes: Iterable[int]) -> Mapping[int, int]:
        """The client's number by node id."""
        del grid, nodes
        return {client.node: client.number for client in self._registry.clients()}

    def name(self, client: int) -> str:
        """The name that it joined with, and its number."""
        names = {each.number: each.name for each in self._registry.clients()}
        return f"{names[client]} ({client})" if client in names else f"{client} (never joined)"


def find_roster(task: Task) -> Roster:
    """The roster of the server that this process belongs to; without keys, each node is asked."""
    place = os.environ.get(SERVER_HOME)
    if place and (home := ServerHome(Path(place))).settings().secure:
        return RegisteredRoster(home.registry)
    return AskedRoster(task.num_clients, task.round_timeout)
