"""The two doors of a server, and who gets through: each test is an attack, or a client's right."""

import asyncio
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient
from flwr.proto.control_pb2 import ListNodesRequest, StartRunRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.message_pb2 import PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, GetNodesRequest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedgaze.federate.deployment.flower import make_superlink, node_headers, node_of_headers
from fedgaze.federate.deployment.keys import public_pem
from fedgaze.federate.deployment.registry import Registry
from fedgaze.federate.deployment.superlink import LoopbackDoor, PublicDoor, joining

PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
TOKEN = "t" * 43


class Place:
    """A server's doors in this process."""

    def __init__(self, folder: Path) -> None:
        self.flower = make_superlink(folder / "flower.db", b"secret", authenticated=True)
        self.registry = Registry(folder / "clients.json")
        door = PublicDoor(
            self.flower.app, joining(self.flower, self.registry, secure=True), limit=10_000
        )
        self.public = TestClient(door, raise_server_exceptions=False)
        self.private = TestClient(LoopbackDoor(self.flower.app, TOKEN))

    def fleet(self, path: str, request: Any, key: ec.EllipticCurvePrivateKey | None) -> Any:
        headers = PROTOBUF | (node_headers(key) if key else {})
        content = request.SerializeToString()
        return self.public.post(f"/v1/fleet/{path}", content=content, headers=headers)

    def join(self, key: ec.EllipticCurvePrivateKey, secret: str | None = None, **more: Any) -> Any:
        secret = self.registry.invite("", 1) if secret is None else secret
        asked = {"secret": secret, "version": "0", **more}
        return self.public.post("/v1/fedgaze/join", json=asked, headers=node_headers(key))

    def activate(self, key: ec.EllipticCurvePrivateKey) -> int:
        asked = ActivateNodeRequest(public_key=_flower_pem(key), heartbeat_interval=30)
        answer = self.fleet("activate-node", asked, key)
        assert answer.status_code == 200, answer.text
        return int(ActivateNodeResponse.FromString(answer.content).node_id)


def _flower_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    return bytes(public_key_to_bytes(key.public_key()))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("server"))


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


Key = ec.EllipticCurvePrivateKey


def test_who_was_invited_joins_and_is_let_in(place: Place, key: Key) -> None:
    answer = place.join(key, name="hospital")
    assert answer.status_code == 200
    [client] = [each for each in place.registry.clients() if each.name == "hospital"]
    assert answer.json()["number"] == client.number
    assert client.public_key == public_pem(key).decode()
    assert place.activate(key) == client.node


def test_without_an_invite_nobody_joins(place: Place, key: Key) -> None:
    before = place.registry.clients()
    for secret in ("guessed", ""):
        assert place.join(key, secret).status_code == 403
    assert place.registry.clients() == before


def test_without_a_signature_nobody_joins(place: Place, key: Key) -> None:
    asked = {"secret": place.registry.invite("", 1), "version": "0"}
    headers = node_headers(key)
    other = node_headers(ec.generate_private_key(ec.SECP384R1()))
    stolen = headers | {"flwr-public-key": other["flwr-public-key"]}
    for attack in ({}, stolen, headers | {"flwr-signature": "AAAA"}):
        answer = place.public.post("/v1/fedgaze/join", json=asked, headers=attack)
        assert answer.status_code == 401, attack


def test_an_invite_lets_one_in(place: Place, key: Key) -> None:
    secret = place.registry.invite("", 1)
    assert place.join(key, secret).status_code == 200
    thief = ec.generate_private_key(ec.SECP384R1())
    assert place.join(thief, secret).status_code == 403
    assert place.join(key, secret).status_code == 200, "the first may ask again"


def test_a_name_is_no_path(place: Place, key: Key) -> None:
    for name in ("../../x", "a/b", ".hidden", "x" * 100, "<script>"):
        assert place.join(key, name=name).status_code == 422, name


