"""The parts of Flower that it does not call public, in one place.

Tried with 1.41: the SuperLink's application, the Control API, the tasks of a node, bundles.
"""

import hashlib
import os
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Error, Message

from fedgaze.errors import FedgazeError

__all__ = [
    "ENVIRONMENT",
    "Control",
    "Flower",
    "Node",
    "NodeTasks",
    "Work",
    "build_bundle",
    "exit_with_parent",
    "make_superlink",
    "node_headers",
    "node_of_headers",
    "unpack_bundle",
]

PATIENCE = 10.0
"""Seconds that a process has to end in good order."""
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}
"""What Flower's processes are started with: nothing is counted, asked for or installed."""


def exit_with_parent(pid: int) -> None:
    """End this process when another one is gone: as by Ctrl-C, and if that does not do, by force.

    Flower's own exit waits for a server that may be gone as well, without an end.
    """
    from flwr.supercore.app_utils import start_parent_process_monitor

    def force() -> None:
        while psutil.pid_exists(pid):
            time.sleep(1)
        time.sleep(PATIENCE)
        os._exit(1)

    start_parent_process_monitor(pid)
    threading.Thread(target=force, daemon=True).start()


# --- the SuperLink ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flower:
    """Flower's SuperLink in this process.

    Attributes:
        app: Its ASGI application: the paths ``/v1/fleet/…``, ``/v1/control/…``, ``/v1/runtime/…``.
        register: Makes a node known by its PEM key and its name, and returns the node's id.
        active: The id of the oldest run that is not over, or None.
    """

    app: Any
    register: Callable[[str, str], int]
    active: Callable[[], str | None]


def make_superlink(database: Path, secret: bytes, *, authenticated: bool) -> Flower:
    """Make Flower's SuperLink.

    Args:
        database: The SQLite file of its state.
        secret: What a superexec has to show.
        authenticated: Only nodes with a registered key are taken.
    """
    from flwr.common.constant import (
        HEARTBEAT_DEFAULT_INTERVAL,
        ISOLATION_MODE_PROCESS,
        NOOP_ACCOUNT_NAME,
        NOOP_FLWR_AID,
        TRANSPORT_TYPE_GRPC_RERE,
        Status,
    )
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=True,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=authenticated,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    app = create_app(config, SuperLinkLifespan)
    state = app.state.linkstate_factory.state

    def register(key: str, name: str) -> int:
        pem = key.encode()
        known: int | None = state().get_node_id_by_public_key(pem)
        if known is not None:
            return known
        return int(
            state().create_node(
                owner_aid=NOOP_FLWR_AID,
                owner_name=NOOP_ACCOUNT_NAME,
                public_key=pem,
                heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL,
                name=name,
            )
        )

    def active() -> str | None:
        runs = state().get_run_info(
            statuses=[Status.PENDING, Status.STARTING, Status.RUNNING],
            order_by="pending_at",
            ascending=True,
            limit=1,
        )
        return str(runs[0].run_id) if runs else None

    return Flower(app, register, active)


def node_headers(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """Headers with which a node shows who it is, as in Flower's own requests."""
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.date import now
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

    timestamp = now().isoformat()
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode(),
        TIMESTAMP_HEADER: timestamp,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, timestamp.encode())).decode(),
    }


def node_of_headers(headers: Mapping[str, str]) -> str | None:
    """Read such headers.

    Returns:
        The PEM key whose private half the sender holds; None where they do not prove one.
    """
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.date import now
    from flwr.supercore.primitives.asymmetric import (
        bytes_to_public_key,
        uses_nist_ec_curve,
        verify_signature,
    )

    try:
        pem = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
        timestamp = headers[TIMESTAMP_HEADER]
        age = (now() - datetime.fromisoformat(timestamp)).total_seconds()
        key = bytes_to_public_key(pem)
        known = uses_nist_ec_curve(key) and verify_signature(key, timestamp.encode(), signature)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    fresh = -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
    return pem.decode() if known and fresh else None


# --- what a server's owner may do ----------------------------------------------------------------


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


