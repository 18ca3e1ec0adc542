"""A registry that does what a test tells it to: a routing table of canned answers on 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support import images


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """claimed instead of the true length"""
    cut: int | None = None
    """close the connection after that many bytes"""


Answerer = Callable[[Any], Reply]


class HostileRegistry:
    """`routes` maps a path to a Reply or to a function of the request (with `.headers`, `.path`)."""

    def __init__(self, port: int) -> None:
        self.host = f"127.0.0.1:{port}"
        self.routes: dict[str, Reply | Answerer] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def serve_image(self, blobs: dict[str, bytes], entry: dict, name: str = "a", tag: str = "1") -> None:
        for digest, data in blobs.items():
            kind = "manifests" if digest == entry["digest"] else "blobs"
            headers = {"Content-Type": entry["mediaType"]} if kind == "manifests" else {}
            self.routes[f"/v2/{name}/{kind}/{digest}"] = Reply(body=data, headers=headers)
            if kind == "manifests":
                self.routes[f"/v2/{name}/manifests/{tag}"] = Reply(body=data, headers=headers)

    def serve_manifest(self, document: Any, kind: str = "application/vnd.oci.image.manifest.v1+json") -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.routes["/v2/a/manifests/1"] = Reply(body=body, headers={"Content-Type": kind})
        self.routes[f"/v2/a/manifests/{images.sha256(body)}"] = Reply(
            body=body, headers={"Content-Type": kind}
        )

    def headers_sent_to(self, path: str) -> list[dict[str, str]]:
        return [headers for at, headers in self.seen if at.partition("?")[0] == path]


@contextlib.contextmanager
def hostile_registry() -> Iterator[HostileRegistry]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def do_GET(self) -> None:
            registry.seen.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
            route = registry.routes.get(self.path) or registry.routes.get(self.path.partition("?")[0])
            if route is None:
                route = Reply() if self.path == "/v2/" else Reply(404)
            reply = route if isinstance(route, Reply) else route(self)
            self.send_response(reply.status)
            for key, value in reply.headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(reply.body) if reply.length is None else reply.length))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(reply.body[: reply.cut])
            self.close_connection = True

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # a client that speaks TLS to us

    server = Server(("127.0.0.1", 0), Handler)
    registry = HostileRegistry(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
