"""From rules to a classic BPF program, and seccomp(2). Constants from linux/{seccomp,filter,bpf_common}.h.

The program looks the call's number up by binary search over runs of equal action.
Out of scope: the rules (`seccomp_profile`).
"""

from __future__ import annotations

import ctypes
import functools
import struct

from knarr.kernel import libc, syscalls
from knarr.kernel.seccomp_profile import (
    DENIED,
    UNKNOWN,
    Action,
    Allow,
    AllowUnlessBits,
    AllowValues,
    Refuse,
    rules,
)

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL = 0x15
_IF_AT_LEAST = 0x35
_IF_BITS = 0x45
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000

_AT_NUMBER = 0
_AT_ARCHITECTURE = 4
_AT_ARGUMENTS = 16
_X32 = 0x40000000
_FAR = 255

_SET_MODE_FILTER = 1
_FLAG_SPEC_ALLOW = 4

# the 32-bit calls that the same kernel serves
_COMPANIONS = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64",)}

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, value"""


def load(program: bytes) -> None:
    """Put the filter (struct sock_filter[]) on this thread. Needs no_new_privs or SYS_ADMIN."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    libc.syscall(libc.SECCOMP, _SET_MODE_FILTER, _FLAG_SPEC_ALLOW, header)


@functools.cache
def default_filter(capabilities: frozenset[str], architecture: str = libc.MACHINE) -> bytes:
    """Docker's default profile for these capabilities. Raises KeyError where we have no table."""
    blocks = [(syscalls.AUDIT_ARCH[name], _compile(name, capabilities)) for name in _COMPANIONS[architecture]]
    program: list[Instruction] = [(_LOAD, 0, 0, _AT_ARCHITECTURE)]
    for code, block in blocks:
        program += [(_IF_EQUAL, 1, 0, code), (_JUMP, 0, 0, len(block)), *block]
    program.append((_RETURN, 0, 0, _result(DENIED)))
    return b"".join(struct.pack("=HBBI", *item) for item in program)


def runs(table: dict[int, Action], limit: int) -> list[tuple[int, Action]]:
    """(first number, action) in order, covering everything: gaps are denied, numbers from `limit` unknown."""
    found: list[tuple[int, Action]] = []
    for number in range(limit):
        action = table.get(number, DENIED)
        if not found or found[-1][1] != action:
            found.append((number, action))
    return [*found, (limit, UNKNOWN), (_X32, DENIED)]


def _compile(architecture: str, capabilities: frozenset[str]) -> list[Instruction]:
    numbers = syscalls.numbers(architecture)
    actions = rules(architecture, capabilities)
    table = {numbers[name]: action for name, action in actions.items() if name in numbers}
    return [(_LOAD, 0, 0, _AT_NUMBER), *_search(runs(table, max(numbers.values()) + 1))]


def _search(items: list[tuple[int, Action]]) -> list[Instruction]:
    if len(items) == 1:
        return _leaf(items[0][1])
    middle = len(items) // 2
    below, above = _search(items[:middle]), _search(items[middle:])
    if len(below) <= _FAR:
        return [(_IF_AT_LEAST, len(below), 0, items[middle][0]), *below, *above]
    return [(_IF_AT_LEAST, 0, 1, items[middle][0]), (_JUMP, 0, 0, len(below)), *below, *above]


def _leaf(action: Action) -> list[Instruction]:
    """What decides; ends in returns on every way."""
    if isinstance(action, AllowValues):
        return _leaf_values(action)
    if isinstance(action, AllowUnlessBits):
        return [
            (_LOAD, 0, 0, _AT_ARGUMENTS + 8 * action.argument),
            (_IF_BITS, 1, 0, action.bits),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _result(DENIED)),
        ]
    return [(_RETURN, 0, 0, _result(action))]


def _leaf_values(action: AllowValues) -> list[Instruction]:
    hit, miss = (DENIED, Allow()) if action.unless else (Allow(), DENIED)
    count = len(action.values)
    tests = [(_IF_EQUAL, count - index, 0, value) for index, value in enumerate(action.values)]
    return [
        (_LOAD, 0, 0, _AT_ARGUMENTS + 8 * action.argument),
        *tests,
        (_RETURN, 0, 0, _result(miss)),
        (_RETURN, 0, 0, _result(hit)),
    ]


def _result(action: Allow | Refuse) -> int:
    return _ALLOW if isinstance(action, Allow) else _ERRNO | action.code
