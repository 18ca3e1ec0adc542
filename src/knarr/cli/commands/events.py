"""`events`: what happens in the engine, as it happens."""

from __future__ import annotations

import sys
import time

from knarr.cli import tables
from knarr.cli.commands.logs import moment
from knarr.cli.context import Context, printable, say
from knarr.cli.options import Arguments, Command, Option
from knarr.model.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KEYS = ("type", "event", "container", "workload", "image", "volume", "network", "daemon", "label")


def events(context: Context, a: Arguments) -> int:
    wanted = [_filter(text) for text in a.filter]
    lines = context.client.events(
        since=moment(a.since), until=moment(a.until), follow=a.until is None and not a.no_follow
    )
    for event in lines:
        if matches(event, wanted):
            tables.document(event, a.format) if a.format else say(line(event))
            sys.stdout.flush()
    return 0


def _filter(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or key not in KEYS:
        raise Invalid(f"filter {text!r} is unknown", hint="KEY=VALUE with " + ", ".join(KEYS))
    return key, value


def matches(event: dict[str, Any], wanted: list[tuple[str, str]]) -> bool:
    """Filters of one key are alternatives, different keys must all hold."""
    keys = {key for key, _ in wanted}
    return all(any(_match(event, key, value) for known, value in wanted if known == key) for key in keys)


def _match(event: dict[str, Any], key: str, value: str) -> bool:
    attributes = event.get("attributes") or {}
    if key == "type":
        return event.get("type") in (value, "workload" if value == "container" else value)
    if key == "event":
        return bool(event.get("action") == value)
    if key == "label":
        name, equals, wanted = value.partition("=")
        return name in attributes and (not equals or attributes[name] == wanted)
    if key == "image":
        return value in (event.get("id"), attributes.get("image"))
    if key in ("volume", "network", "daemon") and event.get("type") != key:
        return False
    return str(event.get("id", "")).startswith(value) or attributes.get("name") == value


def line(event: dict[str, Any]) -> str:
    """`2026-01-31T12:00:00.123456789+00:00 workload start 3f… (image=…, name=…)`."""
    seconds, nanoseconds = divmod(int(event["time"]), 1_000_000_000)
    local = time.localtime(seconds)
    zone = time.strftime("%z", local)
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{nanoseconds:09d}{zone[:3]}:{zone[3:]}"
    attributes = ", ".join(f"{key}={value}" for key, value in sorted((event.get("attributes") or {}).items()))
    return printable(f"{stamp} {event['type']} {event['action']} {event['id']} ({attributes})")


EVENTS = Command(
    events,
    "what happens in the engine, as it happens",
    "",
    (
        Option("--since", "begin with events of this time", value="TIME"),
        Option("--until", "end at this time", value="TIME"),
        Option("--no-follow", "end with what has happened so far"),
        tables.FILTER,
        Option("--format", "json, or a template such as '{{.Action}}'", value="FORMAT"),
    ),
)
