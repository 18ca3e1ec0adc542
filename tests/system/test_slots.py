"""Warm slots: what starts in one is like any other machine, has nothing in common with its siblings, and none is lost.

`KNARR_FULL` compares 50 siblings and takes a look at their memory; otherwise six are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import time

import pytest

from conformance.harness import Instance
from knarr.client.client import Client
from knarr.model.errors import Conflict
from support.images import busybox_archive

pytestmark = [pytest.mark.root, pytest.mark.vm]
FULL = bool(os.environ.get("KNARR_FULL"))
IMAGE = "busybox:slots"
SIBLINGS = 50 if FULL else 6
PSS_MAX = 25 << 20
TELL = r"""
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /sys/class/net/eth0/address; hostname
ip addr show eth0 | grep 'inet ' | tr -s ' ' | cut -d ' ' -f 3
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'; echo
grep stack /proc/self/maps | cut -d - -f 1; grep vdso /proc/self/maps | cut -d - -f 1
set -- $(od -An -v -tx4 -w16 /proc/self/auxv | grep ' *00000019 00000000'); echo $4$3
test -e /etc/machine-id || echo $(hostname)-has-none
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
    made = Instance(slots=2)
    try:
        made.knarr("load", "-q", "-i", str(archive), check=True)
        done = made.knarr("system", "templates", "make", timeout=240)
        if done.code and "apt-get update" in done.err:
            pytest.skip(f"power missing: a package mirror ({done.err.strip()})")
        assert done.code == 0, done
        yield made
        made.allow_slots(0)
        with Client(made.root, made.run_folder) as found:
            found.remove(run(found, "true"))
        wait_until(lambda: not markers(made))
        wait_until(lambda: not machines(made))
    finally:
        made.close()


@pytest.fixture
def client(instance):
    with Client(instance.root, instance.run_folder) as found:
        yield found


def wait_until(true, seconds=90):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def markers(instance):
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(f"{instance.run_folder}/slots")
    return []


def slots(instance):
    """How many are ready for a workload that says nothing of its size; a marker is there long before."""
    done = instance.knarr("system", "templates", "--format", "json", check=True)
    rows = [json.loads(line) for line in done.lines]
    return sum(int(row["Slots"]) for row in rows if (row["Memory"], row["CPUs"]) == ("512M", "1"))


def machines(instance):
    """Workloads' ids → pids of this instance's QEMUs, read from their control groups."""
    with open(f"{instance.root}/instance", encoding="ascii") as file:
        group = f"/knarr_{file.read().strip()}/"
    found = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
            name = next((line.rstrip().rpartition(group)[2] for line in file if group in line), "")
            if name and os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("qemu-system"):
                found[name] = int(pid)
    return found


def create(client, *command, **more):
    return client.create({"image": IMAGE, "isolation": "microvm", "command": list(command), **more})["id"]


def run(client, *command, code=0, **more):
    """A finished workload's id."""
    made = create(client, *command, **more)
    client.start(made)
    assert client.wait(made)["exit_code"] == code
    return made


def born(instance, identity):
    done = instance.knarr("events", "--no-follow", "--since", "1h", "--format", "json", check=True)
    found = [json.loads(line) for line in done.lines]
    starts = [event for event in found if event.get("id") == identity and event["action"] == "start"]
    return starts[-1]["attributes"]["boot"]


def ready(instance, client):
    """At least one slot, by the way that users get one: a start before."""
    if not slots(instance):
        client.remove(run(client, "true"))
    wait_until(lambda: slots(instance))


def warm(instance, client, *command, **more):
    """Create one that has a slot."""
    ready(instance, client)
    made = create(client, *command, **more)
    assert made in markers(instance)
    return made


def test_siblings_have_nothing_in_common(instance, client):
    told, ways = [], set()
    for number in range(SIBLINGS):
        if number:
            ready(instance, client)
        before = int(time.time())
        made = run(client, "sh", "-c", TELL + "date +%s")
        words = instance.knarr("logs", made, check=True).out.split()
        assert before - 1 <= int(words.pop()) <= time.time() + 1
        ways.add(born(instance, made))
        told.append(words)
        client.remove(made)
    assert all(len(words) == 10 for words in told), told
    for column in zip(*told, strict=True):
        assert len(set(column)) == SIBLINGS, column
    assert "slot" in ways


