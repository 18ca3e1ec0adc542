"""ROOT/settings.json: what holds for every workload that does not say otherwise.

Read again whenever it has changed, so no restart is needed. Out of scope: what the settings do.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field

from knarr.model.errors import Invalid
from knarr.model.logs import Logging
from knarr.model.namespaces import UserMode, UserNamespace, parse_userns

_LIMIT = 1 << 16
_KNOWN = ("userns", "log-driver", "log-opts", "microvm-slots")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    userns: UserNamespace | None = None
    """for containers; None = host"""
    log: Logging = field(default_factory=Logging)
    microvm_slots: int | None = None
    """how many microVMs may wait for a workload at most; None = as the host's memory allows"""


class SettingsFile:
    def __init__(self, root: str) -> None:
        self._path = os.path.join(root, "settings.json")
        self._seen: tuple[int, int, int] | None = None
        self._settings = Settings()

    def read(self) -> Settings:
        """Raises `Invalid` naming the file and the key."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            self._seen, self._settings = None, Settings()
            return self._settings
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._settings = parse(self._path, self._text())
            self._seen = seen
        return self._settings

    def _text(self) -> bytes:
        with open(self._path, "rb") as file:
            return file.read(_LIMIT)


def parse(path: str, text: bytes) -> Settings:
    """Raises `Invalid`."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise Invalid(f"{path}: not JSON: {error}", hint='such as {"userns": "auto"}') from error
    if not isinstance(values, dict):
        raise Invalid(f"{path}: not an object", hint='such as {"userns": "auto"}')
    for key in values:
        if key not in _KNOWN:
            raise Invalid(f"{path}: setting {key!r} is unknown", hint=", ".join(_KNOWN))
    log = _log(path, values.get("log-driver", ""), values.get("log-opts", {}))
    slots = values.get("microvm-slots")
    if slots is not None and (type(slots) is not int or slots < 0):
        raise Invalid(f"{path}: microvm-slots is not a number of machines", hint='{"microvm-slots": 0}')
    return Settings(userns=_userns(path, values.get("userns")), log=log, microvm_slots=slots)


def _log(path: str, driver: object, options: object) -> Logging:
    """By docker's names; what they may be is checked with the workload's own."""
    if not isinstance(driver, str) or not isinstance(options, dict):
        raise Invalid(
            f"{path}: log-driver is text, log-opts an object", hint='{"log-opts": {"max-size": "10m"}}'
        )
    return Logging(driver=driver, options={str(key): str(value) for key, value in options.items()})


def _userns(path: str, value: object) -> UserNamespace | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise Invalid(f"{path}: userns is not text", hint='such as {"userns": "auto"}')
    try:
        found = parse_userns(value)
    except Invalid as error:
        raise Invalid(f"{path}: {error.message}", hint=error.hint) from error
    if found.mode is UserMode.KEEP_ID:
        raise Invalid(f"{path}: keep-id means one user, so it can't hold for all", hint="host, auto, remap")
    return found
