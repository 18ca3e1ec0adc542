"""A socket where a daemon would be, so that verbs load what they load when they speak to one."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

_ANSWER = b'{"kind":"not_found","message":"no such workload","hint":null,"exit_code":125}'


def _answer(connection: socket.socket) -> None:
    with connection:
        while connection.recv(65536):
            head = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(head % len(_ANSWER) + _ANSWER)


@pytest.fixture
def api(tmp_path: pathlib.Path) -> Iterator[tuple[str, str]]:
    run = tmp_path / "run"
    run.mkdir()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(run / "knarr.sock"))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield str(tmp_path / "root"), str(run)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
