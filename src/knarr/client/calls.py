"""The native API's calls as values: one function per call, shared by the sync and the async client.

Only methods, targets and bodies; how they travel is `transport`'s and `aio`'s matter.
"""

from __future__ import annotations

import json

from knarr.client.http import encode_query, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from knarr.model.workload import ExecSpec, Update, WorkloadSpec

    Body = bytes | Iterable[bytes] | None
    Json = dict[str, Any]


class Call:
    """One request. `safe` calls may be sent again when the connection broke before an answer."""

    __slots__ = ("body", "headers", "method", "safe", "target")

    def __init__(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        *,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.method = method
        self.target = "/v1" + path + encode_query(query or {})
        self.body = body
        self.headers = dict(headers or {})
        self.safe = method in ("GET", "HEAD")


_UPGRADE = {"Connection": "Upgrade", "Upgrade": "knarr-frames"}
_JSON = {"Content-Type": "application/json"}
_TAR = {"Content-Type": "application/x-tar"}


def _post(path: str, value: object = None, query: Mapping[str, object] | None = None) -> Call:
    if value is None:
        return Call("POST", path, query, body=b"")
    return Call("POST", path, query, body=json.dumps(value).encode(), headers=_JSON)


def post(path: str, value: object = None) -> Call:
    """A call with a JSON body."""
    return _post(path, value)


def _plain(spec: WorkloadSpec | ExecSpec | Update | Mapping[str, Any]) -> Any:
    """A spec as JSON values, defaults left out; the codec is only loaded for callers who have dataclasses."""
    if isinstance(spec, dict):
        return spec
    from knarr.model import codec

    return codec.changed(spec)


def workload_path(name: str, tail: str = "") -> str:
    return f"/workloads/{quote(name)}{tail}"


def image_path(name: str, tail: str = "") -> str:
    return f"/images/{quote(name)}{tail}"


def volume_path(name: str) -> str:
    return f"/volumes/{quote(name)}"


# the system


def version() -> Call:
    return Call("GET", "/version")


def system_info() -> Call:
    return Call("GET", "/system/info")


def templates() -> Call:
    return Call("GET", "/system/templates")


def make_template(*, memory: int | None, cpus: float | None, kernel: str | None, network: str | None) -> Call:
    wanted = {"memory": memory, "cpus": cpus, "kernel": kernel, "network": network}
    return _post("/system/templates", {key: value for key, value in wanted.items() if value is not None})


def remove_template(key: str) -> Call:
    return Call("DELETE", f"/system/templates/{quote(key)}")


def openapi() -> Call:
    return Call("GET", "/openapi.json")


def events(*, since: str | None, until: str | None, follow: bool) -> Call:
    return Call("GET", "/events", {"since": since, "until": until, "follow": follow})


# images


def pull(
    reference: str,
    *,
    platform: str | None = None,
    insecure: bool = False,
    username: str | None = None,
    password: str | None = None,
) -> Call:
    wanted = {
        "reference": reference,
        "platform": platform,
        "insecure": insecure or None,
        "username": username,
        "password": password,
    }
    return _post("/images/pull", {key: value for key, value in wanted.items() if value is not None})


def load(body: Iterable[bytes]) -> Call:
    return Call("POST", "/images/load", body=body, headers=_TAR)


def import_image(body: Iterable[bytes], reference: str | None) -> Call:
    return Call("POST", "/images/import", {"reference": reference}, body=body, headers=_TAR)


def bootstrap(distribution: str, include: Iterable[str], reference: str | None) -> Call:
    wanted: Json = {"distribution": distribution, "include": list(include)}
    if reference:
        wanted["reference"] = reference
    return _post("/images/bootstrap", wanted)


def images() -> Call:
    return Call("GET", "/images")


def image(name: str) -> Call:
    return Call("GET", image_path(name))


def remove_image(name: str, *, force: bool) -> Call:
    return Call("DELETE", image_path(name), {"force": force})


def tag(name: str, reference: str) -> Call:
    return _post(image_path(name, "/tag"), {"reference": reference})


def prune_images(*, unused: bool, filters: Iterable[str]) -> Call:
    return _post("/images/prune", {"all": unused}, query={"filter": tuple(filters)})


# volumes


def create_volume(name: str, labels: Mapping[str, str], driver: str) -> Call:
    return _post("/volumes", {"name": name, "labels": dict(labels), "driver": driver})


def volumes() -> Call:
    return Call("GET", "/volumes")


def volume(name: str) -> Call:
    return Call("GET", volume_path(name))


def remove_volume(name: str) -> Call:
    return Call("DELETE", volume_path(name))


def prune_volumes(*, unused: bool, filters: Iterable[str]) -> Call:
    return _post("/volumes/prune", query={"all": unused, "filter": tuple(filters)})


# workloads


def create(spec: WorkloadSpec | Mapping[str, Any]) -> Call:
    return _post("/workloads", _plain(spec))


def provision(name: str) -> Call:
    return _post(workload_path(name, "/provision"))


def plan(spec: WorkloadSpec | Mapping[str, Any]) -> Call:
    return _post("/workloads/plan", _plain(spec))


def workloads(*, stopped: bool, filters: Iterable[str], sizes: bool) -> Call:
    return Call("GET", "/workloads", {"all": stopped, "filter": tuple(filters), "size": sizes})


def inspect(name: str) -> Call:
    return Call("GET", workload_path(name))


def remove(name: str, *, force: bool, volumes: bool) -> Call:
    return Call("DELETE", workload_path(name), {"force": force, "volumes": volumes})


def start(name: str) -> Call:
    return _post(workload_path(name, "/start"))


def stop(name: str, *, timeout: float | None) -> Call:
    return _post(workload_path(name, "/stop"), query={"timeout": timeout})


def kill(name: str, signal: str) -> Call:
    return _post(workload_path(name, "/kill"), query={"signal": signal})


def restart(name: str, *, timeout: float | None) -> Call:
    return _post(workload_path(name, "/restart"), query={"timeout": timeout})


def rename(name: str, to: str) -> Call:
    return _post(workload_path(name, "/rename"), query={"to": to})


def update(name: str, wanted: Update | Mapping[str, Any]) -> Call:
    return _post(workload_path(name, "/update"), _plain(wanted))


def top(name: str, options: str) -> Call:
    return Call("GET", workload_path(name, "/top"), {"options": options})


def changes(name: str) -> Call:
    return Call("GET", workload_path(name, "/changes"))


def pause(name: str) -> Call:
    return _post(workload_path(name, "/pause"))


def unpause(name: str) -> Call:
    return _post(workload_path(name, "/unpause"))


def resize(name: str, columns: int, rows: int, *, exec_id: str | None) -> Call:
    return _post(workload_path(name, "/resize"), query={"columns": columns, "rows": rows, "exec": exec_id})


def prune(filters: Iterable[str]) -> Call:
    return _post("/workloads/prune", query={"filter": tuple(filters)})


def wait(name: str, condition: str) -> Call:
    call = _post(workload_path(name, "/wait"), query={"condition": condition})
    call.safe = condition == "not-running"
    return call


def attach(name: str, *, stdin: bool, stdout: bool, stderr: bool, logs: bool, start: bool) -> Call:
    query = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "logs": logs, "start": start}
    call = _post(workload_path(name, "/attach"), query=query)
    call.headers.update(_UPGRADE)
    return call


