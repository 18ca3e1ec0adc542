"""A system call filter from docker's JSON form: what it says for these capabilities, this kernel and CPU.

The text is the user's, who may open the wall anyway; so mistakes are told, never guessed around. A rule
without conditions beats those with, conditions on one argument are alternatives, as runc has it. Out of
scope: the program (`seccomp`).
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from typing import Any

from knarr.kernel import caps, syscalls
from knarr.kernel.seccomp_profile import Chain, Condition
from knarr.model.errors import Invalid, Unsupported

_ACTIONS = {
    "KILL": 0x00000000,
    "KILL_THREAD": 0x00000000,
    "KILL_PROCESS": 0x80000000,
    "TRAP": 0x00030000,
    "ERRNO": 0x00050000,
    "TRACE": 0x7FF00000,
    "LOG": 0x7FFC0000,
    "ALLOW": 0x7FFF0000,
}
_WITH_DATA = frozenset({"ERRNO", "TRACE"})
_OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_ARCHITECTURES = {"x86_64": "X86_64", "i386": "X86", "aarch64": "AARCH64"}
_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
# of CPUs that have no table here: profiles name them for all
_FOREIGN_TEXT = """
recv send sync_file_range2 swapcontext arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls
s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr s390_guarded_storage s390_sthyi riscv_flush_icache
riscv_hwprobe multiplexer pciconfig_read pciconfig_write pciconfig_iobase rtas sys_debug_setcontext
subpage_prot spu_create spu_run switch_endian sysmips usr26 usr32 get_tls timerfd uretprobe
"""
_FOREIGN = frozenset(_FOREIGN_TEXT.split())
_MOST = 1 << 20
_U64 = (1 << 64) - 1
_TOP = frozenset({"defaultAction", "defaultErrnoRet", "archMap", "architectures", "syscalls", "flags"})


@dataclass(frozen=True, slots=True)
class Profile:
    """What the profile says for one set of capabilities on this machine."""

    default: int
    """what the filter returns for everything else"""
    architectures: tuple[str, ...]
    chains: dict[str, Chain]
    """by system call"""


def parse(text: str, capabilities: frozenset[str], architecture: str, kernel: str = "") -> Profile:
    """Raises `Invalid`, `Unsupported`. `kernel`: a release such as 6.1.0-13; empty = this one."""
    data = _object(_load(text), "the profile")
    unknown = sorted(set(data) - _TOP)
    if unknown:
        raise _wrong(f"{unknown[0]!r} is unknown", ", ".join(sorted(_TOP)))
    default = _action(data.get("defaultAction"), data.get("defaultErrnoRet"), "defaultAction")
    _flags(data.get("flags"))
    where = _Where(capabilities, architecture, _release(kernel or os.uname().release, "the kernel"))
    rules: dict[str, list[tuple[tuple[Condition, ...], int]]] = {}
    for index, item in enumerate(_list(data.get("syscalls"), "syscalls")):
        rule = _object(item, f"syscalls[{index}]")
        names, action, conditions = _rule(rule, f"syscalls[{index}]")
        if where.holds(rule):
            for name in names:
                rules.setdefault(name, []).extend((group, action) for group in conditions)
    return Profile(
        default=default,
        architectures=_architectures(data, architecture),
        chains={name: _chain(found, default) for name, found in rules.items()},
    )


def _chain(found: list[tuple[tuple[Condition, ...], int]], default: int) -> Chain:
    plain = [action for conditions, action in found if not conditions]
    return Chain(rules=(), otherwise=plain[0]) if plain else Chain(rules=tuple(found), otherwise=default)


def _load(text: str) -> Any:
    if len(text) > _MOST:
        raise _wrong(f"it has more than {_MOST} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"not JSON: {error}") from error


def _rule(rule: dict[str, Any], where: str) -> tuple[list[str], int, list[tuple[Condition, ...]]]:
    names = _list(rule.get("names") or ([rule["name"]] if rule.get("name") else None), f"{where}.names")
    for name in names:
        if not isinstance(name, str) or name not in _known():
            raise _wrong(f"{where}: system call {str(name)[:60]!r} is unknown")
    action = _action(rule.get("action"), rule.get("errnoRet"), f"{where}.action")
    given = _list(rule.get("args"), f"{where}.args")
    conditions = [_condition(item, f"{where}.args[{index}]") for index, item in enumerate(given)]
    arguments = [condition.argument for condition in conditions]
    if len(set(arguments)) < len(arguments):
        return names, action, [(condition,) for condition in conditions]
    return names, action, [tuple(conditions)]


def _known() -> frozenset[str]:
    tables = (syscalls.numbers(name) for name in _ARCHITECTURES)
    return _FOREIGN.union(*tables)


def _action(text: Any, number: Any, where: str) -> int:
    name = text.removeprefix("SCMP_ACT_") if isinstance(text, str) else ""
    if name == "NOTIFY":
        raise Unsupported(f"seccomp profile: {where}: SCMP_ACT_NOTIFY needs a listener, and there is none")
    if name not in _ACTIONS:
        known = ", ".join(f"SCMP_ACT_{key}" for key in _ACTIONS)
        raise _wrong(f"{where}: action {str(text)[:60]!r} is unknown", known)
    if name not in _WITH_DATA:
        return _ACTIONS[name]
    data = errno.EPERM if number is None else number
    if not isinstance(data, int) or isinstance(data, bool) or not 0 <= data <= 0xFFF:
        raise _wrong(f"{where}: error number {str(number)[:40]} is none", "0 to 4095")
    return _ACTIONS[name] | data


def _condition(item: Any, where: str) -> Condition:
    value = _object(item, where)
    operator = str(value.get("op", "")).removeprefix("SCMP_CMP_")
    if operator not in _OPERATORS:
        known = ", ".join(f"SCMP_CMP_{name}" for name in _OPERATORS)
        raise _wrong(f"{where}: operator {str(value.get('op'))[:60]!r} is unknown", known)
    index = _number(value.get("index", 0), f"{where}.index", 5)
    first = _number(value.get("value", 0), f"{where}.value", _U64)
    second = _number(value.get("valueTwo", 0), f"{where}.valueTwo", _U64)
    return Condition(argument=index, operator=operator, value=first, second=second)


def _number(value: Any, where: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise _wrong(f"{where}: {str(value)[:40]!r} is not a number from 0 to {most}")
    return value


def _flags(value: Any) -> None:
    for flag in _list(value, "flags"):
        # the first is how filters are loaded anyway, the second changes nothing that is decided
        if flag not in ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG"):
            raise Unsupported(f"seccomp profile: flag {str(flag)[:60]!r} is not supported")


def _architectures(data: dict[str, Any], native: str) -> tuple[str, ...]:
    """Those of the profile that this CPU runs; the native one always, for the filter is meant for it."""
    named = {str(item) for item in _list(data.get("architectures"), "architectures")}
    for item in _list(data.get("archMap"), "archMap"):
        entry = _object(item, "archMap")
        if entry.get("architecture") == f"SCMP_ARCH_{_ARCHITECTURES[native]}":
            named |= {str(name) for name in _list(entry.get("subArchitectures"), "subArchitectures")}
    companions = ("i386",) if native == "x86_64" else ()
    return (native, *(name for name in companions if f"SCMP_ARCH_{_ARCHITECTURES[name]}" in named))


@dataclass(frozen=True, slots=True)
class _Where:
    """What the conditions `includes` and `excludes` of a rule are about."""

    capabilities: frozenset[str]
    architecture: str
    release: tuple[int, int]

    def holds(self, rule: dict[str, Any]) -> bool:
        wanted, unwanted = (_object(rule.get(key) or {}, key) for key in ("includes", "excludes"))
        native = _GO_NAMES[self.architecture]
        arches, not_arches = (_list(item.get("arches"), "arches") for item in (wanted, unwanted))
        if (arches and native not in arches) or native in not_arches:
            return False
        if not self._caps(wanted) <= self.capabilities or self._caps(unwanted) & self.capabilities:
            return False
        at_least, below = (item.get("minKernel") for item in (wanted, unwanted))
        if at_least and self.release < _release(at_least, "minKernel"):
            return False
        return not (below and self.release >= _release(below, "minKernel"))

    @staticmethod
    def _caps(item: dict[str, Any]) -> frozenset[str]:
        found = frozenset(str(name).removeprefix("CAP_") for name in _list(item.get("caps"), "caps"))
        for name in found:
            if name not in caps.NUMBERS:
                raise _wrong(f"capability {name[:60]!r} is unknown")
        return found


def _release(text: Any, where: str) -> tuple[int, int]:
    major, _, rest = str(text).partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    if not (major.isdigit() and minor.isdigit()):
        raise _wrong(f"{where}: {str(text)[:40]!r} is not a kernel release", "such as 4.8")
    return int(major), int(minor)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(f"{where} is not an object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise _wrong(f"{where} is not a list")
    return value or []


def _wrong(fact: str, hint: str | None = None) -> Invalid:
    return Invalid(f"seccomp profile: {fact}", hint=hint)
