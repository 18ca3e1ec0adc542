"""`ps` and `inspect`."""

from __future__ import annotations

import time

from knarr.cli import tables
from knarr.cli.context import Context, complain, say
from knarr.cli.options import Arguments, Command, Option
from knarr.cli.spec import whole
from knarr.model.errors import KnarrError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

COLUMNS = ("ID", "Name", "Image", "Isolation", "Status", "Ports", "Command")


def ps(context: Context, a: Arguments) -> int:
    newest = 1 if a.latest else None if a.last is None else whole("--last", a.last)
    sizes = a.size or ".Size" in (a.format or "")
    everything = a.all or (newest is not None and newest >= 0)
    found = context.client.workloads(stopped=everything, filters=a.filter, sizes=sizes)
    found.sort(key=lambda item: item.get("created", 0), reverse=True)
    if newest is not None and newest >= 0:
        found = found[:newest]
    if a.quiet:
        for item in found:
            say(tables.short(item["id"], full=a.no_trunc))
        return 0
    columns = (*COLUMNS, "Size") if a.size else COLUMNS
    tables.show([row(item, full=a.no_trunc) for item in found], columns, a.format)
    return 0


def row(item: Mapping[str, Any], *, full: bool) -> dict[str, str]:
    """Docker's field names, as text."""
    labels = item.get("labels") or {}
    created = int(item.get("created") or 0)
    return {
        "ID": tables.short(item["id"], full=full),
        "Name": item["name"],
        "Names": item["name"],
        "Image": tables.cut(item["image"], 40, full=full),
        "ImageID": tables.short(str(item.get("image_id", "")), full=full),
        "Isolation": str(item.get("isolation", "")),
        "Runtime": str(item.get("isolation", "")),
        "Status": status(item),
        "State": item["status"],
        "ExitCode": str(item.get("exit_code", "")),
        "Ports": ", ".join(port(mapping) for mapping in item.get("ports") or ()),
        "Address": str(item.get("address", "")),
        "Command": tables.cut(command(item.get("command") or ()), 30, full=full),
        "RunningFor": ago(created),
        "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(created / 1e9)),
        "Size": size(item),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
    }


def size(item: Mapping[str, Any]) -> str:
    """`1.2MB (virtual 170MB)`: what it wrote, and with its image."""
    if "size" not in item:
        return ""
    from knarr.model.units import format_bytes

    own = int(item["size"])
    return f"{format_bytes(own)} (virtual {format_bytes(own + int(item.get('size_image', 0)))})"


def command(words: tuple[str, ...] | list[str]) -> str:
    return '"' + " ".join(words) + '"'


def status(item: Mapping[str, Any]) -> str:
    """`Up 3 minutes`, `Exited (0) 2 hours ago`, `Created`."""
    state = item["status"]
    if state in ("running", "stopping", "paused"):
        health = str(item.get("health") or "")
        well = f" ({'health: ' if health == 'starting' else ''}{health})" if health else ""
        note = well if state == "running" else f" ({state})"
        return f"Up {since(item.get('started'))}{note}"
    if state == "exited":
        code = item.get("exit_code")
        return f"Exited ({'unknown' if code == -1 else code}) {ago(int(item.get('finished') or 0))}"
    if state == "restarting":
        return f"Restarting ({item.get('exit_code')}) {ago(int(item.get('finished') or 0))}"
    return str(state).capitalize()


def since(nanoseconds: Any) -> str:
    from knarr.model.units import format_ago

    return format_ago(max(time.time() - int(nanoseconds or 0) / 1e9, 0))


def ago(nanoseconds: int) -> str:
    return f"{since(nanoseconds)} ago" if nanoseconds else ""


def port(mapping: Mapping[str, Any]) -> str:
    """`0.0.0.0:8080->80/tcp`."""
    inside = f"{mapping['container_port']}/{mapping.get('protocol', 'tcp')}"
    if not mapping.get("host_port"):
        return inside
    address = mapping.get("host_ip") or "0.0.0.0"
    return f"{f'[{address}]' if ':' in address else address}:{mapping['host_port']}->{inside}"


