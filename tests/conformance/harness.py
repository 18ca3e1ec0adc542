"""Drives the installed `knarr` as a user would; the same cases for every wall. Out of scope: the cases themselves."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from support import leaks

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
KNARR = REPOSITORY / ".venv" / "bin" / "knarr"
IMAGE = "conformance:latest"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Instance:
    """One daemon on its own ROOT and RUN; nothing of it is left after `close`."""

    def __init__(self, *, slots: int = 0) -> None:
        """`slots`: how many microVMs may be made ahead; they would look like something left behind."""
        self._folder = tempfile.TemporaryDirectory(prefix="knarr-test-")
        self.root = os.path.join(self._folder.name, "root")
        self.run_folder = os.path.join(self._folder.name, "run")
        self.allow_slots(slots)

    def allow_slots(self, most: int) -> None:
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        pathlib.Path(self.root, "settings.json").write_text(f'{{"microvm-slots": {most}}}', encoding="utf-8")

    def popen(self, *args: str, **options: object) -> subprocess.Popen[bytes]:
        words = [str(KNARR), "--root", self.root, "--run", self.run_folder, *args]
        return subprocess.Popen(words, **options)  # type: ignore[call-overload]

    def knarr(self, *args: str, stdin: bytes = b"", timeout: float = 120, check: bool = False) -> Result:
        process = self.popen(*args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"knarr {args} took over {timeout} s; out {out!r} err {err!r}") from None
        result = Result(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
        if check:
            assert result.code == 0, f"knarr {' '.join(args)}: {result}"
        return result

    def start(self) -> None:
        """On an emulated machine that is busy it takes longer than a user would be made to wait."""
        eventually(lambda: self.knarr("daemon", "start").code == 0, timeout=120, what="the daemon's start")

    def close(self) -> None:
        """Stop everything; what is left over, of its workloads before or of itself after, is a failure."""
        identity, looks = leaks.instance_of(self.root), []
        if identity:
            looks.append(leaks.complaint(leaks.quiet, self.root, self.run_folder))
        self.knarr("daemon", "stop", "--workloads", timeout=120)
        if identity:
            looks.append(leaks.complaint(leaks.gone, self.root, self.run_folder, identity))
        self._folder.cleanup()
        assert not any(looks), "\n".join(looks)


class Wall:
    """One isolation of one instance."""

    def __init__(self, instance: Instance, isolation: str) -> None:
        self.instance = instance
        self.isolation = isolation

    def __repr__(self) -> str:
        return self.isolation

    def knarr(self, *args: str, **options: object) -> Result:
        return self.instance.knarr(*args, **options)  # type: ignore[arg-type]

    def run(
        self, *command: str, opts: tuple[str, ...] = (), stdin: bytes = b"", check: bool = False
    ) -> Result:
        """`knarr run --rm` in the foreground."""
        return self.knarr(
            "run", "--rm", "--isolation", self.isolation, *opts, IMAGE, *command, stdin=stdin, check=check
        )

    def shell(self, script: str, opts: tuple[str, ...] = (), stdin: bytes = b"") -> Result:
        return self.run("sh", "-c", script, opts=opts, stdin=stdin)

    @contextlib.contextmanager
    def box(self, *command: str, opts: tuple[str, ...] = ()) -> Iterator[str]:
        """A workload in the background, removed at the end."""
        name = f"box-{uuid.uuid4().hex[:8]}"
        words = command or ("sleep", "1000")
        self.knarr(
            "run", "-d", "--name", name, "--isolation", self.isolation, *opts, IMAGE, *words, check=True
        )
        try:
            yield name
        finally:
            self.knarr("rm", "-f", name)

    def create(self, *command: str, opts: tuple[str, ...] = ()) -> str:
        name = f"made-{uuid.uuid4().hex[:8]}"
        self.knarr(
            "create", "--name", name, "--isolation", self.isolation, *opts, IMAGE, *command, check=True
        )
        return name

    def exec(self, name: str, *command: str, opts: tuple[str, ...] = (), stdin: bytes = b"") -> Result:
        return self.knarr("exec", *opts, name, *command, stdin=stdin)

    def on_terminal(
        self, *args: str, typed: bytes = b"", size: tuple[int, int] = (80, 24)
    ) -> tuple[int, str]:
        """Run `knarr args…` on a pty of the given (columns, rows); (exit code, what the terminal showed)."""
        with Terminal(self.instance, args, size) as terminal:
            if typed:
                terminal.type(typed)
            return terminal.finish()


class Terminal:
    """`knarr …` on a real pty."""

    def __init__(self, instance: Instance, args: tuple[str, ...], size: tuple[int, int] = (80, 24)) -> None:
        self.master, slave = pty.openpty()
        self.resize(*size)
        self.shown = b""
        self.process = instance.popen(
            *args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_own_terminal
        )
        os.close(slave)

    def resize(self, columns: int, rows: int) -> None:
        import fcntl

        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        if hasattr(self, "process"):
            self.process.send_signal(signal.SIGWINCH)

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def read_until(self, wanted: bytes, timeout: float = 60) -> str:
        end = time.monotonic() + timeout
        while wanted not in self.shown:
            left = end - time.monotonic()
            assert left > 0, f"{wanted!r} never came; shown so far: {self.shown!r}"
            if not self._read(left):
                break
        assert wanted in self.shown, f"{wanted!r} never came before the end: {self.shown!r}"
        return self.shown.decode(errors="replace")

    def _read(self, timeout: float) -> bool:
        if not select.select([self.master], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.shown += data
        return bool(data)

    def finish(self, timeout: float = 90) -> tuple[int, str]:
        end = time.monotonic() + timeout
        while self._read(max(0.1, end - time.monotonic())) and time.monotonic() < end:
            if self.process.poll() is not None:
                self._read(0.05)
                break
        return self.process.wait(timeout=10), self.shown.decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


def _own_terminal() -> None:
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def eventually(check, timeout: float = 20, what: str = "the condition"):
    """Poll until `check()` is true; its value. For what has no event to wait for."""
    end = time.monotonic() + timeout
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not come true in {timeout} s"
        time.sleep(0.05)


def interpreter() -> str:
    return sys.executable
