"""nftables: rule sets as values, applied in single transactions through libnftables in this process.

A `Table` renders to nft's own language; `Nft.apply` replaces tables as one transaction, `Nft.add` and
`Nft.delete` change elements of sets and maps (`kernel.nfset` does, where their types are known). Where
libnftables can't be loaded the `nft` program does the same work.

Out of scope: what the rules are (`networks.rules`), and understanding other people's rule sets beyond
`Nft.list_json`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from knarr.kernel import libc, nfset

if TYPE_CHECKING:
    from collections.abc import Iterable

_LIBRARY: Final = "libnftables.so.1"
_OUTPUT_JSON: Final = 1 << 4
_WORD: Final = re.compile(r"[A-Za-z0-9_.:*/-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Chain:
    """`hook`, such as `type filter hook forward priority filter;`, is empty for a chain that is jumped to."""

    name: str
    rules: tuple[str, ...]
    hook: str = ""

    def render(self) -> str:
        lines = [f"    {self.hook}\n"] if self.hook else []
        lines += [f"    {rule}\n" for rule in self.rules]
        return f"  chain {self.name} {{\n{''.join(lines)}  }}\n"


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or a map when `type` has a colon. `elements` are what it starts with."""

    name: str
    type: str
    elements: tuple[str, ...] = ()

    def render(self) -> str:
        word = "map" if " : " in self.type else "set"
        elements = f" elements = {{ {', '.join(self.elements)} }}" if self.elements else ""
        return f"  {word} {self.name} {{ type {self.type};{elements} }}\n"


@dataclass(frozen=True, slots=True)
class Table:
    family: str
    name: str
    sets: tuple[Set, ...] = ()
    chains: tuple[Chain, ...] = ()

    @property
    def path(self) -> str:
        return f"{self.family} {self.name}"

    def render(self) -> str:
        """Text that puts this table in the place of whatever had its name."""
        body = "".join([*(item.render() for item in self.sets), *(item.render() for item in self.chains)])
        return f"table {self.path} {{}}\ndelete table {self.path}\ntable {self.path} {{\n{body}}}\n"


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a set (`value` empty) or of a map; parts of a concatenation are kept apart."""

    table: str
    """family and name"""
    set: str
    key: tuple[str, ...]
    value: tuple[str, ...] = ()
    kind: str = ""
    """the set's type; with it one element costs the same however many tables the host has"""

    def text(self, *, with_value: bool) -> str:
        key = " . ".join(_word(part) for part in self.key)
        return key + (
            " : " + " . ".join(_word(part) for part in self.value) if with_value and self.value else ""
        )

    def render(self, *, with_value: bool) -> str:
        return f"element {self.table} {self.set} {{ {self.text(with_value=with_value)} }}\n"


def _word(text: str) -> str:
    # An element's parts come from addresses and our own link names: nothing else may reach nft's parser.
    if not _WORD.fullmatch(text):
        raise OSError(errno.EINVAL, "not an nftables word", text)
    return text


class _Engine(Protocol):
    def run(self, text: str, *, as_json: bool = False) -> str: ...


class _Library:
    """libnftables, in the network namespace of the thread that runs something."""

    def __init__(self) -> None:
        library = ctypes.CDLL(_LIBRARY)
        for name in ("nft_ctx_new", "nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in ("buffer_output", "buffer_error", "get_output_buffer", "get_error_buffer", "free"):
            getattr(library, f"nft_ctx_{name}").argtypes = [ctypes.c_void_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library

    def run(self, text: str, *, as_json: bool = False) -> str:
        # A context keeps all it has read of the host's tables, some 20 MB with 30 of them: so none stays.
        context = self._library.nft_ctx_new(0)
        if not context:
            raise OSError(errno.ENOMEM, "no nftables context", _LIBRARY)
        try:
            return self._run(context, text, as_json=as_json)
        finally:
            self._library.nft_ctx_free(context)
            libc.trim()

    def _run(self, context: int, text: str, *, as_json: bool) -> str:
        library = self._library
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_output_set_flags(context, _OUTPUT_JSON if as_json else 0)
        failed = library.nft_run_cmd_from_buffer(context, text.encode())
        told = _text(library.nft_ctx_get_error_buffer(context))
        output = _text(library.nft_ctx_get_output_buffer(context))
        if failed:
            raise _refusal(told)
        return output


class _Program:
    """The `nft` program, for a host with nftables but without its library."""

    def run(self, text: str, *, as_json: bool = False) -> str:
        # With -j the program would expect JSON as its input, so a listing goes by arguments.
        command = ["nft", "-j", *text.split()] if as_json else ["nft", "-f", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode:
            raise _refusal(done.stderr)
        return done.stdout


def _text(address: int | None) -> str:
    return ctypes.string_at(address).decode(errors="replace") if address else ""


_ERRNO: Final = {
    "No such file or directory": errno.ENOENT,
    "File exists": errno.EEXIST,
    "Operation not permitted": errno.EPERM,
    "Operation not supported": errno.EOPNOTSUPP,
    "Device or resource busy": errno.EBUSY,
}


def _refusal(told: str) -> OSError:
    first = told.strip().splitlines()[0] if told.strip() else "refused without a reason"
    code = next((number for words, number in _ERRNO.items() if words in first), errno.EINVAL)
    return OSError(code, first, "nftables")


class Nft:
    """One user of nftables. Not for use by two threads at a time."""

    def __init__(self, *, program: bool = False) -> None:
        self._engine: _Engine
        try:
            self._engine = _Program() if program else _Library()
        except (OSError, AttributeError):
            self._engine = _Program()
        self._elements = nfset.Elements()

    def close(self) -> None:
        self._elements.close()

    def apply(self, *tables: Table) -> None:
        """Put the tables in place of those with their names: all of them, or nothing changed."""
        self._engine.run("".join(table.render() for table in tables))

    def remove(self, *tables: tuple[str, str]) -> None:
        """Delete tables by (family, name); one that is not there is no error."""
        text = (f"table {family} {name} {{}}\ndelete table {family} {name}\n" for family, name in tables)
        self._engine.run("".join(text))

    def has_table(self, family: str, name: str) -> bool:
        return self._elements.has_table(family, name)

    def add(self, elements: Iterable[Element]) -> None:
        """All, or none and an OSError."""
        self._run_elements("add", tuple(elements), with_value=True)

    def delete(self, elements: Iterable[Element]) -> None:
        self._run_elements("delete", tuple(elements), with_value=False)

    def _run_elements(self, verb: str, elements: tuple[Element, ...], *, with_value: bool) -> None:
        if len(elements) <= nfset.MOST and all(item.kind for item in elements):
            (self._elements.add if with_value else self._elements.delete)(elements)
            return
        text = "".join(f"{verb} {item.render(with_value=with_value)}" for item in elements)
        if text:
            self._engine.run(text)

    def list_json(self, what: str) -> list[dict[str, Any]]:
        """`list <what>` as nft's JSON objects, each a dict with one key: its kind."""
        output = self._engine.run(f"list {what}\n", as_json=True)
        found: list[dict[str, Any]] = json.loads(output)["nftables"] if output.strip() else []
        return found