def test_a_rogue_key_is_refused(place: Place, key: Key) -> None:
    activate = ActivateNodeRequest(public_key=_flower_pem(key), heartbeat_interval=30)
    said = place.fleet("activate-node", activate, key)
    assert (said.status_code, "Failed to activate" in said.text) == (412, True)
    register = RegisterNodeFleetRequest(public_key=_flower_pem(key))
    assert place.fleet("register-node", register, key).status_code == 412, "it registers itself"
    assert place.fleet("activate-node", activate, None).status_code == 401, "it shows no key"
    place.join(key)
    assert place.fleet("activate-node", activate, key).status_code == 200


def _old_headers(key: Key, age: timedelta) -> dict[str, str]:
    timestamp = (datetime.now(UTC) - age).isoformat()
    signature = key.sign(timestamp.encode(), ec.ECDSA(hashes.SHA256()))
    return node_headers(key) | {
        "flwr-timestamp": timestamp,
        "flwr-signature": b64encode(signature).decode(),
    }


def test_another_identity_cannot_be_taken_on(place: Place, key: Key) -> None:
    victim = ec.generate_private_key(ec.SECP384R1())
    for each in (key, victim):
        assert place.join(each).status_code == 200
    mine, theirs = place.activate(key), place.activate(victim)
    own = place.fleet("pull-messages", PullMessagesRequest(node=Node(node_id=mine)), key)
    assert own.status_code == 200
    asked = PullMessagesRequest(node=Node(node_id=theirs))
    assert place.fleet("pull-messages", asked, key).status_code == 401, "another's messages"
    pulled = PullObjectRequest(node=Node(node_id=theirs), run_id=1, object_id="0" * 64)
    assert place.fleet("pull-object", pulled, key).status_code == 401, "another's arrays"
    again = ActivateNodeRequest(public_key=_flower_pem(victim), heartbeat_interval=30)
    assert place.fleet("activate-node", again, key).status_code == 401, "another's key"


@pytest.mark.parametrize("age", [timedelta(minutes=10), timedelta(minutes=-10)])
def test_a_recorded_request_cannot_be_used_later(place: Place, key: Key, age: timedelta) -> None:
    assert node_of_headers(_old_headers(key, timedelta(seconds=5))) == public_pem(key).decode()
    assert node_of_headers(_old_headers(key, age)) is None
    assert place.join(key).status_code == 200
    answer = place.public.get("/v1/fedgaze/state", headers=_old_headers(key, age))
    assert answer.status_code == 401


def test_only_clients_learn_what_goes_on(place: Place, key: Key) -> None:
    assert place.public.get("/v1/fedgaze/state").status_code == 401
    assert place.public.get("/v1/fedgaze/state", headers=node_headers(key)).status_code == 403
    place.join(key)
    answer = place.public.get("/v1/fedgaze/state", headers=node_headers(key))
    assert answer.json()["run"] is None


def test_a_removed_client_is_shut_out(place: Place, key: Key) -> None:
    name = place.join(key, name="gone").json()["name"]
    node = place.activate(key)
    place.registry.remove(name)
    answer = place.public.get("/v1/fedgaze/state", headers=node_headers(key))
    assert answer.status_code == 403
    assert node not in {client.node for client in place.registry.clients()}


SUBMIT = [
    ("/v1/control/start-run", StartRunRequest()),
    ("/v1/control/list-nodes", ListNodesRequest()),
    ("/v1/runtime/acquire-task", AcquireTaskRequest(supported_task_types=["flwr-serverapp"])),
    ("/v1/runtime/get-nodes", GetNodesRequest()),
]


