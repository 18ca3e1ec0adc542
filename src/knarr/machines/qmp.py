"""QEMU's monitor over a socket that we hold: one command at a time, its answers bounded, asyncio.

QEMU may have been taken over by its guest, so nothing it says is believed beyond its shape.
Out of scope: which commands (`machines.templates`).
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any, Self

from knarr.model.errors import Failed, Unavailable

if TYPE_CHECKING:
    from types import TracebackType

_LINE_MAX = 1 << 20


class QmpGone(Unavailable):
    """QEMU ended, or does not answer."""


class Qmp:
    """Use with `async with`: negotiates at the beginning; the end leaves QEMU as it is."""

    def __init__(self, fd: int) -> None:
        """Takes over `fd`, a connected stream socket."""
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._buffer = bytearray()
        self._events: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        try:
            await self._message()  # the greeting
            await self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    async def execute(self, command: str, **arguments: Any) -> Any:
        """What it returns. Raises `Failed` with QEMU's words, or `QmpGone`."""
        return await self._ask(command, arguments, [])

    async def give(self, name: str, fd: int) -> None:
        """A copy of `fd` that commands may name."""
        await self._ask("getfd", {"fdname": name}, [fd])

    async def _ask(self, command: str, arguments: dict[str, Any], fds: list[int]) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        try:
            # a request is far smaller than a socket's buffer, and QEMU has answered all before it
            socket.send_fds(self._socket, [request], fds)
        except OSError as error:
            raise QmpGone(f"the machine's monitor: {error.strerror}") from error
        while True:
            answer = await self._message()
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise Failed(f"QEMU refused {command}: {_text(answer['error'])}")
            else:
                return answer.get("return")

    async def migrated(self) -> None:
        """Wait for the end of a migration; the capability `events` must be on. Raises `Failed`."""
        while True:
            event = self._events.pop(0) if self._events else await self._message()
            if event.get("event") != "MIGRATION":
                continue
            status = (event.get("data") or {}).get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise Failed(f"QEMU's migration {status}")

    async def _message(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE_MAX:
                raise Failed("QEMU's monitor sent a line without end")
            try:
                data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
            except OSError as error:
                raise QmpGone(f"the machine's monitor: {error.strerror}") from error
            if not data:
                raise QmpGone("the machine ended before it ran")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            found = json.loads(line)
        except ValueError as error:
            raise Failed("QEMU's monitor does not speak JSON") from error
        if not isinstance(found, dict):
            raise Failed("QEMU's monitor sent no object")
        return found


def _text(error: Any) -> str:
    words = str(error.get("desc", "")) if isinstance(error, dict) else ""
    return "".join(char if char.isprintable() else "?" for char in words[:300])
