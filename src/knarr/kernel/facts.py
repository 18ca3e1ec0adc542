"""What this host can do, found by trying: the values that planners need, and the answers of `system check`.

Out of scope: changing anything about the host; every probe takes back what it made.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import glob
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from knarr.kernel import caps, cgroups, libc, namespaces, process, steps_mounts, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

Check = tuple[str, bool, str, str]
"""name, ok, detail, remedy (empty when ok)"""

_FILES = (
    ("qemu-system-x86_64", "microVMs", "apt-get install qemu-system-x86"),
    ("qemu-img", "microVMs", "apt-get install qemu-utils"),
    ("mmdebstrap", "image bootstrap", "apt-get install mmdebstrap"),
)
_NAMESPACES = ("mount", "uts", "ipc", "pid", "net", "cgroup")


@dataclass(frozen=True, kw_only=True, slots=True)
class HostFacts:
    """What the planners need to know of the host."""

    architecture: str = libc.MACHINE
    kernel: tuple[int, ...] = ()
    cgroups: cgroups.Layout = field(default_factory=lambda: cgroups.Layout(version=0, roots={}))
    capabilities: tuple[str, ...] = tuple(caps.NAMES)
    """what this process may hand on"""
    thermal: tuple[str, ...] = ()
    """folders with thermal throttle counters, to mask"""
    devices: tuple[tuple[str, int, int], ...] = ()
    """the host's device nodes, for `--privileged`"""
    init: str = ""
    """the `--init` program"""


def probe() -> HostFacts:
    """Look once; a few milliseconds."""
    return HostFacts(
        kernel=kernel_version(),
        cgroups=cgroups.detect(),
        capabilities=caps.names(caps.bounding() & caps.own()[0]),
        thermal=tuple(sorted(glob.glob("/sys/devices/system/cpu/cpu*/thermal_throttle"))),
        devices=tuple(steps_mounts.host_nodes()),
        init=native_program("init"),
    )


def native_program(name: str) -> str:
    """The absolute path of one of our own compiled programs."""
    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "native-bin", name)


def kernel_version() -> tuple[int, ...]:
    digits = os.uname().release.split("-")[0].split(".")
    return tuple(int(part) for part in digits[:2] if part.isdigit())


def checks() -> tuple[Check, ...]:
    """Everything a workload needs, tried one after the other; nothing is left behind."""
    found = [
        _check_root(),
        _check_kernel(),
        _check_cgroups(),
        *(_tried(f"{name} namespace", _try_namespace(name), _OLD_KERNEL) for name in _NAMESPACES),
        _tried("user namespace", _try_namespace("user"), "raise user.max_user_namespaces, for --userns"),
        _tried("overlay", _try_filesystem("overlay"), "load the overlay module: modprobe overlay"),
        _tried(
            "erofs", _try_filesystem("erofs"), "load the erofs module: modprobe erofs (Linux 5.16 or newer)"
        ),
        _tried("seccomp", _try_seccomp, "a kernel with CONFIG_SECCOMP_FILTER"),
        _tried("tun", _try_device("/dev/net/tun"), "modprobe tun"),
        _check_program("init"),
        _check_library(),
        *(_check_file(*item) for item in _FILES),
    ]
    return tuple(found)


_OLD_KERNEL = "a kernel with this kind of namespace, and no sandbox around the engine that forbids it"


def _tried(name: str, attempt: Callable[[], str], remedy: str) -> Check:
    try:
        return name, True, attempt() or "works", ""
    except OSError as error:
        return name, False, error.strerror or str(error), remedy


def _check_root() -> Check:
    needed = ("SYS_ADMIN", "NET_ADMIN", "SETUID", "SETGID", "SETPCAP", "MKNOD", "CHOWN", "DAC_OVERRIDE")
    missing = [name for name in needed if name not in caps.names(caps.own()[1])]
    if missing:
        return "privileges", False, f"without {', '.join(missing).lower()}", "run the daemon as root"
    return "privileges", True, "root with what is needed", ""


def _check_kernel() -> Check:
    version = kernel_version()
    text = ".".join(map(str, version))
    if version < (5, 16):
        return "kernel", False, f"Linux {text}", "Linux 5.16 or newer (EROFS trees with a pool)"
    return "kernel", True, f"Linux {text} on {libc.MACHINE}", ""


def _check_cgroups() -> Check:
    layout = cgroups.detect()
    if not layout.version:
        return "control groups", False, "none mounted", "mount cgroup2 at /sys/fs/cgroup"
    missing = [name for name in ("memory", "pids", "cpu") if name not in layout.controllers]
    detail = f"v{layout.version}: {', '.join(layout.controllers)}"
    root = next(iter(layout.roots.values()))
    folder = f"{root}/knarr_check_{os.getpid()}"
    try:
        os.mkdir(folder)
        os.rmdir(folder)
    except OSError as error:
        return (
            "control groups",
            False,
            f"can't make one: {error.strerror}",
            f"make {root} writable to the daemon",
        )
    if missing:
        return "control groups", False, detail, f"enable the controllers {', '.join(missing)}"
    return "control groups", True, detail, ""


def _try_namespace(name: str) -> Callable[[], str]:
    flag = next(flag for flag, text in namespaces.NAMES.items() if text == name)

    def attempt() -> str:
        _in_child(lambda: namespaces.unshare(flag))
        return ""

    return attempt


def _try_filesystem(kind: str) -> Callable[[], str]:
    def attempt() -> str:
        context = libc.syscall(libc.FSOPEN, kind.encode(), 1, path=kind)
        os.close(context)
        return ""

    return attempt


def _try_seccomp() -> str:
    if libc.MACHINE not in syscalls.AUDIT_ARCH:
        raise OSError(0, f"no system call table for {libc.MACHINE}")
    _in_child(process.no_new_privileges)
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        if "Seccomp:" not in file.read():
            raise OSError(0, "the kernel has none")
    return ""


def _try_device(path: str) -> Callable[[], str]:
    def attempt() -> str:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        return ""

    return attempt


def _check_program(name: str) -> Check:
    path = native_program(name)
    ok = os.access(path, os.X_OK)
    return (
        f"program {name}",
        ok,
        "built" if ok else "not built",
        "" if ok else "scripts/install, which compiles it",
    )


def _check_library() -> Check:
    ok = ctypes.util.find_library("nftables") is not None
    return (
        "nftables",
        ok,
        "library found" if ok else "no libnftables",
        "" if ok else "apt-get install libnftables1",
    )


def _check_file(name: str, purpose: str, remedy: str) -> Check:
    path = shutil.which(name)
    return name, path is not None, path or f"missing, needed for {purpose}", "" if path else remedy


def _in_child(action: Callable[[], None]) -> None:
    """Run it where it does no harm: an unshare must hit a process of its own."""
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            action()
        except OSError as error:
            code = error.errno or 1
        os.write(write, bytes([code & 0xFF]))
        os._exit(0)
    os.close(write)
    try:
        code = (os.read(read, 1) or b"\x01")[0]
    finally:
        os.close(read)
        os.waitpid(pid, 0)
    if code:
        raise OSError(code, os.strerror(code))
