"""From rules to a classic BPF program. Constants from linux/{seccomp,filter,bpf_common}.h.

The program looks the call's number up by binary search over runs of equal action.
Out of scope: the rules (`seccomp_profile`).
"""

from __future__ import annotations

import functools
import struct

from knarr.kernel import libc, seccomp_file, syscalls
from knarr.kernel.seccomp_profile import (
    DENIED,
    UNKNOWN,
    Action,
    Allow,
    AllowUnlessBits,
    AllowValues,
    Chain,
    Condition,
    Refuse,
    rules,
)
from knarr.model.errors import Invalid

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL = 0x15
_IF_AT_LEAST = 0x35
_IF_ABOVE = 0x25
_IF_BITS = 0x45
_AND = 0x54
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_ACTION = 0xFFFF0000
_MOST = 4096

_AT_NUMBER = 0
_AT_ARCHITECTURE = 4
_AT_ARGUMENTS = 16
_X32 = 0x40000000
_FAR = 255

# the 32-bit calls that the same kernel serves
_COMPANIONS = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64",)}

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, value"""


@functools.cache
def default_filter(capabilities: frozenset[str], architecture: str = libc.MACHINE) -> bytes:
    """Docker's default profile for these capabilities. Raises KeyError where we have no table."""
    blocks = [(syscalls.AUDIT_ARCH[name], _compile(name, capabilities)) for name in _COMPANIONS[architecture]]
    return _assemble(blocks)


def program(profile: str, capabilities: frozenset[str], architecture: str = libc.MACHINE) -> bytes:
    """The filter of a profile's text, or without one the default."""
    if profile:
        return file_filter(profile, capabilities, architecture)
    return default_filter(capabilities, architecture)


@functools.lru_cache(maxsize=32)
def file_filter(text: str, capabilities: frozenset[str], architecture: str = libc.MACHINE) -> bytes:
    """The filter of a profile of the user's own (`seccomp_file`). Raises `Invalid`, `Unsupported`."""
    profile = seccomp_file.parse(text, capabilities, architecture)
    otherwise = Chain(rules=(), otherwise=profile.default)
    # what did not exist when the profile was written: programs take their fallback, as runc has it
    unknown: Action = UNKNOWN if profile.default & _ACTION == _ERRNO else otherwise
    blocks = []
    for name in profile.architectures:
        numbers = syscalls.numbers(name)
        table: dict[int, Action] = {
            numbers[key]: chain for key, chain in profile.chains.items() if key in numbers
        }
        found = runs(table, max(numbers.values()) + 1, otherwise, unknown)
        blocks.append((syscalls.AUDIT_ARCH[name], [(_LOAD, 0, 0, _AT_NUMBER), *_search(found)]))
    program = _assemble(blocks)
    if len(program) // 8 > _MOST:
        raise Invalid(f"seccomp profile: {len(program) // 8} instructions", hint=f"the kernel takes {_MOST}")
    return program


def _assemble(blocks: list[tuple[int, list[Instruction]]]) -> bytes:
    program: list[Instruction] = [(_LOAD, 0, 0, _AT_ARCHITECTURE)]
    for code, block in blocks:
        program += [(_IF_EQUAL, 1, 0, code), (_JUMP, 0, 0, len(block)), *block]
    program.append((_RETURN, 0, 0, _result(DENIED)))
    return b"".join(struct.pack("=HBBI", *item) for item in program)


def runs(
    table: dict[int, Action], limit: int, otherwise: Action = DENIED, unknown: Action = UNKNOWN
) -> list[tuple[int, Action]]:
    """(first number, action) in order, covering everything: gaps as `otherwise` says, and from `limit` on as
    `unknown`.
    """
    found: list[tuple[int, Action]] = []
    for number in range(limit):
        action = table.get(number, otherwise)
        if not found or found[-1][1] != action:
            found.append((number, action))
    return [*found, (limit, unknown), (_X32, DENIED)]


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
    if isinstance(action, Chain):
        return _leaf_chain(action)
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


def _leaf_chain(chain: Chain) -> list[Instruction]:
    found: list[Instruction] = []
    for conditions, value in chain.rules:
        body: list[Instruction] = [(_RETURN, 0, 0, value)]
        for condition in reversed(conditions):
            # not met: past the rest of the rule
            body = [*_comparison(condition, len(body)), *body]
        found += body
    return [*found, (_RETURN, 0, 0, chain.otherwise)]


def _comparison(condition: Condition, fail: int) -> list[Instruction]:
    """Falls through when it is met, else jumps over the `fail` instructions behind it."""
    low, high = (condition.value >> shift & 0xFFFFFFFF for shift in (0, 32))
    place = _AT_ARGUMENTS + 8 * condition.argument
    load_low, load_high = (_LOAD, 0, 0, place), (_LOAD, 0, 0, place + 4)
    if condition.operator == "MASKED_EQ":
        wanted_low, wanted_high = (condition.second >> shift & 0xFFFFFFFF for shift in (0, 32))
        and_high, and_low = (_AND, 0, 0, high), (_AND, 0, 0, low)
        first = (_IF_EQUAL, 0, fail + 3, wanted_high)
        return [load_high, and_high, first, load_low, and_low, (_IF_EQUAL, 0, fail, wanted_low)]
    if condition.operator == "EQ":
        return [load_high, (_IF_EQUAL, 0, fail + 2, high), load_low, (_IF_EQUAL, 0, fail, low)]
    if condition.operator == "NE":
        return [load_high, (_IF_EQUAL, 0, 2, high), load_low, (_IF_EQUAL, fail, 0, low)]
    above = _IF_ABOVE if condition.operator in ("GT", "LE") else _IF_AT_LEAST
    met, unmet = (0, fail) if condition.operator in ("GT", "GE") else (fail, 0)
    more = (_IF_ABOVE, met + 3, 0, high)
    return [load_high, more, (_IF_EQUAL, 0, unmet + 2, high), load_low, (above, met, unmet, low)]


def _result(action: Allow | Refuse) -> int:
    return _ALLOW if isinstance(action, Allow) else _ERRNO | action.code
