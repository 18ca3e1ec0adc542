"""`logs`: what a workload has written, standard output to ours and standard error to ours."""

from __future__ import annotations

import time

from knarr.cli.context import Context
from knarr.cli.options import Arguments, Command, Option
from knarr.cli.spec import whole
from knarr.cli.streams import write_all
from knarr.model.errors import Invalid
from knarr.model.units import parse_duration


def logs(context: Context, a: Arguments) -> int:
    tail = None if a.tail in (None, "all") else whole("--tail", a.tail)
    pieces = context.client.logs(
        a.operands[0],
        follow=a.follow,
        tail=None if tail is not None and tail < 0 else tail,
        since=moment(a.since),
        until=moment(a.until),
        timestamps=a.timestamps,
    )
    for stream, data in pieces:
        write_all(2 if stream == 2 else 1, data)
    return 0


def moment(text: str | None) -> str | None:
    """Seconds since the epoch with a fraction, from a date, a duration before now, or such seconds."""
    if text is None:
        return None
    if text.replace(".", "", 1).isdigit():
        return text
    try:
        return f"{time.time() - parse_duration(text):.9f}"
    except Invalid:
        pass
    import datetime as dt

    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(
            f"{text!r} is not a time", hint="10m, 2026-01-31T12:00:00Z, or seconds since the epoch"
        ) from None
    return f"{found.timestamp():.6f}"


LOGS = Command(
    logs,
    "show what a workload has written",
    "WORKLOAD",
    (
        Option("-f --follow", "go on until it ends"),
        Option("-n --tail", "only the last so many lines (all)", value="NUMBER"),
        Option("--since", "from this time on: 10m, a date", value="TIME"),
        Option("--until", "up to this time", value="TIME"),
        Option("-t --timestamps", "the time before each line"),
    ),
    complete="workload",
)
