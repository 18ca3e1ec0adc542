"""knarrd: the composition root. Takes over what runs, serves the API, ends without touching a workload.

Started by the holder as a role (`keeper.roles`); only this process opens the database. Out of scope:
everything it composes.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import logging
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import uvloop
from aiohttp import web

from knarr.api.native import server
from knarr.containers.plan import capabilities_for
from knarr.engine import adopt, logdrivers, sharing
from knarr.engine.driver import Driver, Services
from knarr.engine.drivers.container import ContainerDriver
from knarr.engine.drivers.microvm import MicrovmDriver
from knarr.engine.engine import Engine
from knarr.engine.events import EventLog
from knarr.engine.guestfiles import GuestFiles
from knarr.engine.images import Images
from knarr.engine.lifecycle import Lifecycle
from knarr.engine.logwatch import LogWatch
from knarr.engine.network import WorkloadNetwork
from knarr.engine.streams import Streams
from knarr.engine.system import System
from knarr.engine.table import Table
from knarr.engine.userns import UserNamespaces
from knarr.engine.volumes import Volumes
from knarr.images.store import ImageStore
from knarr.keeper import roles
from knarr.keeper.holder import HolderClient, listening
from knarr.keeper.link import KeeperLink
from knarr.kernel import cgroups, facts, libc, process
from knarr.model.errors import KnarrError
from knarr.model.workload import Isolation
from knarr.networks.manager import NetworkManager
from knarr.store.db import Database
from knarr.store.ranges import Ranges
from knarr.store.settings import SettingsFile
from knarr.store.state import StateDir
from knarr.volumes.store import VolumeStore

if TYPE_CHECKING:
    import socket

    from knarr.engine.driver import Workload

_log = logging.getLogger("knarr")
_LOCK = "lock"
_SERVED = "served"
_KEEPALIVE = 75.0
_LULL = 60.0
_WORK = 0.5
"""seconds of processor time in `_LULL`, after which freed memory is looked for"""
_PATIENCE = 3.0
"""seconds that requests under way get when the daemon is asked to end"""


def main() -> int:
    root, run = sys.argv[1:3]
    process.set_name("knarrd")
    libc.one_arena()
    os.umask(0o077)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s daemon %(levelname)s %(message)s"
    )
    try:
        uvloop.run(serve(root, run))
    except KnarrError as error:
        _log.error("%s%s", error.message, f" ({error.hint})" if error.hint else "")
        return 1
    return 0


async def serve(root: str, run: str) -> None:
    """Until SIGTERM. What is opened is closed in reverse; nothing that runs is touched."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # `daemon stop --workloads` says so beforehand; until there is an engine nothing could begin again
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    async with AsyncExitStack() as stack:
        state = StateDir(root, run)
        holder = HolderClient(run)
        stack.callback(holder.close)
        _hold_lock(holder, state)
        engine = await _compose(stack, state, holder)
        loop.add_signal_handler(signal.SIGUSR1, engine.life.restarts.halt)
        sock = listening(holder, run, "knarr.sock")
        os.chmod(os.path.join(run, "knarr.sock"), 0o660)
        await _listen(stack, engine, sock)
        _log.info("serving %s, %d workloads", state.run, len(engine.table))
        engine.events.emit("daemon", "start", state.instance, {})
        if _first_to_serve(holder):
            adopt.start_again(engine)
        # what lives now lives for ever: the collector need not look at it again
        gc.collect()
        gc.freeze()
        # a start makes some thousand short-lived values and hardly a cycle
        gc.set_threshold(20_000, 20, 20)
        _keep_small(loop)
        await stopped.wait()
        _log.info("ending")


def _keep_small(loop: asyncio.AbstractEventLoop, worked: float = 0.0) -> None:
    """What a pull or a thousand workloads needed goes back to the host once they are done with."""
    now = time.process_time()
    if now - worked > _WORK:
        libc.trim()
    loop.call_later(_LULL, _keep_small, loop, now)


def _first_to_serve(holder: HolderClient) -> bool:
    """No daemon of this holder's did before: not the daemon alone, the engine is new."""
    served = holder.get(_SERVED)
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) if served is None else served
    if served is None:
        holder.put(_SERVED, fd)
    os.close(fd)
    return served is None


