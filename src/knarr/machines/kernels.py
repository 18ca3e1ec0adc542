"""Kernels for guests: the distribution's stock cloud kernel, a package unpacked into ROOT only.

ROOT/kernels/<version>/ holds vmlinux, modules/<name>.ko (uncompressed, only those the agent loads) and
initramfs-<hash>.cpio for each version of the agent. Folders appear by rename, so a half-fetched kernel is
never seen. Out of scope: the guest's command line (`machines.plan`). Nothing is installed on the host.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from knarr.machines import initramfs, vmlinux
from knarr.model.errors import Failed, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64"}
_REAL_PACKAGE = re.compile(r"\b(linux-image-[0-9][A-Za-z0-9.+-]*)")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_SIGNED = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">5B3xI")
_FORM = 2
"""of the initramfs; to be raised when this file builds another one from the same agent"""
_EARLY = ("virtio_mmio", "virtio_console")
_LATE = ("virtio_blk", "erofs", "overlay", "ext4")
_NET = ("virtio_net",)
_FOLDERS = ("virtiofs",)
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_APT_SECONDS = 600
_IMAGE_PREFIXES = ("vmlinuz-", "vmlinux-", "bzImage")


@dataclass(frozen=True, kw_only=True, slots=True)
class GuestKernel:
    version: str
    vmlinux: str
    initramfs: str
    """absolute paths"""


class KernelStore:
    """ROOT/kernels. Synchronous; the callers use a worker thread for `fetch`."""

    def __init__(self, root: str, agent: str) -> None:
        self._folder = os.path.join(root, "kernels")
        self._agent = agent

    def current(self) -> GuestKernel | None:
        """The fetched kernel, if there is one."""
        try:
            version = os.readlink(os.path.join(self._folder, "current"))
        except OSError:
            return None
        return self._guest_kernel(version)

    def fetch(self, tell: Callable[[str], None] = lambda _: None) -> GuestKernel:
        """Download and unpack the stock kernel unless it is there; `tell` hears of each phase.

        Raises `Unavailable`, `Failed`.
        """
        found = self.current()
        if found is not None:
            return found
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=self._folder) as scratch:
            package = _download(scratch, tell)
            tell("unpacking")
            unpacked = os.path.join(scratch, "x")
            _run(("dpkg-deb", "-x", package, unpacked))
            image, modules = _find_image(unpacked), os.path.join(unpacked, "lib", "modules")
            if not os.path.isdir(modules):
                modules = os.path.join(unpacked, "usr", "lib", "modules")
            version = self._publish(scratch, image, modules, "")
            tell(version)
        _replace_link(version, os.path.join(self._folder, "current"))
        return self._guest_kernel(version)

    def bring(self, path: str) -> GuestKernel:
        """A kernel of the user's own (`--kernel`): modules from beside it, or the host's."""
        try:
            with open(path, "rb") as file:
                content = file.read(vmlinux.MAX_VMLINUX)
        except OSError as error:
            raise NotFound(
                f"kernel {path!r}: {error.strerror}", hint="give the path of a vmlinux or vmlinuz file"
            ) from error
        key = "own-" + hashlib.sha256(content).hexdigest()[:16]
        if not os.path.isdir(os.path.join(self._folder, key)):
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="tmp-", dir=self._folder) as scratch:
                version = vmlinux.version(vmlinux.extract(content))
                self._publish(scratch, path, _modules_beside(path, version), key)
        return self._guest_kernel(key)

    def _publish(self, scratch: str, image: str, modules: str, key: str) -> str:
        with open(image, "rb") as file:
            kernel = vmlinux.extract(file.read())
        target = os.path.join(scratch, "kernel")
        os.makedirs(os.path.join(target, "modules"))
        _write(os.path.join(target, "vmlinux"), kernel)
        os.chmod(target, 0o755)  # for the jailed VMM
        for group in _collect(modules, strict=not key).groups().items():
            _write_group(target, *group)
        version = key or vmlinux.version(kernel)
        try:
            os.rename(target, os.path.join(self._folder, version))
        except OSError as error:
            if not os.path.isdir(os.path.join(self._folder, version)):
                raise Failed(f"kernel {version!r} can't be published: {error.strerror}") from error
        return version

    def _guest_kernel(self, version: str) -> GuestKernel:
        folder = os.path.join(self._folder, version)
        with open(self._agent, "rb") as file:
            agent = file.read()
        path = os.path.join(folder, f"initramfs-{_FORM}-{hashlib.sha256(agent).hexdigest()[:12]}.cpio")
        if not os.path.exists(path):
            _write(path, initramfs.build(agent, _read_groups(folder)))
        return GuestKernel(version=version, vmlinux=os.path.join(folder, "vmlinux"), initramfs=path)


def _download(folder: str, tell: Callable[[str], None]) -> str:
    wanted = PACKAGES.get(platform.machine())
    if wanted is None:
        raise Unavailable(
            f"no guest kernel is known for {platform.machine()}", hint="bring one: --kernel PATH"
        )
    shown = _run(("apt-cache", "--no-all-versions", "show", wanted))
    depends = next((line for line in shown.splitlines() if line.startswith("Depends:")), "")
    real = _REAL_PACKAGE.search(depends)
    if real is None:
        raise Unavailable(
            f"package {wanted!r} is not known to apt", hint="apt-get update, or bring one: --kernel PATH"
        )
    tell(f"downloading {real[1]}")
    # apt drops privileges to _apt, which may not write here
    _run(("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", real[1]), folder)
    packages = [name for name in os.listdir(folder) if name.endswith(".deb")]
    if not packages:
        raise Unavailable(
            f"package {real[1]!r} was not downloaded", hint="apt-get update, or bring one: --kernel PATH"
        )
    return os.path.join(folder, packages[0])


def _run(argv: tuple[str, ...], folder: str = "/") -> str:
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_APT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise Unavailable(f"{argv[0]!r} is not installed", hint="bring a kernel: --kernel PATH") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{argv[0]!r} did not finish in {_APT_SECONDS} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(
            f"{' '.join(argv[:2])}: {last}", hint="apt-get update, or bring a kernel: --kernel PATH"
        )
    return done.stdout


def _find_image(unpacked: str) -> str:
    boot = os.path.join(unpacked, "boot")
    names = sorted(os.listdir(boot)) if os.path.isdir(boot) else []
    for name in names:
        if name.startswith(_IMAGE_PREFIXES):
            return os.path.join(boot, name)
    raise Failed("the kernel package holds no kernel")


def _modules_beside(path: str, version: str) -> str:
    folder = os.path.dirname(os.path.abspath(path))
    candidates = (
        os.path.join(folder, "modules"),
        os.path.join(os.path.dirname(folder), "lib/modules", version),
    )
    return next((item for item in candidates if os.path.isdir(item)), os.path.join("/lib/modules", version))


def _collect(folder: str, *, strict: bool) -> initramfs.Modules:
    """The wanted modules with what they depend on, each in the group that needs it first."""
    index: dict[str, str] = {}
    builtin: set[str] = set()
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(_SUFFIXES):
                index.setdefault(_module_name(name), os.path.join(parent, name))
            elif name == "modules.builtin":
                with open(os.path.join(parent, name), encoding="utf-8") as file:
                    builtin.update(_module_name(os.path.basename(line.strip())) for line in file)
    seen: set[str] = set()
    groups = [
        _closure(wanted, index, builtin, seen, strict=strict) for wanted in (_EARLY, _LATE, _NET, _FOLDERS)
    ]
    return initramfs.Modules(early=groups[0], late=groups[1], net=groups[2], folders=groups[3])


def _closure(
    wanted: tuple[str, ...], index: dict[str, str], builtin: set[str], seen: set[str], *, strict: bool
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        if name not in index:
            if strict and name not in builtin:
                raise Failed(
                    f"the kernel package lacks the module {name!r}", hint="bring a kernel: --kernel PATH"
                )
            return
        content = _read_module(index[name])
        depends = _DEPENDS.search(content)
        for dependency in (depends[1].decode() if depends else "").split(","):
            if dependency:
                visit(dependency.replace("-", "_"))
        found[name] = content

    for name in wanted:
        visit(name)
    return found


def _module_name(file_name: str) -> str:
    return file_name.split(".ko", 1)[0].replace("-", "_")


def _read_module(path: str) -> bytes:
    with open(path, "rb") as file:
        return lighten(vmlinux.decompress(file.read()))


def lighten(module: bytes) -> bytes:
    """Without signature and type information, which an emulated CPU takes long to check and parse.

    Nothing is lost: package and folder are the daemon's own, and no BPF program in the guest asks for types.
    """
    if module.endswith(_SIGNED):
        end = len(module) - len(_SIGNED)
        *_, signer, key, signature = _SIGNATURE.unpack(module[end - _SIGNATURE.size : end])
        module = module[: end - _SIGNATURE.size - signature - signer - key]
    return module.replace(b"\0.BTF\0", b"\0.btf\0")


def _write_group(target: str, group: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        _write(os.path.join(target, "modules", f"{name}.ko"), content)
    _write(os.path.join(target, f"modules.{group}"), "\n".join(files).encode())


def _read_groups(folder: str) -> initramfs.Modules:
    groups: dict[str, dict[str, bytes]] = {}
    for group in ("early", "late", "net", "folders"):
        with open(os.path.join(folder, f"modules.{group}"), encoding="utf-8") as file:
            names = file.read().split()
        groups[group] = {name: _read_module(os.path.join(folder, "modules", f"{name}.ko")) for name in names}
    return initramfs.Modules(**groups)


def _write(path: str, content: bytes) -> None:
    """By rename, readable for the jailed VMM."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o444)
    os.rename(file.name, path)


def _replace_link(target: str, path: str) -> None:
    scratch = f"{path}.new"
    if os.path.lexists(scratch):
        os.unlink(scratch)
    os.symlink(target, scratch)
    os.rename(scratch, path)


def remove(root: str) -> None:
    """Forget every fetched kernel."""
    shutil.rmtree(os.path.join(root, "kernels"), ignore_errors=True)
