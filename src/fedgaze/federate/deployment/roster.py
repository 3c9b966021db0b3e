"""Which node is which client, by the keys that the server registered."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.serverapp import Grid

from fedgaze.federate.deployment.registry import Registry

__all__ = ["RegisteredRoster"]


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
