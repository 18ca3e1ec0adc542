"""The state directory: folders, format version, instance id and the lock that keeps a second daemon out.

Out of scope: what the folders hold (`docs/architecture.md` section 2), and the database (`store.db`).
"""

from __future__ import annotations

import fcntl
import os
import secrets

from knarr.model.errors import Conflict, Denied, Failed, Invalid

FORMAT = 1
_FOLDERS = ("images", "kernels", "jails", "workloads", "volumes")
_RUN_FOLDERS = ("images", "dns")


class StateDir:
    """ROOT and RUN of one instance. Raises `Denied`, `Failed` or `Invalid` with the folder's name."""

    def __init__(self, root: str, run: str) -> None:
        self.root = os.path.abspath(root)
        self.run = os.path.abspath(run)
        try:
            self._make_folders()
            self._check_version()
            self.instance = self._instance()
        except PermissionError as error:
            raise Denied(
                f"{error.filename or self.root}: permission denied", hint="knarr's daemon runs as root"
            ) from error
        except OSError as error:
            raise Failed(f"{error.filename or self.root}: {error.strerror}") from error

    @property
    def database(self) -> str:
        return os.path.join(self.root, "knarr.db")

    @property
    def images(self) -> str:
        return os.path.join(self.root, "images", "default")

    @property
    def volumes(self) -> str:
        return os.path.join(self.root, "volumes")

    @property
    def workloads(self) -> str:
        return os.path.join(self.root, "workloads")

    def workload(self, workload_id: str) -> str:
        return os.path.join(self.root, "workloads", workload_id)

    def lock(self) -> int:
        """A descriptor that keeps every other daemon away from ROOT while any copy of it is open.

        Raises `Conflict` when another one holds it.
        """
        fd = os.open(os.path.join(self.root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise Conflict(
                f"a daemon already serves {self.root}", hint="use its --run folder, or another --root"
            ) from error
        return fd

    def _make_folders(self) -> None:
        for folder in (self.root, *(os.path.join(self.root, name) for name in _FOLDERS), self.images):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        for folder in (self.run, *(os.path.join(self.run, name) for name in _RUN_FOLDERS)):
            os.makedirs(folder, mode=0o700, exist_ok=True)

    def _check_version(self) -> None:
        path = os.path.join(self.root, "version")
        text = _read(path)
        if text is None:
            _publish(path, f"{FORMAT}\n")
            return
        if not text.strip().isdigit():
            raise Invalid(f"{path}: {text.strip()[:40]!r} is not a format version")
        if int(text) > FORMAT:
            raise Invalid(
                f"{self.root} has format {int(text)}, this knarr knows {FORMAT}", hint="use the newer knarr"
            )

    def _instance(self) -> str:
        path = os.path.join(self.root, "instance")
        text = _read(path)
        if text is None:
            _publish(path, secrets.token_hex(3) + "\n")
            text = _read(path) or ""
        value = text.strip()
        if len(value) != 6 or any(digit not in "0123456789abcdef" for digit in value):
            raise Invalid(f"{path}: {value[:40]!r} is not an instance id", hint="6 hex digits")
        return value


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(256)
    except FileNotFoundError:
        return None


def _publish(path: str, text: str) -> None:
    """Whole or not at all, also after a power cut; the first of two racing writers wins."""
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
