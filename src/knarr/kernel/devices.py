"""The device list of a v2 control group, which knows no files for it: a small eBPF program on the group.

Numbers from linux/bpf.h. Out of scope: v1 (`devices.allow`, `containers.security`).
"""

from __future__ import annotations

import ctypes
import os
import struct

from knarr.kernel import libc

WORKLOAD = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, -1))
"""what every workload may open, whatever its wall (major, minor; -1 = any): null, zero, full, random,
urandom, terminals"""

_BPF = {"x86_64": 321, "aarch64": 280}.get(libc.MACHINE, -1)
_PROG_LOAD = 5
_PROG_ATTACH = 8
_TYPE_CGROUP_DEVICE = 15
_AT_CGROUP_DEVICE = 6
_ACCESS_MKNOD = 1
_CHARACTER = 2
_ANY = -1

# opcodes: class | source | operation
_LOAD_WORD = 0x61
_MOVE_REGISTER = 0xBF
_MOVE = 0xB7
_SHIFT_RIGHT = 0x77
_AND = 0x57
_IF_NOT_EQUAL = 0x55
_EXIT = 0x95


def attach_filter(group: str, characters: tuple[tuple[int, int], ...]) -> None:
    """Processes of `group` open only these character devices (major, minor; -1 = any); mknod stays free.

    The program lives as long as the group. Raises OSError.
    """
    folder = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        program = _load(compile_filter(characters))
        try:
            attributes = struct.pack("=IIII", folder, program, _AT_CGROUP_DEVICE, 0)
            _bpf(_PROG_ATTACH, attributes, group)
        finally:
            os.close(program)
    finally:
        os.close(folder)


def compile_filter(characters: tuple[tuple[int, int], ...]) -> bytes:
    """The program: r2 = access and kind, r3 = major, r4 = minor; the result is r0, 1 = allowed."""
    code = [
        _instruction(_LOAD_WORD, 2, 1, 0),
        _instruction(_LOAD_WORD, 3, 1, 4),
        _instruction(_LOAD_WORD, 4, 1, 8),
        _instruction(_MOVE_REGISTER, 5, 2),
        _instruction(_SHIFT_RIGHT, 5, value=16),
        # making a node alone is harmless: opening it is what is asked about then
        _instruction(_IF_NOT_EQUAL, 5, offset=2, value=_ACCESS_MKNOD),
        *_verdict(1),
        _instruction(_AND, 2, value=0xFFFF),
    ]
    for major, minor in characters:
        tests = [(2, _CHARACTER), (3, major), *([] if minor == _ANY else [(4, minor)])]
        for index, (register, value) in enumerate(tests):
            over = len(tests) - index - 1 + 2
            code.append(_instruction(_IF_NOT_EQUAL, register, offset=over, value=value))
        code += _verdict(1)
    code += _verdict(0)
    return b"".join(code)


def _verdict(value: int) -> list[bytes]:
    return [_instruction(_MOVE, 0, value=value), _instruction(_EXIT)]


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | to, offset, value)


def _load(program: bytes) -> int:
    text = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII",
        _TYPE_CGROUP_DEVICE,
        len(program) // 8,
        ctypes.addressof(text),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
        0,
    )
    return _bpf(_PROG_LOAD, attributes, "device filter")


def _bpf(command: int, attributes: bytes, path: str) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return libc.syscall(_BPF, command, buffer, len(attributes), path=path)
