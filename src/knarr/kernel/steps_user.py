"""Steps about who the program is and what terminal it has; users come from the workload's own files.

Those files are untrusted: opened beneath the root, regular files only, read to a limit, never through libc's
NSS, which would load the image's libraries. Out of scope: terminals on the host's side (`keeper`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import termios
from dataclasses import dataclass

from knarr.kernel import mounts, paths
from knarr.kernel.plan import Context, Step, register

_FILE_LIMIT = 4 << 20
_ID_LIMIT = (1 << 31) - 1
_PTMX = os.makedev(5, 2)
_TIOCGPTPEER = 0x5441
_TIOCSPTLCK = 0x40045431
STREAMS = ("stdin", "stdout", "stderr")


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class ResolveUser(Step):
    """docker's rules: `name|uid[:group|gid]`, and `groups` by name or number besides."""

    user: str = ""
    groups: tuple[str, ...] = ()

    def describe(self) -> str:
        more = f" and groups {', '.join(self.groups)}" if self.groups else ""
        return f"user {self.user or 'root'}{more}, looked up inside"

    def execute(self, context: Context) -> None:
        root = context.fds.get("root")
        own = root is None
        if root is None:
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = resolve(_lines(root, "etc/passwd"), _lines(root, "etc/group"), self.user, self.groups)
        finally:
            if own:
                os.close(root)
        context.uid, context.gid, context.groups, context.home = found


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class FixedUser(Step):
    """Ids by number, without a look into any file (a jailed helper's)."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def describe(self) -> str:
        return f"user {self.uid}:{self.gid}"

    def execute(self, context: Context) -> None:
        context.uid, context.gid, context.groups, context.home = self.uid, self.gid, self.groups, "/"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class SetIds(Step):
    """Become that user; the streams become its own, so that /dev/stdout can be opened again."""

    def describe(self) -> str:
        return "become that user"

    def execute(self, context: Context) -> None:
        if context.uid:
            for name in STREAMS:
                _give(context.fds.get(name, -1), context.uid)
        os.setgroups(context.groups)
        os.setresgid(context.gid, context.gid, context.gid)
        os.setresuid(context.uid, context.uid, context.uid)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Pty(Step):
    """A terminal of the workload's own devpts; its master travels up, its slave becomes the three streams."""

    columns: int = 0
    rows: int = 0
    console: bool = True
    """also at /dev/console"""

    def describe(self) -> str:
        size = f" of {self.columns}x{self.rows}" if self.columns else ""
        return f"terminal{size}{', also at /dev/console' if self.console else ''}"

    def execute(self, context: Context) -> None:
        root = context.fds.get("root")
        own = root is None
        if root is None:
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            master = _open_master(root)
            fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("=i", 0))
            # by the master, not by a path: whatever lies at /dev/pts/N
            slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            if self.columns and self.rows:
                fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("=4H", self.rows, self.columns, 0, 0))
            if self.console:
                _bind_console(root, slave)
        finally:
            if own:
                os.close(root)
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for name in STREAMS:
            context.fds[name] = slave
        context.send.append(("tty", master))


def resolve(
    passwd: list[list[str]], group: list[list[str]], user: str, extra: tuple[str, ...]
) -> tuple[int, int, tuple[int, ...], str]:
    """(uid, gid, supplementary groups, home) by docker's rules. Raises ENOENT or EINVAL with a sentence."""
    name, _, wanted_group = user.partition(":")
    number = _number(name) if name else 0
    entry = next((row for row in passwd if _is(row, name, number)), None)
    if entry is None and number is None:
        raise OSError(errno.ENOENT, f"unable to find user {name}: no matching entries in passwd file")
    uid = int(entry[2]) if entry else number or 0
    gid = int(entry[3]) if entry else 0
    home = (entry[5] if entry and len(entry) > 5 else "") or "/"
    if wanted_group:
        gid = _find_group(group, wanted_group)
        groups: list[int] = []
    else:
        login = entry[0] if entry else ""
        groups = [int(row[2]) for row in group if login and _has_member(row, login)]
    groups += [_find_group(group, item) for item in extra]
    return uid, gid, tuple(dict.fromkeys(groups)), home


def _is(row: list[str], name: str, number: int | None) -> bool:
    """A numeric name is always an id; an entry with ids that are none is skipped."""
    if len(row) < 4 or not (_is_id(row[2]) and _is_id(row[3])):
        return False
    return int(row[2]) == number if number is not None else row[0] == name


def _find_group(group: list[list[str]], wanted: str) -> int:
    number = _number(wanted)
    if number is not None:
        return number
    for row in group:
        if row[0] == wanted and len(row) > 2 and _is_id(row[2]):
            return int(row[2])
    raise OSError(errno.ENOENT, f"unable to find group {wanted}: no matching entries in group file")


def _has_member(row: list[str], login: str) -> bool:
    return len(row) > 3 and _is_id(row[2]) and login in row[3].split(",")


def _is_id(text: str) -> bool:
    """An entry of a file that is none is skipped, not an error: the file is the image's."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _ID_LIMIT


def _number(text: str) -> int | None:
    """Plain ASCII digits only: not `+1`, `0x0`, ` 1` or digits of other scripts, which would be names."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 10 or int(text) > _ID_LIMIT:
        raise OSError(errno.EINVAL, f"uids and gids must be in range 0-{_ID_LIMIT}: {text[:32]}")
    return int(text)


def _lines(root: int, path: str) -> list[list[str]]:
    try:
        data = paths.read_small(root, path, _FILE_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return []
    text = data.decode("utf-8", "surrogateescape")
    return [line.strip().split(":") for line in text.split("\n") if line.strip() and not line.startswith("#")]


def _give(fd: int, uid: int) -> None:
    if fd < 0:
        return
    status = os.fstat(fd)
    # /dev/null and its like belong to everybody; a terminal or pipe is this workload's alone
    if stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == 1:
        return
    try:
        os.fchown(fd, uid, -1)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EROFS, errno.EINVAL):
            raise


def _open_master(root: int) -> int:
    resolve_plain = paths.RESOLVE_IN_ROOT | paths.RESOLVE_NO_MAGICLINKS | paths.RESOLVE_NO_SYMLINKS
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK
    master = paths.openat2(root, "dev/pts/ptmx", flags, resolve=resolve_plain)
    status = os.fstat(master)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _PTMX:
        os.close(master)
        raise OSError(errno.ENODEV, "not a terminal multiplexer", "/dev/pts/ptmx")
    os.set_blocking(master, True)
    return master


def _bind_console(root: int, slave: int) -> None:
    tree = mounts.open_tree("", directory=slave, recursive=False)
    try:
        target = paths.make_file(root, "/dev/console", 0o600)
        try:
            mounts.attach(tree, target)
        finally:
            os.close(target)
    finally:
        os.close(tree)
