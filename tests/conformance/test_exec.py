"""exec lands inside, never on the host, and means the same behind every wall."""

from __future__ import annotations

import socket
import time

import pytest

from conformance.harness import Terminal, Wall, eventually


@pytest.mark.smoke
def test_exec_prints_and_returns_the_code(wall: Wall, box: str) -> None:
    result = wall.exec(box, "sh", "-c", "echo in; echo err >&2; exit 3")
    assert (result.code, result.out, result.err) == (3, "in\n", "err\n")


@pytest.mark.smoke
def test_exec_lands_inside(wall: Wall, box: str) -> None:
    assert wall.exec(box, "hostname").out == "shared\n"
    assert socket.gethostname() != "shared"
    assert wall.exec(box, "cat", "/proc/1/comm").out.strip() == "sleep"


def test_exec_sees_the_workloads_files(wall: Wall, box: str) -> None:
    wall.exec(box, "sh", "-c", "echo mine > /tmp/mine")
    assert wall.exec(box, "cat", "/tmp/mine").out == "mine\n"


@pytest.mark.smoke
def test_exec_user_workdir_environment(wall: Wall, box: str) -> None:
    result = wall.exec(
        box, "sh", "-c", "id -un; pwd; echo $SHADE", opts=("-u", "alice", "-w", "/tmp", "-e", "SHADE=dark")
    )
    assert result.lines == ["alice", "/tmp", "dark"]


def test_exec_has_the_workloads_environment(wall: Wall, box: str) -> None:
    assert wall.exec(box, "sh", "-c", "echo $COLOUR").out == "red\n"


@pytest.mark.smoke
def test_exec_stdin(wall: Wall, box: str) -> None:
    assert wall.exec(box, "cat", opts=("-i",), stdin=b"typed\n").out == "typed\n"


def test_exec_without_i_has_empty_stdin(wall: Wall, box: str) -> None:
    assert wall.exec(box, "cat", stdin=b"lost").out == ""


def test_exec_missing_program_is_127(wall: Wall, box: str) -> None:
    result = wall.exec(box, "nosuch")
    assert result.code == 127
    assert "nosuch" in result.err


def test_exec_not_executable_is_126(wall: Wall, box: str) -> None:
    assert wall.exec(box, "/etc/passwd").code == 126


def test_exec_unknown_user(wall: Wall, box: str) -> None:
    result = wall.exec(box, "true", opts=("-u", "nobodyhere"))
    assert result.code in (125, 126)
    assert "nobodyhere" in result.err


def test_exec_in_a_stopped_workload_is_refused(wall: Wall) -> None:
    name = wall.create("true")
    try:
        result = wall.exec(name, "true")
        assert result.code != 0
        assert "created" in result.err or "running" in result.err
    finally:
        wall.knarr("rm", name)


def test_exec_has_the_same_capabilities_and_filter(wall: Wall, box: str) -> None:
    result = wall.exec(box, "grep", "-E", "CapBnd|Seccomp:", "/proc/self/status")
    words = result.out.split()
    assert int(words[1], 16) == 0xA80425FB
    assert words[3] == "2"


def test_exec_large_output(wall: Wall, box: str) -> None:
    assert wall.exec(box, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x").out == "x" * 3000000


def test_exec_detached(wall: Wall, box: str) -> None:
    wall.knarr("exec", "-d", box, "sh", "-c", "sleep 0.2; echo done > /tmp/detached", check=True)
    eventually(lambda: wall.exec(box, "cat", "/tmp/detached").out == "done\n", what="the detached exec")


@pytest.mark.smoke
def test_exec_on_a_terminal(wall: Wall, box: str) -> None:
    code, shown = wall.on_terminal("exec", "-it", box, "sh", "-c", "tty; stty size; exit 5", size=(101, 37))
    assert code == 5
    assert "/dev/pts/" in shown
    assert "37 101" in shown


def test_run_on_a_terminal_with_input(wall: Wall) -> None:
    words = ("run", "--rm", "-it", "--isolation", wall.isolation, "conformance:latest", "sh")
    with Terminal(wall.instance, words) as terminal:
        terminal.type(b"echo $((6*7))\n")
        terminal.read_until(b"42")
        terminal.type(b"exit 8\n")
        assert terminal.finish()[0] == 8


def test_terminal_resize_is_passed_on(wall: Wall, box: str) -> None:
    words = (
        "exec",
        "-it",
        box,
        "sh",
        "-c",
        "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done",
    )
    with Terminal(wall.instance, words, size=(80, 24)) as terminal:
        terminal.read_until(b"ready")
        terminal.resize(132, 50)
        terminal.read_until(b"50 132")


def test_interrupt_key_reaches_the_program(wall: Wall, box: str) -> None:
    words = (
        "exec",
        "-it",
        box,
        "sh",
        "-c",
        "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.1; done",
    )
    with Terminal(wall.instance, words) as terminal:
        terminal.read_until(b"ready")
        terminal.type(b"\x03")
        code, shown = terminal.finish()
        assert "interrupted" in shown
        assert code == 9


@pytest.mark.smoke
def test_attach_sees_new_output_and_the_exit(wall: Wall) -> None:
    with wall.box("sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; echo after; exit 6") as name:
        attached = wall.instance.popen("attach", name, stdin=-3, stdout=-1, stderr=-1)
        time.sleep(0.7)
        wall.exec(name, "touch", "/tmp/go")
        out, _ = attached.communicate(timeout=60)
        assert out == b"after\n"
        assert attached.returncode == 6


def test_detach_keys_leave_it_running(wall: Wall) -> None:
    with wall.box("sh", opts=("-i", "-t")) as name:
        with Terminal(wall.instance, ("attach", name)) as terminal:
            terminal.type(b"echo ma''rk\n")
            terminal.read_until(b"mark")
            terminal.type(b"\x10\x11")
            terminal.finish()
        assert wall.knarr("ps", "--format", "{{.Names}}").out.count(name) == 1


def test_a_relative_working_directory_is_refused(wall: Wall, box: str) -> None:
    result = wall.exec(box, "pwd", opts=("-w", "tmp"))
    assert result.code != 0
    assert "the working directory 'tmp' is not absolute" in result.err
    assert "hint: such as /tmp" in result.err
