"""`stage`, the program that becomes a workload: descriptors, the search for the program, users, hostile messages."""

from __future__ import annotations

import errno
import os
import random
import socket
import subprocess
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.kernel import plan as plans
from knarr.kernel import spawn, steps
from knarr.kernel.plan import Plan
from support.stage import run

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becoming another user")


def test_the_program_has_exactly_the_declared_descriptors():
    junk = [os.open("/dev/null", os.O_RDWR) for _ in range(20)]
    try:
        fds = {"mine": os.open("/dev/zero", os.O_RDONLY)}
        ended = run("sh", "-c", "ls -l /proc/self/fd | cut -d' ' -f9-", fds=fds, numbers={"mine": 5})
    finally:
        for fd in junk:
            os.close(fd)
    found = dict(line.split()[-3::2] for line in ended.out.splitlines() if "->" in line)
    # 3 is the listing's own
    assert set(found) == {"0", "1", "2", "3", "5"}
    assert (found["0"], found["5"]) == ("/dev/null", "/dev/zero")


def test_descriptors_that_trade_places():
    """One's number is another's source, below and above."""
    fds = {name: os.open(f"/dev/{name}", os.O_RDONLY) for name in ("zero", "full", "urandom")}
    low = dict(zip(sorted(fds), (4, 3, 30), strict=True))
    ended = run("sh", "-c", "for n in 3 4 30; do readlink /proc/self/fd/$n; done", fds=fds, numbers=low)
    places = {number: f"/dev/{name}" for name, number in low.items()}
    assert ended.out.split() == [places[3], places[4], places[30]]


@pytest.mark.parametrize(
    ("name", "number", "code"),
    [
        ("", errno.ENOENT, 127),
        ("nosuch", errno.ENOENT, 127),
        ("/no/such", errno.ENOENT, 127),
        ("/etc/passwd/x", errno.ENOTDIR, 127),
        ("/etc", errno.EACCES, 126),
        ("/etc/passwd", errno.EACCES, 126),
        ("/proc/self/exe", errno.ELOOP, 126),
        ("x" * 5000, errno.ENAMETOOLONG, 126),
    ],
)
def test_programs_not_found(name, number, code):
    ended = run(name, env=("PATH=/nowhere:/bin",))
    assert (ended.failure.step, ended.failure.errno, ended.code) == ("exec", number, code)
    assert ended.failure.message == (f"{name[:4095]}: " if name else "") + os.strerror(number)


def test_program_by_search():
    assert run("sh", "-c", "echo $0", env=("PATH=/nowhere:/bin",)).out == "sh\n"
    assert run("sh", "-c", "true", env=()).code == 0


def test_a_text_with_a_zero_byte_is_refused_before_there_is_a_process():
    with pytest.raises(Exception, match="exec") as caught:
        run("sh", "-c", "a\0b")
    assert caught.value.errno == errno.EINVAL


def test_the_last_of_a_variable_counts():
    ended = run("env", env=("PATH=/bin:/usr/bin", "A=1", "nothing", "A=2"))
    assert sorted(ended.out.split()) == ["A=2", "PATH=/bin:/usr/bin"]


def test_a_plan_of_many_packets():
    words = [str(number) * 20 for number in range(20000)]
    ended = run("sh", "-c", 'echo $# "$7"', "sh", *words)
    assert ended.out.split() == ["20000", words[6]]


