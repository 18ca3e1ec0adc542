"""run, create, start, stop, kill, rm, wait, ps, inspect: the life of a workload, the same behind every wall."""

from __future__ import annotations

import json
import time

import pytest

from conformance.harness import IMAGE, Wall, eventually


@pytest.mark.smoke
def test_run_prints_and_exits_zero(wall: Wall) -> None:
    result = wall.run("echo", "hello", "world")
    assert (result.code, result.out, result.err) == (0, "hello world\n", "")


@pytest.mark.smoke
@pytest.mark.parametrize("code", [1, 7, 255])
def test_exit_code_is_the_programs(wall: Wall, code: int) -> None:
    assert wall.shell(f"exit {code}").code == code


@pytest.mark.smoke
def test_death_by_signal_is_128_plus_n(wall: Wall) -> None:
    assert wall.shell("sh -c 'kill -TERM $$'; exit $?").code == 143


def test_missing_command_is_127_and_names_it(wall: Wall) -> None:
    result = wall.run("/no/such/program")
    assert result.code == 127
    assert "/no/such/program" in result.err
    assert "Traceback" not in result.err


def test_missing_command_on_path_is_127(wall: Wall) -> None:
    result = wall.run("nosuchprogram")
    assert result.code == 127
    assert "nosuchprogram" in result.err


def test_not_executable_is_126(wall: Wall) -> None:
    result = wall.run("/etc/passwd")
    assert result.code == 126
    assert "/etc/passwd" in result.err


def test_directory_as_command_is_126(wall: Wall) -> None:
    assert wall.run("/etc").code == 126


def test_unknown_user_is_an_error(wall: Wall) -> None:
    result = wall.run("true", opts=("--user", "nobodyhere"))
    assert result.code == 125
    assert "nobodyhere" in result.err


@pytest.mark.smoke
def test_stderr_and_stdout_are_apart(wall: Wall) -> None:
    result = wall.shell("echo out; echo err >&2")
    assert (result.out, result.err) == ("out\n", "err\n")


@pytest.mark.smoke
def test_stdin_reaches_the_program_and_ends(wall: Wall) -> None:
    result = wall.run("cat", opts=("-i",), stdin=b"one\ntwo\n")
    assert (result.code, result.out) == (0, "one\ntwo\n")


def test_stdin_of_a_megabyte(wall: Wall) -> None:
    data = b"0123456789abcde\n" * 65536
    result = wall.run("md5sum", opts=("-i",), stdin=data)
    import hashlib

    assert result.out.split()[0] == hashlib.md5(data).hexdigest()


def test_without_i_stdin_is_empty(wall: Wall) -> None:
    assert wall.run("cat", stdin=b"never read").out == ""


@pytest.mark.smoke
def test_large_output_arrives_whole(wall: Wall) -> None:
    result = wall.shell("i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i+1)); done")
    assert result.lines == [f"line-{i}" for i in range(20000)]


@pytest.mark.smoke
def test_program_is_pid_one(wall: Wall) -> None:
    assert wall.shell("echo $$").out == "1\n"


def test_init_reaps_and_is_pid_one(wall: Wall) -> None:
    result = wall.shell("echo $$; (sleep 0.1 &) ; sleep 0.4; ps -o stat | grep -c Z", opts=("--init",))
    pid, zombies = result.lines
    assert int(pid) > 1
    assert zombies == "0"


def test_init_passes_the_exit_code(wall: Wall) -> None:
    assert wall.shell("exit 9", opts=("--init",)).code == 9


def test_entrypoint_option_replaces_the_images(wall: Wall) -> None:
    assert wall.run("a", "b", opts=("--entrypoint", "echo")).out == "a b\n"


@pytest.mark.smoke
def test_detached_run_prints_the_id_and_goes_on(wall: Wall) -> None:
    with wall.box() as name:
        data = json.loads(wall.knarr("inspect", name).out)[0]
        assert len(data["id"]) == 64
        assert data["status"] == "running"
        assert data["spec"]["isolation"] == wall.isolation


def test_create_then_start_then_wait(wall: Wall) -> None:
    name = wall.create("sh", "-c", "exit 5")
    try:
        assert json.loads(wall.knarr("inspect", name).out)[0]["status"] == "created"
        wall.knarr("start", name, check=True)
        assert wall.knarr("wait", name).out.strip() == "5"
    finally:
        wall.knarr("rm", "-f", name)


def test_start_attached_gives_output_and_code(wall: Wall) -> None:
    name = wall.create("sh", "-c", "echo again; exit 3")
    try:
        result = wall.knarr("start", "-a", name)
        assert (result.code, result.out) == (3, "again\n")
    finally:
        wall.knarr("rm", "-f", name)


def test_second_start_keeps_the_writable_layer(wall: Wall) -> None:
    name = wall.create("sh", "-c", "echo x >> /tmp/count; wc -l < /tmp/count")
    try:
        outs = [wall.knarr("start", "-a", name).out.strip() for _ in range(2)]
        assert outs == ["1", "2"]
    finally:
        wall.knarr("rm", "-f", name)


@pytest.mark.smoke
def test_stop_sends_term_first(wall: Wall) -> None:
    script = "trap 'echo got-term; exit 4' TERM; echo up; while :; do sleep 0.1; done"
    with wall.box("sh", "-c", script) as name:
        eventually(lambda: "up" in wall.knarr("logs", name).out, what="the trap")
        wall.knarr("stop", name, check=True)
        assert wall.knarr("wait", name).out.strip() == "4"
        assert "got-term" in wall.knarr("logs", name).out


