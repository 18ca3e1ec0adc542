"""knarrd: the composition root. Takes over what runs, serves the API, ends without touching a workload.

Started by the holder as a role (`keeper.roles`); only this process opens the database. Out of scope: everything
it composes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvloop
from aiohttp import web

from knarr.api.native import server
from knarr.containers.plan import capabilities_for
from knarr.engine import adopt
from knarr.engine.driver import Driver, Services
from knarr.engine.drivers.container import ContainerDriver
from knarr.engine.engine import Engine
from knarr.engine.events import EventLog
from knarr.engine.images import Images
from knarr.engine.lifecycle import Lifecycle
from knarr.engine.network import WorkloadNetwork
from knarr.engine.streams import Streams
from knarr.engine.system import System
from knarr.engine.table import Table
from knarr.images.store import ImageStore
from knarr.keeper import roles
from knarr.keeper.holder import HolderClient, listening
from knarr.keeper.link import KeeperLink
from knarr.kernel import facts, process
from knarr.model.errors import KnarrError
from knarr.model.workload import Isolation
from knarr.networks.manager import NetworkManager
from knarr.store.db import Database
from knarr.store.state import StateDir

if TYPE_CHECKING:
    import socket

_log = logging.getLogger("knarr")
_LOCK = "lock"
_KEEPALIVE = 75.0
_PATIENCE = 3.0
"""seconds that requests under way get when the daemon is asked to end"""


def main() -> int:
    root, run = sys.argv[1:3]
    process.set_name("knarrd")
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
