"""The launch plan of a microVM: QEMU's command line, its descriptors, its jail. Pure.

The device list is an ABI (docs/architecture.md section 8), for a template's state fits no other: one
virtio-serial with five named ports, three disks, one network card, the same whatever a workload uses of them;
then folders. Every file is a descriptor, because the jailed QEMU sees an almost empty root.
Out of scope: what the guest is told (`machines.request`), where templates are (`machines.templates`).
"""

from __future__ import annotations

import dataclasses
import enum
import math
import os
from dataclasses import dataclass, field

from knarr.machines import disks
from knarr.machines.kernels import GuestKernel
from knarr.model.resource import Attachment
from knarr.model.workload import Resources

QEMU = "qemu-system-x86_64"
MIB = 1 << 20
DEFAULT_MEMORY = 512 * MIB
GUEST_OVERHEAD = 96 * MIB
"""what the guest's kernel, agent and page tables need beside the workload's limit (measured: 70-85 MiB)"""
CLASSES = tuple(size * MIB for size in (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536))

# descriptor numbers in QEMU
NULL, OUT, ERR, CONTROL, QMP, STDIN, STDOUT, STDERR, STATUS, CONSOLE, TREE, MAP, POOL, UPPER, TAP, STATE = (
    range(16)
)
FOLDERS = 20
MEMORY_FILE = "/mem"
"""a template's memory inside the jail"""

_KERNEL_OPTIONS = (
    "quiet no_timer_check tsc=reliable cryptomgr.notests rcupdate.rcu_expedited=1 random.trust_cpu=on "
    "nokaslr panic=-1 reboot=t console=ttyS0"
)
_ANY = 1 << 43
_NO_CONTROL = ",".join(
    f"{feature}=off"
    for feature in (
        *("ctrl_vq", "ctrl_rx", "ctrl_rx_extra", "ctrl_vlan", "ctrl_mac_addr", "ctrl_guest_offloads"),
        "guest_announce",
    )
)
NO_MAC = "02:00:00:00:00:01"
NOWHERE = Attachment(address="", prefix=0, gateway="", mac=NO_MAC, bridge="", link="")
"""of a template whose machines will have a network"""
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class Birth(enum.Enum):
    """How a machine comes to life."""

    COLD = "cold"
    """its kernel boots"""
    TEMPLATE = "template"
    """its kernel boots with nothing behind its devices, to be saved"""
    RESUME = "resume"
    """it goes on where its template was saved"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineInput:
    kernel: GuestKernel
    accel: str
    """kvm or tcg"""
    tsc_khz: int
    qemu: str = QEMU
    """as seen from where it is executed"""
    resources: Resources = field(default_factory=Resources)
    attachment: Attachment | None = None
    stdin: bool = False
    tty: bool = False
    folders: tuple[str, ...] = ()
    """tags of virtiofs devices; descriptor FOLDERS + index is connected to each one's server"""
    name: str = "knarr"
    birth: Birth = Birth.COLD


def in_jail(machine: MachineInput, program: str) -> MachineInput:
    """The same machine with its paths as they are inside: the kernel's folder is bound at /kernel."""
    kernel = GuestKernel(
        version=machine.kernel.version,
        vmlinux=f"/kernel/{os.path.basename(machine.kernel.vmlinux)}",
        initramfs=f"/kernel/{os.path.basename(machine.kernel.initramfs)}",
    )
    return dataclasses.replace(machine, kernel=kernel, qemu=program)


