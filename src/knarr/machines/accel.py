"""KVM or TCG, found by trying: a /dev/kvm can be there and useless, and only a real kernel shows it.

The stock guest kernel is booted under KVM until its agent answers, for at most 1.5 s. The answer is
remembered per boot of the host and kernel, with its reason as text. Out of scope: using it (`machines.plan`).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from dataclasses import asdict, dataclass

from knarr.machines import clock, wire
from knarr.machines.kernels import GuestKernel
from knarr.model.errors import KnarrError

PROBE_SECONDS = 1.5
_DEVICE = "/dev/kvm"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, kw_only=True, slots=True)
class Accel:
    kind: str
    """kvm or tcg"""
    reason: str
    tsc_khz: int


def remembered(run: str, kernel: GuestKernel | None = None) -> Accel | None:
    """The answer of this boot of the host, if it was asked (with this kernel)."""
    try:
        with open(_path(run), encoding="utf-8") as file:
            data = json.load(file)
        if data["boot"] != _boot_id() or (kernel is not None and data["kernel"] != kernel.version):
            return None
        return Accel(**data["accel"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def choose(run: str, kernel: GuestKernel, qemu: str) -> Accel:
    """The remembered answer, or the one of a try. Blocks for up to two seconds once per boot of the host."""
    found = remembered(run, kernel)
    if found is not None:
        return found
    problem = _try_kvm(kernel, qemu)
    if problem is None:
        found = Accel(kind="kvm", reason="a kernel boots under KVM", tsc_khz=clock.tsc_khz())
    else:
        found = Accel(kind="tcg", reason=problem, tsc_khz=clock.tsc_khz())
    _remember(run, kernel, found)
    return found


def _try_kvm(kernel: GuestKernel, qemu: str) -> str | None:
    """None if the agent answered, else why KVM is not used."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"no KVM: {_DEVICE}: {error.strerror}"
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _argv(kernel, qemu, theirs.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            pass_fds=(theirs.fileno(),),
        )
        try:
            theirs.close()
            answered = _answers(ours)
        finally:
            process.kill()
            process.wait()
        if answered:
            return None
        errors.seek(0)
        said = errors.read(300).decode("utf-8", "replace").strip().splitlines()
    detail = f": {said[-1]}" if said else ""
    return f"{_DEVICE} is there but a kernel does not boot in it within {PROBE_SECONDS} s{detail}"


def _argv(kernel: GuestKernel, qemu: str, control: int) -> tuple[str, ...]:
    return (
        *(qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-M", "microvm,acpi=on,rtc=on,pit=off,pic=off,isa-serial=off", "-accel", "kvm", "-cpu", "host"),
        *("-m", "256M", "-kernel", kernel.vmlinux, "-initrd", kernel.initramfs),
        *("-append", "quiet panic=-1"),
        *("-device", "virtio-serial-device", "-chardev", f"socket,id=control,fd={control}"),
        *("-device", "virtserialport,chardev=control,name=control"),
    )


def _answers(sock: socket.socket) -> bool:
    nonce = os.urandom(wire.NONCE_SIZE)
    decoder = wire.Decoder(nonce)
    sock.settimeout(PROBE_SECONDS)
    for frame in wire.frames(wire.ToGuest.HELLO, 0, nonce):
        sock.sendall(frame)
    try:
        data = sock.recv(4096)
        return bool(decoder.feed(data))
    except (OSError, KnarrError):
        return False


def _remember(run: str, kernel: GuestKernel, accel: Accel) -> None:
    data = {"boot": _boot_id(), "kernel": kernel.version, "accel": asdict(accel)}
    with tempfile.NamedTemporaryFile("w", dir=run, delete=False, encoding="utf-8") as file:
        json.dump(data, file)
    os.rename(file.name, _path(run))


def _path(run: str) -> str:
    return os.path.join(run, "accel.json")


def _boot_id() -> str:
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()