def test_a_slot_runs_what_a_cold_machine_runs(instance, client):
    # the words' order: request, expected exit code, expected output
    cases = (
        ({"command": ["sh", "-c", "id -u; umask; pwd"], "user": "alice"}, 0, "1000\n0022\n/\n"),
        ({"command": ["nosuchprogram"]}, 127, ""),
        ({"command": ["sh", "-c", "cat /proc/1/comm; kill -9 $$"], "init": True}, 137, None),
        ({"command": ["sh", "-c", "echo x > /f"], "read_only": True}, 1, None),
        ({"command": ["sh", "-c", "test -b /dev/vda || dd if=/dev/vda count=1"]}, 1, None),
        (
            {
                "command": ["sh", "-c", "mount | grep -c /mnt"],
                "mounts": [{"kind": "tmpfs", "target": "/mnt"}],
            },
            0,
            "1\n",
        ),
    )
    for spec, code, output in cases:
        ready(instance, client)
        made = client.create({"image": IMAGE, "isolation": "microvm", **spec})["id"]
        assert made in markers(instance), spec
        if code == 127:
            assert "executable file not found" in instance.knarr("start", made).err
        else:
            client.start(made)
            assert client.wait(made)["exit_code"] == code, (spec, instance.knarr("logs", made))
            assert born(instance, made) == "slot"
        if output is not None:
            assert instance.knarr("logs", made).out == output
        assert made not in markers(instance)
        client.remove(made)


