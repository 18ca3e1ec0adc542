"""The house's limits on shape, and on what may stand in the tree; linters and types are in scripts/check."""

from __future__ import annotations

import ast
import pathlib
import re
import statistics
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MAX_FUNCTION = 60
MAX_MEDIAN = 10
MAX_FILE = 500


def tracked() -> list[pathlib.Path]:
    """Files under version control, and new ones that are not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
        names = [name for name in listed.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = [
            str(path.relative_to(REPOSITORY))
            for folder in ("src", "tests", "scripts", "docs")
            for path in (REPOSITORY / folder).rglob("*")
            if "__pycache__" not in path.parts and "native-bin" not in path.parts
        ]
    return [REPOSITORY / name for name in names if (REPOSITORY / name).is_file()]


def product() -> list[pathlib.Path]:
    return sorted((REPOSITORY / "src").rglob("*.py"))


def functions(path: pathlib.Path) -> list[tuple[str, int]]:
    """Name and number of body lines, docstring left out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body
        documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
        first = body[1] if documented and len(body) > 1 else body[0]
        found.append((node.name, (node.end_lineno or 0) - first.lineno + 1))
    return found


def test_no_function_is_long() -> None:
    long = [
        f"{path.relative_to(REPOSITORY)}: {name} has {lines} lines"
        for path in [*product(), *sorted((REPOSITORY / "tests").rglob("*.py"))]
        for name, lines in functions(path)
        if lines > MAX_FUNCTION
    ]
    assert not long, "\n".join(long)


def test_the_median_function_is_short() -> None:
    lengths = [lines for path in product() for _, lines in functions(path)]
    assert statistics.median(lengths) < MAX_MEDIAN


def test_no_file_is_long() -> None:
    endings = {".py", ".c", ".h"}
    long = [
        f"{path.relative_to(REPOSITORY)}: {count} lines"
        for path in tracked()
        if path.suffix in endings and (count := len(path.read_text().splitlines())) > MAX_FILE
    ]
    assert not long, "\n".join(long)


def test_modules_say_what_they_are_for() -> None:
    silent = [
        str(path.relative_to(REPOSITORY))
        for path in product()
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, "\n".join(silent)


def imported(path: pathlib.Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


# the daemon's link to the keeper and its followers of logs run inside the daemon
ASYNC_ALLOWED = {"keeper/link.py", "keeper/follow.py"}


@pytest.mark.parametrize("package", ["kernel", "containers", "keeper", "model", "cli"])
def test_synchronous_packages_have_no_event_loop_and_no_threads(package: str) -> None:
    source = REPOSITORY / "src" / "knarr"
    banned = {"asyncio", "threading", "concurrent", "multiprocessing", "_thread"}
    if package in ("kernel", "model"):
        banned.add("logging")
    found = [
        f"{path.relative_to(source)} imports {name}"
        for path in sorted((source / package).rglob("*.py"))
        if str(path.relative_to(source)) not in ASYNC_ALLOWED
        for name in sorted(imported(path))
        if name.partition(".")[0] in banned
    ]
    assert not found, "\n".join(found)


def test_nothing_of_one_machine_is_in_the_tree() -> None:
    """No absolute path of a working copy, of a home folder, of scratch space."""
    # put together here so that this file does not find itself
    pattern = re.compile(
        "|".join(("/work" + r"/(?:main|shared)\b", "/tmp" + r"/kn\b", r"/home" + r"/[a-z]+/"))
    )
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    assert not found, "\n".join(found)


def test_no_open_ends() -> None:
    words = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in tracked()
        if path.suffix in (".py", ".c", ".h", ".sh", ".md")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if words.search(line)
    ]
    assert not found, "\n".join(found)


def test_scripts_are_programs() -> None:
    for path in sorted((REPOSITORY / "scripts").iterdir()):
        if path.is_file():
            assert path.stat().st_mode & 0o111, path
            assert path.read_text().startswith("#!"), path
