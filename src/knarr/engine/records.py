"""A live `Workload` ↔ what the database keeps of it: the unchanging part once, the state at every change.

Out of scope: when to write (the engine) and how (`store.db`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from knarr.engine.driver import Workload

# msgspec reads the hints when the decoders are made, so these are no type-checking imports
from knarr.model.namespaces import IdMap
from knarr.model.resource import Attachment, Image
from knarr.model.state import Status
from knarr.model.workload import Mount, PortMapping, Process, WorkloadSpec


@dataclass(kw_only=True, slots=True)
class _Fixed:
    spec: WorkloadSpec
    image: Image
    process: Process
    hostname: str
    created: int
    warnings: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    ids: IdMap | None = None


@dataclass(kw_only=True, slots=True)
class _State:
    status: Status
    pid: int = 0
    started: int = 0
    finished: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    stopped: bool = False
    restarts: int = 0
    failures: int = 0
    health: dict[str, Any] = field(default_factory=dict)
    attachment: Attachment | None = None
    ports: tuple[PortMapping, ...] = ()
    private: dict[str, Any] = field(default_factory=dict)


_ENCODER = msgspec.json.Encoder()
_FIXED = msgspec.json.Decoder(_Fixed)
_STATE = msgspec.json.Decoder(_State)


def encode_fixed(w: Workload) -> bytes:
    return _ENCODER.encode(
        _Fixed(
            spec=w.spec,
            image=w.image,
            process=w.process,
            hostname=w.hostname,
            created=w.created,
            warnings=w.warnings,
            mounts=w.mounts,
            ids=w.ids,
        )
    )


def encode_state(w: Workload) -> bytes:
    return _ENCODER.encode(
        _State(
            status=w.status,
            pid=w.pid,
            started=w.started,
            finished=w.finished,
            exit_code=w.exit_code,
            oom_killed=w.oom_killed,
            error=w.error,
            stopped=w.stopped,
            restarts=w.restarts,
            failures=w.failures,
            health=w.health,
            attachment=w.attachment,
            ports=w.ports,
            private=w.private,
        )
    )


def decode(workload_id: str, name: str, folder: str, fixed: bytes, state: bytes) -> Workload:
    """The workload back. Raises msgspec.MsgspecError when the record is broken."""
    f = _FIXED.decode(fixed)
    s = _STATE.decode(state)
    return Workload(
        id=workload_id,
        name=name,
        spec=f.spec,
        image=f.image,
        process=f.process,
        hostname=f.hostname,
        dir=folder,
        # records of before the volumes have none: then the spec's are all there is
        mounts=f.mounts or f.spec.mounts,
        ids=f.ids,
        created=f.created,
        warnings=f.warnings,
        status=s.status,
        pid=s.pid,
        started=s.started,
        finished=s.finished,
        exit_code=s.exit_code,
        oom_killed=s.oom_killed,
        error=s.error,
        stopped=s.stopped,
        restarts=s.restarts,
        failures=s.failures,
        health=s.health,
        attachment=s.attachment,
        ports=s.ports,
        private=s.private,
    )
