"""Files of a microVM that does not run: its agent without the workload, shared by those who ask at once.

`cp` asks several times in a row, so the machine stays for a moment after the last one. It must be gone before
the workload starts or its folder goes: two kernels on one disk would destroy it.
Out of scope: the archives themselves (`machines.agent`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from knarr.engine.drivers.vm_boot import Boot
from knarr.machines import request
from knarr.model.errors import KnarrError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from knarr.engine.driver import Workload
    from knarr.engine.drivers.vm_boot import Booter
    from knarr.machines.agent import Agent
    from knarr.machines.plan import MachineInput

LINGER = 2.0
_END_SECONDS = 5.0


@dataclass(eq=False, slots=True)
class _Machine:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """held while booting and ending, and by `start` for as long as it boots the workload"""
    agent: Agent | None = None
    users: int = 0
    timer: asyncio.TimerHandle | None = None


class IdleMachines:
    def __init__(
        self, booter: Booter, describe: Callable[[Workload], Awaitable[tuple[MachineInput, int]]]
    ) -> None:
        """`describe` gives the machine to boot and its uid."""
        self._booter = booter
        self._describe = describe
        self._machines: dict[str, _Machine] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._checked: set[str] = set()
        """workloads of which no machine of an earlier daemon's can be left"""

    @asynccontextmanager
    async def open(self, w: Workload) -> AsyncIterator[Agent]:
        machine = self._machines.setdefault(w.id, _Machine())
        async with machine.lock:
            if machine.timer is not None:
                machine.timer.cancel()
                machine.timer = None
            if machine.agent is None or machine.agent.closed:
                machine.agent = await self._start(w)
            agent = machine.agent
            machine.users += 1
        try:
            yield agent
        finally:
            machine.users -= 1
            if not machine.users:
                loop = asyncio.get_running_loop()
                machine.timer = loop.call_later(LINGER, self._linger_over, w.id, machine)

    @asynccontextmanager
    async def closed(self, w: Workload) -> AsyncIterator[None]:
        """No such machine while this is open; those who are reading from one lose it."""
        machine = self._machines.setdefault(w.id, _Machine())
        async with machine.lock:
            await self._check(w.id)
            await self._end(w.id, machine)
            yield
        if not machine.users and machine.agent is None:
            self._machines.pop(w.id, None)

    async def _start(self, w: Workload) -> Agent:
        await self._check(w.id)
        machine, uid = await self._describe(w)
        records = request.idle_records(time_ns=time.time_ns(), seed=os.urandom(64))
        _, agent = await self._booter.boot(w, Boot(key=_key(w.id), machine=machine, records=records, uid=uid))
        try:
            await agent.started()
        except BaseException:
            agent.close()
            await self._booter.destroy(_key(w.id))
            raise
        return agent

    async def _check(self, workload: str) -> None:
        if workload not in self._checked:
            await self._booter.destroy(_key(workload))
            self._checked.add(workload)

    def _linger_over(self, workload: str, machine: _Machine) -> None:
        task = asyncio.ensure_future(self._end_unused(workload, machine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_unused(self, workload: str, machine: _Machine) -> None:
        async with machine.lock:
            if machine.users:
                return
            try:
                await self._end(workload, machine)
            except (KnarrError, OSError):
                return  # the keeper is away; the next start tries again
        if not machine.users:
            self._machines.pop(workload, None)

    async def _end(self, workload: str, machine: _Machine) -> None:
        agent, machine.agent = machine.agent, None
        if machine.timer is not None:
            machine.timer.cancel()
            machine.timer = None
        if agent is None:
            return
        agent.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(agent.ended), _END_SECONDS)
        except (KnarrError, TimeoutError):
            pass  # the end of the channel is the end of the machine
        agent.close()
        await self._booter.destroy(_key(workload))


def _key(workload: str) -> str:
    return f"{workload}.cp"
