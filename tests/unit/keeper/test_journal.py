"""The keeper's journal: whatever byte a kill cuts it at, the state is one that was written."""

from __future__ import annotations

import os
import subprocess
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.keeper.journal import Entry, Journal, replay

KEYS = st.sampled_from(["a", "b", "c", "a/e1", "b/e2"])
ACTS = st.lists(st.tuples(st.sampled_from("OWSREF"), KEYS, st.integers(-1, 65535)), max_size=30)


OUTSIDE = [["Step", {"path": "/x\n"}]]


def state(entries):
    return {
        key: (e.pid, e.started, e.running, e.status, e.time, tuple(map(str, e.outside)))
        for key, e in entries.items()
    }


def everything(journal):
    return state(journal.entries), dict(journal.intents)


def act(journal, number, kind, key, value):
    entry = journal.entries.get(key)
    if kind == "O" and entry is None:
        journal.intended(key, OUTSIDE)
    elif kind == "W":
        journal.withdrawn(key)
    elif kind == "S" and entry is None:
        journal.started(Entry(key, number + 2, number * 10, OUTSIDE, ["t"]))
    elif entry is None:
        return
    elif kind == "R":
        journal.running(entry)
    elif kind == "E":
        journal.ended(entry, value, number)
    elif kind == "F":
        journal.forgotten(entry)


@given(ACTS, st.data())
def test_any_cut_gives_a_state_that_was(acts, data):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "journal")
        journal = Journal(path, "boot")
        states = [everything(journal)]
        for number, (kind, key, value) in enumerate(acts):
            act(journal, number, kind, key, value)
            states.append(everything(journal))
        journal.close()
        with open(path, "rb") as file:
            whole = file.read()
        cut = data.draw(st.integers(0, len(whole)))
        with open(path, "wb") as file:
            file.write(whole[:cut] + data.draw(st.sampled_from([b"", b"\0\0\0", b"garbage\n"])))
        again = Journal(path, "boot")
        assert everything(again) in states
        if cut == len(whole):
            assert everything(again) == states[-1]
        # what is written after a torn tail is read again
        again.started(Entry("new", 1, 1))
        again.close()
        third = Journal(path, "boot")
        assert "new" in third.entries
        third.close()


@given(st.binary(max_size=200))
def test_garbage_is_no_state(data):
    assert replay(data, "boot") == ({}, {}, True)


def test_another_boot_ends_everything(tmp_path):
    path = str(tmp_path / "journal")
    journal = Journal(path, "one")
    for key in ("w", "ended", "w/exec"):
        journal.started(Entry(key, 5, 6))
    journal.ended(journal.entries["ended"], 7, 8)
    journal.close()
    later = Journal(path, "two")
    assert state(later.entries) == {"w": (5, 6, False, -1, 0, ()), "ended": (5, 6, False, 7, 8, ())}
    later.close()


def test_a_long_journal_is_compacted(tmp_path):
    path = str(tmp_path / "journal")
    journal = Journal(path, "boot")
    for number in range(4000):
        entry = Entry("w", number, number, [["Step", {"text": "x" * 400}]])
        journal.started(entry)
        journal.ended(entry, 0, number)
        journal.forgotten(entry)
    assert os.stat(path).st_size < 1 << 20
    journal.close()


def test_keys_name_workload_and_exec():
    assert (Entry("w", 1, 1).id, Entry("w", 1, 1).exec_id) == ("w", None)
    assert (Entry("w/e", 1, 1).id, Entry("w/e", 1, 1).exec_id) == ("w", "e")


def fill(journal):
    for number in range(1000):
        journal.started(Entry(f"{number:064}", number + 2, number, [["Step", {"path": "x" * 50}]]))


def test_a_full_disk_tears_nothing_and_takes_no_end_away(tmp_path):
    """Lines behind a torn one would not be read, and an end that can't be written could not be reaped."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a file system that is full")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        journal = Journal(str(tmp_path / "journal"), "boot")
        (tmp_path / "filler").write_bytes(bytes(44 << 10))
        with pytest.raises(OSError, match="No space"):
            fill(journal)
        started = list(journal.entries.values())
        assert len(started) > 5
        for entry in started:
            journal.running(entry)
            journal.ended(entry, 7, 1)
        for entry in started[1:]:
            journal.forgotten(entry)
        journal.close()
        (tmp_path / "filler").unlink()
        entries, _, same = replay((tmp_path / "journal").read_bytes(), "boot")
        assert same
        assert state(entries) == state({started[0].key: started[0]})
        Journal(str(tmp_path / "journal"), "boot").close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
