"""What `diff`, `top` and `update` show and decide, without any kernel."""

from __future__ import annotations

import pytest

from knarr.engine import changes, processes
from knarr.kernel import proctable, relimit
from knarr.kernel.cgroups import Layout
from knarr.model.errors import Invalid, Unsupported
from knarr.model.workload import Resources, Update

STAT = b"7 (a) (b) S 1 7 7 34816 7 0 0 0 0 0 150 50 0 0 20 5 1 0 1000 4096 2 18446744073709551615 1"


def test_folders_on_the_way_are_shown_only_with_what_is_below() -> None:
    found = [
        ("P", b"/etc"),
        ("C", b"/etc/hosts"),
        ("P", b"/a"),
        ("P", b"/a/b"),
        ("D", b"/a/b/c"),
        ("A", b"/dev"),
    ]
    shown = [(item["kind"], item["path"]) for item in changes.present(found)]
    assert shown == [("C", "/a"), ("C", "/a/b"), ("D", "/a/b/c")]


def test_a_process_is_read_whatever_its_name_is() -> None:
    found = proctable.parse(40, b"0 7\0" + STAT + b"\0sleep\x005\0")
    assert found is not None
    assert (found.pid, found.name, found.args, found.cpu, found.started) == (7, "a) (b", "sleep 5", 2.0, 10.0)


@pytest.mark.parametrize(
    "text", [b"", b"\0\0", b"0 1\0nonsense\0x", b"x y\0" + STAT + b"\0", b"0 1\0(\xff) S"]
)
def test_what_a_guest_makes_up_is_no_process(text: bytes) -> None:
    assert proctable.parse(1, text) is None


def test_rows_have_the_pids_inside() -> None:
    parent = proctable.parse(30, b"0 1\0" + STAT.replace(b"S 1 ", b"S 9 ") + b"\0init\0")
    child = proctable.parse(31, b"33 2\0" + STAT.replace(b"S 1 ", b"S 30 ") + b"\0\0")
    assert parent is not None
    assert child is not None
    shown = processes.table((child, parent), 20.0, "-o pid,ppid,user,tty,c,time,args")
    assert shown["titles"] == ["PID", "PPID", "USER", "TTY", "C", "TIME", "COMMAND"]
    assert shown["processes"] == [
        ["1", "0", "root", "pts/0", "20", "00:00:02", "init"],
        ["2", "1", "33", "pts/0", "20", "00:00:02", "[a) (b]"],
    ]


def test_options_of_ps_that_are_not_there_are_refused() -> None:
    assert processes.columns("") == processes.columns("-ef")
    assert processes.columns("-eo pid,command") == ["pid", "args"]
    with pytest.raises(Unsupported):
        processes.columns("aux")
    with pytest.raises(Invalid):
        processes.columns("-o pid,colour")


def test_limits_are_kept_changed_and_taken_back() -> None:
    old = Resources(memory=64 << 20, cpus=1.0, pids=5)
    new = relimit.merged(old, Update(cpus=0.0, cpuset="0", pids=-1))
    assert new == Resources(memory=64 << 20, cpus=None, cpuset="0", pids=-1)


def test_a_refused_limit_leaves_all_as_it_was(tmp_path) -> None:
    layout = Layout(version=2, roots={"unified": str(tmp_path)}, controllers=("memory", "pids"))
    for name in ("memory.max", "cpu.max", "pids.max"):
        (tmp_path / name).write_text("")
    old, new = Resources(pids=5), Resources(pids=6, cpuset="1")
    paths = {"unified": str(tmp_path)}
    # there is no cpuset.cpus
    with pytest.raises(FileNotFoundError):
        relimit.change(layout, paths, old, new)
    assert (tmp_path / "pids.max").read_text() == "5"
