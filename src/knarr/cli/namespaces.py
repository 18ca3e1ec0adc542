"""`--network --pid --ipc --uts --cgroupns --userns` and the files and paths of `--security-opt`.

Plain dicts, as everything in `cli.spec`.
"""

from __future__ import annotations

import os

from knarr.model.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.options import Arguments

    Json = dict[str, Any]

_CONTAINER = "container:"
_NETWORKS = {"bridge": "bridge", "default": "bridge", "none": "none", "host": "host"}
_MOST = 1 << 20


def network(text: str | None) -> str | None:
    if text is None:
        return None
    if text.startswith(_CONTAINER):
        return "container"
    if text not in _NETWORKS:
        raise Invalid(
            f"--network: {text!r} is not a network", hint=f"one of: {', '.join(_NETWORKS)}, container:NAME"
        )
    return _NETWORKS[text]


def sharing(a: Arguments) -> Json:
    joined = a.network if a.network and a.network.startswith(_CONTAINER) else None
    modes = {"pid": a.pid, "ipc": a.ipc, "uts": a.uts, "cgroup": a.cgroupns, "network": joined}
    return {key: mode for key, mode in modes.items() if mode}


def userns(text: str | None) -> Json | None:
    """With whom keep-id keeps: the caller, or who called sudo."""
    if text is None:
        return None
    from knarr.model import codec, namespaces

    found: Json = codec.to_json(namespaces.parse_userns(text))
    if found["mode"] == "keep-id":
        found["owner_uid"], found["owner_gid"] = _caller("UID", os.getuid()), _caller("GID", os.getgid())
    return {key: value for key, value in found.items() if value is not None}


def _caller(what: str, own: int) -> int:
    text = os.environ.get(f"SUDO_{what}", "") if os.getuid() == 0 else ""
    return int(text) if text.isdigit() else own


def seccomp(value: str) -> str:
    """`unconfined`, `default`, or the profile in a file: the daemon may not see the caller's files."""
    if value in ("unconfined", "default", "builtin"):
        return value.replace("builtin", "default")
    try:
        with open(value, encoding="utf-8") as file:
            text = file.read(_MOST + 1)
    except (OSError, UnicodeDecodeError) as error:
        fact = getattr(error, "strerror", None) or "is not UTF-8"
        raise Invalid(
            f"--security-opt seccomp={value}: {fact}", hint="a profile's file, default or unconfined"
        ) from error
    if len(text) > _MOST:
        raise Invalid(f"--security-opt seccomp={value}: more than {_MOST} bytes")
    if not text.lstrip().startswith("{"):
        raise Invalid(f"--security-opt seccomp={value}: not a profile", hint="docker's JSON form")
    return text


def paths(option: str, value: str) -> list[str]:
    """`mask=` and `unmask=`: absolute paths with colons in between; `unmask=ALL`."""
    found = [path for path in value.split(":") if path]
    for path in found:
        if not path.startswith("/") and not (option == "unmask" and path == "ALL"):
            raise Invalid(f"--security-opt {option}={value}: {path!r} is not an absolute path")
    if not found:
        raise Invalid(f"--security-opt {option}: no path", hint=f"{option}=/PATH[:/PATH]")
    return found