def test_stop_kills_after_the_timeout(wall: Wall) -> None:
    with wall.box("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done") as name:
        eventually(lambda: "up" in wall.knarr("logs", name).out, what="the trap")
        begun = time.monotonic()
        wall.knarr("stop", "-t", "1", name, check=True)
        assert time.monotonic() - begun < 20
        assert wall.knarr("wait", name).out.strip() == "137"


def test_stop_signal_of_ones_own(wall: Wall) -> None:
    script = "trap 'exit 6' USR1; echo up; while :; do sleep 0.1; done"
    with wall.box("sh", "-c", script, opts=("--stop-signal", "SIGUSR1")) as name:
        eventually(lambda: "up" in wall.knarr("logs", name).out, what="the trap")
        wall.knarr("stop", name, check=True)
        assert wall.knarr("wait", name).out.strip() == "6"


@pytest.mark.smoke
def test_kill_is_137(wall: Wall) -> None:
    with wall.box() as name:
        wall.knarr("kill", name, check=True)
        assert wall.knarr("wait", name).out.strip() == "137"


def test_kill_with_a_signal_is_delivered(wall: Wall) -> None:
    script = "trap 'echo hup' HUP; echo up; while :; do sleep 0.1; done"
    with wall.box("sh", "-c", script) as name:
        eventually(lambda: "up" in wall.knarr("logs", name).out, what="the trap")
        wall.knarr("kill", "-s", "HUP", name, check=True)
        eventually(lambda: "hup" in wall.knarr("logs", name).out, what="the signal")


def test_kill_of_a_stopped_workload_is_an_error(wall: Wall) -> None:
    name = wall.create("true")
    try:
        result = wall.knarr("kill", name)
        assert result.code != 0
        assert name in result.err
    finally:
        wall.knarr("rm", name)


def test_rm_of_a_running_one_is_refused_with_the_remedy(wall: Wall, box: str) -> None:
    result = wall.knarr("rm", box)
    assert result.code != 0
    assert "-f" in result.err or "force" in result.err


@pytest.mark.smoke
def test_rm_force_removes_a_running_one(wall: Wall) -> None:
    with wall.box() as name:
        wall.knarr("rm", "-f", name, check=True)
        assert wall.knarr("inspect", name).code != 0


def test_rm_flag_leaves_nothing(wall: Wall) -> None:
    name = f"gone-{wall.isolation}"
    wall.run("true", opts=("--name", name))
    eventually(lambda: wall.knarr("inspect", name).code != 0, what="the removal")


def test_name_is_unique(wall: Wall, box: str) -> None:
    result = wall.knarr("create", "--name", box, "--isolation", wall.isolation, IMAGE)
    assert result.code == 125
    assert box in result.err


def test_wait_returns_for_many(wall: Wall) -> None:
    first, second = wall.create("sh", "-c", "exit 1"), wall.create("sh", "-c", "exit 2")
    try:
        wall.knarr("start", first, second, check=True)
        assert wall.knarr("wait", first, second).lines == ["1", "2"]
    finally:
        wall.knarr("rm", "-f", first, second)


def test_ps_shows_running_and_all(wall: Wall, box: str) -> None:
    made = wall.create("true")
    try:
        running = wall.knarr("ps", "--format", "{{.Names}}").lines
        everything = wall.knarr("ps", "-a", "--format", "{{.Names}}").lines
        assert box in running
        assert made not in running
        assert made in everything
    finally:
        wall.knarr("rm", made)


def test_ps_json_has_the_wall(wall: Wall, box: str) -> None:
    rows = [json.loads(line) for line in wall.knarr("ps", "--format", "json").lines]
    (row,) = [row for row in rows if box in str(row)]
    assert wall.isolation in str(row)


def test_a_short_id_is_enough(wall: Wall, box: str) -> None:
    data = json.loads(wall.knarr("inspect", box).out)[0]
    assert json.loads(wall.knarr("inspect", data["id"][:12]).out)[0]["name"] == box


def test_events_tell_the_life(wall: Wall) -> None:
    since = str(time.time())
    name = f"life-{wall.isolation}"
    wall.run("true", opts=("--name", name))
    eventually(lambda: wall.knarr("inspect", name).code != 0, what="the removal")
    rows = wall.knarr("events", "--since", since, "--until", str(time.time()), "--format", "json").lines
    actions = [json.loads(row)["action"] for row in rows if name in row]
    assert actions == ["create", "start", "die", "destroy"]


def test_labels_can_be_filtered(wall: Wall) -> None:
    with wall.box(opts=("--label", f"wall={wall.isolation}", "--label", "a=b")) as name:
        found = wall.knarr("ps", "--filter", f"label=wall={wall.isolation}", "--format", "{{.Names}}").lines
        assert found == [name]


def test_plan_prints_steps_and_starts_nothing(wall: Wall) -> None:
    name = f"planned-{wall.isolation}"
    result = wall.knarr("run", "--plan", "--name", name, "--isolation", wall.isolation, IMAGE, "true")
    assert result.code == 0
    assert len(result.lines) > 5
    assert wall.knarr("inspect", name).code != 0
