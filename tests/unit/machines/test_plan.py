"""QEMU's command line and the guest's request: pure, so looked at as text."""

from __future__ import annotations

import pytest

from knarr.kernel import plan as plans
from knarr.machines import clock, disks, folders, jail, launch, plan, request
from knarr.machines.kernels import GuestKernel
from knarr.model.errors import Invalid, Unsupported
from knarr.model.resource import Attachment
from knarr.model.workload import Mount, MountKind, Process, Resources, Rlimit

KERNEL = GuestKernel(version="6.1", vmlinux="/k/vmlinux", initramfs="/k/initramfs-1.cpio")
ATTACHMENT = Attachment(
    address="10.88.0.7", prefix=16, gateway="10.88.0.1", mac="02:00:00:00:00:07", bridge="br", link="tap7"
)
PROCESS = Process(args=("sleep", "9"), env=("PATH=/bin",), user="alice:staff", tty_size=(100, 40))


def machine(**more):
    return plan.MachineInput(kernel=KERNEL, accel="tcg", tsc_khz=2_600_000, **more)


def guest(**more):
    return request.GuestInput(process=PROCESS, hostname="box", capability_mask=7, seccomp=b"filter", **more)


def test_every_descriptor_that_qemu_names_is_in_the_plan():
    made = machine(attachment=ATTACHMENT, stdin=True, folders=("fs0", "fs1"))
    text = " ".join(plan.argv(made))
    numbers = set(plan.fd_numbers(made).values()) - {0, 1, 2}
    assert {
        number for number in range(3, 40) if f"fd={number}," in f"{text}," or f"fd={number} " in text
    } == numbers


def test_the_sandbox_is_on_and_nothing_is_opened_by_path_but_the_kernel():
    text = " ".join(plan.argv(machine()))
    assert "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny" in text
    assert "file.filename=/dev/fdset/" in text
    assert "-nodefaults -no-user-config" in text
    assert "tsc_early_khz=2600000" in text


def test_only_the_writable_disk_is_writable_and_it_is_locked():
    nodes = [word for word in plan.argv(machine()) if word.startswith("driver=")]
    assert ["read-only=on" in node for node in nodes] == [True, True, False]
    assert "file.locking=on" in nodes[2]


def test_folders_need_shared_memory_and_others_do_not_get_it():
    assert "share=on" in " ".join(plan.argv(machine(folders=("fs0",))))
    assert "share=on" not in " ".join(plan.argv(machine()))


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        (None, 512),
        (64 << 20, 256),
        (160 << 20, 256),
        (161 << 20, 512),
        (1 << 30, 2048),
        (100 << 30, 102400 + 1024),
    ],
)
def test_memory_classes(limit, size):
    assert plan.memory_class(limit) == size << 20


@pytest.mark.parametrize(("cpus", "count"), [(None, 1), (0.5, 1), (1.0, 1), (1.5, 2), (4, 4)])
def test_cpus_are_rounded_up(cpus, count):
    assert plan.vcpus(Resources(cpus=cpus)) == count


def test_inside_the_jail_paths_are_the_jails():
    made = plan.in_jail(machine(), "/usr/bin/qemu")
    assert plan.argv(made)[0] == "/usr/bin/qemu"
    assert "/kernel/vmlinux" in plan.argv(made)
    assert not any(word.startswith("/k/") for word in plan.argv(made))


def test_the_jailed_plan_ends_without_privileges_and_crosses_the_wire():
    box = launch.Confinement(jail=jail.Jail(root="/j", program="/q"), uid=5, gid=6, entry=("/cg/tasks",))
    made = launch.jailed(("/q",), {"null": 0}, box)
    names = [type(step).__name__ for step in made.inside]
    assert (
        names.index("PivotRoot")
        < names.index("SetIds")
        < names.index("Capabilities")
        < names.index("NoNewPrivs")
    )
    assert plans.from_json(plans.to_json(made)) == made


def test_a_read_only_folder_is_read_only_on_the_host():
    mount = Mount(kind=MountKind.BIND, source="/srv", target="/data", read_only=True)
    box = launch.Confinement(jail=jail.Jail(root="/j", program="/usr/lib/qemu/virtiofsd"), uid=0, gid=0)
    text = "\n".join(folders.plan(mount, 0o040000, box).describe())
    assert "bind /srv at /j/share read-only" in text


@pytest.mark.parametrize("option", ["idmap", "rshared", "slave"])
def test_options_of_binds_that_no_machine_can_do_are_refused(option):
    mount = Mount(kind=MountKind.BIND, source="/a", target="/b")
    folders.check((mount,))
    with pytest.raises(Unsupported, match="'/b'"):
        folders.check((mount, Mount(kind=MountKind.BIND, source="/a", target="/b", options=(option,))))


def test_the_request_names_what_the_agent_reads():
    resources = Resources(memory=64 << 20, cpus=0.5, pids=10)
    records = dict(
        request.start_records(guest(attachment=ATTACHMENT, resources=resources), time_ns=1, seed=b"s")
    )
    wanted = {
        "hostname": b"box",
        "user": b"alice:staff",
        "netmask": b"255.255.0.0",
        "memory": b"67108864",
        "swap": b"0",
        "cpu": b"50000 100000",
        "pids": b"10",
        "columns": b"100",
        "rows": b"40",
        "seccomp": b"filter",
    }
    assert {name: records[name] for name in wanted} == wanted


def targets(made):
    return [item.split(b"\0")[3] for item in request._mounts(made)]


def test_mounts_come_by_depth_after_dockers_own():
    mounts = tuple(Mount(kind=MountKind.TMPFS, target=target) for target in ("/a/b/c", "/a"))
    etc = (("/etc/hosts", b""),)
    assert targets(guest(mounts=mounts, etc=etc))[-3:] == [b"/a", b"/etc/hosts", b"/a/b/c"]
    assert targets(guest())[0] == b"/proc"


def test_tmpfs_options():
    mount = Mount(kind=MountKind.TMPFS, target="/t", options=("size=1m", "exec", "ro"))
    fields = request._tmpfs(mount).split(b"\0")
    assert int(fields[4]) == request.MS_NOSUID | request.MS_NODEV | request.MS_RDONLY
    assert fields[5] == b"size=1m"


def test_a_single_file_is_bound_out_of_its_private_folder():
    made = request.Folder(tag="fs0", target="/etc/one", file="file", read_only=True)
    first, second = request._folder(made)
    assert first.split(b"\0")[:4] == [b"out", b"virtiofs", b"fs0", b"/run/fs0"]
    assert second.split(b"\0")[2:4] == [b"/run/fs0/file", b"/etc/one"]


def test_privileged_leaves_nothing_masked():
    names = {name for name, _ in request.start_records(guest(privileged=True), time_ns=0, seed=b"")}
    assert "mask" not in names
    assert "protect" not in names


def test_unknown_rlimit():
    process = Process(args=("x",), env=(), rlimits=(Rlimit(name="nosuch", soft=1, hard=1),))
    with pytest.raises(Invalid, match="nosuch"):
        request.process_records(process, 0, b"")


def test_the_tsc_is_plausible():
    assert 100_000 < clock.tsc_khz() < 10_000_000


def test_sparse_copy(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    with open(source, "wb") as file:
        file.truncate(8 << 20)
        file.seek(3 << 20)
        file.write(b"middle")
    disks._copy_sparse(str(source), str(target))
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 1 << 20