@pytest.mark.parametrize(("path", "request_"), SUBMIT)
@pytest.mark.parametrize(
    "disguise",
    [
        "{}",
        "/v1/fleet/..{}",
        "/v1/fleet/../..{}",
        "/v1/fleet/%2e%2e/%2e%2e{}",
        "/{}",
        "/v1/fedgaze/../..{}",
        "/v1/fleet//../..{}",
    ],
)
def test_the_public_door_leads_to_no_control(
    place: Place, key: Key, path: str, request_: Any, disguise: str
) -> None:
    """Whoever reaches the Control or Runtime API can submit code: nobody may, however signed."""
    place.join(key)
    headers = PROTOBUF | node_headers(key) | {"authorization": f"Bearer {TOKEN}"}
    raw = _raw(place.public.app, disguise.format(path), request_.SerializeToString(), headers)
    assert raw in (404, 405), (raw, disguise.format(path))


def _raw(app: Any, path: str, content: bytes, headers: dict[str, str]) -> int:
    """Call an application with a path as it is: a client would tidy it up."""
    from urllib.parse import unquote

    sent: list[dict[str, Any]] = []
    named = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*named, (b"content-length", str(len(content)).encode())],
        "server": ("127.0.0.1", 8443),
        "client": ("127.0.0.1", 1),
        "state": {},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/", "/v1/fedgaze/docs", "/metrics"])
def test_no_door_explains_itself(place: Place, path: str) -> None:
    assert place.public.get(path).status_code == 404
    assert place.private.get(path).status_code == 404


@pytest.mark.parametrize("shown", [None, "", "Bearer", "Bearer x", f"Bearer {TOKEN[:-1]}é", TOKEN])
def test_on_loopback_the_owners_token_is_asked_for(place: Place, shown: str | None) -> None:
    """Another user of the machine reaches the port as well."""
    content = ListNodesRequest().SerializeToString()
    headers: dict[str, Any] = {key: value.encode() for key, value in PROTOBUF.items()}
    if shown is not None:
        headers["authorization"] = shown.encode()
    answer = place.private.post("/v1/control/list-nodes", content=content, headers=headers)
    assert answer.status_code == 401
    headers["authorization"] = f"Bearer {TOKEN}".encode()
    answer = place.private.post("/v1/control/list-nodes", content=content, headers=headers)
    assert answer.status_code == 200


def test_tasks_are_given_to_nobody_without_the_secret(place: Place) -> None:
    content = AcquireTaskRequest(supported_task_types=["flwr-serverapp"]).SerializeToString()
    answer = place.private.post("/v1/runtime/acquire-task", content=content, headers=PROTOBUF)
    assert answer.status_code in (401, 403)


def test_an_answer_without_end_is_cut_off(place: Place, key: Key) -> None:
    """`limit` bytes, here 10,000, for what a node sends from one answer to the next."""
    headers = PROTOBUF | node_headers(key)

    def push(path: str, size: int) -> int:
        answer = place.public.post(f"/v1/fleet/{path}", content=b"x" * size, headers=headers)
        return int(answer.status_code)

    assert push("push-messages", 4000) != 413
    assert push("push-object", 4000) != 413
    assert push("push-object", 4000) == 413
    assert push("push-object", 1) == 413, "and stays cut off"
    assert push("push-messages", 4000) != 413, "until the next answer"


def test_a_request_says_how_long_it_is(place: Place, key: Key) -> None:
    def endless() -> Iterator[bytes]:
        yield b"x" * 100

    headers = PROTOBUF | node_headers(key)
    answer = place.public.post("/v1/fleet/push-object", content=endless(), headers=headers)
    assert answer.status_code == 411


def test_a_request_is_no_longer_than_it_says(place: Place) -> None:
    seen: list[bytes] = []

    async def flower(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        seen.append(message.get("body", b"") if message["type"] == "http.request" else b"cut")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    door: Callable[..., Any] = PublicDoor(flower, nothing)
    scope = {
        "type": "http",
        "path": "/v1/fleet/push-object",
        "headers": [(b"content-length", b"3")],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 1000}

    async def send(message: dict[str, Any]) -> None:
        del message

    asyncio.run(door(scope, receive, send))
    assert seen == [b"cut"]