def test_signals_are_as_programs_expect_them():
    """Python ignores SIGPIPE, and what is ignored or blocked outlives an exec."""
    ended = run("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    assert [line.split()[1] for line in ended.out.splitlines()] == ["0" * 16] * 2


def say(message: bytes) -> int:
    """The wait status of a `stage` that is told this."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            pid = spawn.spawn(theirs.fileno())
        if message:
            ours.send(message)
    return os.waitpid(pid, 0)[1]


def test_without_a_plan_nothing_begins():
    assert say(b"") == 253 << 8
    assert say(b"go") == 253 << 8


def test_spoiled_plans_end_in_an_error():
    plan = Plan(argv=("/no/such",), inside=(steps.Guard(), steps.Symlinks(links=(("a", "/no/such/b"),))))
    whole = plans.for_stage(plan, ())
    chance = random.Random(4)
    for _ in range(150):
        spoiled = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            spoiled[chance.randrange(8, len(spoiled))] = chance.randrange(256)
        assert say(bytes(spoiled)) in (126 << 8, 127 << 8)


PASSWD = """root:x:0:0:r:/root:/bin/sh
# comment:x:0:0::/:
a:x:5:6:A:/a:/bin/sh
bad:x:y:z:
  padded:x:7:8::/p:\t

big:x:99999999999:1:::
5x:x:9:9::/:
"""
GROUP = """root:x:0:
a:x:6:
g:x:20:a,b
h:x:21:b
short
evil:x:zz:a
huge:x:99999999999:a
"""


@pytest.fixture(scope="module")
def tree():
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/etc")
        for name, text in (("passwd", PASSWD), ("group", GROUP)):
            with open(f"{folder}/etc/{name}", "w", encoding="ascii") as file:
                file.write(text)
        yield folder


def resolve(tree, user, groups=()):
    """(uid, gid, groups, home) that the program has, or the failure."""
    fds = {"root": os.open(tree, os.O_PATH | os.O_DIRECTORY)}
    found = (steps.ResolveUser(user=user, groups=groups), steps.SetIds())
    ended = run(
        "sh", "-c", "grep -E '^(Uid|Gid|Groups):' /proc/self/status; echo $HOME", steps=found, fds=fds
    )
    if ended.failure is not None:
        return ended.failure
    uid, gid, more, home = ended.out.split("\n")[:4]
    return int(uid.split()[1]), int(gid.split()[1]), tuple(map(int, more.split()[1:])), home


@needs_root
@pytest.mark.parametrize(
    ("user", "extra", "expected"),
    [
        ("", (), (0, 0, (), "/root")),
        ("a", (), (5, 6, (20,), "/a")),
        ("5", (), (5, 6, (20,), "/a")),
        ("5:h", (), (5, 21, (), "/a")),
        ("5x", (), (9, 9, (), "/")),
        ("77", ("g",), (77, 0, (20,), "/")),
        ("77", ("21", "g", "h", "20"), (77, 0, (20, 21), "/")),
        (":h", (), (0, 21, (), "/root")),
        ("padded", (), (7, 8, (), "/p")),
        ("0000000005", (), (5, 6, (20,), "/a")),
    ],
)
def test_resolve(tree, user, extra, expected):
    assert resolve(tree, user, extra) == expected


@needs_root
@pytest.mark.parametrize(
    ("user", "extra", "text"),
    [
        ("nobody", (), "unable to find user nobody: no matching entries in passwd file"),
        ("bad", (), "unable to find user bad: no matching entries in passwd file"),
        ("+1", (), "unable to find user +1: no matching entries in passwd file"),
        ("5:nogroup", (), "unable to find group nogroup: no matching entries in group file"),
        ("5", ("evil",), "unable to find group evil: no matching entries in group file"),
        ("2147483648", (), "uids and gids must be in range 0-2147483647: 2147483648"),
        ("1:99999999999", (), "uids and gids must be in range 0-2147483647: 99999999999"),
    ],
)
def test_who_is_nobody(tree, user, extra, text):
    failure = resolve(tree, user, extra)
    assert (failure.step, failure.message) == ("ResolveUser", text)


@needs_root
@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12))
def test_resolve_never_guesses(tree, user):
    """A user that is neither a plain number nor a name of the file is an error, never uid 0."""
    found = resolve(tree, user)
    if not isinstance(found, tuple):
        return
    name = user.partition(":")[0]
    assert found[0] != 0 or name in ("", "root") or (name.isascii() and name.isdigit() and int(name) == 0)


@needs_root
def test_files_of_users_that_are_none(tree, tmp_path):
    """A FIFO hangs nobody, a huge file is not read, a link leads nowhere outside."""
    (tmp_path / "etc").mkdir()
    passwd = tmp_path / "etc" / "passwd"
    assert resolve(str(tmp_path), "3") == (3, 0, (), "/")
    os.mkfifo(passwd)
    assert resolve(str(tmp_path), "3").errno == errno.EINVAL
    passwd.unlink()
    with open(passwd, "wb") as file:
        file.truncate((4 << 20) + 1)
    assert resolve(str(tmp_path), "3").errno == errno.EFBIG
    passwd.unlink()
    passwd.symlink_to(f"{tree}/etc/passwd")
    assert resolve(str(tmp_path), "a").errno == errno.ENOENT


def test_the_program_is_static_and_knows_every_step():
    path = os.path.join(os.path.dirname(spawn.__file__), "..", "native-bin", "stage")
    with open(path, "rb") as file:
        program = file.read()
    missing = [
        name
        for name, kind in Plan.kinds.items()
        if not issubclass(kind, plans.Outside) and name.encode() + b"\0" not in program
    ]
    assert not missing
    headers = subprocess.run(["readelf", "-l", path], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in headers
