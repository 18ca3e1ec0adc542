"""The state directory: folders, format version, instance id and the lock that keeps a second daemon out.

Out of scope: what the folders hold (`docs/architecture.md` section 2), and the database (`store.db`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets

from knarr.model.errors import Conflict, Denied, Failed, Invalid

FORMAT = 1
CLAIMS = "/run/lock/knarr"
"""what the instances of one host share"""
_FOLDERS = ("images", "kernels", "jails", "workloads", "volumes")
_RUN_FOLDERS = ("images", "dns")


class StateDir:
    """ROOT and RUN of one instance. Raises `Denied`, `Failed` or `Invalid` with the folder's name."""

    def __init__(self, root: str, run: str) -> None:
        self.root = os.path.abspath(root)
        self.run = os.path.abspath(run)
        try:
            self._make_folders()
            check_version(self.root)
            self.instance = instance_id(self.root)
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


def check_version(root: str) -> None:
    """A new ROOT gets today's format. Raises `Invalid` for one that this program does not know."""
    path = os.path.join(root, "version")
    text = _read(path)
    if text is None:
        _publish(path, f"{FORMAT}\n")
        return
    if not text.strip().isdigit():
        raise Invalid(f"{path}: {text.strip()[:40]!r} is not a format version")
    if int(text) > FORMAT:
        raise Invalid(f"{root} has format {int(text)}, this knarr knows {FORMAT}", hint="use the newer knarr")


def instance_id(root: str) -> str:
    """Made once, 6 hex digits. Raises `Invalid` for anything else in its file."""
    path = os.path.join(root, "instance")
    text = _read(path)
    if text is None:
        _publish(path, secrets.token_hex(3) + "\n")
        text = _read(path) or ""
    value = text.strip()
    if len(value) != 6 or any(digit not in "0123456789abcdef" for digit in value):
        raise Invalid(f"{path}: {value[:40]!r} is not an instance id", hint="6 hex digits")
    return value


def claim_instance(root: str, folder: str = CLAIMS) -> int:
    """The id is in names that the whole host shares: a lock, whose descriptor is the caller's, keeps a copied
    ROOT from starting beside the first. Raises `Conflict`.
    """
    path = claim_path(root, folder)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise Conflict(
                f"instance {instance_id(root)} runs already, from another folder than {root}",
                hint=f"is this a copy? without {root}/instance it becomes an instance of its own",
            ) from error
        # the one before may have removed it between our opening and our locking
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        os.close(fd)


def claim_path(root: str, folder: str = CLAIMS) -> str:
    return os.path.join(folder, f"instance-{instance_id(root)}")


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
