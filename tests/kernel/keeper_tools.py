"""A real instance without a daemon: holder, keeper, mover on temporary folders, driven through the daemon's link."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import pytest

from knarr.keeper import boot, roles
from knarr.keeper.holder import HolderClient
from knarr.keeper.link import KeeperLink
from knarr.keeper.logs import LogReader
from knarr.kernel.plan import Plan
from support import leaks

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: starting programs behind walls")

STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}
ENV = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",)


class Instance:
    def __init__(self, folder):
        self.root, self.run = f"{folder}/root", f"{folder}/run"
        self.exits = asyncio.Queue()
        self.link = None

    async def __aenter__(self):
        boot.start_instance(self.root, self.run, daemon=False)
        self.holder = HolderClient(self.run)
        await self.connect()
        return self

    async def connect(self):
        self.link = KeeperLink(self.run)
        self.link.on_exit = lambda *told: self.exits.put_nowait(told)
        self.hello = await self.link.connect()

    async def __aexit__(self, *_):
        await self.link.close()
        self.holder.close()
        boot.stop_instance(self.root, self.run, workloads=True)
        leaks.gone(self.root, self.run, "none")
        assert not os.path.exists(f"{self.run}/holder.sock")

    def log_folder(self, name):
        return f"{self.root}/workloads/{name}/log"

    def streams(self, name, **more):
        return {"stdout": True, "stderr": True, "log": self.log_folder(name), **more}

    async def shell(self, name, script, **more):
        plan = Plan(argv=("/bin/sh", "-c", script), env=ENV, fds=STREAMS)
        return await self.link.start(name, plan, {}, self.streams(name, **more))

    async def exit_of(self, name):
        """The wait status; told exactly once."""
        told = await asyncio.wait_for(self.exits.get(), 60)
        assert told[0] == name
        return told[1]

    def output(self, name, stream=1):
        with contextlib.closing(LogReader(self.log_folder(name))) as reader:
            return b"".join(data for _, number, data in reader.read() if number == stream)

    def kill(self, role):
        pid = self.holder.roles().get(role, 0)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def kill_and_start(self, role):
        """Asking for a role that is down starts it at once, whatever its pause: many kills in little time."""
        pid = self.holder.roles()[role]
        self.kill(role)
        await self.until(lambda: self.holder.roles()[role] != pid)
        self.holder.role(role, roles.core(self.root, self.run)[role])

    async def until(self, condition, timeout=20.0):
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            await asyncio.sleep(0.01)


def in_instance(folder, work, timeout=120):
    """Run the coroutine function `work` with a fresh instance."""

    async def body():
        async with Instance(folder) as instance:
            await work(instance)

    asyncio.run(asyncio.wait_for(body(), timeout))
