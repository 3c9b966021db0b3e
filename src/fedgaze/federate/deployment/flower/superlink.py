"""The SuperLink in this process, and how a node shows it who it is."""

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["Flower", "make_superlink", "node_headers", "node_of_headers"]


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
