"""From the options of `run` and `create` to a workload spec's JSON; only what the user said is in it.

Pure but for reading the environment and the files that options name. Plain dicts instead of
`model.workload`'s dataclasses: importing those would cost more time than the rest of `knarr run`; the daemon
decodes and checks.
"""

from __future__ import annotations

import os

from knarr.cli import limits, namespaces
from knarr.model.errors import Invalid, KnarrError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from knarr.cli.options import Arguments

    Json = dict[str, Any]

ISOLATION_ALIASES = {"runc": "container", "crun": "container", "vm": "machine", "runsc": "sandbox"}
_EXTRA = {"volume": "nocopy", "bind": "idmap"}
_PROPAGATIONS = {"private", "rprivate", "shared", "rshared", "slave", "rslave"}
_IGNORED_BIND_OPTIONS = {"z", "Z", "rw", "cached", "delegated", "consistent"}


def workload(a: Arguments) -> Json:
    """The spec of `run`, `create` and `plan`. Raises `Invalid`."""
    image, *command = a.operands
    spec: Json = {
        "image": image,
        "isolation": isolation(a.isolation),
        "name": a.name,
        "command": command or None,
        "entrypoint": None if a.entrypoint is None else ([a.entrypoint] if a.entrypoint else []),
        "env": environment(a.env, a.env_file),
        "user": a.user,
        "groups": a.group_add,
        "workdir": a.workdir,
        "hostname": a.hostname,
        "tty": a.tty,
        "stdin_open": a.interactive,
        "init": a.init,
        "read_only": a.read_only,
        "mounts": mounts(a),
        "devices": [device(text) for text in a.device],
        "shm_size": sized("--shm-size", a.shm_size),
        "sysctls": sysctls(a.sysctl),
        "extra_hosts": [extra_host(text) for text in a.add_host],
        "dns": said({"servers": a.dns, "search": a.dns_search, "options": a.dns_option}),
        "volumes_from": a.volumes_from,
        "ports": [port for text in a.publish for port in ports(text)],
        "network": namespaces.network(a.network),
        "sharing": namespaces.sharing(a),
        "userns": namespaces.userns(a.userns),
        "resources": limits.resources(a),
        "rlimits": [rlimit(text) for text in a.ulimit],
        "oom_score_adj": optional("--oom-score-adj", a.oom_score_adj),
        "security": security(a),
        "labels": labels(a.label, a.label_file),
        "auto_remove": a.rm,
        "restart": restart(a.restart),
        "health": health(a),
        "log": said({"driver": a.log_driver, "options": pairs("--log-opt", a.log_opt)}),
        "stop_signal": a.stop_signal,
        "stop_timeout": optional("--stop-timeout", a.stop_timeout),
        "kernel": a.kernel and os.path.abspath(a.kernel),
    }
    return said(spec)


def said(values: Json) -> Json:
    """Without everything that is as if unsaid. An empty entrypoint says something: it clears the image's."""
    return {
        key: value
        for key, value in values.items()
        if (key == "entrypoint" and value is not None) or value not in (None, False, [], {}, "")
    }


def isolation(name: str | None) -> str | None:
    return None if name is None else ISOLATION_ALIASES.get(name, name)


def whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Invalid(f"{option}: {text!r} is not a whole number") from None


