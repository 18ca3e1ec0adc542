"""How a workload is asked whether it is well: a command run inside again and again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """Docker's HEALTHCHECK. Empty or 0: as the image says, else docker's default; times in seconds."""

    test: tuple[str, ...] = ()
    """`CMD` and a command line, `CMD-SHELL` and a text for the shell, or `NONE`"""
    interval: float = 0.0
    """between two checks: 30"""
    timeout: float = 0.0
    """of one check: 30"""
    start_period: float = 0.0
    """in which failures don't count, from the start on: 0"""
    start_interval: float = 0.0
    """between two checks in that time: 5"""
    retries: int = 0
    """failures in a row that make it unhealthy: 3"""
