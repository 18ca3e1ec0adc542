"""The container wall through the real API: real daemon, keeper, holder and mover on a ROOT of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from io import BytesIO

import pytest

from knarr.client.client import Client
from knarr.model.errors import Conflict, Invalid, KnarrError, NotFound, Unsupported
from support.images import busybox_archive

pytestmark = pytest.mark.root
IMAGE = "busybox:test"
STDOUT, STDERR, CONTROL = 1, 2, 3


def control(*args):
    code = "import sys; from knarr.keeper.control import main; raise SystemExit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=90,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout or "{}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    base = tmp_path_factory.mktemp("api")
    root, run = str(base / "root"), str(base / "run")
    try:
        control("start", root, run)
        yield root, run
    finally:
        control("stop", root, run, "--workloads")


@pytest.fixture(scope="module")
def client(folders, tmp_path_factory):
    archive = tmp_path_factory.mktemp("archive") / "busybox.tar"
    busybox_archive(str(archive), tag=IMAGE)
    with Client(*folders) as made:
        lines = list(made.load([archive.read_bytes()]))
        assert "image" in lines[-1], lines
        yield made


@pytest.fixture
def make(client):
    made = []

    def create(*command, **fields):
        got = client.create({"image": IMAGE, "command": list(command), **fields})
        made.append(got["id"])
        return got["id"]

    yield create
    for name in made:
        try:
            client.remove(name, force=True)
        except NotFound:
            pass


def frames(session):
    """(stdout, stderr, control messages) of a session up to its end."""
    out = {STDOUT: b"", STDERR: b"", CONTROL: []}
    for kind, payload in session:
        if kind == CONTROL:
            out[kind].append(json.loads(payload))
        else:
            out[kind] += payload
    session.close()
    return out[STDOUT], out[STDERR], out[CONTROL]


def attach(client, name, *, stdin=False, start=True, logs=False):
    return client.attach(name, stdin=stdin, stdout=True, stderr=True, logs=logs, start=start)


def text_of(client, name, **options):
    return b"".join(payload for kind, payload in client.logs(name, **options) if kind == STDOUT)


def run(client, name):
    client.start(name)
    return client.wait(name)


def test_life_of_true(client, make):
    name = make("true")
    assert client.inspect(name)["status"] == "created"
    assert run(client, name) == {"exit_code": 0, "oom_killed": False}
    document = client.inspect(name)
    assert (document["status"], document["exit_code"]) == ("exited", 0)
    assert document["finished"] > document["started"] > document["created"] > 0
    client.remove(name)
    with pytest.raises(NotFound):
        client.inspect(name)


@pytest.mark.parametrize(
    ("command", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$; sleep 5", 143)]
)
def test_exit_codes(client, make, command, code):
    # a PID 1 ignores signals from within its own namespace, so it is a child that is killed
    assert run(client, make("sh", "-c", f"sh -c '{command}'; exit $?"))["exit_code"] == code


@pytest.mark.parametrize(("command", "code"), [("no-such-program", 127), ("/etc/passwd", 126), ("/tmp", 126)])
def test_programs_that_can_not_run(client, make, command, code):
    name = make(command)
    with pytest.raises(KnarrError) as caught:
        client.start(name)
    assert caught.value.exit_code == code
    document = client.inspect(name)
    assert (document["status"], document["exit_code"]) == ("created", code)
    assert document["error"]


def test_unknown_user_is_one_clear_line(client, make):
    name = make("true", user="nobody-here")
    with pytest.raises(KnarrError, match="nobody-here"):
        client.start(name)


def test_logs_have_both_streams_in_order(client, make):
    name = make("sh", "-c", "echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three")
    run(client, name)
    got = list(client.logs(name))
    assert [(kind, payload) for kind, payload in got if payload] == [
        (STDOUT, b"one\n"),
        (STDERR, b"two\n"),
        (STDOUT, b"three\n"),
    ]
    assert text_of(client, name, tail=1) == b"three\n"
    stamped = text_of(client, name, timestamps=True).splitlines()
    assert all(b"Z " in line for line in stamped)
    assert text_of(client, name, until=0) == b""


def test_follow_ends_with_the_workload(client, make, folders):
    name = make("sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 0.05; done")
    client.start(name)
    with Client(*folders) as other:
        assert text_of(other, name, follow=True) == b"".join(b"line %d\n" % i for i in range(1, 6))


def test_attach_and_start_miss_nothing(client, make):
    name = make("sh", "-c", "echo out; echo err >&2; exit 3")
    out, err, messages = frames(attach(client, name))
    assert (out, err) == (b"out\n", b"err\n")
    assert messages == [{"started": True}, {"exit": 3}]


def test_attached_stdin_and_its_end(client, make):
    name = make("sh", "-c", "cat; echo done", stdin_open=True)
    session = attach(client, name, stdin=True)
    payload = b"0123456789abcdef" * 65536
    writer = threading.Thread(target=lambda: (session.write(payload), session.close_stdin()))
    writer.start()
    out, _, messages = frames(session)
    writer.join()
    assert out == payload + b"done\n"
    assert messages[-1] == {"exit": 0}


def test_detach_leaves_it_running_and_stdin_open(client, make):
    name = make("sh", "-c", "read a; echo got $a", stdin_open=True)
    first = attach(client, name, stdin=True)
    next(iter(first))
    first.control({"detach": True})
    for _ in first:
        pass
    first.close()
    assert client.inspect(name)["status"] == "running"
    second = attach(client, name, stdin=True, start=False)
    second.write(b"x\n")
    out, _, _ = frames(second)
    assert out == b"got x\n"


def test_tty(client, make):
    name = make("sh", "-c", "read a; stty size; echo got $a", tty=True, stdin_open=True, tty_size=[80, 24])
    session = attach(client, name, stdin=True)
    next(iter(session))
    session.control({"resize": [132, 43]})
    time.sleep(0.2)
    session.write(b"hello\n")
    out, err, messages = frames(session)
    assert b"43 132" in out
    assert b"got hello\r\n" in out
    assert err == b""
    assert messages[-1] == {"exit": 0}


def test_exec(client, make):
    name = make("sleep", "100", env=["COLOUR=red"])
    client.start(name)
    session = client.execute(name, {"args": ["sh", "-c", "echo $COLOUR; echo err >&2; hostname; exit 5"]})
    out, err, messages = frames(session)
    assert out.split() == [b"red", name[:12].encode()]
    assert err == b"err\n"
    assert messages[-1] == {"exit": 5}
    session = client.execute(name, {"args": ["cat"], "stdin_open": True})
    session.write(b"abc")
    session.close_stdin()
    assert frames(session)[0] == b"abc"
    with pytest.raises(KnarrError) as caught:
        frames(client.execute(name, {"args": ["no-such-program"]}))
    assert caught.value.exit_code == 127
    session = client.execute(name, {"args": ["sh", "-c", "stty size"], "tty": True, "tty_size": [100, 30]})
    assert b"30 100" in frames(session)[0]


def test_exec_ends_although_a_child_keeps_its_pipes(client, make):
    name = make("sleep", "100")
    client.start(name)
    session = client.execute(name, {"args": ["sh", "-c", "sleep 50 & echo now"]})
    started = time.monotonic()
    out, _, messages = frames(session)
    assert out == b"now\n"
    assert messages[-1] == {"exit": 0}
    assert time.monotonic() - started < 10


def test_detached_exec(client, make):
    name = make("sleep", "100")
    client.start(name)
    exec_id = client.execute_detached(name, {"args": ["sh", "-c", "echo x; touch /tmp/done"]})
    assert len(exec_id) == 64
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            client.stat_path(name, "/tmp/done")
            return
        except NotFound:
            time.sleep(0.05)
    raise AssertionError("the detached exec did nothing")


def test_exec_in_what_does_not_run(client, make):
    with pytest.raises(Conflict, match="not running"):
        client.execute(make("true"), {"args": ["true"]})


def test_stop_kill_and_force(client, make, folders):
    stubborn = make("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    client.start(stubborn)
    with pytest.raises(Conflict, match="running"):
        client.remove(stubborn)
    started = time.monotonic()
    client.stop(stubborn, timeout=0.5)
    assert 0.4 < time.monotonic() - started < 8
    assert client.inspect(stubborn)["exit_code"] == 137
    client.stop(stubborn)
    polite = make("sh", "-c", "trap 'exit 9' USR1; while :; do sleep 0.1; done", stop_signal="USR1")
    client.start(polite)
    time.sleep(0.3)
    client.stop(polite)
    assert client.wait(polite)["exit_code"] == 9
    with pytest.raises(Conflict):
        client.kill(polite, "TERM")
    with pytest.raises(Invalid):
        client.kill(polite, "NONSENSE")
    client.start(polite)
    client.remove(polite, force=True)


def test_auto_remove_also_without_a_client(client, make):
    name = make("sh", "-c", "echo bye", auto_remove=True)
    out, _, _ = frames(attach(client, name))
    assert out == b"bye\n"
    deadline = time.monotonic() + 10
    while any(item["id"] == name for item in client.workloads(stopped=True)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    broken = make("no-such-program", auto_remove=True)
    with pytest.raises(KnarrError):
        client.start(broken)
    while any(item["id"] == broken for item in client.workloads(stopped=True)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_archives_both_ways(client, make):
    name = make("sleep", "100")
    body = BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        item = tarfile.TarInfo("sub/file")
        item.size, item.mode, item.uid = 5, 0o640, 1000
        tar.addfile(item, BytesIO(b"hello"))
        link = tarfile.TarInfo("sub/link")
        link.type, link.linkname = tarfile.SYMTYPE, "file"
        tar.addfile(link)
    for running in (False, True):
        if running:
            client.start(name)
        client.put_archive(name, "/tmp", [body.getvalue()])
        assert client.stat_path(name, "/tmp/sub/file")["size"] == 5
        assert client.stat_path(name, "/tmp/sub/link")["linkTarget"].endswith("file")
        _, pieces = client.get_archive(name, "/tmp/sub")
        with tarfile.open(fileobj=BytesIO(b"".join(pieces))) as tar:
            members = {member.name: member for member in tar}
        assert members["sub/file"].uid == 1000
        assert members["sub/link"].linkname == "file"
    with pytest.raises(NotFound):
        client.stat_path(name, "/nowhere")
    with pytest.raises(NotFound):
        client.get_archive(name, "/nowhere")


def test_stats_inspect_ps(client, make):
    name = make("sleep", "100", name="stats-box", labels={"k": "v"}, resources={"memory": 64 << 20})
    client.start(name)
    numbers = client.stats("stats-box")
    assert numbers["pids"] == 1
    assert 0 < numbers["memory"] < 64 << 20
    assert numbers["memory_limit"] == 64 << 20
    (found,) = client.workloads(filters=["label=k=v"])
    assert found["name"] == "stats-box"
    assert client.inspect("stats-box")["pid"] > 0
    with pytest.raises(Conflict, match="'stats-box' is in use"):
        make("true", name="stats-box")


def test_out_of_memory(client, make):
    name = make("sh", "-c", "x=a; while :; do x=$x$x; done", resources={"memory": 16 << 20})
    result = run(client, name)
    assert result == {"exit_code": 137, "oom_killed": True}


def test_second_start_keeps_files_and_address(client, make):
    name = make("sh", "-c", "echo x >> /tmp/count; wc -l < /tmp/count")
    run(client, name)
    first = client.inspect(name)["network"]["address"]
    run(client, name)
    assert text_of(client, name).split() == [b"1", b"2"]
    assert client.inspect(name)["network"]["address"] == first


def test_refusals(client, make):
    with pytest.raises(NotFound, match="no-such-image"):
        client.create({"image": "no-such-image"})
    for wall in ("sandbox", "machine"):
        with pytest.raises(Unsupported, match=wall):
            client.create({"image": IMAGE, "isolation": wall})
    with pytest.raises(Invalid, match="mount source"):
        client.start(make("true", mounts=[{"kind": "bind", "target": "/x", "source": "/no/such/folder"}]))
    used = make("true")
    with pytest.raises(Conflict, match="is used by"):
        client.remove_image(IMAGE)
    client.remove(used)


def test_plan_is_only_words(client):
    steps = client.plan({"image": IMAGE, "command": ["true"]})["steps"]
    assert steps[-1].startswith("exec ")
    assert not client.workloads(stopped=True)


def test_events_of_a_life(client, make):
    since = str(time.time())
    name = make("true")
    run(client, name)
    client.remove(name)
    actions = [event["action"] for event in client.events(since=since, follow=False) if event["id"] == name]
    assert actions == ["create", "start", "die", "destroy"]


def test_many_at_once(client, make, folders):
    names = [make("sh", "-c", f"echo {number}") for number in range(12)]
    results = []

    def one(name):
        with Client(*folders) as mine:
            results.append(run(mine, name)["exit_code"])

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [0] * 12


def test_daemon_killed_workloads_go_on(client, folders):
    root, run_folder = folders
    spec = {"image": IMAGE, "auto_remove": False}
    late = client.create({**spec, "command": ["sh", "-c", "sleep 1; echo late; exit 4"]})["id"]
    lives = client.create(
        {
            **spec,
            "command": ["sh", "-c", "echo ready; read a; echo $a; exit 6"],
            "stdin_open": True,
            "name": "survivor",
        }
    )["id"]
    client.start(late)
    client.start(lives)
    before = client.inspect(lives)["network"]["address"]
    client.close()
    os.kill(control("status", root, run_folder)["pid"], signal.SIGKILL)
    time.sleep(1.5)
    assert client.wait(late)["exit_code"] == 4
    assert text_of(client, late) == b"late\n"
    document = client.inspect("survivor")
    assert (document["status"], document["network"]["address"]) == ("running", before)
    session = attach(client, lives, stdin=True, start=False, logs=True)
    session.write(b"again\n")
    out, _, messages = frames(session)
    assert out == b"ready\nagain\n"
    assert messages[-1] == {"exit": 6}
    for name in (late, lives):
        client.remove(name)


def test_clients_that_go_away_leave_nothing(client, make, folders):
    name = make("sh", "-c", "sleep 1; exit 3")
    client.start(name)
    pid = control("status", *folders)["pid"]
    before = len(os.listdir(f"/proc/{pid}/fd"))
    gone = []
    for verb in ("wait", "logs?follow=1", "attach?stdout=1", "stats?stream=1"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{folders[1]}/knarr.sock")
        method = "GET" if verb[0] in "ls" else "POST"
        sock.sendall(
            f"{method} /v1/workloads/{name}/{verb} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
        )
        gone.append(sock)
    time.sleep(0.3)
    assert len(os.listdir(f"/proc/{pid}/fd")) > before
    for sock in gone:
        sock.close()
    time.sleep(0.3)
    assert len(os.listdir(f"/proc/{pid}/fd")) <= before
    assert client.wait(name)["exit_code"] == 3


def test_a_keeper_killed_during_an_exec(client, make, folders):
    name = make("sleep", "100")
    client.start(name)
    session = client.execute(name, {"args": ["sh", "-c", "echo on; sleep 1; echo off; exit 9"]})
    seen = iter(session)
    assert next(seen)[0] == CONTROL
    assert next(seen) == (STDOUT, b"on\n")
    os.kill(control("status", *folders)["keeper_pid"], signal.SIGKILL)
    rest = list(seen)
    assert (STDOUT, b"off\n") in rest
    assert json.loads(rest[-1][1]) == {"exit": 9}
    session.close()
    client.kill(name, "KILL")
    assert client.wait(name)["exit_code"] == 137


def test_a_slow_client_holds_nobody_up(client, make, folders):
    noisy = make("sh", "-c", "dd if=/dev/zero bs=65536 count=800 2>/dev/null")
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(f"{folders[1]}/knarr.sock")
    client.start(noisy)
    sock.sendall(f"GET /v1/workloads/{noisy}/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert client.wait(noisy)["exit_code"] == 0
    started = time.monotonic()
    for _ in range(20):
        client.version()
    assert time.monotonic() - started < 5
    received = 0
    while received < 800 * 65536:
        received += len(sock.recv(1 << 20))
    sock.close()
