"""Shapes of the native API's answers, for type checkers only: nothing imports this at run time.

Answers may have more fields than these; the command line relies on these.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class Created(TypedDict):
    id: str
    name: str
    warnings: list[str]
    wanting: str


class WaitResult(TypedDict):
    exit_code: int
    oom_killed: bool


class PathStat(TypedDict):
    name: str
    size: int
    mode: int
    mtime: str | int | float
    linkTarget: str


class PlanSteps(TypedDict):
    steps: list[str]


Condition = Literal["not-running", "next-exit", "removed"]
Summary = dict[str, Any]
Document = dict[str, Any]
