"""The tasks of a SuperNode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, Error, Message

from fedgaze.errors import FedgazeError

__all__ = ["NodeTasks", "Work"]


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
