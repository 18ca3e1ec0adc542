"""What `version` and `system info` tell: this engine, this host, what works on it and what does not."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import knarr
from knarr.engine.driver import Describer, Templating
from knarr.keeper import roles
from knarr.model import codec
from knarr.model.errors import Failed

if TYPE_CHECKING:
    from knarr.engine.driver import Driver
    from knarr.engine.table import Table
    from knarr.images.store import ImageStore
    from knarr.kernel import facts
    from knarr.model.workload import Isolation, WorkloadSpec
    from knarr.store.state import StateDir

API_VERSION = "1"


class System:
    """Answers from what was found at the daemon's start."""

    def __init__(
        self,
        state: StateDir,
        images: ImageStore,
        drivers: dict[Isolation, Driver],
        host: facts.HostFacts,
    ) -> None:
        self._state = state
        self._images = images
        self._drivers = drivers
        self._host = host

    def version(self) -> dict[str, Any]:
        uname = os.uname()
        return {
            "version": knarr.__version__,
            "api_version": API_VERSION,
            "kernel": uname.release,
            "architecture": uname.machine,
            "python": platform.python_version(),
        }

    async def info(self, table: Table) -> dict[str, Any]:
        alive = sum(entry.w.status.alive for entry in table)
        return {
            **self.version(),
            "pid": os.getpid(),
            "root": self._state.root,
            "run": self._state.run,
            "instance": self._state.instance,
            "host_name": os.uname().nodename,
            "cpus": os.cpu_count(),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "workloads": {"total": len(table), "running": alive},
            "images": {"total": len(self._images.list()), **self._images.usage()},
            "walls": {kind.value: await _describe(driver) for kind, driver in self._drivers.items()},
            "facts": codec.to_json(self._host),
            "checks": await checks(),
        }

    def templates(self) -> list[dict[str, Any]]:
        return [item for driver in self._templating() for item in driver.templates()]

    async def make_template(self, spec: WorkloadSpec) -> dict[str, Any]:
        return await self._templating()[0].make_template(spec)

    async def remove_template(self, key: str) -> dict[str, Any]:
        return await self._templating()[0].remove_template(key)

    def _templating(self) -> list[Templating]:
        return [driver for driver in self._drivers.values() if isinstance(driver, Templating)]


async def _describe(driver: Driver) -> dict[str, Any]:
    return dict(await driver.describe()) if isinstance(driver, Describer) else {}


_CHECKS = "import json; from knarr.kernel import facts; print(json.dumps(facts.checks()))"
_PATIENCE = 30.0


async def checks() -> list[dict[str, Any]]:
    """name, ok, detail, remedy of everything that is needed, found by trying.

    In a process of its own: trying namespaces forks, which a process with threads must not.
    """
    code = f"import sys; sys.path[:0] = [{roles.SOURCE!r}]; {_CHECKS}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-IS", "-c", code, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), _PATIENCE)
    except TimeoutError as error:
        process.kill()
        raise Failed(f"checking the host took over {_PATIENCE:.0f} s") from error
    if process.returncode:
        raise Failed(f"checking the host ended with {process.returncode}", hint="see ROOT/daemon.log")
    return [
        {"name": name, "ok": ok, "detail": detail, "remedy": remedy}
        for name, ok, detail, remedy in json.loads(out)
    ]
