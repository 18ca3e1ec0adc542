"""QEMU's minimal root: its binary, the libraries and data files it opens. Built once per version.

ROOT/jails/<hash>/ is never written to by a jailed process: it is mounted read-only. The files are hard links
where that is possible. Out of scope: entering it (`machines.launch`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass

from knarr.model.errors import Failed, Unavailable

_LIBRARY = re.compile(r"(?:=>\s*)?(/\S+)\s+\(0x")
_QEMU_DATA = ("bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin")
_DATA_FOLDERS = ("/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu")
_MODULES = ("accel-tcg-x86_64.so",)
_FOLDERS = ("kernel", "dev", "tmp", "proc", "share", "single")
"""mount points: the guest kernel's folder, /dev/kvm, what a folder server exports, a template's memory"""
_FILES = ("dev/kvm", "single/file", "mem")
_LAYOUT = 2
"""of the places above: a jail of another layout is another jail"""
_DIRECT_PLACE = "/usr/share/qemu"
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")


@dataclass(frozen=True, kw_only=True, slots=True)
class Jail:
    root: str
    """on the host"""
    program: str
    """inside"""
    preload: str = ""
    """inside: a library for those that resume a template"""


def build(root: str, program: str, preload: str = "") -> Jail:
    """A jail for QEMU (a name in PATH) or virtiofsd (a path), with one more library of ours.

    Raises `Unavailable` naming the package.
    """
    found = shutil.which(program)
    if found is None:
        raise Unavailable(f"{program!r} is not installed", hint="apt-get install qemu-system-x86")
    found = os.path.realpath(found)
    files = _files_now(found)
    place = f"/usr/lib/knarr/{os.path.basename(preload)}" if preload else ""
    if preload:
        files = {**files, place: preload}
    jail = os.path.join(root, "jails", _digest(files))
    if not os.path.isdir(jail):
        _publish(jail, files)
    return Jail(root=jail, program=found, preload=place)


def virtiofsd() -> str:
    """The path of a folder server. Raises `Unavailable`."""
    for path in VIRTIOFSD:
        if os.access(path, os.X_OK):
            return path
    raise Unavailable("virtiofsd is not installed", hint="apt-get install qemu-system-common")


_known: dict[str, tuple[dict[str, str], tuple[tuple[int, ...], ...]]] = {}
"""program → its files, and what they were when they were listed"""


def _files_now(program: str) -> dict[str, str]:
    """`_files`, listed again only when one of them has changed: listing takes longer than all else here."""
    known = _known.get(program)
    if known is not None:
        files, stamp = known
        try:
            if _stamp(files) == stamp:
                return files
        except OSError:
            pass  # one is gone: an upgrade
    files = _files(program)
    _known[program] = files, _stamp(files)
    return files


def _stamp(files: dict[str, str]) -> tuple[tuple[int, ...], ...]:
    """Of what each place leads to now, which an upgrade may have changed by its link alone."""
    return tuple(_identity(place, source) for place, source in files.items())


def _identity(place: str, source: str) -> tuple[int, ...]:
    try:
        status = os.stat(place)
    except FileNotFoundError:
        status = os.stat(source)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _files(program: str) -> dict[str, str]:
    """Place inside → file on the host."""
    programs = [program]
    files: dict[str, str] = {}
    if os.path.basename(program).startswith("qemu-system"):
        programs += _qemu_modules()
        files |= _qemu_data()
    for item in programs:
        files[item] = item
        for library in _libraries(item):
            files[library] = os.path.realpath(library)
    return files


def _libraries(path: str) -> list[str]:
    done = subprocess.run(("ldd", path), capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        if "statically" in done.stdout + done.stderr or "not a dynamic" in done.stdout + done.stderr:
            return []
        raise Failed(f"the libraries of {path!r} can't be listed: {done.stderr.strip()}")
    return _LIBRARY.findall(done.stdout)


def _qemu_modules() -> list[str]:
    """Debian builds TCG as a module beside the libraries; where it is built in there is none."""
    found = []
    for folder in (f"/usr/lib/{os.uname().machine}-linux-gnu/qemu", "/usr/lib64/qemu", "/usr/lib/qemu"):
        found += [
            os.path.join(folder, name) for name in _MODULES if os.path.exists(os.path.join(folder, name))
        ]
    return found


def _qemu_data() -> dict[str, str]:
    files = {}
    for name in _QEMU_DATA:
        for folder in _DATA_FOLDERS:
            path = os.path.join(folder, name)
            if os.path.exists(path):
                files[os.path.join(_DIRECT_PLACE, name)] = os.path.realpath(path)
                break
        else:
            raise Unavailable(f"QEMU's {name!r} is missing", hint="apt-get install qemu-system-x86 seabios")
    return files


def _digest(files: dict[str, str]) -> str:
    state = hashlib.sha256(f"{_LAYOUT}\n".encode())
    for place, source in sorted(files.items()):
        status = os.stat(source)
        state.update(f"{place}\0{source}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return state.hexdigest()[:16]


def _publish(jail: str, files: dict[str, str]) -> None:
    parent = os.path.dirname(jail)
    os.makedirs(parent, mode=0o700, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="tmp-", dir=parent)
    try:
        for name in _FOLDERS:
            os.mkdir(os.path.join(scratch, name))
        for name in _FILES:
            with open(os.path.join(scratch, name), "wb"):
                pass
        for place, source in files.items():
            target = scratch + place
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _link(source, target)
        _open_folders(scratch)
        try:
            os.rename(scratch, jail)
        except OSError:
            if not os.path.isdir(jail):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _open_folders(root: str) -> None:
    """For the jailed user, whatever the daemon's umask."""
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o755)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
