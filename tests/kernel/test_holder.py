"""The real holder: descriptors, orphans' statuses, roles."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from knarr.keeper import boot
from knarr.keeper.holder import HolderClient
from knarr.model.errors import Failed, Unavailable


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / ("long" * 30) / "run"
    folder.mkdir(parents=True)
    subprocess.run(
        [boot.native("holder"), str(folder)], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    yield str(folder)
    with contextlib.suppress(Unavailable), HolderClient(str(folder)) as client:
        client.quit()


def wait_for(condition, timeout=10.0):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen")


@pytest.fixture
def connect(run):
    """Makes clients that are closed afterwards."""
    made = []

    def make():
        made.append(HolderClient(run))
        return made[-1]

    yield make
    for client in made:
        client.close()


def pid_of_holder(run):
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if (
                os.readlink(f"/proc/{entry}/cwd") == run
                and Path(f"/proc/{entry}/comm").read_text() == "knarr-holder\n"
            ):
                return int(entry)
        except OSError:
            continue
    raise AssertionError("no holder")


def test_descriptors_are_kept_and_given_back(run, connect):
    client = connect()
    r, w = os.pipe()
    client.put("log/a/out", r)
    client.put_all({"log/a/err": r, "log/b/out": r, "in/a": w})
    os.close(r)
    os.write(w, b"hello")
    os.close(w)
    other = connect()
    got = other.get("log/b/out")
    assert os.read(got, 10) == b"hello"
    assert not os.get_inheritable(got)
    assert other.list("log/") == ["log/a/err", "log/a/out", "log/b/out"]
    assert other.get("log/") is None
    assert other.delete("log/a*") == 2
    assert other.delete("nothing") == 0
    assert client.delete("in/a") == 1
    assert os.read(got, 10) == b""
    assert client.list() == ["log/b/out"]
    with pytest.raises(Failed):
        client._call(("nonsense",))
    with pytest.raises(Failed, match="no descriptor"):
        client._call(("put", "x"))


def test_thousands_of_descriptors_are_listed_page_by_page(run, connect):
    client = connect()
    null = os.open("/dev/null", os.O_RDONLY)
    names = [f"log/{index:064d}/out" for index in range(3000)]
    for start in range(0, 3000, 100):
        client.put_all(dict.fromkeys(names[start : start + 100], null))
    assert client.list("log/") == names
    assert client.delete("log/*") == 3000
    assert client.list() == []


def test_a_replaced_descriptor_is_closed(run, connect):
    client = connect()
    r, w = os.pipe()
    client.put("x", w)
    os.close(w)
    client.put("x", r)
    assert os.read(r, 1) == b""


def orphan(run, connect, script):
    """A grandchild below the holder, whose parent ends at once."""
    client = connect()
    client.role("maker", ("/bin/sh", "-c", f"({script}) & echo $! >{run}/pid; exec sleep 1000"))
    pid = int(wait_for(lambda: Path(run, "pid").exists() and Path(run, "pid").read_text().strip()))
    os.kill(client.roles()["maker"], signal.SIGKILL)
    client.norole("maker")
    return client, pid


def test_statuses_of_orphans_wait_until_acknowledged(run, connect):
    _, pid = orphan(run, connect, "sleep 0.2; exit 7")
    time.sleep(0.4)
    for _ in range(2):
        watcher = connect()
        watcher.watch()
        wait_for(lambda w=watcher: w.poll() or (pid, 7 << 8) in w.exits)
    watcher.ack(pid)
    late = connect()
    late.watch()
    late.roles()
    assert (pid, 7 << 8) not in late.exits


def test_a_watcher_hears_of_later_orphans(run, connect):
    client, _ = orphan(run, connect, "sleep 0.4; kill -9 $$")
    client.watch()
    wait_for(lambda: client.poll() or client.exits)


def test_roles_are_started_again_with_growing_pauses(run, connect):
    client = connect()
    client.role("r", (sys.executable, "-ISc", f"open({run + '/lives'!r}, 'a').write('x')"))
    lives = Path(run, "lives")
    wait_for(lambda: lives.exists() and len(lives.read_text()) >= 4)
    time.sleep(0.1)
    assert len(lives.read_text()) <= 6
    client.norole("r")
    wait_for(lambda: client.roles() == {})


def test_a_role_has_standard_streams_only(run, connect):
    client = connect()
    null = os.open("/dev/null", os.O_RDONLY)
    client.put("x", null)
    pid = client.role("r", ("/bin/sleep", "1000"))
    wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
    os.kill(pid, signal.SIGKILL)
    again = wait_for(lambda: client.roles()["r"] not in (0, pid) and client.roles()["r"])
    assert Path(f"/proc/{again}/status").read_text().count("SigBlk:\t0000000000000000") == 1
    assert client.role("r", ("/bin/sleep", "1000")) == again


def test_quit_ends_roles_and_leaves_nothing(run, connect):
    client = connect()
    pid = client.role("r", ("/bin/sleep", "1000"))
    client.quit()
    assert not os.path.exists(f"/proc/{pid}")
    assert os.listdir(run) == []
    with pytest.raises(Unavailable):
        HolderClient(run)


def test_the_holder_is_small(run, connect):
    connect().roles()  # it has left its parent and named itself by now
    pid = pid_of_holder(run)
    rss = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    assert int(rss.split()[1]) < 1024