def pairs(option: str, given: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` each."""
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise Invalid(f"{option}: {text!r}", hint="KEY=VALUE")
        found[key] = value
    return found


def optional(option: str, text: str | None) -> int | None:
    return None if text is None else whole(option, text)


def environment(given: Iterable[str], files: Iterable[str]) -> list[str]:
    """Files first, then `-e`; `KEY` alone takes the caller's value, and nothing if there is none."""
    lines = [line for path in files for line in read_lines(path)]
    result = []
    for item in (*lines, *given):
        key, equals, _ = item.partition("=")
        if not key or any(character.isspace() for character in key):
            raise Invalid(f"{item!r} is not an environment variable", hint="KEY=VALUE, or KEY to take yours")
        if equals:
            result.append(item)
        elif key in os.environ:
            result.append(f"{key}={os.environ[key]}")
    return result


def read_lines(path: str) -> list[str]:
    """Lines of a `--env-file` or `--label-file` without comments and empty ones."""
    try:
        # some editors begin with a mark of byte order
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.rstrip("\r\n").lstrip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path}: {getattr(error, 'strerror', None) or 'is not UTF-8'}") from error
    return [line for line in lines if line and not line.startswith("#")]


def labels(given: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    found = {}
    for item in (*(line for path in files for line in read_lines(path)), *given):
        key, _, value = item.partition("=")
        if not key:
            raise Invalid(f"label {item!r} has no name", hint="KEY=VALUE")
        found[key] = value
    return found


def restart(text: str | None) -> Json | None:
    """`no`, `always`, `unless-stopped`, `on-failure[:NUMBER]`."""
    if text is None:
        return None
    kind, colon, number = text.partition(":")
    if kind not in ("no", "always", "unless-stopped", "on-failure"):
        raise Invalid(
            f"--restart: {text!r} is no policy", hint="no, always, unless-stopped, on-failure[:NUMBER]"
        )
    return {"kind": kind, **({"retries": whole("--restart", number)} if colon else {})}


def health(a: Arguments) -> Json:
    from knarr.model import units

    if a.no_healthcheck and (a.health_cmd or a.health_interval or a.health_retries):
        raise Invalid("--no-healthcheck and the --health options exclude each other")
    test = ["CMD-SHELL", a.health_cmd] if a.health_cmd else ["NONE"] if a.no_healthcheck else []
    times = ("interval", "timeout", "start_period", "start_interval")
    given = {name: getattr(a, f"health_{name}") for name in times}
    return said(
        {
            "test": test,
            **{name: text and units.parse_duration(text) for name, text in given.items()},
            "retries": a.health_retries and whole("--health-retries", a.health_retries),
        }
    )


def sized(option: str, text: str | None) -> int | None:
    from knarr.model import units

    if text is None:
        return None
    try:
        return units.parse_bytes(text)
    except Invalid as error:
        raise Invalid(f"{option}: {error.message}", hint=error.hint) from None


def device(text: str) -> Json:
    """`/dev/HERE[:/dev/INSIDE][:rwm]`."""
    source, *rest = text.split(":")
    access = rest.pop() if rest and not rest[-1].startswith("/") else None
    if len(rest) > 1:
        raise Invalid(f"--device: {text!r}", hint="/dev/NAME[:/dev/NAME][:rwm]")
    return said({"source": source, "target": rest[0] if rest else None, "access": access})


def sysctls(given: Iterable[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise Invalid(f"--sysctl: {text!r} has no value", hint="NAME=VALUE")
        found[name.replace("/", ".")] = value
    return found


def extra_host(text: str) -> str:
    """`NAME:ADDRESS` or, as docker takes it too, `NAME=ADDRESS`."""
    name, equals, address = text.partition("=")
    return f"{name}:{address}" if equals else text


def rlimit(text: str) -> Json:
    """`nofile=1024:2048`, `core=-1`."""
    name, equals, values = text.partition("=")
    soft, _, hard = values.partition(":")
    if not equals or not name:
        raise Invalid(f"--ulimit: {text!r}", hint="NAME=SOFT[:HARD], such as nofile=1024:2048")
    low = _limit(text, soft)
    return {"name": name.lower(), "soft": low, "hard": _limit(text, hard) if hard else low}


def _limit(text: str, value: str) -> int:
    if value == "unlimited":
        return -1
    try:
        return int(value)
    except ValueError:
        raise Invalid(f"--ulimit: {text!r}", hint="limits are numbers; -1 is unlimited") from None


def security(a: Arguments) -> Json:
    result: Json = {
        "profile": a.security_profile,
        "privileged": a.privileged,
        "cap_add": [capability(name) for name in a.cap_add],
        "cap_drop": [capability(name) for name in a.cap_drop],
    }
    for text in a.security_opt:
        for key, value in security_option(text).items():
            result[key] = [*result.get(key, ()), *value] if isinstance(value, list) else value
    return said(result)


def capability(name: str) -> str:
    return name.upper().removeprefix("CAP_")


def security_option(text: str) -> Json:
    # docker's older form has a colon
    between = min((sign for sign in "=:" if sign in text), key=text.index, default="=")
    key, _, value = text.partition(between)
    if key == "no-new-privileges":
        if value in ("", "true", "false"):
            return {"no_new_privileges": value != "false"}
    elif key == "seccomp":
        return {"seccomp": namespaces.seccomp(value)}
    elif key in ("mask", "unmask"):
        return {key: namespaces.paths(key, value)}
    elif key == "systempaths" and value == "unconfined":
        return {"system_paths": value}
    elif text in ("apparmor=unconfined", "label=disable"):
        return {}
    raise Invalid(
        f"--security-opt: {text!r} is unknown",
        hint="no-new-privileges, seccomp=FILE|unconfined, mask=PATH, unmask=PATH|ALL, systempaths=unconfined",
    )


def mounts(a: Arguments) -> list[Json]:
    """All of `-v`, `--mount`, `--tmpfs`. Raises `Invalid` for two on one target."""
    found = [volume(text) for text in a.volume]
    found += [mount(text) for text in a.mount]
    found += [tmpfs(text) for text in a.tmpfs]
    targets: set[str] = set()
    for item in found:
        target = os.path.normpath(item["target"])
        if target in targets:
            raise Invalid(f"{target}: two mounts on one path")
        targets.add(target)
    return found


def volume(text: str) -> Json:
    """`SOURCE:TARGET[:OPTIONS]`, or `TARGET` alone for a volume without a name."""
    source, colon, rest = text.partition(":")
    if not colon:
        return {"kind": "volume", "target": _target(text, source)}
    target, _, words = rest.partition(":")
    options = [word for word in words.split(",") if word and word not in _IGNORED_BIND_OPTIONS]
    result: Json = {**_source(source, text), "target": _target(text, target)}
    for option in options:
        if option == "ro":
            result["read_only"] = True
        elif option in _PROPAGATIONS or option == _EXTRA[result["kind"]]:
            result.setdefault("options", []).append(option)
        else:
            raise Invalid(
                f"-v {text}: unknown option {option!r}",
                hint="ro, rw, nocopy, idmap, " + ", ".join(sorted(_PROPAGATIONS)),
            )
    return result


def _source(source: str, text: str) -> Json:
    if source.startswith(("/", ".", "~/")):
        return {"kind": "bind", "source": os.path.abspath(os.path.expanduser(source))}
    if not source or "/" in source:
        raise Invalid(
            f"-v {text}: {source!r} is neither a path nor a volume's name", hint="a path begins with / or ."
        )
    return {"kind": "volume", "source": source}


def _target(text: str, target: str) -> str:
    if not target.startswith("/"):
        raise Invalid(
            f"{text!r}: the path inside must be absolute, got {target!r}", hint="SOURCE:/TARGET[:ro]"
        )
    return target


_MOUNT_KEYS = {
    "type": "kind",
    "source": "source",
    "src": "source",
    "target": "target",
    "destination": "target",
    "dst": "target",
    "readonly": "read_only",
    "ro": "read_only",
    "bind-propagation": "propagation",
    "bind-nonrecursive": "nonrecursive",
    "bind-recursive": "recursive",
    "consistency": "consistency",
    "volume-nocopy": "nocopy",
    "volume-driver": "driver",
    "idmap": "idmap",
    "tmpfs-size": "size",
    "tmpfs-mode": "mode",
}


def mount(text: str) -> Json:
    """`type=bind,source=…,target=…,readonly`."""
    values: dict[str, str] = {"kind": "volume"}
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key not in _MOUNT_KEYS:
            raise Invalid(f"--mount {text}: unknown key {key!r}", hint="one of: " + ", ".join(_MOUNT_KEYS))
        values[_MOUNT_KEYS[key]] = value
    if values["kind"] not in ("bind", "tmpfs", "volume"):
        raise Invalid(f"--mount {text}: unknown type {values['kind']!r}", hint="bind, tmpfs or volume")
    if values.get("driver", "local") != "local":
        raise Unsupported(f"--mount {text}: volume driver {values['driver']!r} is not there", hint="local")
    if values["kind"] == "bind" and not values.get("source"):
        raise Invalid(f"--mount {text}: source is missing", hint="type=bind,source=PATH,target=PATH")
    return _mount_value(text, values)


def _mount_value(text: str, values: dict[str, str]) -> Json:
    source = values.get("source")
    if source and values["kind"] == "bind":
        source = os.path.abspath(source)
    options = [f"{key}={values[key]}" for key in ("size", "mode") if key in values]
    options += [values["propagation"]] if "propagation" in values else []
    switches = {"idmap": "idmap", "nocopy": "nocopy", "nonrecursive": "bind-nonrecursive"}
    options += [word for key, word in switches.items() if values.get(key, "false") in ("", "true", "1")]
    options += _recursion(text, values.get("recursive", "enabled"), options)
    return said(
        {
            "kind": values["kind"],
            "source": source,
            "target": _target(text, values.get("target", "")),
            "read_only": values.get("read_only", "false") in ("", "true", "1"),
            "options": options,
        }
    )


def _recursion(text: str, wanted: str, options: list[str]) -> list[str]:
    """Docker's `bind-recursive`; a read-only bind is so with all that is mounted below it."""
    if wanted not in ("enabled", "disabled", "readonly"):
        raise Unsupported(f"--mount {text}: bind-recursive={wanted}", hint="enabled, disabled or readonly")
    return ["bind-nonrecursive"] if wanted == "disabled" and "bind-nonrecursive" not in options else []


def tmpfs(text: str) -> Json:
    """`/path[:size=64m,mode=1777]`."""
    target, _, words = text.partition(":")
    options = [word for word in words.split(",") if word]
    read_only = "ro" in options
    kept = [word for word in options if word not in ("ro", "rw")]
    return said({"kind": "tmpfs", "target": _target(text, target), "read_only": read_only, "options": kept})


def ports(text: str) -> list[Json]:
    """`[IP:][HOST:]CONTAINER[/PROTOCOL]`, each side a port or a range of equal length."""
    body, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in ("tcp", "udp"):
        raise Invalid(f"-p {text}: unknown protocol {protocol!r}", hint="tcp or udp")
    address, outer, inner = _port_parts(text, body)
    inside = _port_range(text, inner)
    outside = _port_range(text, outer) if outer not in ("", "0") else [0] * len(inside)
    if len(outside) != len(inside):
        raise Invalid(f"-p {text}: the ranges differ in length")
    return [
        said({"container_port": into, "host_port": out, "host_ip": address, "protocol": protocol})
        for out, into in zip(outside, inside, strict=True)
    ]


def _port_parts(text: str, body: str) -> tuple[str, str, str]:
    address = ""
    if body.startswith("["):
        address, bracket, body = body[1:].partition("]")
        if not bracket or not body.startswith(":"):
            raise Invalid(f"-p {text}", hint="[IPv6]:HOST:CONTAINER")
        body = body[1:]
    parts = body.split(":")
    if len(parts) == 3 and not address:
        address = parts.pop(0)
    if len(parts) > 2:
        raise Invalid(f"-p {text}", hint="[IP:][HOST:]CONTAINER[/PROTOCOL]; IPv6 in brackets")
    return address, parts[0] if len(parts) == 2 else "", parts[-1]


def _port_range(text: str, part: str) -> list[int]:
    first, _, last = part.partition("-")
    try:
        low = int(first)
        high = int(last) if last else low
    except ValueError:
        low, high = 0, -1
    if not 0 < low <= high < 65536:
        raise Invalid(f"-p {text}: {part!r} is not a port", hint="1 to 65535, or a range such as 8000-8010")
    return list(range(low, high + 1))


def process(a: Arguments) -> Json:
    """The spec of `exec`. Raises `KnarrError`."""
    return said(
        {
            "args": a.operands[1:],
            "env": environment(a.env, a.env_file),
            "user": a.user,
            "workdir": a.workdir,
            "tty": a.tty,
            "stdin_open": a.interactive,
            "privileged": a.privileged,
        }
    )


def check_terminal(*, tty: bool, stdin: bool) -> None:
    """Docker's rule: a tty for a stdin that is none would never work as meant."""
    if tty and stdin and not os.isatty(0):
        raise KnarrError("-t: standard input is not a terminal", hint="leave -t away, or -i", exit_code=1)
