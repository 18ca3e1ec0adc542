"""What `ps` and `inspect` show of a workload, as plain JSON values. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from knarr.model import codec, names
from knarr.model.errors import Invalid
from knarr.model.state import Status
from knarr.model.workload import MountKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.engine.driver import Workload


def summary(w: Workload) -> dict[str, Any]:
    return {
        "id": w.id,
        "name": w.name,
        "image": w.spec.image,
        "image_id": w.image.id,
        "isolation": w.spec.isolation.value,
        "command": list(w.process.args),
        "status": w.status.value,
        "health": w.health.get("status", "") if w.status.running else "",
        "exit_code": w.exit_code,
        "created": w.created,
        "started": w.started,
        "finished": w.finished,
        "address": w.attachment.address if w.attachment and w.status.alive else "",
        "ports": codec.to_json(w.ports),
        "labels": labels(w),
    }


def labels(w: Workload) -> dict[str, str]:
    """The image's, and its own over them."""
    return {**w.image.config.labels, **w.spec.labels}


def inspect(w: Workload) -> dict[str, Any]:
    return {
        **summary(w),
        "pid": w.pid if w.status.running else 0,
        "hostname": w.hostname,
        "image_digest": w.image.digest,
        "oom_killed": w.oom_killed,
        "error": w.error,
        "restart_count": w.restarts,
        "health_check": w.health or None,
        "process": codec.to_json(w.process),
        "network": codec.to_json(w.attachment) if w.attachment else None,
        "spec": codec.to_json(w.spec),
        "ids": codec.to_json(w.ids) if w.ids else None,
        "mounts": [_mount(w, index) for index in range(len(w.mounts))],
        "warnings": list(w.warnings),
        "driver": w.private,
        "folder": w.dir,
    }


def _mount(w: Workload, index: int) -> dict[str, Any]:
    """A volume has a name besides the folder it is."""
    wanted, mount = w.spec.mounts[index], w.mounts[index]
    name = wanted.source if wanted.kind is MountKind.VOLUME else None
    return {
        "kind": mount.kind.value,
        "name": name or "",
        "source": mount.source or "",
        "target": mount.target,
        "read_only": mount.read_only,
    }


def _by_status(w: Workload, value: str) -> bool:
    return w.status.value == value


def _by_label(w: Workload, value: str) -> bool:
    key, equals, wanted = value.partition("=")
    found = labels(w)
    return key in found and (not equals or found[key] == wanted)


def _by_name(w: Workload, value: str) -> bool:
    """Part of the name; `^` and `$` are its ends, and a leading `/` is docker's way of writing names."""
    start, end = value.startswith(("^", "/")), value.endswith("$")
    text = value.lstrip("^/").removesuffix("$")
    if start and end:
        return w.name == text
    if start or end:
        return w.name.startswith(text) if start else w.name.endswith(text)
    return text in w.name


def _by_volume(w: Workload, value: str) -> bool:
    return any(value in (wanted.source, wanted.target) for wanted in w.spec.mounts)


def _by_port(w: Workload, value: str) -> bool:
    """`80`, `80/tcp`, of the host's side or inside."""
    number, _, protocol = value.partition("/")
    return any(
        number in (str(port.host_port), str(port.container_port)) and protocol in ("", port.protocol)
        for port in w.ports or w.spec.ports
    )


def _by_image(w: Workload, value: str) -> bool:
    try:
        reference = names.parse_reference(value).canonical
    except Invalid:
        reference = ""
    hexes = w.image.id.removeprefix("sha256:")
    return (
        value in (w.spec.image, w.image.id)
        or reference in w.image.references
        or (len(value) >= 4 and hexes.startswith(value.removeprefix("sha256:")))
    )


_FILTERS: dict[str, Callable[[Workload, str], bool]] = {
    "id": lambda w, value: w.id.startswith(value),
    "name": _by_name,
    "status": _by_status,
    "label": _by_label,
    "ancestor": _by_image,
    "image": _by_image,
    "isolation": lambda w, value: w.spec.isolation.value == value,
    "health": lambda w, value: w.status.running and w.health.get("status", "none") == value,
    "before": lambda w, value: w.created < int(value),
    "since": lambda w, value: w.created > int(value),
    "volume": _by_volume,
    "network": lambda w, value: w.spec.network.value == value,
    "publish": _by_port,
    "expose": _by_port,
    "exited": lambda w, value: w.status is Status.EXITED and str(w.exit_code) == value,
}


def parse_filters(texts: list[str], created: Callable[[str], str]) -> dict[str, list[str]]:
    """`key=value` each; values of one key are alternatives, keys must all hold. `created`: when the workload
    that `before` or `since` names was made. Raises `Invalid`, `NotFound`.
    """
    filters: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in _FILTERS:
            raise Invalid(f"filter {text!r} is unknown", hint="KEY=VALUE with " + ", ".join(sorted(_FILTERS)))
        filters.setdefault(key, []).append(created(value) if key in ("before", "since") else value)
    return filters


def matches(w: Workload, filters: dict[str, list[str]]) -> bool:
    return all(any(_FILTERS[key](w, value) for value in values) for key, values in filters.items())
