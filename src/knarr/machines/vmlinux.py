"""The uncompressed kernel inside a Linux boot image: QEMU enters it directly, which saves the guest 200 ms.

Offsets from Documentation/arch/x86/boot.rst. Out of scope: where images come from (`machines.kernels`).
"""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zlib

import lz4.block
import zstandard

from knarr.model.errors import Invalid

_ELF = b"\x7fELF"
_SETUP_SECTORS = 0x1F1
_HEADER_MAGIC = b"HdrS"
_PAYLOAD = 0x248
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20
MAX_VMLINUX = 512 << 20
_BANNER = re.compile(rb"Linux version ([0-9][0-9A-Za-z.+~_-]{1,100}) ")


def extract(image: bytes) -> bytes:
    """The ELF kernel of a bzImage, or `image` itself if it is one. Raises `Invalid`."""
    if image.startswith(_ELF):
        return image
    if len(image) < _PAYLOAD + 8 or image[0x202:0x206] != _HEADER_MAGIC:
        raise Invalid(
            "the kernel is neither an ELF file nor a bzImage", hint="give a vmlinux or a vmlinuz file"
        )
    start, length = struct.unpack_from("<II", image, _PAYLOAD)
    begin = (image[_SETUP_SECTORS] + 1) * 512 + start
    payload = image[begin : begin + length]
    try:
        kernel = decompress(payload)
    except (
        ValueError,
        RuntimeError,
        OSError,
        EOFError,
        lzma.LZMAError,
        zlib.error,
        zstandard.ZstdError,
    ) as error:
        raise Invalid(f"the kernel's payload can't be decompressed: {error}") from error
    if not kernel.startswith(_ELF):
        raise Invalid("the kernel's payload is not an ELF file")
    return kernel


def decompress(data: bytes) -> bytes:
    """By magic number; bytes behind the stream (the kernel appends its size) are normal."""
    if data.startswith(_LZ4_LEGACY):
        return _lz4_legacy(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj().decompress(data)
    if data.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(data, MAX_VMLINUX)
    if data.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(data, MAX_VMLINUX)
    if data.startswith(b"BZh"):
        return bz2.BZ2Decompressor().decompress(data, MAX_VMLINUX)
    return data


def version(kernel: bytes) -> str:
    """The release of an uncompressed kernel, from its banner; `unknown` without one."""
    found = _BANNER.search(kernel)
    return found[1].decode() if found else "unknown"


def _lz4_legacy(data: bytes) -> bytes:
    blocks = []
    position = 4
    while position + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, position)
        if size == 0 or position + 4 + size > len(data):
            break
        block = data[position + 4 : position + 4 + size]
        blocks.append(lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK))
        position += 4 + size
    return b"".join(blocks)