def test_standard_input_and_exec_and_limits(instance, client):
    ready(instance, client)
    words = ("run", "--rm", "-i", "--isolation", "microvm", IMAGE, "cat")
    assert instance.knarr(*words, stdin=b"through", check=True).out == "through"
    made = warm(instance, client, "sleep", "1000", resources={"pids": 7, "cpus": 0.5})
    client.start(made)
    done = instance.knarr(
        "exec", made, "cat", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/cpu.max", check=True
    )
    assert done.out == "7\n50000 100000\n"
    assert instance.knarr("exec", made, "cat", "/proc/1/comm", check=True).out == "sleep\n"
    pid = machines(instance)[made]
    assert {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")} == {0}
    stats = json.loads(instance.knarr("stats", "--no-stream", "--format", "json", made, check=True).out)
    assert stats
    client.remove(made, force=True)


def test_the_template_stays_out_of_reach_of_a_machine_that_breaks_out(instance, client):
    """Whoever has taken a slot's QEMU over can write its private pages only: the next one has none of them."""
    made = warm(instance, client, "sleep", "1000")
    client.start(made)
    pid = machines(instance)[made]
    with open(f"/proc/{pid}/maps", encoding="ascii") as file:
        mapped = [line.split()[1] for line in file if line.rstrip().endswith(" /mem")]
    assert mapped
    assert all(how.endswith("p") for how in mapped)
    with pytest.raises(OSError, match="Read-only file system"):
        os.open(f"/proc/{pid}/root/mem", os.O_WRONLY)
    for name in os.listdir(f"{instance.root}/templates"):
        for part in ("mem", "state"):
            found = os.stat(f"{instance.root}/templates/{name}/{part}")
            assert (found.st_mode & 0o777, found.st_uid) == (0o444, 0)
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        text = file.read()
    assert int(re.search(r"^Uid:\s+(\d+)", text, re.MULTILINE)[1]) >= 1 << 30
    assert int(re.search(r"^CapEff:\s+(\w+)", text, re.MULTILINE)[1], 16) == 0
    client.remove(made, force=True)


def test_files_before_the_start_take_the_disk_from_the_slot(instance, client, tmp_path):
    (tmp_path / "word").write_text("put before")
    made = warm(instance, client, "cat", "/word")
    instance.knarr("cp", str(tmp_path / "word"), f"{made}:/word", check=True)
    assert made not in markers(instance)
    client.start(made)
    assert client.wait(made)["exit_code"] == 0
    assert instance.knarr("logs", made).out == "put before"
    client.remove(made)


def test_one_that_was_changed_before_its_start_runs_as_it_was_changed(instance, client):
    made = warm(instance, client, "sleep", "1000")
    instance.knarr("update", "--memory", "1g", made, check=True)
    client.start(made)
    assert born(instance, made) in ("template", "cold")
    limit = instance.knarr("exec", made, "cat", "/sys/fs/cgroup/memory.max", check=True).out
    assert int(limit) == 1 << 30
    states = {row["id"]: row["status"] for row in client.workloads()}
    assert states[made] == "running"
    client.remove(made, force=True)


def test_a_start_that_is_refused_leaves_no_machine(instance, client):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = {"container_port": 80, "host_port": taken.getsockname()[1], "host_ip": "127.0.0.1"}
        made = warm(instance, client, "true", ports=[port])
        with pytest.raises(Conflict, match="in use"):
            client.start(made)
    assert made not in machines(instance)
    assert made not in markers(instance)
    client.start(made)
    assert client.wait(made)["exit_code"] == 0
    assert born(instance, made) == "template"
    client.remove(made)


def test_one_whose_machine_has_died_starts_another_way(instance, client):
    made = warm(instance, client, "echo", "still")
    os.kill(machines(instance)[made], signal.SIGKILL)
    client.start(made)
    assert client.wait(made)["exit_code"] == 0
    assert instance.knarr("logs", made).out == "still\n"
    assert born(instance, made) == "template"
    client.remove(made)
    assert made not in markers(instance)


@pytest.mark.slow
def test_one_that_does_not_answer_starts_another_way(instance, client):
    made = warm(instance, client, "echo", "still")
    os.kill(machines(instance)[made], signal.SIGSTOP)
    client.start(made)
    assert client.wait(made)["exit_code"] == 0
    assert instance.knarr("logs", made).out == "still\n"
    assert born(instance, made) == "template"
    client.remove(made)


def test_an_image_that_was_loaded_again_has_no_slot_of_the_old_one(instance, client, tmp_path):
    ready(instance, client)
    old = set(markers(instance))
    instance.knarr("rmi", "-f", IMAGE, check=True)
    instance.knarr("image", "prune", "-a", "-f")
    archive = tmp_path / "again.tar"
    busybox_archive(str(archive), tag=IMAGE)
    instance.knarr("load", "-q", "-i", str(archive), check=True)
    made = run(client, "echo", "new")
    assert instance.knarr("logs", made).out == "new\n"
    if made in old:
        pytest.fail("the image's files are others, its slot the old one")
    client.remove(made)


def kill_daemon(instance):
    pid = json.loads(instance.knarr("daemon", "status", "--format", "json", check=True).out)["pid"]
    os.kill(pid, signal.SIGKILL)


def left(instance):
    """What a slot has outside of its process, by id."""
    with open(f"{instance.root}/instance", encoding="ascii") as file:
        own = f"knarr_{file.read().strip()}"
    groups = {
        name for folder, names, _ in os.walk("/sys/fs/cgroup") if folder.endswith(own) for name in names
    }
    return (
        groups
        | set(os.listdir(f"{instance.root}/workloads"))
        | set(markers(instance))
        | set(machines(instance))
    )


def test_a_killed_daemon_leaves_no_slot_and_loses_no_workload(instance, client):
    """Killed with a slot that is nobody's, one that is created, one that runs, and one that is being made."""
    running = warm(instance, client, "sleep", "1000")
    client.start(running)
    created = warm(instance, client, "echo", "after")
    wait_until(lambda: len(markers(instance)) > 1)
    kill_daemon(instance)
    wait_until(lambda: instance.knarr("ps", "-a").code == 0)
    wait_until(lambda: left(instance) <= {running, created})
    assert instance.knarr("exec", running, "echo", "alive", check=True).out == "alive\n"
    states = {row["id"]: row["status"] for row in client.workloads(stopped=True)}
    assert states == {running: "running", created: "created"}
    client.start(created)
    assert client.wait(created)["exit_code"] == 0
    assert instance.knarr("logs", created).out == "after\n"
    client.remove(created)
    client.remove(running, force=True)


@pytest.mark.slow
def test_the_nth_costs_little_beside_its_guest_s_memory(instance, client):
    made = [create(client, "sleep", "1000") for _ in range(8)]
    for name in made:
        client.start(name)
    try:
        found = machines(instance)
        costs = [beside_ram(found[name]) for name in made]
        assert sorted(costs)[len(costs) // 2] <= PSS_MAX, costs
    finally:
        for name in made:
            client.remove(name, force=True)


def beside_ram(pid):
    """PSS in bytes of all that a QEMU has mapped but for its guest's memory and what it translated: writable
    and executable, that is the emulation's price of some 24 MiB more, and none with KVM.
    """
    total, counted = 0, False
    with open(f"/proc/{pid}/smaps", encoding="ascii") as file:
        for line in file:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                counted = not line.rstrip().endswith(" /mem") and line.split()[1] != "rwxp"
            elif counted and line.startswith("Pss:"):
                total += int(line.split()[1]) << 10
    return total


def test_no_slot_outlives_the_daemon_s_end(instance, client):
    ready(instance, client)
    instance.knarr("daemon", "stop", check=True)
    assert not machines(instance)
    assert not markers(instance)
