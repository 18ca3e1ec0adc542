"""Instructions of a Dockerfile that change an image's config: `CMD ENTRYPOINT ENV EXPOSE …`, one text each.

Out of scope: all that makes files.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from typing import TYPE_CHECKING, Any

from knarr.model.errors import Invalid, KnarrError
from knarr.model.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Config = dict[str, Any]
_SHELL = ("/bin/sh", "-c")
_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII)
_MAX_PORT = 65535
_CHECK_OPTION = re.compile(r"--(interval|timeout|start-period|start-interval|retries)=(\S+)\s+", re.ASCII)


def change(config: Config, instructions: Iterable[str]) -> None:
    """Apply them to an image's `config` object. Raises `Invalid`."""
    for text in instructions:
        word, _, rest = text.strip().partition(" ")
        act = _ACTS.get(word.upper())
        if act is None:
            known = ", ".join(sorted(_ACTS))
            raise Invalid(f"change {text[:200]!r} is no instruction that a commit takes", hint=known)
        rest = rest.strip()
        if not rest:
            raise Invalid(f"change {text[:200]!r} says nothing", hint=f"{word.upper()} VALUE")
        try:
            act(config, rest)
        except (ValueError, KnarrError) as error:
            raise Invalid(f"change {text[:200]!r} can't be read: {error}") from error


def _command(text: str) -> list[str]:
    if text.startswith("["):
        return _texts(text)
    return [*_SHELL, text]


def _texts(text: str) -> list[str]:
    value = json.loads(text)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Invalid("a JSON list of texts is wanted")
    return value


def _cmd(config: Config, text: str) -> None:
    config["Cmd"] = _command(text)


def _entrypoint(config: Config, text: str) -> None:
    config["Entrypoint"] = _command(text)
    # as a Dockerfile has it: a new entrypoint does not get the old one's words
    config.pop("Cmd", None)


def _pairs(text: str) -> list[tuple[str, str]]:
    """`KEY=value KEY2="two words"`, or the old `KEY all the rest`."""
    first, _, rest = text.partition(" ")
    if "=" not in first:
        return [(first, rest.strip())]
    pairs = [item.partition("=") for item in shlex.split(text)]
    if any(not key or not equals for key, equals, _ in pairs):
        raise Invalid("KEY=VALUE is wanted")
    return [(key, value) for key, _, value in pairs]


def _env(config: Config, text: str) -> None:
    env = dict(item.partition("=")[::2] for item in config.get("Env") or ())
    env.update(_pairs(text))
    config["Env"] = [f"{key}={value}" for key, value in env.items()]


def _label(config: Config, text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(text))}


def _expose(config: Config, text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in text.split():
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match is None or not 0 < first <= last <= _MAX_PORT:
            raise Invalid(f"{word!r} is no port")
        for port in range(first, last + 1):
            ports[f"{port}/{match[3] or 'tcp'}"] = {}
    config["ExposedPorts"] = ports


def _volume(config: Config, text: str) -> None:
    paths = _texts(text) if text.startswith("[") else shlex.split(text)
    config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in paths}}


def _workdir(config: Config, text: str) -> None:
    config["WorkingDir"] = posixpath.normpath(posixpath.join(config.get("WorkingDir") or "/", text))


def _user(config: Config, text: str) -> None:
    config["User"] = text


def _stop_signal(config: Config, text: str) -> None:
    config["StopSignal"] = text


def _on_build(config: Config, text: str) -> None:
    config["OnBuild"] = [*(config.get("OnBuild") or ()), text]


def _health_check(config: Config, text: str) -> None:
    found: Config = {}
    while match := _CHECK_OPTION.match(text):
        text = text[match.end() :]
        key = "".join(part.capitalize() for part in match[1].split("-"))
        found[key] = int(match[2]) if key == "Retries" else int(parse_duration(match[2]) * 1e9)
    word, _, rest = text.partition(" ")
    if word.upper() == "NONE" and not rest:
        config["Healthcheck"] = {"Test": ["NONE"]}
        return
    if word.upper() != "CMD" or not rest.strip():
        raise Invalid("NONE or CMD COMMAND is wanted")
    rest = rest.strip()
    test = ["CMD", *_texts(rest)] if rest.startswith("[") else ["CMD-SHELL", rest]
    config["Healthcheck"] = {"Test": test, **found}


_ACTS: dict[str, Callable[[Config, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _health_check,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
