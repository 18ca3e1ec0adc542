"""Profiles in docker's JSON form: conditions by an interpreter of classic BPF, mistakes by their texts."""

from __future__ import annotations

import errno
import json
import operator
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.kernel import seccomp, syscalls
from knarr.model.errors import Invalid, Unsupported

ALLOW, KILL, LOG = 0x7FFF0000, 0x80000000, 0x7FFC0000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
JUMPS = {0x15: operator.eq, 0x25: operator.gt, 0x35: operator.ge, 0x45: operator.and_}
COMPARE = {
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "EQ": operator.eq,
    "GE": operator.ge,
    "GT": operator.gt,
}
NUMBERS = st.one_of(
    st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1, (1 << 32) - 1, 1 << 32, (1 << 32) + 1])
)


def verdict(
    program: bytes, name: str, *arguments: int, arch: str = "x86_64", number: int | None = None
) -> int:
    number = syscalls.numbers(arch)[name] if number is None else number
    values = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, syscalls.AUDIT_ARCH[arch], 0, *values)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    position = accumulator = 0
    while True:
        kind, if_true, if_false, value = code[position]
        position += 1
        if kind == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif kind == 0x54:
            accumulator &= value
        elif kind == 0x05:
            position += value
        elif kind == 0x06:
            return value
        else:
            position += if_true if JUMPS[kind](accumulator, value) else if_false


def compiled(*rules: dict, default: str = "SCMP_ACT_ERRNO", capabilities=(), **more) -> bytes:
    profile = {"defaultAction": default, "syscalls": list(rules), **more}
    return seccomp.file_filter(json.dumps(profile), frozenset(capabilities), "x86_64")


def rule(*names: str, action: str = "SCMP_ACT_ALLOW", **more) -> dict:
    return {"names": list(names), "action": action, **more}


def arg(op: str, value: int, index: int = 0, second: int = 0) -> dict:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": second}


@given(st.sampled_from(sorted(COMPARE)), NUMBERS, NUMBERS, st.integers(0, 5))
def test_every_comparison_looks_at_all_64_bits(name, value, given_value, index):
    program = compiled(rule("read", args=[arg(name, value, index)]))
    arguments = [0] * index + [given_value]
    assert (verdict(program, "read", *arguments) == ALLOW) is COMPARE[name](given_value, value)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_masked_comparison(mask, wanted, value):
    program = compiled(rule("clone", args=[arg("MASKED_EQ", mask, second=wanted)]))
    assert (verdict(program, "clone", value) == ALLOW) is (value & mask == wanted)


def test_conditions_of_one_rule_hold_together_and_rules_are_alternatives():
    both = compiled(rule("kill", args=[arg("EQ", 1), arg("EQ", 15, 1)]), rule("kill", args=[arg("EQ", 9)]))
    assert verdict(both, "kill", 1, 15) == ALLOW
    assert verdict(both, "kill", 1, 9) == EPERM
    assert verdict(both, "kill", 9, 9) == ALLOW


def test_two_conditions_on_one_argument_are_alternatives():
    either = compiled(rule("personality", args=[arg("EQ", 0), arg("EQ", 8)]))
    assert [verdict(either, "personality", value) for value in (0, 8, 4)] == [ALLOW, ALLOW, EPERM]


def test_a_rule_without_conditions_wins():
    program = compiled(rule("kill", action="SCMP_ACT_KILL_PROCESS", args=[arg("EQ", 1)]), rule("kill"))
    assert verdict(program, "kill", 1) == ALLOW


def test_actions_and_error_numbers():
    program = compiled(
        rule("read", action="SCMP_ACT_LOG"),
        rule("write", action="SCMP_ACT_ERRNO", errnoRet=38),
        rule("mkdir", "rmdir", action="SCMP_ACT_KILL_PROCESS"),
        {"name": "open", "action": "SCMP_ACT_ALLOW"},
        default="SCMP_ACT_ERRNO",
        defaultErrnoRet=13,
    )
    assert verdict(program, "read") == LOG
    assert verdict(program, "write") == ENOSYS
    assert verdict(program, "rmdir") == KILL
    assert verdict(program, "open") == ALLOW
    assert verdict(program, "close") == 0x50000 | errno.EACCES


def test_what_is_newer_than_the_profile_is_missing_unless_all_is_allowed():
    assert verdict(compiled(rule("read")), "", number=5000) == ENOSYS
    assert verdict(compiled(default="SCMP_ACT_ALLOW"), "", number=5000) == ALLOW


def test_the_other_calls_of_the_cpu_are_denied_unless_named():
    sub = [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}]
    assert verdict(compiled(rule("read")), "read", arch="i386") == EPERM
    assert verdict(compiled(rule("read"), archMap=sub), "read", arch="i386") == ALLOW
    assert verdict(compiled(default="SCMP_ACT_ALLOW"), "", number=0x40000000) == EPERM


def test_includes_and_excludes():
    rules = (
        rule("mount", includes={"caps": ["CAP_SYS_ADMIN"]}),
        rule("clone3", action="SCMP_ACT_ERRNO", errnoRet=38, excludes={"caps": ["CAP_SYS_ADMIN"]}),
        rule("arch_prctl", includes={"arches": ["amd64"]}),
        rule("cacheflush", includes={"arches": ["arm64"]}),
        rule("ptrace", includes={"minKernel": "4.8"}),
        rule("bpf", includes={"minKernel": "99.0"}),
    )
    plain, admin = compiled(*rules), compiled(*rules, capabilities=["SYS_ADMIN"])
    assert [verdict(item, "mount") for item in (plain, admin)] == [EPERM, ALLOW]
    assert [verdict(item, "clone3") for item in (plain, admin)] == [ENOSYS, EPERM]
    assert [verdict(plain, name) for name in ("arch_prctl", "ptrace", "bpf")] == [ALLOW, ALLOW, EPERM]


@pytest.mark.parametrize(
    ("profile", "text"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "defaultAction"),
        ('{"defaultAction":"SCMP_ACT_MAYBE"}', "SCMP_ACT_MAYBE"),
        ('{"defaultAction":"SCMP_ACT_ALLOW","sycalls":[]}', "sycalls"),
        ('{"defaultAction":"SCMP_ACT_ALLOW","syscalls":{}}', "not a list"),
        ('{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[1]}', "syscalls[0]"),
        (
            '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["raed"],"action":"SCMP_ACT_LOG"}]}',
            "raed",
        ),
        ('{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"LOUD"}]}', "LOUD"),
    ],
)
def test_mistakes_are_told(profile, text):
    with pytest.raises(Invalid) as caught:
        seccomp.file_filter(profile, frozenset(), "x86_64")
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([{"index": 6, "op": "SCMP_CMP_EQ"}], "index"),
        ([{"index": 0, "op": "SCMP_CMP_ABOUT"}], "SCMP_CMP_ABOUT"),
        ([{"index": 0, "op": "SCMP_CMP_EQ", "value": -1}], "value"),
        ([{"index": 0, "op": "SCMP_CMP_EQ", "value": 1 << 64}], "value"),
        ([{"index": 0, "op": "SCMP_CMP_EQ", "value": True}], "value"),
        (["x"], "args[0]"),
    ],
)
def test_wrong_conditions_are_told(args, text):
    with pytest.raises(Invalid) as caught:
        compiled(rule("read", args=args))
    assert text in caught.value.message


def test_a_listener_is_refused_by_name():
    with pytest.raises(Unsupported, match="SCMP_ACT_NOTIFY"):
        compiled(rule("read", action="SCMP_ACT_NOTIFY"))
