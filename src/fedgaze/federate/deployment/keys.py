"""Certificates and keys: a local authority for TLS, node keys, the publisher's key."""

import base64
import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedgaze.errors import FedgazeError

__all__ = [
    "issue_server",
    "make_authority",
    "make_node_key",
    "make_publisher",
    "private_file",
    "public_pem",
    "publisher_name",
    "read_node_key",
    "sign",
    "signed_by",
]

AUTHORITY_DAYS, SERVER_DAYS = 3650, 825
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def private_file(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, and that never exists with more rights or less.

    Raises:
        FedgazeError: It is there already, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise FedgazeError(f"{path} is there already; a key is never overwritten") from None
    except OSError as error:
        raise FedgazeError(f"{path} cannot be written: {error.strerror}") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def make_authority(folder: Path) -> None:
    """Make a certificate authority: ``ca.crt`` and ``ca.key``.

    Raises:
        FedgazeError: One of them is there already.
    """
    for name in ("ca.crt", "ca.key"):
        if (folder / name).exists():
            raise FedgazeError(f"{folder / name} is there already; a key is never overwritten")
    start = _start()
    key = ec.generate_private_key(ec.SECP384R1())
    common = _name("fedgaze local authority")
    certificate = (
        _certificate(common, common, key.public_key(), start)
        .not_valid_after(start + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    private_file(folder / "ca.key", _pem(key))
    private_file(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))


def issue_server(folder: Path, hosts: Sequence[str]) -> None:
    """Make a server's certificate, signed by the authority in a folder, in place of an older one.

    Writes ``server.crt`` and ``server.key``.

    Args:
        folder: Where ``ca.crt`` and ``ca.key`` lie.
        hosts: Names and addresses under which clients reach the server; this machine's own
            (localhost, 127.0.0.1, ::1) are always among them.

    Raises:
        FedgazeError: There is no authority, or a host is no name and no address.
    """
    names = [_alternative(host) for host in dict.fromkeys([*hosts, *LOOPBACK])]
    try:
        signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    except (OSError, ValueError) as error:
        raise FedgazeError(f"{folder} holds no certificate authority: {error}") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise FedgazeError(f"{folder / 'ca.key'} is not the key of an authority of fedgaze")
    start = _start()
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = (
        _certificate(_name("fedgaze server"), authority.subject, key.public_key(), start)
        .not_valid_after(min(start + timedelta(days=SERVER_DAYS), authority.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .sign(signer, hashes.SHA384())
    )
    for name, content in {
        "server.key": _pem(key),
        "server.crt": certificate.public_bytes(serialization.Encoding.PEM),
    }.items():
        (folder / name).unlink(missing_ok=True)
        private_file(folder / name, content)


def _start() -> datetime:
    return datetime.now(UTC) - timedelta(minutes=5)  # clocks differ


def _pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode()
    except UnicodeError:
        name = ""
    if not re.fullmatch(r"(\*\.)?([A-Za-z0-9-]{1,63}\.)*[A-Za-z0-9-]{1,63}", name):
        raise FedgazeError(
            f"'{host}' is no host: a name such as fl.example.org or an address is allowed"
        )
    return x509.DNSName(name)


def make_node_key(path: Path) -> None:
    """Make the private key of a client, in the form that Flower's SuperNode reads."""
    key = ec.generate_private_key(ec.SECP384R1())
    private_file(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a client's private key.

    Raises:
        FedgazeError: It is missing, or no such key.
    """
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise FedgazeError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FedgazeError(f"{path} is not the key of a client")
    return key


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key's public half, as Flower's SuperLink stores it."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def make_publisher(path: Path) -> None:
    """Make the Ed25519 key with which whoever submits tasks signs their code."""
    private_file(path, _pem(ed25519.Ed25519PrivateKey.generate()))


def _publisher(path: Path) -> ed25519.Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise FedgazeError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise FedgazeError(f"{path} is not the key of a publisher")
    return key


def publisher_name(path: Path) -> str:
    """A publisher's public key, by which clients know it: 43 signs of base64."""
    raw = _publisher(path).public_key().public_bytes_raw()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(path: Path, content: bytes) -> str:
    """Sign content with a publisher's key; the signature is base64."""
    return base64.urlsafe_b64encode(_publisher(path).sign(content)).decode()


def signed_by(publisher: str, signature: str, content: bytes) -> bool:
    """Whether a publisher, known by its public key, signed some content."""
    try:
        raw = base64.urlsafe_b64decode(publisher + "=" * (-len(publisher) % 4))
        key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
        key.verify(base64.urlsafe_b64decode(signature), content)
    except (ValueError, InvalidSignature):
        return False
    return True
