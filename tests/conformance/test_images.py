"""Images out of and into the engine; what workloads leave behind as images. The same behind every wall."""

from __future__ import annotations

import io
import json
import os
import pathlib
import random
import signal
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from conformance.harness import IMAGE, eventually
from support.registry import available, docker_registry

if TYPE_CHECKING:
    from conformance.harness import Wall


def test_save_and_load_again(wall: Wall, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "saved.tar"
    wall.knarr("tag", IMAGE, "saved/one:1", check=True)
    wall.knarr("save", "-o", str(target), IMAGE, "saved/one:1", check=True)
    with tarfile.open(target) as archive:
        entries = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert [entry["RepoTags"] for entry in entries] == [[IMAGE, "saved/one:1"]]
    wall.knarr("rmi", "saved/one:1", check=True)
    assert "saved/one:1" in wall.knarr("load", "-i", str(target), check=True).out
    wall.knarr("rmi", "saved/one:1", check=True)


def test_save_goes_to_a_pipe_but_not_to_a_terminal(wall: Wall) -> None:
    process = wall.instance.popen("image", "save", "--format", "oci-archive", IMAGE, stdout=-1)
    data = process.communicate(timeout=60)[0]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert "oci-layout" in archive.getnames()
        assert "manifest.json" not in archive.getnames()
    code, shown = wall.on_terminal("save", IMAGE)
    assert (code, "standard output is a terminal" in shown) == (1, True)


def test_save_of_nothing_leaves_no_file(wall: Wall, tmp_path: pathlib.Path) -> None:
    done = wall.knarr("save", "-o", str(tmp_path / "x.tar"), "never/heard:of")
    assert done.code == 1
    assert "'never/heard:of' is not here" in done.err
    assert not list(tmp_path.iterdir())


_CHANGES = """
echo new > /new; chown 12:34 /new; chmod 4750 /new; ln /new /new-hard; ln -s new /new-soft
rm /etc/group; mkdir -p /srv/deep; echo x > /srv/deep/x; rm -rf /home; mkdir /home; echo h > /home/own
"""


def _members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {info.name.removeprefix("./"): info for info in archive.getmembers()}


@pytest.mark.smoke
@pytest.mark.parametrize("running", [True, False])
def test_export(wall: Wall, tmp_path: pathlib.Path, running: bool) -> None:
    with wall.box("sh", "-c", _CHANGES + "sleep 1000", opts=("--tmpfs", "/scratch")) as name:
        eventually(lambda: wall.exec(name, "cat", "/home/own").out == "h\n")
        wall.exec(name, "touch", "/scratch/mounted")
        if not running:
            wall.knarr("kill", name, check=True)
            wall.knarr("wait", name, check=True)
        wall.knarr("export", "-o", str(tmp_path / "x.tar"), name, check=True)
    found = _members((tmp_path / "x.tar").read_bytes())
    new = found["new"] if found["new"].isreg() else found["new-hard"]
    assert (new.mode, new.uid, new.gid, new.size) == (0o4750, 12, 34, 4)
    assert {found["new"].islnk(), found["new-hard"].islnk()} == {True, False}
    assert found["new-soft"].linkname == "new"
    assert "bin/busybox" in found
    assert "home/own" in found
    assert not {"etc/group", "home/alice", "scratch/mounted", "proc/self", "sys/kernel"} & set(found)
    assert not [one for one in found if one.startswith(("proc/", "sys/", "dev/"))]


def test_export_refusals(wall: Wall, box: str) -> None:
    assert "no-such-box" in wall.knarr("export", "no-such-box").err
    code, shown = wall.on_terminal("export", box)
    assert (code, "standard output is a terminal" in shown) == (1, True)


_LOOK = """
cat /new; stat -c '%a %u %g %h' /new; readlink /new-soft; cat /srv/deep/x; ls /home; cat /home/own
test ! -e /etc/group && echo gone; grep -q localhost /etc/hosts && echo 1; echo "$COLOUR $WHO"; pwd
"""


@pytest.mark.smoke
@pytest.mark.parametrize("running", [True, False])
def test_commit(wall: Wall, running: bool) -> None:
    script = "i=0; " + _CHANGES + "while :; do i=$((i+1)); echo $i; sleep 0.05; done"
    with wall.box("sh", "-c", script, opts=("-e", "COLOUR=red", "-w", "/srv")) as name:
        eventually(lambda: wall.exec(name, "cat", "/home/own").out == "h\n")
        if not running:
            wall.knarr("kill", name, check=True)
            wall.knarr("wait", name, check=True)
        changes = ("-c", 'CMD ["sh", "-c", "echo made"]', "-c", "ENV WHO=me", "-c", "USER root")
        made = wall.knarr(
            "commit", "-a", "tester", "-m", "because", *changes, name, "made/of-it:1", check=True
        )
        if running:
            before = len(wall.knarr("logs", name).lines)
            eventually(lambda: len(wall.knarr("logs", name).lines) > before, what="output after the commit")
            assert wall.exec(name, "cat", "/new").out == "new\n"
    try:
        found = wall.knarr("image", "inspect", "--format", "{{.id}} {{.references}}", "made/of-it:1").out
        assert made.out.strip() in found
        look = ("run", "--rm", "--isolation", wall.isolation, "made/of-it:1")
        assert wall.knarr(*look).out == "made\n"
        assert wall.knarr(*look, "sh", "-c", _LOOK).lines == [
            "new", "4750 12 34 2", "new", "x", "own", "h", "gone", "1", "red me", "/srv",
        ]  # fmt: skip
    finally:
        wall.knarr("rmi", "made/of-it:1", check=True)


def test_commit_refusals(wall: Wall, box: str) -> None:
    wrong = wall.knarr("commit", "-c", "RUN true", box, "made/never:1")
    assert (wrong.code, "no instruction that a commit takes" in wrong.err) == (1, True)
    assert "no-such-box" in wall.knarr("commit", "no-such-box").err
    assert wall.knarr("commit", box, "UPPER case").code == 1
    assert "made/never" not in wall.knarr("images").out


def test_commit_killed_at_any_moment(wall: Wall) -> None:
    """The workload goes on, nothing is left in the store, and the next try succeeds."""
    script = "dd if=/dev/urandom of=/big bs=1M count=24 2>/dev/null; i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"
    folder = pathlib.Path(wall.instance.root, "images/default")
    with wall.box("sh", "-c", script) as name:
        eventually(lambda: wall.knarr("logs", name).lines)
        for _ in range(4):
            process = wall.instance.popen("commit", name, "made/killed:1", stdout=-1, stderr=-1)
            time.sleep(0.1 + random.random() * 0.5)
            status = json.loads(wall.knarr("daemon", "status", "--format", "json", check=True).out)
            os.kill(status["pid"], signal.SIGKILL)
            process.communicate(timeout=60)
            before = len(eventually(lambda: wall.knarr("logs", name).lines))
            eventually(lambda n=before: len(wall.knarr("logs", name).lines) > n, what="output after the kill")
            assert not [one for one in os.listdir(folder / "tmp") if one.startswith("tmp")]
        wall.knarr("commit", name, "made/killed:1", check=True)
        wall.knarr("rmi", "made/killed:1", check=True)
        lines = wall.knarr("logs", name).lines
        assert lines == [str(number) for number in range(1, len(lines) + 1)]


@pytest.mark.smoke
def test_an_image_that_comes_again_has_its_bytes(wall: Wall, tmp_path: pathlib.Path) -> None:
    """Removed, its place in the pool is punched; a mount of before would read zeros."""
    (tmp_path / "word").write_bytes(os.urandom(9000))
    archive = tmp_path / "again.tar"
    with wall.box() as name:
        wall.knarr("cp", str(tmp_path / "word"), f"{name}:/word", check=True)
        wall.knarr("commit", name, "made/again:1", check=True)
    wall.knarr("save", "-o", str(archive), "made/again:1", check=True)
    look = ("run", "--rm", "--isolation", wall.isolation, "made/again:1", "sha256sum", "/word")
    seen = [wall.knarr(*look, check=True).out]
    wall.knarr("rmi", "made/again:1", check=True)
    # something else where it was
    wall.knarr("load", "-i", str(archive), check=True)
    seen.append(wall.knarr(*look, check=True).out)
    wall.knarr("rmi", "made/again:1", check=True)
    assert seen[0] == seen[1]


def test_history_diff_and_df(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo hello > /hello; rm /etc/group; sleep 1000") as name:
        eventually(lambda: wall.exec(name, "cat", "/hello").out)
        wall.knarr("commit", "-m", "why not", name, "made/more:1", check=True)
        table = wall.knarr("system", "df", check=True).lines
        assert [line.split()[0] for line in table] == ["TYPE", "Images", "Workloads"]
        assert name in wall.knarr("system", "df", "-v", check=True).out
    newest = wall.knarr("image", "history", "--no-trunc", "made/more:1", check=True).lines[1]
    assert "echo hello" in newest
    assert "why not" in newest
    assert wall.knarr("image", "diff", IMAGE, "made/more:1", check=True).lines == ["D /etc/group", "A /hello"]
    rows = json.loads(wall.knarr("system", "df", "--format", "json", check=True).out)["images"]
    mine = next(row for row in rows if row["references"] == ["docker.io/made/more:1"])
    assert 0 < mine["unique"] < mine["shared"]
    wall.knarr("rmi", "made/more:1", check=True)
    assert "freed" in wall.knarr("image", "gc", check=True).out
    assert "never:1" in wall.knarr("image", "diff", IMAGE, "never:1").err


def test_check_finds_and_mends(wall: Wall, tmp_path: pathlib.Path) -> None:
    (tmp_path / "word").write_bytes(b"right" * 4000)
    with wall.box() as name:
        wall.knarr("cp", str(tmp_path / "word"), f"{name}:/word", check=True)
        wall.knarr("commit", name, "made/hurt:1", check=True)
    assert wall.knarr("image", "check", check=True).out == "all is as it should be\n"
    pool = pathlib.Path(wall.instance.root, "images/default/pool")
    with open(pool, "r+b") as file:
        file.seek(pool.read_bytes().index(b"rightright"))
        file.write(b"wrong")
    found = wall.knarr("image", "check")
    assert (found.code, "contents are damaged in the pool" in found.out) == (1, True)
    mended = wall.knarr("image", "check", "--repair", check=True)
    assert ": repaired" in mended.out
    assert wall.knarr("image", "check", check=True).out == "all is as it should be\n"
    wall.knarr("rmi", "made/hurt:1", check=True)


@pytest.mark.skipif(bool(available()), reason=f"power missing: {available()}")
def test_push_and_pull_back(wall: Wall) -> None:
    with docker_registry() as registry:
        name = f"{registry.host}/my/app:1"
        assert "is not here" in wall.knarr("push", name).err
        wall.knarr("tag", IMAGE, name, check=True)
        pushed = wall.knarr("push", name, check=True).out
        wall.knarr("rmi", name, check=True)
        wall.knarr("pull", name, check=True)
        digest = wall.knarr("image", "inspect", "--format", "{{.digest}}", name, check=True).out
        assert pushed == f"{name}@{digest}"
    gone = wall.knarr("push", name)
    assert (gone.code, "hint:" in gone.err) == (1, True)
    wall.knarr("rmi", name, check=True)
