"""Templates of microVMs: a booted guest that waits for its start request, saved as memory and state.

ROOT/templates/<key>/ holds `mem` (the guest's RAM, mapped privately by every machine that resumes), `state`
(its devices) and `about` (JSON). The key is a digest of all that the state depends on, so a changed input
means another key. Folders appear by rename; at most `LIMIT` stay, the least used goes first.
Out of scope: booting and resuming (`engine.drivers.vm_templates`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from knarr.machines import plan
from knarr.model.errors import NotFound

if TYPE_CHECKING:
    from knarr.machines.jail import Jail

LIMIT = 8
_ABI = 3
"""of what the agent has done before it is saved, and of these files"""
_MAKING = "tmp-"
_ABOUT = "about"
MEMORY = "mem"
STATE = "state"


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What a template is for, for people."""

    kernel: str
    accelerator: str
    memory: int
    """of the machine, in bytes"""
    cpus: int
    network: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    key: str
    folder: str
    about: About
    size: int
    """bytes on the disk"""
    created: int
    used: int
    """nanoseconds since the epoch"""

    @property
    def memory(self) -> str:
        return os.path.join(self.folder, MEMORY)

    @property
    def state(self) -> str:
        return os.path.join(self.folder, STATE)


def about(machine: plan.MachineInput) -> About:
    return About(
        kernel=machine.kernel.version,
        accelerator=machine.accel,
        memory=plan.memory_class(machine.resources.memory),
        cpus=plan.vcpus(machine.resources),
        network=machine.attachment is not None,
    )


def key(machine: plan.MachineInput, box: Jail) -> str:
    """Of the class that `machine` belongs to: kernel, initramfs, QEMU and its libraries, size, devices."""
    digest = hashlib.sha256(f"{_ABI} {os.path.basename(box.root)}\n".encode())
    for path in (machine.kernel.vmlinux, machine.kernel.initramfs):
        found = os.stat(path)
        digest.update(f"{path} {found.st_size} {found.st_mtime_ns} {found.st_ino}\n".encode())
    digest.update("\0".join(plan.argv(blank(machine))).encode())
    return digest.hexdigest()[:16]


def blank(machine: plan.MachineInput) -> plan.MachineInput:
    """The machine to boot and save for the class of `machine`."""
    return plan.MachineInput(
        kernel=machine.kernel,
        accel=machine.accel,
        tsc_khz=machine.tsc_khz,
        resources=machine.resources,
        attachment=plan.NOWHERE if machine.attachment is not None else None,
        stdin=True,
        birth=plan.Birth.TEMPLATE,
    )


class TemplateStore:
    """ROOT/templates. Synchronous."""

    def __init__(self, root: str) -> None:
        self._folder = os.path.join(root, "templates")

    def find(self, wanted: str) -> Template | None:
        return self._read(wanted)

    def list(self) -> tuple[Template, ...]:
        """The most recently used first."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return ()
        found = (self._read(name) for name in names if not name.startswith(_MAKING))
        return tuple(sorted((item for item in found if item), key=lambda item: -item.used))

    def touch(self, template: Template) -> None:
        """It is in use now."""
        os.utime(os.path.join(template.folder, _ABOUT))

    def remove(self, wanted: str) -> Template:
        """Those that resumed from it keep what they have mapped. Raises `NotFound`."""
        found = [item for item in self.list() if item.key.startswith(wanted)] if wanted else []
        if len(found) != 1:
            raise NotFound(f"no template {wanted!r}", hint="knarr system templates ls")
        scratch = tempfile.mkdtemp(prefix=_MAKING, dir=self._folder)
        os.rename(found[0].folder, os.path.join(scratch, "gone"))
        shutil.rmtree(scratch, ignore_errors=True)
        return found[0]

    def begin(self) -> str:
        """A folder to make one in."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        return tempfile.mkdtemp(prefix=_MAKING, dir=self._folder)

    def publish(self, scratch: str, wanted: str, facts: About) -> None:
        """By rename, once all of it is on the disk; then the least used beyond `LIMIT` go."""
        for name in (MEMORY, STATE):
            path = os.path.join(scratch, name)
            os.chown(path, 0, 0)
            os.chmod(path, 0o444)
            _sync(path)
        with open(os.path.join(scratch, _ABOUT), "w", encoding="utf-8") as file:
            json.dump(asdict(facts) | {"created": time.time_ns()}, file)
            file.flush()
            os.fsync(file.fileno())
        for name in os.listdir(scratch):
            if name not in (MEMORY, STATE, _ABOUT):
                os.unlink(os.path.join(scratch, name))
        target = os.path.join(self._folder, wanted)
        if not os.path.isdir(target):
            os.rename(scratch, target)
            _sync(self._folder)
        for item in self.list()[LIMIT:]:
            self.remove(item.key)

    def sweep(self) -> None:
        """Half-made and half-removed ones of a daemon that was killed, and what an older Knarr left."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return
        for name in names:
            if name.startswith(_MAKING) or self._read(name) is None:
                shutil.rmtree(os.path.join(self._folder, name), ignore_errors=True)

    def _read(self, name: str) -> Template | None:
        folder = os.path.join(self._folder, name)
        path = os.path.join(folder, _ABOUT)
        try:
            with open(path, encoding="utf-8") as file:
                data = json.load(file)
            created = int(data.pop("created"))
            size = sum(os.stat(os.path.join(folder, item)).st_blocks * 512 for item in (MEMORY, STATE))
            used = os.stat(path).st_mtime_ns
            return Template(
                key=name, folder=folder, about=About(**data), size=size, created=created, used=used
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
