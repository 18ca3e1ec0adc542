"""Streams of a microVM's workload: stdin through its own port, execs through the agent.

Out of scope: output, which QEMU writes into the same pipes a container's would go to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from knarr.engine.drivers.pipes import Writer
from knarr.machines import wire
from knarr.model.errors import Conflict

if TYPE_CHECKING:
    from knarr.keeper.holder import HolderClient
    from knarr.machines.agent import Session


class VmStdinTable:
    """The daemon's writers by workload. The socket's other life is in the holder as `in/ID`."""

    def __init__(self, holder: HolderClient) -> None:
        self._holder = holder
        self._open: dict[str, Writer] = {}

    def take(self, workload_id: str, name: str, *, tty: bool) -> VmStdin:
        """Raises `Conflict` when the workload has no open stdin."""
        writer = self._open.get(workload_id)
        if writer is None:
            fd = self._holder.get(f"in/{workload_id}")
            if fd is None:
                raise Conflict(f"workload {name!r} has no open stdin", hint="create it with -i")
            writer = self._open[workload_id] = Writer(fd)
        return VmStdin(self, workload_id, writer, tty=tty)

    def drop(self, workload_id: str) -> None:
        writer = self._open.pop(workload_id, None)
        if writer is not None:
            writer.close()

    async def end(self, workload_id: str, writer: Writer) -> None:
        """The frame says the end. The socket stays open in the holder: QEMU drops what it has not read yet
        when the peer is gone.
        """
        if self._open.get(workload_id) is writer:
            await writer.write(wire.STDIN_END)
            self._holder.put(f"stdin/{workload_id}", writer.fd)
            self._holder.delete(f"in/{workload_id}")
            self.drop(workload_id)


class VmStdin:
    """`driver.Stdin` of one client."""

    def __init__(self, table: VmStdinTable, workload_id: str, writer: Writer, *, tty: bool) -> None:
        self._table = table
        self._id = workload_id
        self._writer = writer
        self._tty = tty

    async def write(self, data: bytes) -> None:
        for frame in wire.stdin_frames(data):
            await self._writer.write(frame)

    async def close(self) -> None:
        """A terminal has no end of file of its own: the client types ctrl-d."""
        if not self._tty:
            await self._table.end(self._id, self._writer)

    async def release(self) -> None:
        """The workload's stdin stays open; the writer is shared by all clients."""


class VmExec:
    """`driver.ExecSession` over a session of the agent."""

    def __init__(self, exec_id: str, session: Session, *, tty: bool) -> None:
        self.id = exec_id
        self._session = session
        self._tty = tty

    async def read(self) -> tuple[int, bytes] | None:
        return await self._session.read()

    async def write(self, data: bytes) -> None:
        await self._session.write(data)

    async def close_stdin(self) -> None:
        if not self._tty:
            await self._session.close_stdin()

    async def resize(self, columns: int, rows: int) -> None:
        if not self._tty:
            raise Conflict(f"exec {self.id[:12]} has no tty", hint="start it with -t")
        await self._session.resize(columns, rows)

    async def signal(self, signum: int) -> None:
        if not self._session.ended:
            await self._session.signal(signum)

    async def wait(self) -> int:
        return await self._session.wait()

    async def close(self) -> None:
        await self._session.close()
