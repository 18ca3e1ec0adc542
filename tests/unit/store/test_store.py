from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from knarr.model.errors import Conflict, Invalid, Unavailable
from knarr.store.db import EVENTS_KEPT, Database, EventRow
from knarr.store.state import StateDir
from knarr.store.trees import Removal


def event(number: int) -> EventRow:
    return EventRow(time=number, type="workload", action="start", id="a", attributes="{}")


def test_state_dir_is_private_and_keeps_its_instance(tmp_path):
    first = StateDir(str(tmp_path / "root"), str(tmp_path / "run"))
    again = StateDir(str(tmp_path / "root"), str(tmp_path / "run"))
    assert first.instance == again.instance
    assert len(first.instance) == 6
    assert os.stat(first.root).st_mode & 0o777 == 0o700
    assert os.stat(first.run).st_mode & 0o777 == 0o700


def test_a_second_daemon_is_refused_until_the_first_lets_go(tmp_path):
    state = StateDir(str(tmp_path / "root"), str(tmp_path / "run"))
    fd = state.lock()
    with pytest.raises(Conflict, match="already serves"):
        StateDir(state.root, str(tmp_path / "other")).lock()
    copy = os.dup(fd)
    os.close(fd)
    with pytest.raises(Conflict):
        state.lock()
    os.close(copy)
    os.close(state.lock())


def test_a_newer_format_is_refused(tmp_path):
    state = StateDir(str(tmp_path / "root"), str(tmp_path / "run"))
    with open(os.path.join(state.root, "version"), "w") as file:
        file.write("99\n")
    with pytest.raises(Invalid, match="format 99"):
        StateDir(state.root, state.run)


@pytest.mark.parametrize("text", ["", "zzzzzz", "12345", "ABCDEF"])
def test_a_broken_instance_id_is_refused(tmp_path, text):
    state = StateDir(str(tmp_path / "root"), str(tmp_path / "run"))
    with open(os.path.join(state.root, "instance"), "w") as file:
        file.write(text)
    with pytest.raises(Invalid, match="instance id"):
        StateDir(state.root, state.run)


def test_workload_records(tmp_path):
    db = Database(str(tmp_path / "db"))
    db.insert("a", "one", b"spec", b"s1", event(1))
    with pytest.raises(Conflict, match="'one' is in use"):
        db.insert("b", "one", b"", b"", event(2))
    db.update("a", b"s2", event(3))
    db.close()
    db = Database(str(tmp_path / "db"))
    assert db.workloads() == [("a", "one", b"spec", b"s2")]
    assert [row.time for row in db.events(0, 10)] == [1, 3]
    assert [row.time for row in db.events(2, 3)] == []
    db.delete("a", event(4))
    assert db.workloads() == []
    db.close()


def test_events_are_bounded(tmp_path):
    db = Database(str(tmp_path / "db"))
    for start in range(0, EVENTS_KEPT + 3000, 1000):
        db.add(*(event(start + number) for number in range(1000)))
    rows = list(db.events(0, 1 << 60))
    assert len(rows) <= EVENTS_KEPT
    assert rows[-1].time == EVENTS_KEPT + 2999
    db.close()


def test_a_killed_process_loses_no_commit(tmp_path):
    path = str(tmp_path / "db")
    code = (
        "import os, sys; from knarr.store.db import Database; db = Database(sys.argv[1])\n"
        "for n in range(200): db.insert(f'i{n}', f'n{n}', b'', b'')\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], check=False, env={"PYTHONPATH": "src"}, timeout=30
    )
    assert done.returncode == -9
    db = Database(path)
    assert len(db.workloads()) == 200
    db.close()


def build(root, breadth, depth):
    os.mkdir(root)
    for number in range(breadth):
        open(os.path.join(root, f"f{number}"), "w").close()
        os.symlink("/", os.path.join(root, f"l{number}"))
    if depth:
        build(os.path.join(root, "d"), breadth, depth - 1)


def test_removal_in_turns(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    place = tmp_path / "w"
    place.mkdir()
    build(str(place / "tree"), 5, 10)
    os.symlink(outside, place / "tree" / "link")
    removal = Removal(str(place / "tree"))
    turns = 0
    while not removal.run(7):
        turns += 1
    assert turns > 5
    assert os.listdir(place) == []
    assert (outside / "file").exists()
    assert Removal(str(place / "tree")).run()


def test_removal_of_a_tree_deeper_than_any_stack(tmp_path):
    top = os.open(tmp_path, os.O_RDONLY)
    fd = os.dup(top)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        new = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = new
    os.close(fd)
    os.close(top)
    assert Removal(str(tmp_path / "d")).run()
    assert os.listdir(tmp_path) == []


def test_records_that_can_not_be_written_are_told_alike_with_and_without_events(tmp_path):
    path = str(tmp_path / "db")
    db = Database(path)
    db.insert("a", "one", b"spec", b"s1", event(1))
    db._db.execute("PRAGMA query_only=ON")
    for events in ((), (event(2),)):
        with pytest.raises(Unavailable, match="can't be written"):
            db.update("a", b"s2", *events)
    assert Database(path).workloads() == [("a", "one", b"spec", b"s1")]


def test_a_removal_that_fails_in_the_middle_goes_on_with_what_it_moved(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "tree" / name / "below").mkdir(parents=True)
    removal, rename, calls = Removal(str(tmp_path / "tree")), os.rename, iter((True, False, True, True))

    def sometimes(*words: object, **more: object) -> None:
        if not next(calls):
            raise OSError(errno.ENOMEM, "no memory")
        rename(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", sometimes)
    with pytest.raises(OSError, match="no memory"):
        removal.run()
    assert removal.run()
    assert not list(tmp_path.iterdir())