def _hold_lock(holder: HolderClient, state: StateDir) -> None:
    """The holder keeps the lock on ROOT over the daemon's death, so nobody slips in between."""
    held = holder.get(_LOCK)
    fd = state.lock() if held is None else held
    if held is None:
        holder.put(_LOCK, fd)
    os.close(fd)


async def _compose(stack: AsyncExitStack, state: StateDir, holder: HolderClient) -> Engine:
    db = Database(state.database)
    stack.callback(db.close)
    events = EventLog(db)
    table = Table()
    store = ImageStore(state.images)
    stack.callback(store.close)
    images = Images(store, events, state.images)
    stack.callback(images.close)
    networks = NetworkManager(state.instance, state.run, holder)
    networks.ensure()
    stack.callback(_leave, holder, state, networks, table)
    _start_dns(holder, state)
    host = facts.probe()
    keeper = KeeperLink(state.run)
    drivers: dict[Isolation, Driver] = {}
    volumes = Volumes(VolumeStore(state.volumes), table, events, keeper)
    life = Lifecycle(table, db, events, drivers, keeper=keeper, volumes=volumes)
    users = UserNamespaces(Ranges(state.instance, holder), settings := SettingsFile(state.root), table)
    life.before_start = functools.partial(_before_start, life, users)
    keeper.on_exit = life.on_exit
    images.unmount = keeper.unmount
    hello = await keeper.connect()
    stack.push_async_callback(keeper.close)
    services = Services(
        root=state.root,
        run=state.run,
        instance=state.instance,
        keeper=keeper,
        holder=holder,
        images=store,
        network=WorkloadNetwork(networks, life.save),
        facts=host,
        execs=life.execs,
        save=life.save,
        emit=life.emit,
    )
    drivers.update(_drivers(services))
    engine = Engine(
        state=state,
        db=db,
        table=table,
        events=events,
        life=life,
        streams=Streams(life),
        images=images,
        system=System(state, store, drivers, host),
        keeper=keeper,
        networks=networks,
        volumes=volumes,
        users=users,
        settings=settings,
        capabilities=capabilities_for,
    )
    adopt.load(engine)
    await adopt.adopt(engine, hello.running, hello.exits)
    stack.callback(LogWatch(state.run, life).start().close)
    stack.callback(GuestFiles(life.table).start().close)
    stack.push_async_callback(engine.close)
    return engine


def _before_start(life: Lifecycle, users: UserNamespaces, w: Workload) -> None:
    sharing.require(life.table, w)
    logdrivers.renew(w)
    if users.renew(w):
        life.rewrite(w, "update", {"userns": "other ids"})


def _leave(holder: HolderClient, state: StateDir, networks: NetworkManager, table: Table) -> None:
    """With no workload left, what the host shared with this instance goes too."""
    alive = any(entry.w.status.alive for entry in table)
    networks.close(keep=alive)
    if alive:
        return
    Ranges(state.instance, holder).release()
    if "dns" in holder.roles():
        # It would go on with the old sockets: deaf on the next network, and in the way of who gets this one.
        holder.norole("dns")
    groups = cgroups.group_paths(cgroups.detect(), state.instance, "any")
    for folder in {os.path.dirname(path) for path in groups.values()}:
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                _log.warning("%s: %s", folder, error.strerror)


def _drivers(services: Services) -> dict[Isolation, Driver]:
    return {
        Isolation.CONTAINER: ContainerDriver(services),
        Isolation.MICROVM: MicrovmDriver(services),
    }


def _start_dns(holder: HolderClient, state: StateDir) -> None:
    if "dns" not in holder.roles():
        holder.role("dns", roles.argv("knarr.networks.dns", state.root, state.run))


async def _listen(stack: AsyncExitStack, engine: Engine, sock: socket.socket) -> None:
    runner = web.AppRunner(
        server.application(engine),
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        keepalive_timeout=_KEEPALIVE,
        shutdown_timeout=_PATIENCE,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    assert runner.server is not None
    connections = server.connections(engine, runner.server, keep_alive=_KEEPALIVE)
    stack.push_async_callback(connections.close, _PATIENCE)
    listener = await asyncio.get_running_loop().create_server(connections, sock=sock, backlog=1024)
    stack.callback(listener.close)
