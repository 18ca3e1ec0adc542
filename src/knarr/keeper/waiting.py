"""Which workloads wait because their output can't be written: RUN/waiting/ID holds the reason.

In RUN, for a full disk below ROOT is the usual reason. Out of scope: telling users (`engine.logwatch`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container


def folder(run: str) -> str:
    return os.path.join(run, "waiting")


def read(run: str) -> dict[str, str]:
    """id → reason, now."""
    return {name: reason(run, name) for name in os.listdir(folder(run))}


def reason(run: str, workload: str) -> str:
    """Empty for one whose output is written."""
    try:
        with open(os.path.join(folder(run), workload), encoding="utf-8") as file:
            return file.read(1000)
    except FileNotFoundError:
        return ""


class Waiting:
    """The mover's side; telling the same again costs nothing."""

    def __init__(self, run: str) -> None:
        self._folder = folder(run)
        os.makedirs(self._folder, 0o700, exist_ok=True)
        self._known = set(os.listdir(self._folder))

    def __len__(self) -> int:
        return len(self._known)

    def tell(self, workload: str, reason: str) -> None:
        """An empty reason: it goes on."""
        if bool(reason) == (workload in self._known):
            return
        path = os.path.join(self._folder, workload)
        try:
            if reason:
                self._known.add(workload)
                with open(path, "w", encoding="utf-8") as file:
                    file.write(reason)
            else:
                self._known.discard(workload)
                os.unlink(path)
        except OSError:
            # only news: the bytes don't depend on it
            pass

    def forget_all_but(self, alive: Container[str]) -> None:
        for workload in [name for name in self._known if name not in alive]:
            self.tell(workload, "")
