"""What an earlier release of Knarr started goes on under this one: logs, exec, signals, exit codes, terminals."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from conformance.harness import IMAGE, REPOSITORY, Instance, eventually
from support.images import busybox_archive

if TYPE_CHECKING:
    from collections.abc import Iterator

RELEASES = {"5027d28": "the first with both walls"}
"""Commits whose releases are adopted; a shallow clone may lack them."""
SCRIPT = 'trap "echo caught; exit 9" TERM; i=0; while true; do echo "line $i"; i=$((i+1)); sleep 0.2; done'
LAUNCHER = """#!{python} -IS
import sys
sys.path.insert(0, {source!r})
from knarr.cli.main import main
sys.exit(main())
"""


class Installed(Instance):
    """One whose program is replaced in place, as a package manager does."""

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__()
        self.folder = folder
        self.command = folder / "knarr"
        self.command.write_text(LAUNCHER.format(python=sys.executable, source=str(folder / "src")))
        self.command.chmod(0o755)

    def install(self, source: pathlib.Path) -> None:
        link = self.folder / "src.new"
        link.symlink_to(source)
        link.rename(self.folder / "src")

    def popen(self, *args: str, **options: object) -> subprocess.Popen[bytes]:
        words = [str(self.command), "--root", self.root, "--run", self.run_folder, *args]
        return subprocess.Popen(words, **options)  # type: ignore[call-overload]


def git(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", "-C", str(REPOSITORY), *words], capture_output=True, check=False, timeout=60
    )


@pytest.fixture(params=RELEASES)
def earlier(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder that holds the package of an earlier release, built."""
    archive = git("archive", request.param, "src", "scripts/build-native")
    if archive.returncode:
        pytest.skip(f"power missing: commit {request.param} in the history of this clone")
    folder = tmp_path / "earlier"
    folder.mkdir()
    subprocess.run(["tar", "-xC", str(folder)], input=archive.stdout, check=True, timeout=60)
    subprocess.run([str(folder / "scripts" / "build-native")], check=True, timeout=300, capture_output=True)
    return folder / "src"


@pytest.fixture
def instance(tmp_path: pathlib.Path, earlier: pathlib.Path) -> Iterator[Installed]:
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    folder = tmp_path / "installed"
    folder.mkdir()
    archive = tmp_path / "image.tar"
    busybox_archive(str(archive), tag=IMAGE)
    made = Installed(folder)
    made.install(earlier)
    try:
        made.knarr("load", "-i", str(archive), check=True)
        yield made
    finally:
        made.close()


def pids(instance: Installed) -> dict[str, object]:
    return json.loads(instance.knarr("daemon", "status", "--format", "json", check=True).out)


def test_workloads_of_an_earlier_release_go_on(instance: Installed) -> None:
    walls = {"one": "container", "tty": "container", "vm": "microvm"}
    for name, wall in walls.items():
        more = ("-t",) if name == "tty" else ()
        instance.knarr(
            *("run", "-d", "--name", name, "--isolation", wall, "--network", "bridge", *more),
            *("-v", "shared:/data", IMAGE, "sh", "-c", SCRIPT),
            check=True,
        )
    instance.knarr("create", "--name", "waiting", IMAGE, "sh", "-c", "echo later; exit 5", check=True)
    before = pids(instance)
    instance.install(REPOSITORY / "src")
    assert "workloads went on" in instance.knarr("daemon", "upgrade", check=True).out
    after = pids(instance)
    assert after["keeper_pid"] == before["keeper_pid"], "the keeper is upgraded in place"
    assert after["pid"] != before["pid"]
    assert after["holder_pid"] == before["holder_pid"]
    for name in walls:
        assert instance.knarr("exec", name, "echo", "hello", check=True).out == "hello\n"
        count = len(instance.knarr("logs", name, check=True).lines)
        eventually(
            lambda n=name, c=count: len(instance.knarr("logs", n).lines) > c, what=f"more lines of {name}"
        )
        instance.knarr("stop", name, check=True)
        assert instance.knarr("wait", name).out == "9\n", name
        lines = [line.rstrip("\r") for line in instance.knarr("logs", name).lines]
        assert lines == [*(f"line {n}" for n in range(len(lines) - 1)), "caught"], name
        instance.knarr("start", name, check=True)
        assert instance.knarr("exec", name, "ls", "/data").code == 0
    assert instance.knarr("start", "-a", "waiting").code == 5


def test_a_new_daemon_makes_the_keeper_its_equal(instance: Installed) -> None:
    """The daemon died after an installation, and nobody asked for an upgrade."""
    instance.knarr("run", "-d", "--name", "old", IMAGE, "sh", "-c", SCRIPT, check=True)
    before = pids(instance)
    instance.install(REPOSITORY / "src")
    os.kill(int(str(before["pid"])), signal.SIGKILL)
    assert instance.knarr("run", "--rm", IMAGE, "echo", "new", check=True).out == "new\n"
    assert pids(instance)["keeper_pid"] == before["keeper_pid"]
    assert instance.knarr("exec", "old", "echo", "alive", check=True).out == "alive\n"
    instance.knarr("stop", "old", check=True)
    assert instance.knarr("wait", "old").out == "9\n"


def test_nothing_of_a_newer_format_is_touched(instance: Installed) -> None:
    instance.knarr("daemon", "stop", "--workloads", check=True)
    instance.install(REPOSITORY / "src")
    version = pathlib.Path(instance.root) / "version"
    kept = version.read_text()
    version.write_text("99\n")
    try:
        refused = instance.knarr("ps")
        assert refused.code != 0
        assert "has format 99" in refused.err
    finally:
        version.write_text(kept)
    assert instance.knarr("images", "-q", check=True).lines


def test_a_copied_root_is_refused_beside_the_first(instance: Installed) -> None:
    instance.install(REPOSITORY / "src")
    instance.knarr("daemon", "upgrade", check=True)
    copy = pathlib.Path(instance.root + "-copy")
    shutil.copytree(
        instance.root, copy, ignore=lambda folder, names: [n for n in names if n.endswith(".sock")]
    )
    try:
        done = subprocess.run(
            [str(instance.command), "--root", str(copy), "--run", str(copy / "run"), "ps"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode != 0
        assert "runs already, from another folder" in done.stderr
    finally:
        words = [str(instance.command), "--root", str(copy), "--run", str(copy / "run"), "daemon", "stop"]
        subprocess.run([*words, "--workloads"], capture_output=True, timeout=120, check=False)
        shutil.rmtree(copy)
