"""A question before something is lost."""

from __future__ import annotations

import os
import sys

from knarr.model.errors import Invalid


def sure(question: str) -> bool:
    """True after a `y`. Raises `Invalid` where nobody can answer."""
    if not os.isatty(0):
        raise Invalid(f"{question} nobody is there to answer", hint="-f does it without asking")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