def inspect(context: Context, a: Arguments) -> int:
    found, failed = [], 0
    for name in a.operands:
        try:
            found.append(_inspect_one(context, name, a.type))
        except KnarrError as error:
            complain(error)
            failed = 1
    if found or a.format is None:
        tables.document(found, a.format)
    return failed


def _inspect_one(context: Context, name: str, kind: str | None) -> Mapping[str, Any]:
    """A workload; else an image of that name, as docker does."""
    if kind != "image":
        try:
            return with_docker_names(context.client.inspect(name))
        except NotFound:
            if kind is not None:
                raise
    try:
        return context.client.image(name)
    except NotFound:
        if kind is not None:
            raise
        raise NotFound(
            f"no workload and no image is named {name!r}", hint="knarr ps -a, knarr images"
        ) from None


def _health(found: Mapping[str, Any]) -> dict[str, Any]:
    log = [
        {"ExitCode": item["exit_code"], "Output": item["output"], "Start": item["start"], "End": item["end"]}
        for item in found["log"]
    ]
    return {"Status": found["status"], "FailingStreak": found["failing_streak"], "Log": log}


def with_docker_names(found: dict[str, Any]) -> dict[str, Any]:
    """Adds `State`, the object that docker's users look into with `--format`."""
    state = {
        "Status": found.get("status"),
        "Running": found.get("status") in ("running", "stopping", "paused", "restarting"),
        "Restarting": found.get("status") == "restarting",
        "Paused": found.get("status") == "paused",
        "OOMKilled": found.get("oom_killed"),
        "Pid": found.get("pid"),
        "ExitCode": found.get("exit_code"),
        "Error": found.get("error"),
    }
    if found.get("health_check"):
        state["Health"] = _health(found["health_check"])
    return {**found, "State": state, "HostConfig": _host_config(found.get("spec") or {})}


def _host_config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The limits and the log driver where docker's users look for them; 0 is none there."""
    limits, log = spec.get("resources") or {}, spec.get("log") or {}
    numbers = {name: limits.get(key) or 0 for name, key in _LIMITS.items()}
    return {
        **numbers,
        "NanoCpus": int((limits.get("cpus") or 0) * 1e9),
        "CpusetCpus": limits.get("cpuset") or "",
        "CpusetMems": limits.get("mems") or "",
        "OomKillDisable": bool(limits.get("oom_kill_disable")),
        "OomScoreAdj": spec.get("oom_score_adj") or 0,
        "LogConfig": {"Type": log.get("driver") or "json-file", "Config": log.get("options") or {}},
        "AutoRemove": bool(spec.get("auto_remove")),
        "ReadonlyRootfs": bool(spec.get("read_only")),
    }


_LIMITS = {
    "Memory": "memory",
    "MemorySwap": "memory_swap",
    "MemoryReservation": "memory_reservation",
    "CpuShares": "cpu_shares",
    "CpuQuota": "cpu_quota",
    "CpuPeriod": "cpu_period",
    "PidsLimit": "pids",
    "BlkioWeight": "blkio_weight",
}


PS = Command(
    ps,
    "list workloads",
    "",
    (
        Option("-a --all", "also those that do not run"),
        tables.FILTER,
        tables.FORMAT,
        Option("-n --last", "the newest so many, in any state", value="NUMBER"),
        Option("-l --latest", "the newest, in any state"),
        Option("-s --size", "with the size of what it wrote"),
        tables.NO_TRUNC,
        tables.QUIET,
    ),
    notes="Filters: id, name, status, label, ancestor, before, since, volume, network, publish, isolation, "
    "exited, health.",
)
INSPECT = Command(
    inspect,
    "all there is to know about workloads or images, as JSON",
    "NAME [NAME...]",
    (
        Option("-f --format", "a template such as '{{.address}}', or json", value="FORMAT"),
        Option("--type", "look among these only", value="KIND", choices=("container", "workload", "image")),
    ),
    complete="workload",
)
