"""What the cgroup v2 guest is made of: Debian's cloud kernel, a small root, this tree with its dependencies.

Kernel and root are made once by mmdebstrap from the host's own package sources and kept in a cache folder
(`$KNARR_CACHE`, else /var/cache/knarr); the tree goes onto a disk of its own for each run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from knarr.images import aptsources
from knarr.machines import vmlinux

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PACKAGES = (
    *(
        "linux-image-cloud-amd64",
        "busybox-static",
        "dash",
        "bash",
        "coreutils",
        "kmod",
        "util-linux",
        "mount",
    ),
    *(
        "python3",
        "libnftables1",
        "nftables",
        "iproute2",
        "libc-bin",
        "attr",
        "tar",
        "gzip",
        "procps",
        "grep",
        "sed",
    ),
)
SYSTEMD = ("systemd", "systemd-sysv")
UNIT = f"""[Unit]
Description=what the guest is there for
[Service]
Type=oneshot
ExecStart={HERE}/init.sh
"""
EARLY_MODULES = ("virtio_ring", "virtio", "virtio_mmio", "virtio_console", "virtio_blk")
KEPT_MODULES = (
    *("block/", "crypto/", "lib/", "mm/", "net/802/", "net/bridge/", "net/core/", "net/ipv4/", "net/ipv6/"),
    *("net/llc/", "net/netfilter/", "net/packet/", "net/unix/", "fs/erofs/", "fs/fuse/", "fs/overlayfs/"),
    *("drivers/block/", "drivers/char/", "drivers/net/tun", "drivers/net/veth", "drivers/virtio/"),
)
USELESS = ("share/doc", "share/man", "share/locale", "share/zoneinfo", "lib/udev", "lib/klibc", "include")
NOT_NEEDED = ("mypy*", "*__mypyc*", "pip*", "setuptools*", "grimp*", "ruff*", "pyroute2*", "rich*")
PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
GROUP = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"


@dataclass(frozen=True, slots=True)
class Parts:
    """Paths; the root is an ext4 disk."""

    vmlinux: str
    initramfs: str
    root: str


class NoMirror(Exception):
    """The packages can't be had now."""


