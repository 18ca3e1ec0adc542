"""One seed for a run, printed at its end; the same one gives the same inputs again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.fuzzing import SEED

if TYPE_CHECKING:
    import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"fuzz: KNARR_SEED={SEED} gives these inputs again")
