"""The Control API: what the owner of a server may do."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedgaze.errors import FedgazeError

__all__ = ["Control", "Node"]


@dataclass(frozen=True)
class Node:
    """A node as the SuperLink knows it.

    Attributes:
        node: Its id.
        name: What it is called.
        public_key: PEM.
        online: Whether its heartbeats arrive.
    """

    node: int
    name: str
    public_key: str
    online: bool


class _Bearer:
    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        context.request.headers["authorization"] = f"Bearer {self._token}"
        return call_next(context)


class Control:
    """Flower's Control API of a server on this machine.

    Args:
        port: Its loopback port.
        token: Of the server's owner.
    """

    def __init__(self, port: int, token: str) -> None:
        from flwr.supercore.control.control_http_client import ControlHttpClient

        self._client = ControlHttpClient.from_server_address(
            f"127.0.0.1:{port}",
            insecure=True,
            root_certificates=None,
            interceptors=[_Bearer(token)],
        )

    def start(self, bundle: bytes, config: Mapping[str, str]) -> int:
        """Start a run of a bundle with a configuration, and return its id."""
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        answer = self._call(
            self._client.StartRun,
            StartRunRequest(
                fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config))
            ),
        )
        return int(answer.run_id)

    def status(self, run: int) -> tuple[str, str]:
        """A run's status, and what Flower adds to it.

        Returns:
            ``pending``, ``starting``, ``running`` or ``finished``; then ``completed``, ``failed``
            or ``stopped``, and why.
        """
        from flwr.proto.control_pb2 import ListRunsRequest

        found = self._call(self._client.ListRuns, ListRunsRequest(run_id=run)).run_dict[run].status
        return found.status, f"{found.sub_status} {found.details}".strip()

    def stop(self, run: int) -> None:
        """Stop a run."""
        from flwr.proto.control_pb2 import StopRunRequest

        self._call(self._client.StopRun, StopRunRequest(run_id=run))

    def unregister(self, node: int) -> None:
        """Forget a node: its key opens nothing any more."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        self._call(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node))

    def nodes(self) -> list[Node]:
        """All registered nodes."""
        from flwr.proto.control_pb2 import ListNodesRequest

        answer = self._call(self._client.ListNodes, ListNodesRequest())
        return [
            Node(each.node_id, each.name, each.public_key.decode(), each.status == "online")
            for each in answer.nodes_info
        ]

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _call(self, method: Callable[[Any], Any], request: Any) -> Any:
        import httpx

        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            raise FedgazeError(
                f"the server refused: {error.response.status_code} {error.response.text[:300]}"
            ) from None
        except httpx.TransportError as error:
            raise FedgazeError(f"the server does not answer: {error}") from None
