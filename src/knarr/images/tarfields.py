"""Fields of tar headers: numbers, checksums, pax records, sparse maps. Part of `tarstream`'s reader."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from knarr.images.limits import Limits
    from knarr.images.tarstream import Buffer, Member

BLOCK = 512
_ID_MAX = 0xFFFF_FFFE
_TIME = re.compile(rb"(-?)([0-9]{1,18})(?:\.([0-9]*))?")
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."


def number(field: bytes, what: str, *, negative: bool = False) -> int:
    """An octal or base-256 number field."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else _base256(field)
        if value < 0 and not negative:
            raise Invalid(f"layer's archive has a negative {what}")
        return value
    digits = field.strip(b" \0")
    if not digits:
        return 0
    try:
        if not digits.isdigit():
            # what stands behind the first terminator is not part of the number
            digits = field.lstrip(b" ").replace(b" ", b"\0").split(b"\0", 1)[0]
        return int(digits, 8) if digits.isdigit() else _bad(field, what)
    except ValueError:
        return _bad(field, what)


def _bad(field: bytes, what: str) -> int:
    raise Invalid(f"layer's archive has a bad {what} {field!r}")


def _base256(field: bytes) -> int:
    return int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")


def check_sum(header: bytes) -> None:
    stored = number(header[148:156], "checksum")
    blanked = sum(header) - sum(header[148:156]) + 8 * 0x20
    if stored == blanked:
        return
    # some old programs summed signed bytes
    if stored != blanked - 256 * sum(byte > 127 for byte in header[:148] + header[156:]):
        raise Invalid("layer's archive has a header with a wrong checksum")


def decimal(text: bytes, what: str) -> int:
    if not _DECIMAL.fullmatch(text):
        raise Invalid(f"layer's archive has a bad {what} {text[:40]!r}")
    return int(text)


def parse_pax(data: bytes) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """Records by key, and apart the GNU.sparse ones that repeat, in order."""
    records: dict[bytes, bytes] = {}
    repeated: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        if space < 0:
            if data[at:].strip(b"\0"):
                raise Invalid("layer's archive has a broken pax header")
            break
        length = decimal(data[at:space], "pax record")
        end = at + length
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n" or not equals or not key:
            raise Invalid("layer's archive has a broken pax record")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            repeated.append((key, value))
        else:
            records[key] = value
        at = end
    return records, repeated


def apply_pax(member: Member, pax: dict[bytes, bytes], limits: Limits) -> None:
    xattrs = []
    for key, value in pax.items():
        if key.startswith(_XATTR):
            xattrs.append((key[len(_XATTR) :], value))
        elif not value:
            continue
        elif key == b"path":
            member.name = _no_nul(value)
        elif key == b"linkpath":
            member.link = _no_nul(value)
        elif key == b"size":
            member.size = decimal(value, "size")
        elif key == b"mtime":
            member.mtime = _time(value)
        elif key == b"uid":
            member.uid = decimal(value, "uid")
        elif key == b"gid":
            member.gid = decimal(value, "gid")
    if xattrs:
        xattrs.sort()
        _check_xattrs(xattrs, limits)
        member.xattrs = tuple(xattrs)


def long_text(body: bytes) -> bytes:
    """GNU's long name or link: zero bytes may follow it, never stand inside (others would stop there)."""
    return _no_nul(body.rstrip(b"\0"))


def _no_nul(value: bytes) -> bytes:
    if b"\0" in value:
        raise Invalid("layer's archive has a name with a zero byte")
    return value


def _check_xattrs(xattrs: list[tuple[bytes, bytes]], limits: Limits) -> None:
    if len(xattrs) > limits.xattrs or sum(len(value) for _, value in xattrs) > limits.xattr_bytes:
        raise Invalid("layer's archive has a file with too many or too large extended attributes")
    for name, _ in xattrs:
        if not 0 < len(name) <= 255 or b"\0" in name:
            raise Invalid(f"layer's archive has a bad attribute name {name[:40]!r}")


def _time(text: bytes) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise Invalid(f"layer's archive has a bad time {text[:40]!r}")
    value = int(match[2]) * 1_000_000_000 + int((match[3] or b"").ljust(9, b"0")[:9])
    return -value if match[1] else value


