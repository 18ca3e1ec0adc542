"""The microVM's peer: a bare QEMU that boots the same kernel to an init that only says that it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import tempfile
from collections.abc import Iterator

from knarr.bench.floors import NATIVE
from knarr.bench.measure import Subject, timed
from knarr.machines import clock, initramfs, plan
from knarr.machines.kernels import GuestKernel, KernelStore
from knarr.model.errors import Failed, NotFound

MARK = b"knarr-floor"


def _read(name: str) -> bytes:
    path = os.path.join(NATIVE, name)
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise NotFound(f"{path} is not built", hint="run scripts/install") from None


def _command(kernel: GuestKernel) -> tuple[str, ...]:
    """Knarr's own board, processor, memory and kernel options without any device but a serial line."""
    ours = plan.argv(plan.MachineInput(kernel=kernel, accel="tcg", tsc_khz=clock.tsc_khz()))
    return (*ours[: ours.index("-add-fd")], "-serial", "stdio")


def _boot(command: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if MARK in line:
                return
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    raise Failed("the bare QEMU ended before its init ran")


@contextlib.contextmanager
def bare_boot(root: str) -> Iterator[Subject]:
    """From the exec of QEMU to the first byte of the kernel's init."""
    kernel = KernelStore(root, os.path.join(NATIVE, "agent")).current()
    if kernel is None:
        raise NotFound("no guest kernel is fetched yet", hint="run a microvm once")
    with tempfile.NamedTemporaryFile(prefix="knarr-floor-", suffix=".cpio") as archive:
        archive.write(
            initramfs.build(_read("floor_init"), initramfs.Modules(early={}, late={}, net={}, folders={}))
        )
        archive.flush()
        command = _command(dataclasses.replace(kernel, initramfs=archive.name))
        yield Subject(name="floor", sample=lambda: timed(lambda: _boot(command)))
