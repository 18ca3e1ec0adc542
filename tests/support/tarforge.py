"""Tar archives byte by byte, as no honest program writes them. Every field can be given raw."""

from __future__ import annotations

END = bytes(1024)
Field = bytes | int


def header(
    name: bytes = b"f",
    kind: bytes = b"0",
    *,
    size: Field = 0,
    mode: Field = 0o644,
    uid: Field = 0,
    gid: Field = 0,
    mtime: Field = 0,
    link: bytes = b"",
    major: Field = 0,
    minor: Field = 0,
    prefix: bytes = b"",
    magic: bytes = b"ustar\x0000",
    checksum: bytes | None = None,
) -> bytes:
    """One 512 byte block; numbers are written in octal, bytes as they are."""
    fields = (
        (name, 100), (mode, 8), (uid, 8), (gid, 8), (size, 12), (mtime, 12), (b" " * 8, 8), (kind, 1),
        (link, 100), (magic, 8), (b"", 32), (b"", 32), (major, 8), (minor, 8), (prefix, 155),
    )  # fmt: skip
    block = bytearray(b"".join(_field(value, width) for value, width in fields).ljust(512, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block) if checksum is None else checksum
    return bytes(block)


def _field(value: Field, width: int) -> bytes:
    data = b"%0*o" % (width - 1, value) if isinstance(value, int) else value
    return data.ljust(width, b"\0")[:width]


def base256(value: int, width: int = 12) -> bytes:
    """GNU's form of a number that octal digits can't hold; negative ones have all the first bits set."""
    if value < 0:
        return value.to_bytes(width, "big", signed=True)
    return bytes((0x80,)) + value.to_bytes(width - 1, "big")


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes = b"x", **fields: object) -> bytes:
    return header(name, **{"size": len(data), **fields}) + padded(data)  # type: ignore[arg-type]


def folder(name: bytes, **fields: object) -> bytes:
    return header(name, b"5", **{"mode": 0o755, **fields})  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes, **fields: object) -> bytes:
    if len(target) > 100:
        return extension(target + b"\0", b"K") + header(name, b"2", **fields)  # type: ignore[arg-type]
    return header(name, b"2", link=target, **fields)  # type: ignore[arg-type]


def hardlink(name: bytes, target: bytes, **fields: object) -> bytes:
    return header(name, b"1", link=target, **fields)  # type: ignore[arg-type]


def extension(body: bytes, kind: bytes, size: Field | None = None) -> bytes:
    """A GNU long name (L), long link (K) or whatever else comes before its entry."""
    return header(b"././@LongLink", kind, size=len(body) if size is None else size) + padded(body)


def record(key: bytes, value: bytes) -> bytes:
    """One pax record; its length counts itself."""
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest) + 1
    while len(b"%d" % size) + len(rest) != size:
        size += 1
    return b"%d" % size + rest


def pax(records: dict[bytes, bytes] | bytes, kind: bytes = b"x") -> bytes:
    """An extended header of these records, or of these very bytes."""
    body = records if isinstance(records, bytes) else b"".join(record(*each) for each in records.items())
    return header(b"pax", kind, size=len(body)) + padded(body)


def sparse(name: bytes, pairs: list[tuple[int, int]], real: int, data: bytes) -> bytes:
    """The old GNU form: four pairs in the header at 386, the apparent size at 483."""
    block = bytearray(header(name, b"S", size=len(data), magic=b"ustar  \0"))
    for index, (offset, length) in enumerate(pairs):
        at = 386 + 24 * index
        block[at : at + 24] = base256(offset) + base256(length)
    block[483:495] = base256(real)
    return summed(block) + padded(data)


def summed(block: bytearray) -> bytes:
    """The block with its checksum made right."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
