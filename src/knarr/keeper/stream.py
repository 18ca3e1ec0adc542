"""One stream on its way into a log file: a pipe, or a pty's master through a pipe of our own.

Out of scope: when to move (`keeper.mover`), the files (`keeper.logs`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from knarr.keeper.logwriter import LogWriter

TURN = 256 * 1024
"""bytes moved at most before the next stream has its turn"""
_WIDE = 1 << 20
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0


class Stream:
    """`move` never raises and never waits; afterwards `ended`, `empty` and `retry_at` tell
    where it stands.
    """

    def __init__(
        self, workload: str, name: str, source: int, log: LogWriter, *, pipe: tuple[int, int] | None = None
    ) -> None:
        self.workload = workload
        self.name = name
        self.source = source
        self.ended = False
        """the writers are gone, everything is in the file (a pty may come back while its workload lives)"""
        self.empty = False
        """nothing was left to move"""
        self.retry_at = 0.0
        """monotonic time of the next attempt after a failure; 0 = none"""
        self.failure = ""
        """why the bytes stay where they are"""
        self.closed = False
        self._pause = 0.0
        self._pipe = pipe
        self._log = log
        self._number = 2 if name == "err" else 1
        self._wide = False
        for fd in (source, *(pipe or ())):
            os.set_blocking(fd, False)
        self._poll = select.poll()
        self._poll.register(source if pipe is None else pipe[0], select.POLLIN)

    def held_names(self) -> list[str]:
        """Its names in the holder."""
        if self.name == "tty":
            return [f"log/{self.workload}/{name}" for name in ("tty", "ttypipe-r", "ttypipe-w")]
        return [f"log/{self.workload}/{self.name}"]

    def close(self) -> None:
        self.closed = True
        for fd in (self.source, *(self._pipe or ())):
            os.close(fd)

    def move(self) -> None:
        """Move at most `TURN` bytes."""
        self.ended = self.empty = False
        self.failure = ""
        try:
            if self._pipe is None:
                self._from_pipe(self.source)
            else:
                self._from_tty(self._pipe)
        except FileNotFoundError:
            # the log's folder is gone: nobody will read it
            self.ended = self.empty = True
        except OSError as error:
            # a full or broken disk: the bytes stay in the pipe, the workload waits on a full one
            self.ended = self.empty = False
            self.failure = error.strerror or str(error)
            self._later()
            return
        if self.ended and self._pipe is not None:
            self._later()
        else:
            self.retry_at = self._pause = 0.0

    def _from_pipe(self, source: int) -> None:
        moved = self._splice(source)
        if moved is None:
            self.empty = True
        elif moved == 0:
            self.empty = self.ended = True
        elif moved >= 65536 and not self._wide:
            # only those who write much get a large pipe: it costs kernel memory for each
            self._wide = True
            try:
                fcntl.fcntl(source, fcntl.F_SETPIPE_SZ, _WIDE)
            except OSError:
                pass

    def _from_tty(self, pipe: tuple[int, int]) -> None:
        if self._splice(pipe[0]) is not None:
            return
        try:
            moved = os.splice(self.source, pipe[1], 65536, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            self.empty = True
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            moved = 0
        if moved == 0:
            # every slave is closed
            self.empty = self.ended = True
        else:
            self._splice(pipe[0])

    def _splice(self, source: int) -> int | None:
        """Bytes moved into the file, None when there are none now, 0 at the end."""
        events = self._poll.poll(0)
        if not events or not events[0][1] & select.POLLIN:
            # the files are only made for who writes
            return 0 if events else None
        target, position, room = self._log.target(self._number)
        try:
            moved = os.splice(
                source, target, min(TURN, room), offset_dst=position, flags=os.SPLICE_F_NONBLOCK
            )
        except BlockingIOError:
            return None
        if moved:
            self._log.moved(self._number, moved)
        return moved

    def _later(self) -> None:
        self._pause = min(max(self._pause * 2, _FIRST_PAUSE), _LAST_PAUSE)
        self.retry_at = time.monotonic() + self._pause