# --- a node's tasks ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """One message for a node, and the bundle whose code is to answer it.

    Attributes:
        message: What came.
        context: The node's.
        bundle: The bundle's bytes.
        sha256: Of the bundle.
        config: The run's own configuration.
        run: Flower's id of the run.
    """

    message: Message
    context: Context
    bundle: bytes
    sha256: str
    config: Mapping[str, Any]
    run: int


class NodeTasks:
    """The tasks of a SuperNode, taken and answered in this process.

    Flower's own launcher starts a process, and imports torch, for every message. Here one process
    stays and takes them all.

    Args:
        address: ``host:port`` of the SuperNode's Runtime API, on loopback.
        secret: What it was told to ask for.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        from flwr.supercore.interceptors import (
            RuntimeVersionHttpInterceptor,
            SuperExecAuthHttpInterceptor,
        )
        from flwr.supercore.runtime import RuntimeHttpClient

        self._address = address
        self._client = RuntimeHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(
                    master_secret=secret,
                    protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"}),
                ),
            ],
        )

    def next(self) -> str | None:
        """Claim the oldest waiting task; returns its token, None where nothing waits.

        Raises:
            ConnectionError: The SuperNode does not answer.
        """
        import httpx
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        try:
            answer = self._client.AcquireTask(
                AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
            )
        except httpx.HTTPError as error:
            raise ConnectionError(str(error)) from None
        return answer.token if answer.HasField("task") and answer.token else None

    def carry_out(self, token: str, handle: Callable[[Work], Message]) -> str | None:
        """Work on a claimed task and send its answer; an exception is an answer as well.

        Args:
            token: From :meth:`next`.
            handle: Makes the answer.

        Returns:
            Why it failed; None where it did not.

        Raises:
            ConnectionError: The SuperNode is gone.
        """
        import httpx
        from flwr.common.constant import ErrorCode, SubStatus
        from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
        from flwr.supercore.interceptors import (
            RuntimeTokenHttpInterceptor,
            RuntimeVersionHttpInterceptor,
        )
        from flwr.supercore.runtime import RuntimeHttpClient
        from flwr.supernode.runtime.run_clientapp import (
            pull_task_input,
            push_message,
            push_task_output,
        )

        client = RuntimeHttpClient.from_server_address(
            self._address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
                RuntimeTokenHttpInterceptor(token),
            ],
        )
        beat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        beat.start()
        failed = None
        try:
            message, context, run, fab = pull_task_input(client)
            try:
                reply = handle(
                    Work(
                        message, context, fab.content, fab.hash_str, run.override_config, run.run_id
                    )
                )
            except Exception as error:  # noqa: BLE001 - the round goes on without this client
                failed = str(error) if isinstance(error, FedgazeError) else repr(error)
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                reply = Message(Error(code=code, reason=failed), reply_to=message)
            push_message(client, reply, context)
            done = SubStatus.FAILED if failed else SubStatus.COMPLETED
            push_task_output(client, context, done, failed or "")
        except httpx.HTTPError as error:
            raise ConnectionError(str(error)) from None
        finally:
            if beat.is_running:
                beat.stop()
            client.close()
        return failed

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


# --- bundles -------------------------------------------------------------------------------------


def build_bundle(files: Mapping[str, bytes]) -> bytes:
    """Pack files, ``pyproject.toml`` among them, as the bundle (FAB) that Flower carries.

    Raises:
        FedgazeError: Flower does not take them, for instance since they are too large.
    """
    from flwr.cli.build import build_fab_from_files

    try:
        bundle, _ = build_fab_from_files(files)
    except ValueError as error:
        raise FedgazeError(f"the task's code cannot be bundled: {error}") from None
    return bundle


def unpack_bundle(bundle: bytes, folder: Path) -> None:
    """Unpack a bundle into an empty folder, and nowhere else.

    Raises:
        FedgazeError: It is damaged, or names a place outside.
    """
    import zipfile

    import click
    from flwr.cli.archive_utils import safe_extract_zip

    try:
        with zipfile.ZipFile(BytesIO(bundle)) as archive:
            safe_extract_zip(archive, folder)
    except (zipfile.BadZipFile, ValueError, click.ClickException) as error:
        raise FedgazeError(f"the task's bundle is damaged: {error}") from None
