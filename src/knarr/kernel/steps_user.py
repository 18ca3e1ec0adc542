"""Steps about who the program is and what terminal it has; users come from the workload's own files.

Those files are untrusted: opened beneath the root, regular files only, read to a limit, never through libc's
NSS, which would load the image's libraries. Out of scope: terminals on the host's side (`keeper`).
"""

from __future__ import annotations

from dataclasses import dataclass

from knarr.kernel.plan import Step, register


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class ResolveUser(Step):
    """docker's rules: `name|uid[:group|gid]`, and `groups` by name or number besides."""

    user: str = ""
    groups: tuple[str, ...] = ()

    def describe(self) -> str:
        more = f" and groups {', '.join(self.groups)}" if self.groups else ""
        return f"user {self.user or 'root'}{more}, looked up inside"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class FixedUser(Step):
    """Ids by number, without a look into any file (a jailed helper's)."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def describe(self) -> str:
        return f"user {self.uid}:{self.gid}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class SetIds(Step):
    """Become that user; the streams become its own, so that /dev/stdout can be opened again."""

    def describe(self) -> str:
        return "become that user"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Pty(Step):
    """A terminal of the workload's own devpts; its master travels up, its slave becomes the three streams."""

    columns: int = 0
    rows: int = 0
    console: bool = True
    """also at /dev/console"""

    def describe(self) -> str:
        size = f" of {self.columns}x{self.rows}" if self.columns else ""
        return f"terminal{size}{', also at /dev/console' if self.console else ''}"
