"""The command line starts in a few milliseconds because it imports little; this list keeps it so."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from knarr.cli.main import main
code = main(sys.argv[2:])
sys.stdout.flush()
print(code, *sorted(sys.modules), file=sys.stderr)
"""

HEAVY = {
    "aiohttp",
    "argparse",
    "asyncio",
    "ctypes",
    "dataclasses",
    "email",
    "http.client",
    "inspect",
    "logging",
    "multiprocessing",
    "selectors",
    "socket",
    "ssl",
    "subprocess",
    "tarfile",
    "threading",
    "typing",
    "urllib.parse",
}


def modules(words: list[str]) -> tuple[int, set[str]]:
    command = [sys.executable, "-IS", "-c", PROGRAM, str(REPOSITORY / "src"), *words]
    done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    code, *names = done.stderr.decode().splitlines()[-1].split()
    return int(code), set(names)


def test_version_imports_next_to_nothing() -> None:
    code, names = modules(["--version"])
    assert code == 0
    assert not names & (HEAVY | {"json", "re"})


@pytest.mark.parametrize(
    "words", [["ps"], ["run", "--rm", "-i", "x", "true"], ["exec", "x", "true"], ["stop", "x"]]
)
def test_a_verb_imports_no_framework(words: list[str], api: tuple[str, str]) -> None:
    root, run = api
    _, names = modules(["--root", root, "--run", run, *words])
    assert "knarr.client.client" in names
    assert not names & HEAVY, sorted(names & HEAVY)


def test_the_client_side_never_loads_the_engine(api: tuple[str, str]) -> None:
    root, run = api
    _, names = modules(["--root", root, "--run", run, "ps"])
    inner = {
        "kernel",
        "engine",
        "keeper",
        "images",
        "networks",
        "containers",
        "machines",
        "store",
        "api",
        "daemon",
    }
    assert not {name for name in names if name.startswith("knarr.") and name.split(".")[1] in inner}