def memory_class(limit: int | None) -> int:
    """The machine's RAM: the next class that holds the workload's limit and the guest's own needs."""
    if limit is None:
        return DEFAULT_MEMORY
    wanted = limit + GUEST_OVERHEAD
    for size in CLASSES:
        if size >= wanted:
            return size
    return -(-wanted // (1 << 30)) << 30


def vcpus(wanted: Resources) -> int:
    cpus = wanted.cpu_time
    return max(1, math.ceil(cpus)) if cpus is not None else 1


def argv(machine: MachineInput) -> tuple[str, ...]:
    """QEMU's command line."""
    memory = memory_class(machine.resources.memory) // MIB
    board = "microvm,acpi=on,rtc=on,pit=off,pic=off,isa-serial=on"
    return (
        machine.qemu,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", machine.name),
        *("-M", board + (",memory-backend=ram" if _own_memory(machine) else "")),
        *_accelerator(machine.accel),
        *("-m", f"{memory}M", "-smp", str(vcpus(machine.resources))),
        *_memory_backend(machine, memory),
        *("-kernel", machine.kernel.vmlinux, "-initrd", machine.kernel.initramfs),
        *("-append", f"tsc_early_khz={machine.tsc_khz} {_KERNEL_OPTIONS}"),
        *("-add-fd", f"fd={CONSOLE},set={CONSOLE}", "-chardev", _file_chardev("console", CONSOLE)),
        *("-serial", "chardev:console"),
        *_ports(machine),
        *(_empty_disks() if machine.birth is Birth.TEMPLATE else _disks()),
        *_network(machine.attachment),
        *_folder_devices(machine.folders),
        *("-chardev", f"socket,id=qmp,fd={QMP}", "-mon", "chardev=qmp,mode=control"),
        *("-sandbox", _SANDBOX),
        *(("-incoming", "defer") if machine.birth is Birth.RESUME else ()),
    )


def fd_numbers(machine: MachineInput) -> dict[str, int]:
    """Names of the request's and the keeper's descriptors → their numbers in QEMU."""
    numbers = {
        "null": NULL,
        "messages": OUT,
        "errors": ERR,
        "control": CONTROL,
        "qmp": QMP,
        "stdout": STDOUT,
        "status": STATUS,
        "console": CONSOLE,
    }
    if machine.birth is not Birth.TEMPLATE:
        numbers |= {"tree": TREE, "map": MAP, "pool": POOL, "upper": UPPER}
    if machine.birth is Birth.RESUME:
        numbers["state"] = STATE
    if not machine.tty:
        numbers["stderr"] = STDERR
    if machine.stdin:
        numbers["input"] = STDIN
    if machine.attachment is not None:
        numbers["tap"] = TAP
    return numbers | {f"folder{index}": FOLDERS + index for index in range(len(machine.folders))}


def _accelerator(accel: str) -> tuple[str, ...]:
    if accel == "kvm":
        return ("-accel", "kvm", "-cpu", "host")
    return ("-accel", "tcg,tb-size=64", "-cpu", "qemu64")


def _own_memory(machine: MachineInput) -> bool:
    return bool(machine.folders) or machine.birth is not Birth.COLD


def _memory_backend(machine: MachineInput, memory: int) -> tuple[str, ...]:
    """A template's memory is written to its file; one that resumes has that file as a private mapping."""
    if machine.birth is not Birth.COLD:
        if machine.folders:
            # the folders' servers would miss the private pages, and write into the template
            raise ValueError("a machine with folders can't have a template")
        share = "on" if machine.birth is Birth.TEMPLATE else "off"
        return (
            "-object",
            f"memory-backend-file,id=ram,size={memory}M,mem-path={MEMORY_FILE},share={share}",
        )
    if not machine.folders:
        return ()
    # virtiofsd maps the guest's memory, so it must be shared; the modern virtio-mmio is its demand
    backend = f"memory-backend-memfd,id=ram,size={memory}M,share=on"
    return ("-object", backend, "-global", "virtio-mmio.force-legacy=false")


def _file_chardev(name: str, number: int) -> str:
    # append: QEMU would truncate otherwise, which a pipe refuses
    return f"file,id={name},path=/dev/fdset/{number},append=on"


def _ports(machine: MachineInput) -> tuple[str, ...]:
    """Stream ports write straight into the pipes a container would; a full one holds the guest up."""
    ports = (
        ("control", f"socket,id=control,fd={CONTROL}", 0),
        ("status", _file_chardev("status", STATUS), STATUS),
        ("stdin", f"socket,id=stdin,fd={STDIN}" if machine.stdin else "null,id=stdin", 0),
        ("stdout", _file_chardev("stdout", STDOUT), STDOUT),
        ("stderr", "null,id=stderr", 0)
        if machine.tty
        else ("stderr", _file_chardev("stderr", STDERR), STDERR),
    )
    found = ["-device", "virtio-serial-device,max_ports=16"]
    for number, (name, chardev, fdset) in enumerate(ports, 1):
        if fdset:
            found += ["-add-fd", f"fd={fdset},set={fdset}"]
        found += ["-chardev", chardev, "-device", f"virtserialport,chardev={name},name={name},nr={number}"]
    return tuple(found)


def _disks() -> tuple[str, ...]:
    """/dev/vda the tree, /dev/vdb the image's view of the pool, /dev/vdc the writable layer."""
    found: list[str] = []
    for number in (TREE, MAP, POOL, UPPER):
        found += ["-add-fd", f"fd={number},set={number}"]
    tree = f"driver=raw,node-name=tree,read-only=on,{_file('file', TREE)}"
    pool = f"driver=qcow2,node-name=pool,read-only=on,{_file('file', MAP)},{_file('data-file', POOL)}"
    # locked: two machines on one writable disk would destroy it
    upper = f"driver=raw,node-name=upper,discard=unmap,{_file('file', UPPER, locking='on')}"
    for node, name in ((tree, "tree"), (pool, "pool"), (upper, "upper")):
        found += ["-blockdev", node, "-device", f"virtio-blk-device,drive={name}"]
    return tuple(found)


def _empty_disks() -> tuple[str, ...]:
    """The guest keeps their sizes when others are behind them: the writable one's is every upper's, and an
    image's file systems know their own and lie within any that is large enough.
    """
    found: list[str] = []
    for name, size, only in (("tree", _ANY, "on"), ("pool", _ANY, "on"), ("upper", disks.SIZE, "off")):
        found += ["-blockdev", f"driver=null-co,node-name={name},size={size},read-zeroes=on,read-only={only}"]
        found += ["-device", f"virtio-blk-device,drive={name}"]
    return tuple(found)


def _file(key: str, number: int, *, locking: str = "off") -> str:
    return f"{key}.driver=file,{key}.filename=/dev/fdset/{number},{key}.locking={locking}"


def _network(attachment: Attachment | None) -> tuple[str, ...]:
    """A resumed card has its template's address until the agent sets its own. Without a control queue the
    guest doesn't stop to tell a filter of no use here, nor to announce an address that is not its own.
    """
    mac = NO_MAC if attachment is None else attachment.mac
    behind = "hubport,id=net0,hubid=0" if attachment is None else f"tap,id=net0,fd={TAP}"
    card = f"virtio-net-device,netdev=net0,{_NO_CONTROL},mac={mac}"
    return ("-netdev", behind, "-device", card)


def _folder_devices(tags: tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for index, tag in enumerate(tags):
        found += ["-chardev", f"socket,id={tag},fd={FOLDERS + index}"]
        found += ["-device", f"vhost-user-fs-device,chardev={tag},tag={tag}"]
    return tuple(found)
