"""A microVM that starts from a template: as private as one that booted, and cold when the template fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest

from conformance.harness import Instance
from knarr.client.client import Client
from support.images import busybox_archive

pytestmark = [pytest.mark.root, pytest.mark.vm]
IMAGE = "busybox:templates"
TELL = """
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /sys/class/net/eth0/address; hostname
ip addr show eth0 | grep 'inet ' | tr -s ' ' | cut -d ' ' -f 3
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '
"""


@pytest.fixture(scope="module")
def instance(tmp_path_factory):
    for tool in ("apt-cache", "dpkg-deb", "qemu-system-x86_64"):
        if shutil.which(tool) is None:
            pytest.skip(f"power missing: {tool}")
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    archive = tmp_path_factory.mktemp("images") / "busybox.tar"
    busybox_archive(str(archive), tag=IMAGE)
    made = Instance()
    try:
        made.knarr("load", "-q", "-i", str(archive), check=True)
        done = made.knarr("system", "templates", "make", timeout=240)
        if done.code and "apt-get update" in done.err:
            pytest.skip(f"power missing: a package mirror ({done.err.strip()})")
        assert done.code == 0, done
        yield made
    finally:
        made.close()


@pytest.fixture
def client(instance):
    with Client(instance.root, instance.run_folder) as found:
        yield found


def templates(instance):
    return [name for name in os.listdir(f"{instance.root}/templates") if not name.startswith("tmp-")]


def events(instance, identity):
    done = instance.knarr("events", "--no-follow", "--since", "1h", "--format", "json", check=True)
    found = [json.loads(line) for line in done.lines]
    return {event["action"]: event["attributes"] for event in found if event.get("id") == identity}


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def machines(instance):
    """pids of this instance's QEMUs: their users tell whose they are."""
    with open(f"{instance.root}/instance", encoding="ascii") as file:
        number = (1 << 14) | (int(file.read().strip(), 16) & 0x3FFF)
    done = subprocess.run(["ps", "-eo", "pid,uid,args"], capture_output=True, text=True, check=True)
    rows = (line.split(None, 2) for line in done.stdout.splitlines()[1:])
    return [int(pid) for pid, uid, words in rows if int(uid) >> 16 == number and "qemu-system" in words]


def run(client, *command, **more):
    """A finished workload's id."""
    made = client.create({"image": IMAGE, "isolation": "microvm", "command": list(command), **more})["id"]
    client.start(made)
    assert client.wait(made)["exit_code"] == 0
    return made


def test_twenty_siblings_have_nothing_in_common(instance, client):
    told = []
    for _ in range(20):
        before = int(time.time())
        made = run(client, "sh", "-c", TELL + "date +%s")
        words = instance.knarr("logs", made, check=True).out.split()
        assert before - 1 <= int(words.pop()) <= time.time() + 1
        assert events(instance, made)["start"]["boot"] == "template"
        told.append(words)
        client.remove(made)
    assert all(len(words) == 6 for words in told), told
    for column in zip(*told, strict=True):
        assert len(set(column)) == 20, column


def test_nothing_in_the_jail_can_write_the_template(instance, client):
    made = client.create({"image": IMAGE, "isolation": "microvm", "command": ["sleep", "100"]})["id"]
    client.start(made)
    try:
        (pid,) = machines(instance)
        with open(f"/proc/{pid}/maps", encoding="ascii") as file:
            mapped = [line.split()[1] for line in file if line.rstrip().endswith(" /mem")]
        assert mapped
        assert all(how.endswith("p") for how in mapped), mapped
        with pytest.raises(OSError, match="Read-only file system"):
            os.open(f"/proc/{pid}/root/mem", os.O_WRONLY)
    finally:
        client.remove(made, force=True)


def test_folders_need_shared_memory_so_they_boot(instance, client, tmp_path):
    (tmp_path / "word").write_text("here")
    mount = {"kind": "bind", "source": str(tmp_path), "target": "/mnt"}
    made = run(client, "cat", "/mnt/word", mounts=[mount])
    start = events(instance, made)["start"]
    assert (start["boot"], start["reason"]) == ("cold", "folders")
    assert instance.knarr("logs", made).out == "here"
    client.remove(made)


def test_a_spoiled_template_is_told_and_replaced(instance, client):
    (key,) = templates(instance)
    path = f"{instance.root}/templates/{key}/state"
    with open(path, "r+b") as file:
        file.seek(20000)
        file.write(b"spoiled" * 1000)
    made = run(client, "true")
    said = events(instance, made)
    assert said["template_fallback"]["template"] == key
    assert said["template_fallback"]["reason"]
    assert said["start"]["boot"] == "cold"
    client.remove(made)
    wait_until(lambda: templates(instance) == [key])
    wait_until(lambda: not machines(instance))


def kill_daemon(instance):
    pid = json.loads(instance.knarr("daemon", "status", "--format", "json", check=True).out)["pid"]
    os.kill(pid, signal.SIGKILL)


def quietly(act):
    def work():
        try:
            act()
        except Exception:
            return

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def groups(instance):
    with open(f"{instance.root}/instance", encoding="ascii") as file:
        own = f"knarr_{file.read().strip()}"
    return [name for folder, names, _ in os.walk("/sys/fs/cgroup") if folder.endswith(own) for name in names]


def test_a_daemon_killed_while_it_makes_one_leaves_nothing(instance, client):
    instance.knarr("system", "templates", "rm", *templates(instance), check=True)
    making = quietly(lambda: instance.knarr("system", "templates", "make"))
    wait_until(lambda: machines(instance))
    kill_daemon(instance)
    making.join()
    wait_until(lambda: not machines(instance))
    wait_until(lambda: os.listdir(f"{instance.root}/templates") == [])
    wait_until(lambda: groups(instance) == [])
    assert instance.knarr("system", "templates", "make", check=True).out.split() == templates(instance)


def test_a_daemon_killed_in_a_resume_leaves_nothing(instance, client):
    for pause in (0.02, 0.06, 0.12):
        name = client.create({"image": IMAGE, "isolation": "microvm", "command": ["true"]})["id"]
        starting = quietly(lambda name=name: instance.knarr("start", name))
        time.sleep(pause)
        kill_daemon(instance)
        starting.join()
        instance.knarr("rm", "-f", name, check=True)
        wait_until(lambda: not machines(instance))
    wait_until(lambda: groups(instance) == [])
    assert len(templates(instance)) == 1
    made = run(client, "true")
    assert events(instance, made)["start"]["boot"] == "template"
    client.remove(made)
