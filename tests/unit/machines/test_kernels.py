"""Boot images, modules and the initramfs, from made-up kernels."""

from __future__ import annotations

import gzip
import lzma
import os
import struct

import lz4.block
import pytest
import zstandard

from knarr.machines import initramfs, kernels, vmlinux
from knarr.model.errors import Invalid, NotFound

ELF = b"\x7fELF" + b"Linux version 9.8.7-test (builder) " + bytes(5000)


def boot_image(payload: bytes) -> bytes:
    image = bytearray(5 * 512 + 0x100)
    image[0x1F1] = 4
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 0x100, len(payload))
    return bytes(image) + payload + b"trailing signature"


def lz4_legacy(data: bytes) -> bytes:
    block = lz4.block.compress(data, store_size=False)
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


@pytest.mark.parametrize(
    "pack", [lz4_legacy, gzip.compress, lzma.compress, zstandard.ZstdCompressor().compress]
)
def test_the_kernel_comes_out_of_a_boot_image(pack):
    size = struct.pack("<I", len(ELF))
    assert vmlinux.extract(boot_image(pack(ELF) + size)) == ELF


def test_an_elf_kernel_is_taken_as_it_is():
    assert vmlinux.extract(ELF) == ELF
    assert vmlinux.version(ELF) == "9.8.7-test"


@pytest.mark.parametrize("image", [b"", b"hello" * 1000, boot_image(b"\x1f\x8bbroken"), boot_image(b"plain")])
def test_what_is_no_kernel_is_refused(image):
    with pytest.raises(Invalid):
        vmlinux.extract(image)


def make_modules(folder: str, modules: dict[str, str]) -> None:
    os.makedirs(f"{folder}/kernel")
    for name, depends in modules.items():
        with lzma.open(f"{folder}/kernel/{name}.ko.xz", "wb") as file:
            file.write(b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0end")
    with open(f"{folder}/modules.builtin", "w", encoding="ascii") as file:
        file.write("kernel/fs/ext4/ext4.ko\n")


def test_modules_come_after_what_they_need(tmp_path):
    modules = {
        "virtio_mmio": "virtio",
        "virtio": "",
        "virtio_console": "virtio,virtio_ring",
        "virtio_ring": "",
    }
    modules |= {
        "virtio_blk": "virtio_ring",
        "erofs": "libcrc32c",
        "libcrc32c": "",
        "overlay": "",
        "virtio_net": "",
    }
    make_modules(str(tmp_path), {**modules, "virtiofs": ""})
    found = kernels._collect(str(tmp_path), strict=True)
    assert list(found.early) == ["virtio", "virtio_mmio", "virtio_ring", "virtio_console"]
    assert list(found.late) == ["virtio_blk", "libcrc32c", "erofs", "overlay"]


def test_a_kernel_of_ones_own(tmp_path):
    agent, image = tmp_path / "agent", tmp_path / "vmlinuz"
    agent.write_bytes(b"agent")
    image.write_bytes(boot_image(gzip.compress(ELF)))
    store = kernels.KernelStore(str(tmp_path), str(agent))
    assert store.current() is None
    found = store.bring(str(image))
    with open(found.vmlinux, "rb") as file:
        assert file.read() == ELF
    assert store.bring(str(image)) == found
    agent.write_bytes(b"newer agent")
    assert store.bring(str(image)).initramfs != found.initramfs


def test_a_missing_kernel_is_named(tmp_path):
    with pytest.raises(NotFound, match="nowhere"):
        kernels.KernelStore(str(tmp_path), "agent").bring("/nowhere")


def test_the_initramfs_is_a_newc_archive():
    modules = initramfs.Modules(early={"a": b"one"}, late={}, net={}, folders={"b": b"two"})
    archive = initramfs.build(b"agent", modules)
    names, position = {}, 0
    while True:
        assert archive[position : position + 6] == b"070701"
        size, length = (
            int(archive[position + 54 : position + 62], 16),
            int(archive[position + 94 : position + 102], 16),
        )
        name = archive[position + 110 : position + 110 + length - 1].decode()
        begin = (position + 110 + length + 3) & ~3
        if name == "TRAILER!!!":
            break
        names[name] = archive[begin : begin + size]
        position = (begin + size + 3) & ~3
    assert names["init"] == b"agent"
    assert names["m/b.ko"] == b"two"
    assert names["modules.early"] == b"/boot/m/a.ko\n"


def test_modules_lose_signature_and_types():
    body = b"\x7fELF code \0.text\0.BTF\0.data\0"
    trailer = struct.pack(">5B3xI", 0, 0, 2, 3, 4, 10)
    signed = body + b"s" * 10 + b"kkk" + b"iiii" + trailer + b"~Module signature appended~\n"
    assert kernels.lighten(signed) == body.replace(b".BTF", b".btf")
    assert kernels.lighten(b"plain") == b"plain"
