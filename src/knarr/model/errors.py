"""Errors by meaning.

KnarrError
├── NotFound      the named thing does not exist
├── Conflict      the thing exists, but its state or name forbids the request
├── Invalid       the request itself is wrong (grammar, value, combination)
├── Denied        the caller, or a policy, does not allow it
├── Unsupported   this wall, host or kernel can't do it; the message names the wall and the verb
├── Unavailable   something needed does not answer now (registry, daemon, keeper, disk space)
└── Failed        it was tried and went wrong (a program's exit, a broken archive, a system call)

A message is the object, the fact; `hint` is the remedy. Lower case, no full stop, values quoted.
Front ends translate `kind` to their own status once, in one table.
"""

from __future__ import annotations

# the command line can't afford to load `typing`; this name is what type checkers look for
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class KnarrError(Exception):
    """Base of every error that a user may see. `exit_code` is what `knarr run` exits with (docker's 125)."""

    kind = "failed"
    exit_code = 125

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}


class NotFound(KnarrError):
    kind = "not_found"


class Conflict(KnarrError):
    kind = "conflict"


class Invalid(KnarrError):
    kind = "invalid"


class Denied(KnarrError):
    kind = "denied"


class Unsupported(KnarrError):
    kind = "unsupported"


class Unavailable(KnarrError):
    kind = "unavailable"


class Failed(KnarrError):
    kind = "failed"


_BY_KIND: dict[str, type[KnarrError]] = {
    cls.kind: cls for cls in (NotFound, Conflict, Invalid, Denied, Unsupported, Unavailable, Failed)
}


def from_json(data: dict[str, Any]) -> KnarrError:
    """Rebuild an error that crossed a wire; an unknown kind becomes `Failed`."""
    cls = _BY_KIND.get(str(data.get("kind")), Failed)
    code = data.get("exit_code")
    hint = data.get("hint")
    return cls(
        str(data.get("message", "unknown error")),
        hint=None if hint is None else str(hint),
        exit_code=code if isinstance(code, int) else None,
    )
