"""Certificates and keys, read back by other programs than the one that made them."""

import ssl
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from fedgaze.errors import FedgazeError
from fedgaze.federate.deployment.keys import (
    issue_server,
    make_authority,
    make_node_key,
    make_publisher,
    private_file,
    public_pem,
    publisher_name,
    read_node_key,
    sign,
    signed_by,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority")
    make_authority(folder)
    issue_server(folder, ["fl.example.org", "192.0.2.7"])
    return folder


@pytest.mark.parametrize("host", ["fl.example.org", "localhost"])
def test_the_servers_certificate_holds_for_its_names(authority: Path, host: str) -> None:
    """An independent verifier (RFC 5280, as browsers apply it) follows the chain."""
    ca = x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes())
    leaf = x509.load_pem_x509_certificate((authority / "server.crt").read_bytes())
    verifier = PolicyBuilder().store(Store([ca])).build_server_verifier(x509.DNSName(host))
    assert verifier.verify(leaf, []) == [leaf, ca]


def test_the_servers_certificate_does_not_hold_for_others(authority: Path) -> None:
    ca = x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes())
    leaf = x509.load_pem_x509_certificate((authority / "server.crt").read_bytes())
    verifier = PolicyBuilder().store(Store([ca])).build_server_verifier(x509.DNSName("evil.org"))
    with pytest.raises(x509.verification.VerificationError):
        verifier.verify(leaf, [])


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str | None:
    """Shake hands over a pair of pipes; returns why it failed."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(10):
        done = 0
        for side in (theirs, ours):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
        if done == 2:
            return None
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize(
    ("name", "why"),
    [("192.0.2.7", None), ("127.0.0.1", None), ("192.0.2.8", "IP address mismatch")],
)
def test_tls_takes_it(authority: Path, name: str, why: str | None) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(authority / "server.crt", authority / "server.key")
    client = ssl.create_default_context(cafile=str(authority / "ca.crt"))
    said = _handshake(server, client, name)
    assert said == why if why is None else said is not None and why in said


def test_another_authority_is_not_believed(authority: Path, tmp_path: Path) -> None:
    make_authority(tmp_path)
    issue_server(tmp_path, [])
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    client = ssl.create_default_context(cafile=str(authority / "ca.crt"))
    assert "issuer" in str(_handshake(server, client, "localhost"))


def test_private_files_are_private_from_the_first_moment(tmp_path: Path) -> None:
    make_authority(tmp_path)
    issue_server(tmp_path, [])
    make_node_key(tmp_path / "client.key")
    make_publisher(tmp_path / "publisher.key")
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    make_authority(tmp_path)
    make_node_key(tmp_path / "client.key")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FedgazeError, match=r"ca\.crt is there already"):
        make_authority(tmp_path)
    with pytest.raises(FedgazeError, match=r"client\.key is there already"):
        make_node_key(tmp_path / "client.key")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_only_one_of_many_writers_makes_a_private_file(tmp_path: Path) -> None:
    results: list[str] = []

    def write(number: int) -> None:
        try:
            private_file(tmp_path / "secret", str(number).encode())
            results.append(str(number))
        except FedgazeError:
            pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert results == [(tmp_path / "secret").read_text()]


def test_a_new_certificate_is_signed_by_the_same_authority(tmp_path: Path) -> None:
    make_authority(tmp_path)
    issue_server(tmp_path, ["first.org"])
    first = (tmp_path / "server.crt").read_bytes()
    issue_server(tmp_path, ["second.org"])
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    second = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    assert second != x509.load_pem_x509_certificate(first)
    store = PolicyBuilder().store(Store([ca]))
    assert store.build_server_verifier(x509.DNSName("second.org")).verify(second, [])


@pytest.mark.parametrize("host", ["a b", "", "exa_mple..org"])
def test_a_host_that_is_none(tmp_path: Path, host: str) -> None:
    make_authority(tmp_path)
    with pytest.raises(FedgazeError, match="is no host"):
        issue_server(tmp_path, [host])
    assert not (tmp_path / "server.crt").exists()


def test_ssh_and_flower_read_a_clients_key(tmp_path: Path) -> None:
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, uses_nist_ec_curve

    path = tmp_path / "client.key"
    make_node_key(path)
    done = subprocess.run(
        ["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ecdsa-sha2-nistp384 "), done.stderr
    assert uses_nist_ec_curve(bytes_to_public_key(public_pem(read_node_key(path))))


def test_a_signature_holds_for_one_key_and_one_content(tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_publisher(tmp_path / name)
    one, other = (publisher_name(tmp_path / name) for name in ("one", "other"))
    signature = sign(tmp_path / "one", b"content")
    assert signed_by(one, signature, b"content")
    assert not signed_by(other, signature, b"content")
    assert not signed_by(one, signature, b"contend")
    assert not signed_by(one, signature[:-4] + "AAAA", b"content")
    for wrong in ("", "?", "A" * 43):
        assert not signed_by(wrong, signature, b"content")
        assert not signed_by(one, wrong, b"content")


def test_what_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "client.key"
    with pytest.raises(FedgazeError, match="cannot be read"):
        read_node_key(path)
    path.write_text("no key")
    with pytest.raises(FedgazeError, match="is not the key of a client"):
        read_node_key(path)
    with pytest.raises(FedgazeError, match="is not the key of a publisher"):
        publisher_name(path)
