"""What every command gets: which instance, the client to it, and how to speak to the user.

Out of scope: terminals (`terminal`) and tables (`tables`).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.client.client import Client
    from knarr.model.errors import KnarrError

DEFAULT_ROOT = "/var/lib/knarr"
DEFAULT_RUN = "/run/knarr"

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class Context:
    def __init__(self, root: str | None, run: str | None) -> None:
        self.root = os.path.abspath(root or os.environ.get("KNARR_ROOT") or DEFAULT_ROOT)
        self.run = os.path.abspath(run or os.environ.get("KNARR_RUN") or DEFAULT_RUN)
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The client; the daemon is started with the first call if nobody listens."""
        if self._client is None:
            self._client = self.connect()
        return self._client

    def connect(self, *, start: bool = True) -> Client:
        from knarr.client.client import Client

        return Client(self.root, self.run, start=start)


def printable(text: object) -> str:
    """Text from images and workloads without control characters: they could drive the reader's terminal."""
    return str(text).translate(_CONTROLS)


def say_safely(text: str) -> None:
    """A line of the user's own form: exact in a pipe, without control characters on a terminal."""
    if sys.stdout.isatty():
        text = "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))
    say(text)


def say(text: str) -> None:
    """A line on stdout."""
    sys.stdout.write(text + "\n")


def complain(error: KnarrError) -> None:
    """An error and its hint on stderr."""
    sys.stdout.flush()
    lines = f"knarr: {_lines(error.message)}\n"
    if error.hint:
        lines += f"hint: {_lines(error.hint)}\n"
    sys.stderr.write(lines)


def warn(text: str) -> None:
    sys.stderr.write(f"knarr: warning: {printable(text)}\n")


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())


def each(names: list[str], act: object) -> int:
    """Do `act(name)` for every name, printing the name after it, and every error; 1 if one failed."""
    from knarr.model.errors import KnarrError

    failed = 0
    for name in names:
        try:
            act(name)  # type: ignore[operator]
        except KnarrError as error:
            complain(error)
            failed = 1
        else:
            say(name)
    return failed
