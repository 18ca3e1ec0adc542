"""What the guest is told, out of a workload: for its start, and for the rehearsal of one like it.

Out of scope: the records' form (`machines.request`), when they are sent (`drivers.microvm`, `vm_slots`).
"""

from __future__ import annotations

import dataclasses
import os
import time
from typing import TYPE_CHECKING

from knarr.kernel import caps, seccomp
from knarr.machines import request

if TYPE_CHECKING:
    from knarr.engine.driver import Workload
    from knarr.model.resource import Attachment
    from knarr.model.workload import Process

_ETC_MAX = 1 << 20
_ETC = ("resolv.conf", "hosts", "hostname")
_LOADERS = (
    *("/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"),
    *("/lib/ld-musl-x86_64.so.1", "/lib/libc.musl-x86_64.so.1"),
)
"""what most programs map besides themselves"""


def guest_input(w: Workload, binds: tuple[request.Folder, ...], etc: dict[str, str]) -> request.GuestInput:
    """`etc`: target inside → file on the host."""
    process = w.process
    return request.GuestInput(
        process=process,
        hostname=w.hostname,
        capability_mask=caps.mask(process.capabilities),
        seccomp=call_filter(process),
        mounts=w.mounts,
        folders=binds,
        read_only=w.spec.read_only,
        privileged=w.spec.security.privileged,
        system_paths=w.spec.security.system_paths != "unconfined",
        mask=w.spec.security.mask,
        unmask=w.spec.security.unmask,
        shm_size=w.spec.shm_size,
        sysctls=w.spec.sysctls,
        stdin=w.spec.stdin_open,
        attachment=w.attachment,
        resources=w.spec.resources,
        etc=tuple((target, _content(source)) for target, source in etc.items()),
    )


def call_filter(process: Process) -> bytes:
    if not process.seccomp:
        return b""
    return seccomp.program(process.seccomp_profile, frozenset(process.capabilities))


def rehearsal(process: Process, attachment: Attachment | None) -> request.Records:
    """A start as that of `process`, but for its program, and in no folder that an image may lack."""
    quiet = dataclasses.replace(process, args=("rehearsal",), cwd="/", tty=False, init=False)
    guest = request.GuestInput(
        process=quiet,
        hostname="rehearsal",
        capability_mask=caps.mask(process.capabilities),
        seccomp=call_filter(process),
        attachment=attachment,
        etc=tuple((f"/etc/{name}", b"\n") for name in _ETC),
    )
    return (
        *request.start_records(guest, time_ns=time.time_ns(), seed=os.urandom(64)),
        ("rehearsal", b"1"),
        *(("touch", os.fsencode(path)) for path in _touched(process)),
    )


def _touched(process: Process) -> list[str]:
    program = process.args[0] if process.args else ""
    if "/" in program:
        return [program, *_LOADERS]
    path = next((item[5:] for item in process.env if item.startswith("PATH=")), "")
    return [*(os.path.join(folder, program) for folder in path.split(":") if folder), *_LOADERS]


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_ETC_MAX)
