"""HTTP(S) for the registry client, on the standard library: time limits, redirects, proxies, plain words.

Synchronous: a pull runs in worker threads, one connection each. A body is read in pieces and never waited
for without end. What is asked for, and who may see a password, is decided by the callers.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from knarr.model.errors import Denied, Failed, Invalid, KnarrError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

CHUNK = 256 << 10
_CONNECT_SECONDS = 15.0
_READ_SECONDS = 30.0
_SMALL_SECONDS = 60.0
_SLOW_WINDOW = 60.0
_SLOW_BYTES = 64 << 10
"""a blob that brings less than this in a window counts as a dropped connection"""
_REPAIR = "its operator must repair it"
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Dropped(Exception):
    """The connection ended or stalled in the middle of an answer: worth another try."""


class NotTls(Exception):
    """The other end does not speak TLS."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what a password or a token belongs to."""

    scheme: str
    host: str
    port: int

    @property
    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}[self.scheme] == self.port
        return host if usual else f"{host}:{self.port}"


def split_url(url: str) -> tuple[Origin, str]:
    """Origin and request target. Raises `Failed` on what is not a plain http(s) URL."""
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Failed(
            "the registry sent an address that can't be read", hint="its operator must repair it"
        ) from None
    bare = parts.netloc.isascii() and "@" not in parts.netloc and url.isascii() and url.isprintable()
    if parts.scheme not in ("http", "https") or not parts.hostname or not bare or " " in url:
        raise Failed(
            "the registry sent an address that is not plain http or https", hint="its operator must repair it"
        )
    origin = Origin(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80))
    return origin, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


class Answer:
    """One answer. `close` it, or use it in a `with`."""

    def __init__(
        self, connection: http.client.HTTPConnection, raw: http.client.HTTPResponse, origin: Origin
    ) -> None:
        self._connection = connection
        self._raw = raw
        self.origin = origin
        self.status = raw.status

    def header(self, name: str) -> str:
        return self._raw.getheader(name) or ""

    def headers(self, name: str) -> str:
        return ", ".join(self._raw.headers.get_all(name) or ())

    def small(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes and a minute. Raises `Invalid` beyond."""
        deadline = time.monotonic() + _SMALL_SECONDS
        pieces: list[bytes] = []
        size = 0
        while piece := self._read(min(CHUNK, limit + 1 - size)):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise Invalid(
                    f"{self.origin.text!r} sent more than {limit} bytes of metadata", hint="it is no registry"
                )
            if time.monotonic() > deadline:
                raise Dropped("too slow")
        return b"".join(pieces)

    def pieces(self) -> Iterator[bytes]:
        """The body in pieces. Raises `Dropped` when it ends badly or hardly moves."""
        since, moved = time.monotonic(), 0
        while piece := self._read(CHUNK):
            yield piece
            moved += len(piece)
            now = time.monotonic()
            if now - since > _SLOW_WINDOW:
                if moved < _SLOW_BYTES:
                    raise Dropped("too slow")
                since, moved = now, 0

    def _read(self, size: int) -> bytes:
        try:
            return self._raw.read1(size)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Dropped(str(error) or type(error).__name__) from error

    def close(self) -> None:
        self._raw.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def request(
    url: str, headers: dict[str, str], *, verify: bool = True, method: str = "GET", body: bytes | None = None
) -> Answer:
    """Ask once, following redirects. Authorization goes to the first origin only.

    Raises `Unavailable`, `Denied`, `NotTls`, or `Dropped` where another try is worth it.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": "knarr", **headers}
    first, _ = split_url(url)
    for _ in range(_MAX_REDIRECTS + 1):
        origin, target = split_url(url)
        if origin != first:
            headers.pop("Authorization", None)
        answer = _once(origin, target, headers, verify=verify, method=method, body=body)
        location = answer.header("Location")
        if answer.status not in _REDIRECTS or not location or method != "GET":
            return answer
        answer.close()
        url = _joined(url, location)
        if verify and origin.scheme == "https" and url.startswith("http:"):
            raise Denied(
                f"{origin.text!r} sends on to plain http",
                hint="its operator must repair it, or use --insecure-registry",
            )
    raise Failed(
        f"{first.text!r} sends from one address to the next without end", hint="its operator must repair it"
    )


def _joined(url: str, location: str) -> str:
    """Where a Location header leads: it may be relative, and a fragment is never sent."""
    try:
        return urljoin(url, location).partition("#")[0]
    except ValueError:
        raise Failed("the registry sent an address that can't be read", hint=_REPAIR) from None


def _once(
    origin: Origin, target: str, headers: dict[str, str], *, verify: bool, method: str, body: bytes | None
) -> Answer:
    with contextlib.ExitStack() as undo:
        connection, target = _connect(origin, target, verify=verify)
        undo.callback(connection.close)
        try:
            connection.request(method, target, body=body, headers=headers)
            raw = connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Dropped(str(error) or type(error).__name__) from error
        undo.pop_all()
    if raw.status == http.client.PROXY_AUTHENTICATION_REQUIRED:
        connection.close()
        raise Denied(f"the proxy on the way to {origin.text!r} wants a login", hint="put it into https_proxy")
    return Answer(connection, raw, origin)


def _connect(origin: Origin, target: str, *, verify: bool) -> tuple[http.client.HTTPConnection, str]:
    proxy = _proxy(origin)
    host, port = (proxy.host, proxy.port) if proxy else (origin.host, origin.port)
    connection: http.client.HTTPConnection
    if origin.scheme == "https":
        context = ssl.create_default_context() if verify else _trusting()
        connection = http.client.HTTPSConnection(host, port, timeout=_CONNECT_SECONDS, context=context)
        if proxy:
            connection.set_tunnel(origin.host, origin.port)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_CONNECT_SECONDS)
        if proxy:
            target = f"http://{origin.text}{target}"
    try:
        connection.connect()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise explain(origin, error, proxy) from error
    connection.sock.settimeout(_READ_SECONDS)
    return connection, target


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_loopback(host: str) -> bool:
    if host in ("localhost", "::1"):
        return True
    return host.startswith("127.") and host.replace(".", "").isdigit()


def _proxy(origin: Origin) -> Origin | None:
    address = getproxies().get(origin.scheme)
    if not address or is_loopback(origin.host) or proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http" or not parts.hostname:
        raise Invalid(
            f"the proxy for {origin.scheme} can't be used", hint=f"{origin.scheme}_proxy=http://host:port"
        )
    return Origin("http", parts.hostname, parts.port or 3128)


def explain(origin: Origin, error: Exception, proxy: Origin | None = None) -> KnarrError | NotTls:
    """What went wrong with a connection, in words that say what to do."""
    where = f"registry {origin.text!r}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unavailable(
            f"{where} has a certificate that is not trusted: {error.verify_message}",
            hint="make the host trust its authority (update-ca-certificates), or use --insecure-registry",
        )
    if isinstance(error, ssl.SSLError) or (
        origin.scheme == "https" and isinstance(error, ConnectionResetError)
    ):
        return NotTls(f"{where} does not speak TLS")
    if proxy:
        where += f" through proxy {proxy.text!r}"
    if isinstance(error, socket.gaierror):
        return Unavailable(
            f"{where} can't be found: its name does not resolve", hint="check the name and the network"
        )
    if isinstance(error, TimeoutError):
        return Unavailable(f"{where} does not answer", hint="check the name, the network and a firewall")
    reason = (
        os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else "it answers badly"
    )
    return Unavailable(f"{where} can't be reached: {reason}", hint="check the name, the port and the network")
