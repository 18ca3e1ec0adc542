"""The filter compiler: every rule by a small interpreter of classic BPF, then the kernel's own verdict."""

from __future__ import annotations

import base64
import errno
import os
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.containers.security import capabilities_for
from knarr.kernel import seccomp, seccomp_profile, steps, syscalls
from knarr.model.workload import Security
from support.stage import run

DEFAULT = frozenset(capabilities_for(Security()))
ALLOW = 0x7FFF0000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS


def verdict(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    position = accumulator = 0
    for _ in range(10_000):
        kind, if_true, if_false, value = code[position]
        position += 1
        if kind == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif kind == 0x05:
            position += value
        elif kind == 0x06:
            return value
        else:
            hit = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[
                kind
            ]
            position += if_true if hit else if_false
    raise AssertionError("endless")


def ask(name: str, *arguments: int, capabilities=DEFAULT, arch: str = "x86_64") -> int:
    machine = "aarch64" if arch == "aarch64" else "x86_64"
    program = seccomp.default_filter(capabilities, machine)
    return verdict(program, syscalls.AUDIT_ARCH[arch], syscalls.numbers(arch)[name], *arguments)


@pytest.mark.parametrize("arch", ["x86_64", "i386", "aarch64"])
def test_every_number_has_its_rule(arch):
    """The whole table against the rules, name by name, and what lies between and beyond."""
    machine = "aarch64" if arch == "aarch64" else "x86_64"
    program = seccomp.default_filter(DEFAULT, machine)
    numbers = syscalls.numbers(arch)
    rules = seccomp_profile.rules(arch, DEFAULT)
    by_number = {number: rules.get(name) for name, number in numbers.items()}
    for number in range(max(numbers.values()) + 3):
        found = verdict(program, syscalls.AUDIT_ARCH[arch], number)
        rule = by_number.get(number)
        if isinstance(rule, seccomp_profile.Allow):
            assert found == ALLOW
        elif rule is None:
            assert found == (ENOSYS if number > max(numbers.values()) else EPERM)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("socket", (2,), ALLOW),
        ("socket", (38,), EPERM),
        ("socket", (39,), ALLOW),
        ("socket", (40,), EPERM),
        ("socket", (41,), ALLOW),
        # the kernel takes an int: bits above don't help
        ("socket", (38 | 1 << 32,), EPERM),
        ("personality", (0,), ALLOW),
        ("personality", (0x20008,), ALLOW),
        ("personality", (0x0040000,), EPERM),
        ("clone", (0x11,), ALLOW),
        ("clone", (0x10000000,), EPERM),
        ("clone", (0x00020000 | 0x11,), EPERM),
        ("clone3", (), ENOSYS),
        ("unshare", (0,), EPERM),
        ("mount", (), EPERM),
        ("bpf", (), EPERM),
        ("keyctl", (), EPERM),
        ("add_key", (), EPERM),
        ("userfaultfd", (), EPERM),
        ("io_uring_setup", (), EPERM),
        ("perf_event_open", (), EPERM),
        ("open_by_handle_at", (), EPERM),
        ("kexec_load", (), EPERM),
        ("chroot", (), ALLOW),
        ("ptrace", (), ALLOW),
        ("openat2", (), ALLOW),
        ("reboot", (), EPERM),
    ],
)
def test_rules_that_matter(name, arguments, expected):
    assert ask(name, *arguments) == expected


def test_capabilities_open_calls():
    admin = DEFAULT | {"SYS_ADMIN"}
    for name in ("mount", "unshare", "setns", "clone3", "bpf"):
        assert ask(name, capabilities=admin) == ALLOW
    assert ask("clone", 0x10000000, capabilities=admin) == ALLOW
    assert ask("bpf", capabilities=DEFAULT | {"BPF"}) == ALLOW
    assert ask("chroot", capabilities=DEFAULT - {"SYS_CHROOT"}) == EPERM


def test_other_architectures_are_refused():
    program = seccomp.default_filter(DEFAULT, "x86_64")
    assert verdict(program, 0x12345678, 0) == EPERM
    # x32: the same architecture word, numbers with a high bit
    assert verdict(program, syscalls.AUDIT_ARCH["x86_64"], 0x40000000) == EPERM


@given(st.integers(0, 0xFFFFFFFF))
def test_any_number_gets_a_verdict(number):
    program = seccomp.default_filter(DEFAULT, "x86_64")
    assert verdict(program, syscalls.AUDIT_ARCH["x86_64"], number) in (ALLOW, EPERM, ENOSYS)


def test_size_and_shape():
    program = seccomp.default_filter(DEFAULT, "x86_64")
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096


def test_the_kernel_agrees():
    """Loaded for real, under no_new_privs, in a process of its own."""
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
import socket
socket.socket(socket.AF_INET).close()
found = []
for family in (38, 40):
    try:
        socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        found.append(error.errno)
for number in (425, 435, 272, 999):
    arguments = (0x10000000, 0) if number == 272 else (0, 0)
    assert libc.syscall(number, *arguments) == -1
    found.append(ctypes.get_errno())
print(found)
pid = os.fork()
if not pid:
    os._exit(0)
os.waitpid(pid, 0)
"""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers in this test are x86-64's")
    program = base64.b64encode(seccomp.default_filter(DEFAULT)).decode()
    ended = run(sys.executable, "-IS", "-c", code, steps=(steps.NoNewPrivs(), steps.Seccomp(program=program)))
    assert ended.out.strip() == str([1, 1, 1, 38, 1, 38])
