"""A microVM without keeper and jail, for tests of agent, plan and protocol: QEMU as a plain child."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
import time

from knarr.machines import plan, request, wire
from knarr.machines.agent import Agent
from knarr.machines.clock import tsc_khz
from knarr.model.workload import Process

MASK = 0xA80425FB  # docker's 14 capabilities
BOOT_SECONDS = 60


class Machine:
    def __init__(
        self,
        kernel,
        disks: dict[str, str],
        upper: str,
        *,
        stdin=False,
        tty=False,
        resources=None,
        accel="tcg",
    ):
        self.folder = tempfile.mkdtemp(prefix="vm")
        self.pipes: dict[str, int] = {}
        opened: dict[str, int] = {}
        for name, path in (*disks.items(), ("upper", upper)):
            opened[name] = os.open(path, os.O_RDWR if name == "upper" else os.O_RDONLY)
        for name in ("console", "status", "messages", "errors"):
            opened[name] = os.open(f"{self.folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        opened["null"] = os.open("/dev/null", os.O_RDWR)
        for name in ("stdout", "stderr"):
            self.pipes[name], opened[name] = os.pipe()
            os.set_blocking(self.pipes[name], False)
        self.ends = {}
        for name in ("control", "qmp", "input"):
            ours, theirs = socket.socketpair()
            self.ends[name] = ours
            opened[name] = theirs.detach()
        kw = {"resources": resources} if resources else {}
        machine = plan.MachineInput(kernel=kernel, accel=accel, tsc_khz=tsc_khz(), stdin=stdin, tty=tty, **kw)
        numbers = plan.fd_numbers(machine)
        self.argv = plan.argv(machine)
        self.began = time.monotonic()
        self.process = launch(self.argv, {number: opened[name] for name, number in numbers.items()})
        for fd in opened.values():
            os.close(fd)

    def agent(self) -> Agent:
        return Agent(os.dup(self.ends["control"].fileno()))

    def feed(self, data: bytes, *, end=False) -> None:
        for frame in wire.stdin_frames(data) + ([wire.STDIN_END] if end else []):
            self.ends["input"].sendall(frame)

    def output(self, name="stdout") -> bytes:
        found = b""
        while True:
            try:
                piece = os.read(self.pipes[name], 1 << 16)
            except BlockingIOError:
                return found
            if not piece:
                return found
            found += piece

    async def exited(self, timeout=20) -> int:
        end = time.monotonic() + timeout
        while self.process.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError(self.text("console")[-2000:] + self.text("errors"))
            await asyncio.sleep(0.005)
        return self.process.returncode

    def text(self, name: str) -> str:
        with open(f"{self.folder}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for sock in self.ends.values():
            sock.close()
        for fd in self.pipes.values():
            os.close(fd)
        subprocess.run(["rm", "-rf", self.folder], check=False)


def launch(argv, numbers: dict[int, int]) -> subprocess.Popen:
    top = max(numbers) + 1

    def arrange() -> None:
        high = {number: os.dup(fd) for number, fd in numbers.items()}
        while min(high.values()) < top:
            high = {number: os.dup(fd) for number, fd in high.items()}
        for number, fd in high.items():
            os.dup2(fd, number, inheritable=True)

    return subprocess.Popen(argv, preexec_fn=arrange, close_fds=False)


def process(*args: str, **more) -> Process:
    env = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
    return Process(args=args, env=env + more.pop("env", ()), **more)


def records(program: Process, **more):
    guest = request.GuestInput(
        process=program, hostname=more.pop("hostname", "box"), capability_mask=MASK, seccomp=b"", **more
    )
    return request.start_records(guest, time_ns=time.time_ns(), seed=os.urandom(64))
