"""Bad input: one clear line with the remedy, the right exit code, nothing left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import os

    from conformance.harness import Instance, Wall


def clear(result, code: int, *words: str) -> None:
    assert result.code == code, result
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err, result.err


def names(wall: Wall) -> set[str]:
    return set(wall.knarr("ps", "-a", "--format", "{{.Names}}").lines)


@pytest.mark.smoke
def test_unknown_image(wall: Wall) -> None:
    before = names(wall)
    result = wall.knarr("run", "--pull", "never", "--isolation", wall.isolation, "nosuch:image", "true")
    clear(result, 125, "nosuch:image")
    assert names(wall) == before


def test_unreachable_registry(wall: Wall) -> None:
    result = wall.knarr("run", "--isolation", wall.isolation, "127.0.0.1:1/x/y", "true")
    clear(result, 125, "127.0.0.1:1")


def test_bad_reference(wall: Wall) -> None:
    clear(wall.knarr("run", "--isolation", wall.isolation, "UPPER CASE", "true"), 125, "UPPER CASE")


def test_failed_start_leaves_a_state_that_can_be_removed(wall: Wall) -> None:
    name = wall.create("/no/such")
    result = wall.knarr("start", name)
    assert result.code != 0
    assert "/no/such" in result.err
    wall.knarr("rm", name, check=True)


@pytest.mark.parametrize(
    ("options", "program", "code", "text"),
    [
        ((), "nosuch", 127, "exec 'nosuch': executable file not found in $PATH\nhint: give its full path"),
        (
            (),
            "/no/such",
            127,
            "exec '/no/such': no such file, or its interpreter is missing\nhint: look into",
        ),
        ((), "/etc/passwd", 126, "exec '/etc/passwd': permission denied\nhint: is it executable"),
        (
            ("-u", "nobody2"),
            "true",
            125,
            "unable to find user nobody2: no matching entries in passwd file\nhint: ",
        ),
        (("-w", "/etc/passwd"), "true", 126, "working directory '/etc/passwd': not a directory"),
    ],
)
def test_a_program_that_cannot_run_is_told_alike(
    wall: Wall, options: tuple[str, ...], program: str, code: int, text: str
) -> None:
    clear(wall.run(program, opts=options), code, text)
    with wall.box() as box:
        clear(wall.exec(box, program, opts=options), code, text)


def test_unknown_isolation(instance: Instance) -> None:
    clear(
        instance.knarr("run", "--isolation", "jail", "conformance:latest", "true"),
        125,
        "jail",
        "container",
        "microvm",
    )


@pytest.mark.parametrize("isolation", ["sandbox", "machine"])
def test_a_wall_that_is_not_there_is_refused_by_name(instance: Instance, isolation: str) -> None:
    clear(instance.knarr("run", "--isolation", isolation, "conformance:latest", "true"), 125, isolation)


def test_unknown_flag_names_it(instance: Instance) -> None:
    clear(instance.knarr("run", "--frobnicate", "x"), 125, "--frobnicate")


def test_missing_argument(instance: Instance) -> None:
    result = instance.knarr("exec")
    assert result.code != 0
    assert "exec" in result.err


@pytest.mark.parametrize(
    "verb", ["start", "stop", "kill", "rm", "logs", "inspect", "wait", "attach", "stats"]
)
def test_unknown_workload(instance: Instance, verb: str) -> None:
    result = instance.knarr(verb, "nosuchworkload")
    assert result.code != 0
    assert "nosuchworkload" in result.err
    assert "Traceback" not in result.err


def test_bad_values(instance: Instance) -> None:
    for option, value in (("--memory", "lots"), ("--cpus", "-1"), ("-p", "99999:80"), ("-e", "=x")):
        result = instance.knarr("run", option, value, "conformance:latest", "true")
        assert result.code == 125, (option, result)
        assert "Traceback" not in result.err


def test_second_daemon_on_the_same_root(instance: Instance, tmp_path: os.PathLike[str]) -> None:
    import subprocess

    from conformance.harness import KNARR

    words = [str(KNARR), "--root", instance.root, "--run", str(tmp_path), "daemon", "start"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "daemon" in done.stderr
    assert "Traceback" not in done.stderr


def test_not_root(instance: Instance) -> None:
    import subprocess

    from conformance.harness import KNARR

    done = subprocess.run(
        [str(KNARR), "--root", instance.root, "--run", instance.run_folder, "ps"],
        capture_output=True,
        text=True,
        timeout=60,
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "root" in done.stderr or "permission" in done.stderr