def execute(name: str, spec: ExecSpec | Mapping[str, Any], *, detach: bool) -> Call:
    wanted = dict(_plain(spec))
    if detach:
        wanted["detach"] = True
    call = _post(workload_path(name, "/exec"), wanted)
    if not detach:
        call.headers.update(_UPGRADE)
    return call


def logs(
    name: str,
    *,
    follow: bool,
    tail: int | None,
    since: str | None,
    until: str | None,
    timestamps: bool,
    stdout: bool,
    stderr: bool,
) -> Call:
    query = {"follow": follow, "tail": tail, "since": since, "until": until, "timestamps": timestamps}
    return Call("GET", workload_path(name, "/logs"), {**query, "stdout": stdout, "stderr": stderr})


def stats(name: str, *, stream: bool) -> Call:
    return Call("GET", workload_path(name, "/stats"), {"stream": stream})


def stat_path(name: str, path: str) -> Call:
    return Call("HEAD", workload_path(name, "/archive"), {"path": path})


def get_archive(name: str, path: str) -> Call:
    return Call("GET", workload_path(name, "/archive"), {"path": path})


def image_history(name: str) -> Call:
    return Call("GET", image_path(name, "/history"))


def image_diff(name: str, other: str) -> Call:
    return Call("GET", image_path(name, "/diff"), {"other": other})


def disk_usage() -> Call:
    return Call("GET", "/system/df")


def commit(name: str, wanted: Mapping[str, Any]) -> Call:
    return _post(workload_path(name, "/commit"), dict(wanted))


def export(name: str) -> Call:
    return Call("GET", workload_path(name, "/export"))


def put_archive(name: str, path: str, body: Iterable[bytes]) -> Call:
    return Call("PUT", workload_path(name, "/archive"), {"path": path}, body=body, headers=_TAR)
