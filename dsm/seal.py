"""Connections between services that nobody else can read, join or change: TLS 1.3, both ends with the cluster's key.

A cluster has one key, a file that :func:`make` writes: a private key, and a certificate that is signed with it. Each
end of a connection shows that certificate and takes no other; so who has the file belongs to the cluster, and nobody
else does (RFC 8446; of names and authorities nothing is left). Imported only where there is a key.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import stat
from pathlib import Path
from typing import Any, Final

from dsm.errors import InvalidArgument
from dsm.poller import READABLE, WRITABLE

_MARK: Final = b"-----BEGIN CERTIFICATE-----"
_YEARS: Final = 100
"""A key is good until it is replaced: who could tell an old one from a stolen one is who replaces it."""


class Seal:
    """The key in the file ``path``. Raises :class:`InvalidArgument` if it is none, or if others can read it."""

    def __init__(self, path: Path) -> None:
        pem = _read(path)
        try:
            certificate = _MARK.decode() + pem.partition(_MARK)[2].decode("ascii")
            self._server = _context(ssl.PROTOCOL_TLS_SERVER, path, certificate)
            self._client = _context(ssl.PROTOCOL_TLS_CLIENT, path, certificate)
        except (ssl.SSLError, ValueError) as error:
            raise InvalidArgument(f"{path} is no key of `dsm keygen`: {error}") from error

    def wrap(self, sock: socket.socket, *, server: bool) -> Sealed:
        """The socket of a connection that was accepted (``server``) or made; it has yet to shake hands."""
        context = self._server if server else self._client
        sealed = context.wrap_socket(sock, server_side=server, do_handshake_on_connect=False)
        assert isinstance(sealed, Sealed)
        return sealed


class Sealed(ssl.SSLSocket):
    """A socket as :mod:`dsm.stream` uses it: what cannot go on now is a BlockingIOError."""

    def shake_hands(self) -> int:
        """Go on with the handshake: 0 when it is done, else the events to wait for. Raises OSError if it fails."""
        try:
            self.do_handshake()
        except ssl.SSLWantReadError:
            return READABLE
        except ssl.SSLWantWriteError:
            return WRITABLE
        return 0

    def send(self, data: Any, flags: int = 0) -> int:
        """As a plain socket; what was not sent has to be tried again as it is."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def sendmsg(self, buffers: Any, *_: Any) -> int:  # type: ignore[override]  # that of the base has none
        """One after the other: there is no sending of several together here."""
        sent = 0
        for buffer in buffers:
            try:
                more = self.send(buffer)
            except BlockingIOError:
                if sent:
                    break
                raise
            sent += more
            if more < len(buffer):
                break
        return sent

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As a plain socket."""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """As a plain socket; as much as is here, since nothing tells of what was decrypted and not fetched."""
        view = memoryview(buffer)
        got = 0
        while got < len(view):
            try:
                more = super().recv_into(view[got:])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if got:
                    return got
                raise BlockingIOError from None
            if not more:
                break
            got += more
        return got


def _context(protocol: int, path: Path, certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # it is the key that counts, not where it is
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(path)
    context.load_verify_locations(cadata=certificate)
    context.sslsocket_class = Sealed
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # connections last; nothing is resumed
    return context


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            pem = file.read(1 << 16)
    except OSError as error:
        raise InvalidArgument(f"cannot read the key {path}: {error.strerror}; `dsm keygen {path}` makes one") from error
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidArgument(f"others can read the key {path}: chmod 600 {path}, and make another if they have")
    if _MARK not in pem:
        raise InvalidArgument(f"{path} is no key of `dsm keygen`")
    return pem


def make(path: Path) -> None:
    """Write a new key to a file that is not there yet. Raises :class:`InvalidArgument`, or FileExistsError."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        raise InvalidArgument("keys are made with the package cryptography: pip install 'dsm[keys]'") from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dsm")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with contextlib.closing(os.fdopen(fd, "wb")) as file:
        file.write(private + certificate.public_bytes(serialization.Encoding.PEM))
