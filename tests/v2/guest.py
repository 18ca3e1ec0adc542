"""Boots the guest and gives it a script to do; out of scope: what the guest is made of (`v2.parts`)."""

from __future__ import annotations

import os
import pathlib
import subprocess
import tempfile
import time
from dataclasses import dataclass

from knarr.machines.clock import tsc_khz
from v2 import parts

MEMORY = "1536M"
KERNEL_OPTIONS = (
    "quiet no_timer_check tsc=reliable cryptomgr.notests rcupdate.rcu_expedited=1 random.trust_cpu=on "
    "nokaslr mitigations=off audit=0 panic=-1 reboot=t console=ttyS0"
)


@dataclass(frozen=True, slots=True)
class Answer:
    result: str
    """the file /tmp/result of the guest"""
    console: str
    """what its script said"""
    kernel: str
    seconds: float


def run(work: str, timeout: float, *, systemd: bool = False) -> Answer:
    """Boot (with systemd as process 1), do, power off.

    Raises AssertionError with the last words of a guest that does not end in time.
    """
    made = parts.parts(systemd=systemd)
    with tempfile.TemporaryDirectory(prefix="knarr-v2-") as folder:
        tree = os.path.join(folder, "tree")
        parts.tree_disk(tree, work)
        began = time.monotonic()
        try:
            done = subprocess.run(
                _argv(made, tree, folder, systemd=systemd),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                check=False,
                env={**os.environ, "TMPDIR": folder},
            )
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the guest did not end in {timeout} s: {_last(folder)}") from None
        assert done.returncode == 0, f"QEMU: {done.stderr.decode(errors='replace')} {_last(folder)}"
        result, console, kernel = (_text(folder, name) for name in ("result", "console", "kernel"))
        return Answer(result, console, kernel, time.monotonic() - began)


def _argv(made: parts.Parts, tree: str, folder: str, *, systemd: bool) -> tuple[str, ...]:
    first = "first=/lib/systemd/systemd systemd.unit=work.service systemd.show_status=0" if systemd else ""
    return (
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-M", "microvm,acpi=on,rtc=on,pit=off,pic=off,isa-serial=on"),
        *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64", "-smp", "2", "-m", MEMORY),
        *("-kernel", made.vmlinux, "-initrd", made.initramfs),
        *("-append", f"tsc_early_khz={tsc_khz()} {KERNEL_OPTIONS} tree={parts.REPOSITORY} {first}"),
        *("-chardev", f"file,id=kernel,path={folder}/kernel", "-serial", "chardev:kernel"),
        *("-device", "virtio-serial-device"),
        *_port("console", folder),
        *_port("result", folder),
        *_disk("root", made.root),
        *_disk("tree", tree),
    )


def _port(name: str, folder: str) -> tuple[str, ...]:
    file = f"file,id={name},path={folder}/{name}"
    return ("-chardev", file, "-device", f"virtserialport,chardev={name},name={name}")


def _disk(name: str, path: str) -> tuple[str, ...]:
    """The guest may write; the file stays as it is."""
    drive = f"if=none,id={name},format=raw,snapshot=on,cache=unsafe,aio=threads,file={path}"
    return ("-drive", drive, "-device", f"virtio-blk-device,drive={name},serial={name}")


def _text(folder: str, name: str) -> str:
    try:
        return pathlib.Path(folder, name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _last(folder: str) -> str:
    return "\n".join(f"== {name}\n{_text(folder, name)[-3000:]}" for name in ("kernel", "console"))
