"""One system call of a running process that fails, or at which it dies: `support/inject.c`, compiled on first use."""

from __future__ import annotations

import atexit
import errno
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
from typing import Self

SOURCE = pathlib.Path(__file__).with_suffix(".c")
ERRORS = (errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.EPERM)


def missing() -> str:
    """Empty, or the power that is missing here."""
    if os.geteuid() != 0:
        return "root"
    if os.uname().machine != "x86_64":
        return "x86-64: the injector knows no other's registers"
    return "" if shutil.which("gcc") else "gcc"


@functools.cache
def program() -> str:
    folder = tempfile.mkdtemp(prefix="knarr-inject-")
    atexit.register(shutil.rmtree, folder)
    path = os.path.join(folder, "inject")
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", path, SOURCE], check=True)
    return path


class Injected:
    """While it is open, the `nth` call of the process fails with `number`; 0 kills the process there."""

    def __init__(self, pid: int, nth: int, number: int) -> None:
        words = [program(), str(pid), str(nth), str(number) if number else "kill"]
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.hit = ""
        """the call that was hit and whose it was (`main`, `child`); empty: there were fewer"""
        self.seen = 0
        """calls that were counted, if none was hit"""

    def __enter__(self) -> Self:
        first = self._process.stdout.readline()
        if first != "ready\n":
            self._process.communicate()
            raise ProcessLookupError(f"the injector could not attach: {first!r}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        said, trouble = self._process.communicate(timeout=20)
        word, _, rest = said.strip().partition(" ")
        assert word in ("hit", "miss"), (said, trouble, self._process.returncode)
        if word == "hit":
            self.hit = rest
        else:
            self.seen = int(rest)
