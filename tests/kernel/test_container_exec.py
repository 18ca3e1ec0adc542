"""Further processes in a running container.

Power needed: root with namespaces, overlay and control groups.
"""

from __future__ import annotations

import contextlib
import os

import pytest

from knarr.kernel import facts
from knarr.model.workload import Security
from support.containers import Box, boxes, run_in

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def make():
    missing = [name for name, ok, _, _ in facts.checks() if not ok and name in ("privileges", "overlay")]
    if missing:
        pytest.skip(f"this host lacks {', '.join(missing)}")
    with boxes() as factory:
        yield factory


@pytest.fixture
def box(make) -> Box:
    return make()


@pytest.fixture
def running(box):
    given = box.given("sleep", "60", security=Security())
    with contextlib.closing(box.start(given)) as started:
        started.given = given
        yield started


def test_exec_lands_inside(running):
    script = (
        "hostname; cat /proc/1/comm; for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done"
    )
    result = run_in(running, "sh", "-c", script)
    lines = result.out.split()
    assert lines[:2] == ["boxhost", "sleep"]
    names = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
    assert lines[2:] == [os.readlink(f"/proc/{running.pid}/ns/{name}") for name in names]


def test_exec_has_the_same_walls(running):
    result = run_in(running, "sh", "-c", "cat /proc/self/status; ls /proc/self/fd; cat /proc/self/cgroup")
    assert "CapEff:\t00000000a80425fb" in result.out
    assert "Seccomp:\t2" in result.out
    assert "0\n1\n2\n3\n" in result.out
    mine = [line for line in result.out.splitlines() if line.endswith(":pids:/")]
    assert mine or running.box.facts.cgroups.version != 1


def test_exec_user_cwd_stdin_code(running):
    result = run_in(running, "sh", "-c", "id -u; pwd; cat; exit 9", user="sam", cwd="/var", stdin=b"in")
    assert (result.out, result.code) == ("1000\n/var\nin", 9)


def test_exec_terminal_is_the_containers(running):
    result = run_in(running, "sh", "-c", "tty; stty size", tty=True, tty_size=(80, 24))
    assert result.out.split() == ["/dev/pts/0", "24", "80"]


def test_exec_missing_program(running):
    result = run_in(running, "nosuch")
    assert (result.code, result.failure.step, result.failure.errno) == (127, "exec", 2)


def test_exec_into_a_workload_that_covered_its_terminals(running):
    """/dev/pts/ptmx replaced by the workload: refused, not opened."""
    assert run_in(running, "sh", "-c", "rm -rf /dev/ptmx; ln -s /dev/null /dev/ptmx").code == 0
    assert run_in(running, "tty", tty=True).out.strip() == "/dev/pts/0"


def test_exec_cant_be_looked_into(running):
    """The joining process isn't dumpable, so the workload's root can't open its memory or executable."""
    result = run_in(running, "sh", "-c", "ls -l /proc/1/exe")
    assert "busybox" in result.out


WATCH = """
while :; do
  for p in /proc/[0-9]*; do
    while read -r line; do case $line in *python*) echo "$p has $line";; esac; done < $p/maps
  done
done 2>/dev/null
"""


def test_no_memory_of_the_keeper_is_in_reach_of_a_debugger_inside(box):
    """With SYS_PTRACE even what isn't dumpable can be read: what joins must have nothing of the keeper's."""
    given = box.given("sh", "-c", WATCH, security=Security(cap_add=("SYS_PTRACE",)))
    with contextlib.closing(box.start(given)) as watcher:
        watcher.given = given
        for _ in range(30):
            assert run_in(watcher, "true").code == 0
        os.kill(watcher.pid, 9)
        assert watcher.finish().out == ""
