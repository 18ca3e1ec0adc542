"""Progress of pulls, loads and bootstraps: bars on a terminal, plain lines elsewhere, both on stderr.

Lines are the API's: `{"item", "phase", "done", "total"}`, in bytes unless `counted` is there.
Out of scope: their transport.
"""

from __future__ import annotations

import os
import sys
import time

from knarr.cli.context import printable
from knarr.model.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_INTERVAL = 0.1
_BAR = 24


def show(lines: Iterable[dict[str, Any]], *, quiet: bool = False) -> dict[str, Any]:
    """Consume progress lines; gives the image of the last one (the client raises the errors)."""
    view = Silent() if quiet else Bars() if _is_terminal() else Plain()
    image: dict[str, Any] = {}
    try:
        for line in lines:
            if "image" in line:
                found = line["image"]
                image = found if isinstance(found, dict) else {"id": found}
            elif "item" in line:
                view.update(line)
    finally:
        view.close()
    return image


def _is_terminal() -> bool:
    return os.isatty(2) and os.environ.get("TERM", "dumb") != "dumb"


class Silent:
    def update(self, line: dict[str, Any]) -> None:
        """Nothing to show."""

    def close(self) -> None:
        """Nothing to end."""


class Plain(Silent):
    """One line per item and phase, when it begins."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def update(self, line: dict[str, Any]) -> None:
        item, phase = str(line.get("item", "")), str(line.get("phase", ""))
        if self._seen.get(item) != phase:
            self._seen[item] = phase
            total = line.get("total")
            size = f" ({_amount(line, total)})" if isinstance(total, int) and total else ""
            sys.stderr.write(f"{label(item)}: {printable(phase)}{size}\n")
            sys.stderr.flush()


class Bars(Silent):
    """A line per item, drawn again in place ten times a second at most."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}
        self._drawn = 0
        self._next = 0.0

    def update(self, line: dict[str, Any]) -> None:
        self._rows[str(line.get("item", ""))] = line
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _INTERVAL
            self._draw()

    def close(self) -> None:
        if self._rows:
            self._draw()

    def _draw(self) -> None:
        columns, height = terminal_size()
        rows = list(self._rows.items())[-(height - 2) :]
        text = f"\x1b[{self._drawn}A" if self._drawn else ""
        for item, line in rows:
            text += f"\r{bar_line(item, line)[: columns - 1]}\x1b[K\n"
        self._drawn = len(rows)
        sys.stderr.write(text)
        sys.stderr.flush()


def terminal_size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(2)
    except OSError:
        return 80, 24
    return max(size.columns, 20), max(size.lines, 4)


def bar_line(item: str, line: dict[str, Any]) -> str:
    """`5f70bf18a086 download [======>     ] 12.3MB / 45MB`."""
    done, total = line.get("done"), line.get("total")
    head = f"{label(item):<14} {printable(line.get('phase', '')):<10}"
    if not isinstance(done, int):
        return head
    if not isinstance(total, int) or total <= 0:
        return f"{head} {_amount(line, done)}" if done else head
    filled = min(_BAR * done // total, _BAR)
    bar = "=" * filled + (">" if filled < _BAR else "") + " " * (_BAR - filled - 1)
    return f"{head} [{bar}] {_amount(line, done)} / {_amount(line, total)}"


def _amount(line: dict[str, Any], number: int) -> str:
    return str(number) if line.get("counted") else format_bytes(number)


def label(item: str) -> str:
    """Digests are shortened as people know them."""
    algorithm, colon, digest = item.partition(":")
    short = digest[:12] if colon and algorithm == "sha256" else item
    return printable(short)