def check_member(member: Member, limits: Limits) -> None:
    if member.uid > _ID_MAX or member.gid > _ID_MAX:
        raise Invalid(f"layer's archive has an owner {member.uid}:{member.gid} beyond 32 bits")
    if member.major > 0xFFF or member.minor > 0xFFFFF:
        raise Invalid(f"layer's archive has a device {member.major}:{member.minor} out of range")
    if member.size > limits.file_bytes:
        raise Invalid(f"layer's archive has a file of {member.size} bytes")
    if not -(1 << 63) < member.mtime < 1 << 63:
        # nanoseconds are kept in 64 bits: 1677 to 2262
        raise Invalid("layer's archive has a time out of range")


# Sparse files: https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html


def apply_gnu_sparse(member: Member, header: bytes, buffer: Buffer, limits: Limits) -> None:
    """The old GNU form: four pairs in the header, more in the blocks that follow it."""
    pairs = _old_pairs(header, 386, 4)
    more = header[482]
    while more:
        block = buffer.take(BLOCK)
        if len(block) < BLOCK:
            raise Invalid("layer's archive is cut short inside a sparse map")
        pairs += _old_pairs(block, 0, 21)
        if len(pairs) > limits.sparse_segments:
            raise Invalid("layer's archive has a sparse map that is too long")
        more = block[504]
    member.size = number(header[483:495], "size")
    member.sparse = tuple(pairs)


def _old_pairs(block: bytes, start: int, count: int) -> list[tuple[int, int]]:
    pairs = []
    for at in range(start, start + 24 * count, 24):
        if not block[at]:
            break
        pairs.append((number(block[at : at + 12], "offset"), number(block[at + 12 : at + 24], "length")))
    return pairs


def apply_pax_sparse(
    member: Member,
    pax: dict[bytes, bytes],
    repeated: list[tuple[bytes, bytes]],
    buffer: Buffer,
    limits: Limits,
) -> int:
    """The pax forms 0.0, 0.1 and 1.0; returns how many bytes of the data the map itself took."""
    used = 0
    if b"GNU.sparse.name" in pax:
        member.name = _no_nul(pax[b"GNU.sparse.name"])
    if pax.get(b"GNU.sparse.major") == b"1":
        if pax.get(b"GNU.sparse.minor") != b"0":
            raise Invalid("layer's archive has a sparse file of unknown version")
        pairs, used = _map_in_data(member.size, buffer, limits)
    elif repeated:
        pairs = _repeated_pairs(repeated)
    else:
        pairs = _pairs(
            [decimal(item, "sparse map") for item in pax.get(b"GNU.sparse.map", b"").split(b",") if item]
        )
    size = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")
    if size is None:
        raise Invalid("layer's archive has a sparse file without its size")
    member.size = decimal(size, "size")
    member.sparse = tuple(pairs)
    return used


def _repeated_pairs(records: list[tuple[bytes, bytes]]) -> list[tuple[int, int]]:
    if [key for key, _ in records] != [b"GNU.sparse.offset", b"GNU.sparse.numbytes"] * (len(records) // 2):
        raise Invalid("layer's archive has a broken sparse map")
    return _pairs([decimal(value, "sparse map") for _, value in records])


def _pairs(numbers: list[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise Invalid("layer's archive has a broken sparse map")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _map_in_data(stored: int, buffer: Buffer, limits: Limits) -> tuple[list[tuple[int, int]], int]:
    """Form 1.0: decimal lines, padded to a block, in front of the data."""
    blocks: list[bytes] = []
    lines = used = 0
    wanted = None
    while wanted is None or lines <= wanted:
        used += BLOCK
        if used > stored:
            raise Invalid("layer's archive has a sparse map longer than its file")
        block = buffer.take(BLOCK)
        if len(block) < BLOCK:
            raise Invalid("layer's archive is cut short inside a sparse map")
        blocks.append(block)
        lines += block.count(b"\n")
        if wanted is None:
            # the count stands on the first line, so in the first block
            wanted = 2 * decimal(block.partition(b"\n")[0], "sparse map")
            if wanted > 2 * limits.sparse_segments:
                raise Invalid("layer's archive has a sparse map that is too long")
    numbers = [decimal(line, "sparse map") for line in b"".join(blocks).split(b"\n")[1 : wanted + 1]]
    return _pairs(numbers), used


def check_sparse(member: Member, limits: Limits) -> None:
    if member.sparse is None:
        return
    if len(member.sparse) > limits.sparse_segments:
        raise Invalid("layer's archive has a sparse map that is too long")
    at = total = 0
    for offset, length in member.sparse:
        if offset < at or offset + length > member.size:
            raise Invalid("layer's archive has a sparse map out of order or range")
        at = offset + length
        total += length
    if total != member.stored:
        raise Invalid("layer's archive has a sparse map that does not match its data")
