from __future__ import annotations

import signal

import pytest

from knarr.engine import merge
from knarr.model.errors import Invalid
from knarr.model.resource import ImageConfig
from knarr.model.workload import ExecSpec, Process, Security, SecurityProfile, WorkloadSpec

CAPS = ("CHOWN",)


def process(config: ImageConfig | None = None, **fields) -> Process:
    spec = WorkloadSpec(image="i", **fields)
    return merge.merge(spec, config or ImageConfig(cmd=("sh",)), "host", CAPS)


# docker's table (reference for ENTRYPOINT and CMD), and what its daemon does with overrides
@pytest.mark.parametrize(
    ("entrypoint", "cmd", "own_entrypoint", "own_cmd", "wanted"),
    [
        (("e",), ("c",), None, None, ("e", "c")),
        (("e",), ("c",), None, ("x", "y"), ("e", "x", "y")),
        (("e",), ("c",), None, (), ("e", "c")),
        (("e",), ("c",), ("n",), None, ("n",)),
        (("e",), ("c",), ("n",), ("x",), ("n", "x")),
        (("e",), ("c",), ("",), ("x",), ("x",)),
        (("e",), ("c",), (), None, ("c",)),
        ((), ("c",), None, None, ("c",)),
        (("e",), (), None, None, ("e",)),
    ],
)
def test_command_line(entrypoint, cmd, own_entrypoint, own_cmd, wanted):
    config = ImageConfig(entrypoint=entrypoint, cmd=cmd)
    assert process(config, entrypoint=own_entrypoint, command=own_cmd).args == wanted


@pytest.mark.parametrize("own", [None, ("",)])
def test_no_command(own):
    with pytest.raises(Invalid, match="no command specified"):
        process(ImageConfig(entrypoint=("e",) if own else ()), entrypoint=own)


def test_environment_order_and_override():
    config = ImageConfig(cmd=("c",), env=("PATH=/bin", "A=1", "B=2"))
    got = process(config, env=("B=3", "C=x=y", "A", "E="), tty=True).env
    assert got == ("PATH=/bin", "HOSTNAME=host", "TERM=xterm", "B=3", "C=x=y", "E=")


def test_environment_has_a_path_even_from_an_empty_image():
    assert process().env[0].startswith("PATH=/usr/local/sbin:")
    assert not any(item.startswith("TERM=") for item in process().env)


@pytest.mark.parametrize("entry", ["=x", "", "a\0b=1"])
def test_bad_environment(entry):
    with pytest.raises(Invalid):
        process(env=(entry,))


@pytest.mark.parametrize(
    ("image", "own", "wanted"),
    [
        ("", None, "/"),
        ("/app", None, "/app"),
        ("app/x", None, "/app/x"),
        ("/app", "/o/../w/.", "/w"),
        ("//x", None, "/x"),
    ],
)
def test_working_folder(image, own, wanted):
    assert process(ImageConfig(cmd=("c",), workdir=image), workdir=own).cwd == wanted


def test_user_and_security():
    config = ImageConfig(cmd=("c",), user="alice")
    assert process(config).user == "alice"
    assert process(config, user="").user == ""
    assert process(security=Security(profile=SecurityProfile.HARDENED)).no_new_privileges
    assert not process(security=Security(privileged=True)).seccomp
    assert not process(security=Security(seccomp="unconfined")).seccomp
    assert process().seccomp
    with pytest.raises(Invalid):
        process(user="a\0")


def test_exec_takes_over_what_it_does_not_say():
    main = process(ImageConfig(cmd=("c",), env=("A=1",), user="alice", workdir="/w"), groups=("staff",))
    one = merge.merge_exec(ExecSpec(args=("x",)), main, ("ALL",))
    assert (one.user, one.cwd, one.groups, one.env) == ("alice", "/w", ("staff",), main.env)
    two = merge.merge_exec(
        ExecSpec(args=("x",), user="0", tty=True, env=("A=2",), privileged=True), main, ("ALL",)
    )
    assert two.capabilities == ("ALL",)
    assert not two.seccomp
    assert two.groups == ()
    assert "TERM=xterm" in two.env
    assert "A=2" in two.env
    assert two.init is False
    with pytest.raises(Invalid):
        merge.merge_exec(ExecSpec(args=()), main, ())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15),
        ("sigkill", 9),
        ("9", 9),
        ("RTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMAX-1", signal.SIGRTMAX - 1),
    ],
)
def test_signals(text, number):
    assert merge.parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-1", "SIGFOO", "٣", "RTMIN+99", "RTMIN-1", "_DFL", "1e1"])
def test_bad_signals(text):
    with pytest.raises(Invalid):
        merge.parse_signal(text)


def test_stop_signal_of_image_never_stops_a_stop():
    spec = WorkloadSpec(image="i")
    assert merge.stop_signal(spec, ImageConfig(stop_signal="SIGQUIT")) == signal.SIGQUIT
    assert merge.stop_signal(spec, ImageConfig(stop_signal="nonsense")) == signal.SIGTERM
    # int() raises ValueError from 4,301 digits on
    assert merge.stop_signal(spec, ImageConfig(stop_signal="9" * 5000)) == signal.SIGTERM
    with pytest.raises(Invalid):
        merge.stop_signal(WorkloadSpec(image="i", stop_signal="nonsense"), ImageConfig())


@pytest.mark.parametrize("size", [(1,), (0, 5), (70000, 1), (1, 2, 3)])
def test_bad_tty_size(size):
    with pytest.raises(Invalid):
        process(tty_size=size)
