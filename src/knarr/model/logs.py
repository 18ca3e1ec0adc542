"""How a workload's output is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

JSON_FILE, LOCAL, NONE = DRIVERS = ("json-file", "local", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Logging:
    """`--log-driver` and `--log-opt`."""

    driver: str = ""
    """`json-file`, `local` or `none`; empty = as the settings say"""
    options: dict[str, str] = field(default_factory=dict)
