"""rename, update, top, diff: behind every wall."""

from __future__ import annotations

import json

import pytest

from conformance.harness import IMAGE, Wall, eventually


@pytest.mark.smoke
def test_a_new_name_is_found_and_resolved(wall: Wall, box: str) -> None:
    with wall.box(opts=("--hostname", "keeps")) as name:
        new = f"new-{name}"
        wall.knarr("rename", name, new, check=True)
        try:
            assert wall.knarr("inspect", name).code != 0
            found = json.loads(wall.knarr("inspect", new, check=True).out)[0]
            assert found["name"] == new
            address = wall.exec(box, "nslookup", new)
            assert found["address"] in address.out
            assert found["address"] not in wall.exec(box, "nslookup", name).out
            assert wall.knarr("rename", new, box).code == 1
            assert wall.knarr("rename", new, "not a name").code == 1
        finally:
            wall.knarr("rename", new, name, check=True)


@pytest.mark.smoke
def test_top_lists_the_processes_inside(wall: Wall) -> None:
    with wall.box("sh", "-c", "sleep 4321 & wait") as name:
        eventually(lambda: len(wall.knarr("top", name).lines) == 3, what="the child")
        heads, *rows = [line.split(None, 7) for line in wall.knarr("top", name, check=True).lines]
        assert heads == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
        assert rows[0][:3] == ["root", "1", "0"]
        assert rows[1][2] == "1"
        assert rows[1][7] == "sleep 4321"


def test_top_takes_columns(wall: Wall, box: str) -> None:
    assert wall.knarr("top", box, "-o", "pid,comm").lines[:2] == ["PID  COMMAND", "1    sleep"]
    result = wall.knarr("top", box, "-o", "nothing")
    assert result.code == 1
    assert "nothing" in result.err
    assert wall.knarr("top", box, "aux").code == 1


def test_top_of_a_stopped_one_is_refused(wall: Wall) -> None:
    name = wall.create("true")
    try:
        assert "not running" in wall.knarr("top", name).err
    finally:
        wall.knarr("rm", name)


CHANGING = (
    "echo x > /new; mkdir -p /made/deep; echo y > /made/deep/file; echo z >> /etc/passwd;"
    "rm /etc/group; ln -s /etc/shadow /tmp/link; echo done; sleep 1000"
)
CHANGED = ["A /made", "A /made/deep", "A /made/deep/file", "A /new", "A /tmp/link"]


@pytest.mark.smoke
def test_diff_tells_added_changed_deleted(wall: Wall) -> None:
    with wall.box("sh", "-c", CHANGING, opts=("--stop-signal", "KILL")) as name:
        eventually(lambda: "done" in wall.knarr("logs", name).out, what="the changes")
        found = wall.knarr("diff", name, check=True).lines
        assert [line for line in found if line.startswith("A")] == CHANGED
        assert {"C /etc", "C /etc/passwd", "D /etc/group"} <= set(found)
        wall.knarr("stop", name, check=True)
        assert wall.knarr("diff", name, check=True).lines == found


def test_diff_of_an_unchanged_one_is_empty(wall: Wall, box: str) -> None:
    del box
    name = wall.create("true")
    try:
        wall.knarr("start", name, check=True)
        wall.knarr("wait", name, check=True)
        assert wall.knarr("diff", name, check=True).out == ""
    finally:
        wall.knarr("rm", "-f", name)


def test_diff_of_a_folder_made_anew(wall: Wall) -> None:
    with wall.box("sh", "-c", "rm -r /etc; mkdir /etc; echo a > /etc/other; echo done; sleep 1000") as name:
        # the network's files are mounted below: that folder can't go
        assert wall.knarr("diff", name).code == 0
    with wall.box("sh", "-c", "rm -r /root; mkdir /root; echo a > /root/b; echo done; sleep 1000") as name:
        eventually(lambda: "done" in wall.knarr("logs", name).out, what="the changes")
        assert "A /root/b" in wall.knarr("diff", name, check=True).lines


def pids_limit(wall: Wall, name: str) -> str:
    return wall.exec(name, "sh", "-c", "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max").out.strip()


@pytest.mark.smoke
def test_update_holds_at_once_and_after_a_restart(wall: Wall) -> None:
    with wall.box(opts=("--pids-limit", "50", "-m", "64m", "--stop-signal", "KILL")) as name:
        assert pids_limit(wall, name) == "50"
        wall.knarr("update", "--pids-limit", "77", "--memory", "48m", "--cpus", "0.5", name, check=True)
        assert pids_limit(wall, name) == "77"
        resources = json.loads(wall.knarr("inspect", name).out)[0]["spec"]["resources"]
        assert (resources["pids"], resources["memory"], resources["cpus"]) == (77, 48 << 20, 0.5)
        assert json.loads(wall.knarr("stats", "--no-stream", "--format", "json", name).out)
        wall.knarr("restart", name, check=True)
        assert pids_limit(wall, name) == "77"
        wall.knarr("update", "--pids-limit", "-1", name, check=True)
        assert pids_limit(wall, name) == "max"


def test_without_a_limit_of_processes_there_is_none(wall: Wall) -> None:
    script = "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null"
    for number in ("-1", "0"):
        assert wall.shell(script, opts=("--pids-limit", number)).out.strip() == "max"


def test_update_refuses_nonsense_and_keeps_what_was(wall: Wall) -> None:
    with wall.box(opts=("--pids-limit", "50")) as name:
        assert wall.knarr("update", name).code == 1
        assert wall.knarr("update", "--memory", "1k", name).code == 1
        assert wall.knarr("update", "--cpuset-cpus", "nine", name).code == 1
        assert pids_limit(wall, name) == "50"


def test_cpuset_can_be_updated_or_is_refused(wall: Wall, box: str) -> None:
    result = wall.knarr("update", "--cpuset-cpus", "0", box)
    if wall.isolation == "microvm":
        assert "isolation microvm can't do cpuset" in result.err
        return
    assert result.code == 0
    allowed = wall.exec(box, "grep", "Cpus_allowed_list", "/proc/self/status").out.split()
    assert allowed[1] == "0"
    wall.knarr("update", "--cpuset-cpus", "", box, check=True)


def test_memory_of_a_running_machine_has_its_bound(wall: Wall, box: str) -> None:
    result = wall.knarr("update", "--memory", "3g", box)
    if wall.isolation == "microvm":
        assert "isolation microvm can't give a running machine" in result.err
    else:
        assert result.code == 0


def test_a_created_one_is_updated_for_its_start(wall: Wall) -> None:
    name = f"updated-{wall.isolation}"
    wall.knarr("create", "--name", name, "--isolation", wall.isolation, IMAGE, "sleep", "1000", check=True)
    try:
        wall.knarr("update", "--pids-limit", "33", name, check=True)
        wall.knarr("start", name, check=True)
        assert pids_limit(wall, name) == "33"
    finally:
        wall.knarr("rm", "-f", name)
