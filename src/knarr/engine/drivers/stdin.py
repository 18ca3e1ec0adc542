"""A workload's stdin as its clients see it: several may write, the end of file comes once and for all.

The descriptor itself is kept by the holder, so that the workload's stdin outlives the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from knarr.engine.drivers.pipes import Writer
from knarr.model.errors import Conflict

if TYPE_CHECKING:
    from knarr.keeper.holder import HolderClient


class StdinTable:
    """The daemon's writers by workload: one each, however many clients are attached."""

    def __init__(self, holder: HolderClient) -> None:
        self._holder = holder
        self._open: dict[str, tuple[Writer, int]] = {}

    def take(self, workload_id: str, name: str, *, tty: bool) -> SharedStdin:
        """Raises `Conflict` when the workload has no open stdin."""
        writer, users = self._open.get(workload_id, (None, 0))
        if writer is None:
            held = f"log/{workload_id}/tty" if tty else f"in/{workload_id}"
            fd = self._holder.get(held)
            if fd is None:
                raise Conflict(f"workload {name!r} has no open stdin", hint="create it with -i")
            writer = Writer(fd)
        self._open[workload_id] = writer, users + 1
        return SharedStdin(self, workload_id, writer, tty=tty)

    def release(self, workload_id: str, writer: Writer) -> None:
        found, users = self._open.get(workload_id, (None, 0))
        if found is not writer:
            return
        if users <= 1:
            self.drop(workload_id)
        else:
            self._open[workload_id] = writer, users - 1

    def drop(self, workload_id: str) -> None:
        """Close the daemon's copy; the holder's stays."""
        writer, _ = self._open.pop(workload_id, (None, 0))
        if writer is not None:
            writer.close()

    def end(self, workload_id: str) -> None:
        """End of file for the workload: the last copies go."""
        self._holder.delete(f"in/{workload_id}")
        self.drop(workload_id)


class SharedStdin:
    """`driver.Stdin` of one client."""

    def __init__(self, table: StdinTable, workload_id: str, writer: Writer, *, tty: bool) -> None:
        self._table = table
        self._id = workload_id
        self._writer = writer
        self._tty = tty
        self._released = False

    async def write(self, data: bytes) -> None:
        await self._writer.write(data)

    async def close(self) -> None:
        """A terminal has no end of file of its own: the client types ctrl-d."""
        if not self._tty:
            self._table.end(self._id)

    async def release(self) -> None:
        if not self._released:
            self._released = True
            self._table.release(self._id, self._writer)