def missing_power() -> str | None:
    """Why this host can't make the guest."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("qemu-system-x86_64", "mmdebstrap", "mke2fs", "cpio", "depmod"):
        if shutil.which(program) is None:
            return f"no {program}"
    if not _suite():
        return "not a Debian host: its packages would not have the Python of .venv"
    if not os.path.realpath(REPOSITORY / ".venv/bin/python").startswith("/usr/bin/python3"):
        return ".venv is not made with the distribution's Python"
    return None


def parts(*, systemd: bool = False) -> Parts:
    """From the cache, or made now (ten seconds, and the packages' way here)."""
    cache = pathlib.Path(os.environ.get("KNARR_CACHE", "/var/cache/knarr"))
    cache = cache / ("v2-systemd" if systemd else "v2")
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    packages = (*PACKAGES, *(SYSTEMD if systemd else ()))
    recipe = repr((_suite(), packages, str(HERE))).encode() + pathlib.Path(__file__).read_bytes()
    recipe += (HERE / "initramfs.sh").read_bytes()
    folder = cache / hashlib.sha256(recipe).hexdigest()[:16]
    with _alone(cache):
        if not folder.exists():
            for old in cache.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as scratch:
                _make(pathlib.Path(scratch), packages).rename(folder)
    return Parts(*(str(folder / name) for name in ("vmlinux", "initramfs", "root")))


def tree_disk(path: str, work: str) -> None:
    """This repository as it is, with what its tests import, and what the guest shall do: a shell script."""
    with tempfile.TemporaryDirectory(prefix="knarr-tree-") as scratch:
        for name in ("src", "tests", "scripts", "pyproject.toml"):
            _run("cp", "-a", str(REPOSITORY / name), scratch)
        packages = f".venv/lib/{_python()}/site-packages"
        shutil.copytree(
            REPOSITORY / packages,
            os.path.join(scratch, packages),
            symlinks=True,
            ignore=shutil.ignore_patterns(*NOT_NEEDED),
        )
        for name in (".venv/bin", ".venv/pyvenv.cfg"):
            _run("cp", "-a", str(REPOSITORY / name), os.path.join(scratch, name))
        _compile(scratch, "src/knarr", "tests")
        pathlib.Path(scratch, "work").write_text(work)
        _disk(pathlib.Path(scratch), path, 64)


@contextlib.contextmanager
def _alone(cache: pathlib.Path) -> Iterator[None]:
    with open(cache / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _suite() -> str:
    words = dict(line.split("=", 1) for line in _text("/etc/os-release").splitlines() if "=" in line)
    return words.get("VERSION_CODENAME", "").strip('"') if words.get("ID") == "debian" else ""


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return pathlib.Path(path).read_text(encoding="utf-8")
    return ""


def _python() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _run(*argv: str, **options: object) -> None:
    done = subprocess.run(argv, capture_output=True, timeout=600, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{argv}: {done.stderr.decode(errors='replace')[-2000:]}"


def _make(scratch: pathlib.Path, packages: tuple[str, ...]) -> pathlib.Path:
    """A folder with kernel, initramfs and root disk."""
    root, made = scratch / "root", scratch / "made"
    made.mkdir()
    _install(root, packages)
    version = next((root / "usr/lib/modules").iterdir())
    _prune(root, version)
    kernel = (root / "boot" / f"vmlinuz-{version.name}").read_bytes()
    (made / "vmlinux").write_bytes(vmlinux.extract(kernel))
    shutil.rmtree(root / "boot")
    _run("depmod", "-b", str(root), version.name)
    _initramfs(version, root, scratch / "first", made / "initramfs")
    _compile(str(root), f"usr/lib/{_python()}")
    _disk(root, str(made / "root"), 1024)
    return made


def _install(root: pathlib.Path, packages: tuple[str, ...]) -> None:
    """Extracted only: no maintainer script runs, so that what they would make is made here."""
    sources = aptsources.for_suite(aptsources.DISTRIBUTIONS["debian"], _suite(), aptsources.read_sources())
    _bootstrap(
        *("mmdebstrap", "--mode=root", "--variant=extract", "--format=directory"),
        *("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--include={','.join(packages)}"),
        *(_suite(), str(root), *(source.line() for source in sources)),
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    os.chmod(root, 0o755)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    if not (root / "usr/bin/sh").exists():
        (root / "usr/bin/sh").symlink_to("dash")
    if "systemd" in packages:
        (root / "etc/machine-id").touch()
        (root / "etc/systemd/system/work.service").write_text(UNIT)
    _run("ldconfig", "-r", str(root))


def _bootstrap(*argv: str, **options: object) -> None:
    try:
        _run(*argv, **options)
    except AssertionError as error:
        if any(text in str(error) for text in ("Could not resolve", "Could not connect", "Failed to fetch")):
            raise NoMirror(str(error).strip().splitlines()[-1]) from error
        raise


def _prune(root: pathlib.Path, modules: pathlib.Path) -> None:
    for file in (modules / "kernel").rglob("*.ko"):
        name = str(file.relative_to(modules / "kernel"))
        if not name.startswith(KEPT_MODULES):
            file.unlink()
    for name in USELESS:
        shutil.rmtree(root / "usr" / name, ignore_errors=True)


def _initramfs(modules: pathlib.Path, root: pathlib.Path, first: pathlib.Path, target: pathlib.Path) -> None:
    for name in ("bin", "dev", "root", "m"):
        (first / name).mkdir(parents=True)
    shutil.copy(root / "usr/bin/busybox", first / "bin/busybox")
    shutil.copy(HERE / "initramfs.sh", first / "init")
    os.chmod(first / "init", 0o755)
    for name in EARLY_MODULES:
        shutil.copy(next(modules.rglob(f"{name}.ko")), first / "m" / f"{name}.ko")
    with open(target, "wb") as out:
        subprocess.run(
            ("sh", "-c", "find . | cpio --quiet -o -H newc"), cwd=first, stdout=out, timeout=60, check=True
        )


def _compile(folder: str, *parts: str) -> None:
    """An emulated CPU takes seconds to compile what the host does at once."""
    python = str(REPOSITORY / ".venv/bin/python")
    done = [os.path.join(folder, part) for part in parts]
    _run(python, "-m", "compileall", "-q", "-j", "2", "-s", folder, "-p", "/", *done)


def _disk(folder: pathlib.Path, path: str, spare: int) -> None:
    """`folder` as an ext4 disk with so many MiB free."""
    used = sum(file.lstat().st_blocks for file in folder.rglob("*")) // 2048
    size = used + used // 8 + spare
    _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", str(folder), path, f"{size}M")
