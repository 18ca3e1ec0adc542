"""Samples, figures, ratios: how a measurement is taken and told. Out of scope: what is measured."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from knarr.model.errors import Invalid


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to time. `sample` does it once and returns milliseconds."""

    name: str
    sample: Callable[[], float]
    count: int | None = None
    """samples of this one when fewer than the others' are affordable"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the result. `ratio` = value / peer's value, both medians of one interleaved run."""

    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    samples: tuple[float, ...] = ()
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if not self.peer_value else self.value / self.peer_value

    def to_json(self) -> dict[str, Any]:
        ratio = self.ratio
        line = {
            "name": self.name,
            "value": round(self.value, 3),
            "unit": self.unit,
            "peer": self.peer,
            "ratio": None if ratio is None else round(ratio, 3),
            "peer_value": None if self.peer_value is None else round(self.peer_value, 3),
            "n": len(self.samples),
        }
        if self.samples:
            line |= {"min": round(min(self.samples), 3), "max": round(max(self.samples), 3)}
        return line | ({"note": self.note} if self.note else {})


@dataclass
class Report:
    """Figures as they come: JSON lines at once, or a table at the end; raw samples into a file."""

    as_json: bool
    raw_path: str | None = None
    out: TextIO = field(default_factory=lambda: sys.stdout)
    figures: list[Figure] = field(default_factory=list)

    def __post_init__(self) -> None:
        """A file that can't be written is told before minutes are spent."""
        if self.raw_path:
            try:
                with open(self.raw_path, "a", encoding="utf-8"):
                    return
            except OSError as error:
                raise Invalid(
                    f"--raw: {self.raw_path}: {error.strerror}", hint="name a file in a folder that exists"
                ) from error

    def add(self, figure: Figure) -> None:
        """An interrupted run keeps what it has found out."""
        self.figures.append(figure)
        if self.raw_path:
            with open(self.raw_path, "a", encoding="utf-8") as file:
                line = figure.to_json() | {"time": time.time(), "samples": figure.samples}
                file.write(json.dumps(line) + "\n")
        if self.as_json:
            print(json.dumps(figure.to_json()), file=self.out, flush=True)

    def say(self, text: str) -> None:
        """Progress for a person; never on the stream of figures."""
        print(text, file=sys.stderr, flush=True)

    def finish(self) -> None:
        if not self.as_json:
            self._table()

    def _table(self) -> None:
        rows = [("FIGURE", "VALUE", "UNIT", "PEER", "PEER'S", "RATIO", "N")]
        for item in self.figures:
            ratio = "" if item.ratio is None else f"{item.ratio:.2f}"
            peer_value = "" if item.peer_value is None else f"{item.peer_value:.2f}"
            count = str(len(item.samples) or "")
            rows.append(
                (item.name, f"{item.value:.2f}", item.unit, item.peer or "", peer_value, ratio, count)
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("   ".join(cells).rstrip(), file=self.out)


def timed(act: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) * 1e3


def interleave(subjects: Sequence[Subject], count: int, *, warm: int = 1) -> dict[str, tuple[float, ...]]:
    """Samples by name; each round takes every subject once, in random order, so that drift hits all alike."""
    samples: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for subject in subjects:
        for _ in range(warm):
            subject.sample()
    for turn in range(count):
        for subject in random.sample(subjects, len(subjects)):
            if turn < (subject.count or count):
                samples[subject.name].append(subject.sample())
    return {name: tuple(values) for name, values in samples.items()}


def compare(samples: dict[str, tuple[float, ...]], name: str, subject: str, peer: str | None) -> Figure:
    """The median of `subject` in milliseconds beside that of `peer`, when the run had that peer."""
    known = peer if peer in samples else None
    return Figure(
        name=name,
        value=statistics.median(samples[subject]),
        unit="ms",
        peer=known,
        peer_value=statistics.median(samples[known]) if known else None,
        samples=samples[subject],
    )
