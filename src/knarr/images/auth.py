"""Who we are to a registry: credentials from docker's config.json and its helpers, challenges, and the
rules for where a password may go. Sending requests is the transport's business.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from knarr.model.errors import Denied, Failed, Invalid, Unavailable

_HUB_KEY = "https://index.docker.io/v1/"
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_MAX_CONFIG = 1 << 20
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_HELPER_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_HELPER_SECONDS = 30
_CHALLENGE = re.compile(r'\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))', re.ASCII)
_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)(?=\s|,|$)", re.ASCII)
_PUBLIC = re.compile(r"(ac|co|com|edu|gob|gov|go|ne|net|or|org)\.[a-z]{2}", re.ASCII)
"""second-level domains that belong to nobody, such as co.uk"""
_VISIBLE = re.compile(r"[\x21-\x7e]+", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """Secrets stay out of every representation, so out of every message and traceback."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def basic(self) -> str:
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()


@dataclass(frozen=True, slots=True)
class Challenge:
    scheme: str
    """lower case"""
    parameters: dict[str, str]


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """The challenges of a WWW-Authenticate header; what can't be read ends the list."""
    found: list[Challenge] = []
    position = 0
    header = header[:8192]
    while (scheme := _SCHEME.match(header, position)) is not None:
        position = scheme.end()
        parameters: dict[str, str] = {}
        while (pair := _CHALLENGE.match(header, position)) is not None:
            position = pair.end()
            quoted = pair[2]
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else pair[3]
            parameters.setdefault(pair[1].lower(), value)
        found.append(Challenge(scheme[1].lower(), parameters))
    return tuple(found)


def may_send(registry_host: str, realm_host: str) -> bool:
    """A registry may ask for its password at its own host or at a host of its own domain.

    A realm is the registry's word only; without this rule any registry (or whoever answers in its place)
    could have passwords sent anywhere.
    """
    mine, its = registry_host.lower().rstrip("."), realm_host.lower().rstrip(".")
    if mine == its:
        return True
    if not _is_name(mine) or not _is_name(its):
        return False
    parent = mine.partition(".")[2]
    domain = mine if "." not in parent or _PUBLIC.fullmatch(parent) else parent
    return its == domain or its.endswith(f".{domain}")


def _is_name(host: str) -> bool:
    return "." in host and ":" not in host and not host.rpartition(".")[2].isdigit()


def clean_token(value: Any) -> str:
    """A bearer token fit for a header. Raises `Failed` without showing it."""
    if not isinstance(value, str) or not _VISIBLE.fullmatch(value) or len(value) > 65536:
        raise Failed(
            "the registry's token service sent no usable token", hint="try again, or ask its operator"
        )
    return value


def find_credentials(registry: str) -> Credentials | None:
    """What docker's config.json (or `$DOCKER_CONFIG`) holds for this registry, helpers included."""
    folder = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
    config = _read_config(os.path.join(folder, "config.json"))
    if config is None:
        return None
    helpers = _object(config, "credHelpers")
    for key in _keys(registry):
        helper = helpers.get(key) or helpers.get(urlsplit(key).hostname or key)
        if helper:
            return _ask_helper(str(helper), key)
    store = config.get("credsStore")
    if store:
        found = next((got for key in _keys(registry) if (got := _ask_helper(str(store), key))), None)
        if found is not None:
            return found
    return _from_auths(_object(config, "auths"), registry)


def _keys(registry: str) -> tuple[str, ...]:
    return (_HUB_KEY,) if registry in _HUB_NAMES else (registry,)


def _object(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _read_config(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_CONFIG + 1)
        config = json.loads(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Denied(f"{path!r} can't be read: {error.strerror}", hint="fix its permissions") from error
    except (ValueError, RecursionError):
        # the text is not shown: it holds passwords
        raise Invalid(
            f"{path!r} is not valid JSON", hint="repair it, or remove it and log in again"
        ) from None
    if len(data) > _MAX_CONFIG or not isinstance(config, dict):
        raise Invalid(
            f"{path!r} is not docker's configuration", hint="repair it, or remove it and log in again"
        )
    return config


def _from_auths(auths: dict[str, Any], registry: str) -> Credentials | None:
    for key in _keys(registry):
        if isinstance(auths.get(key), dict):
            return _from_entry(auths[key], key)
    names = _HUB_NAMES if registry in _HUB_NAMES else {registry}
    for key, entry in auths.items():
        host = key.split("://", 1)[-1].split("/", 1)[0]
        if host in names and isinstance(entry, dict):
            return _from_entry(entry, key)
    return None


def _from_entry(entry: dict[str, Any], key: str) -> Credentials | None:
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    identity, encoded = str(entry.get("identitytoken") or ""), entry.get("auth")
    if isinstance(encoded, str) and encoded:
        try:
            decoded = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise Invalid(
                f"the login of {key[:200]!r} in config.json is damaged", hint="log in again"
            ) from None
        username, _, password = decoded.rstrip("\0").partition(":")
    if not (username or identity):
        return None
    return Credentials(username=username, password=password, identity_token=identity)


def _ask_helper(name: str, key: str) -> Credentials | None:
    program = _find_helper(name)
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"credential helper {program!r} did not answer", hint="try it by hand") from error
    if done.returncode != 0:
        if b"credentials not found" in done.stdout + done.stderr:
            return None
        raise Unavailable(
            f"credential helper {program!r} failed with status {done.returncode}",
            hint=f"try '{program} get' by hand",
        )
    return _helper_answer(program, done.stdout)


def _find_helper(name: str) -> str:
    # by fixed folders, never by PATH: the daemon runs as root
    if not _HELPER.fullmatch(name):
        raise Invalid(
            f"{name[:100]!r} is not a credential helper's name", hint="see credsStore in config.json"
        )
    for folder in _HELPER_FOLDERS:
        path = f"{folder}/docker-credential-{name}"
        if os.access(path, os.X_OK):
            return path
    raise Unavailable(
        f"credential helper 'docker-credential-{name}' is not installed",
        hint=f"install it into one of {', '.join(_HELPER_FOLDERS[1::2])}, or take it out of config.json",
    )


def _helper_answer(program: str, data: bytes) -> Credentials | None:
    try:
        answer = json.loads(data[:_MAX_CONFIG])
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Failed(
            f"credential helper {program!r} gave no usable answer", hint=f"try '{program} get' by hand"
        ) from None
    if not username and not secret:
        return None
    if username == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(username=username, password=secret)
