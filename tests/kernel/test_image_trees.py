"""Images in the store, mounted, look file by file like what GNU tar unpacks layer over layer.

Power: mounting a file-backed EROFS (root, Linux >= 6.12), mknod, xattrs of every namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from tests.support import layers as support

from knarr.images.store import ImageStore
from knarr.model.errors import Unavailable

WH = ".wh."


def _reason(tmp) -> str:
    try:
        store = ImageStore(str(tmp / "probe"))
        image = store.ingest(support.source([support.tar(support.folder("."))]))
        os.mkdir(tmp / "probe-mount")
        with support.mounted(image, str(tmp / "probe-mount")):
            os.mknod(tmp / "node", 0o020600, os.makedev(1, 3))
        store.close()
    except OSError as error:
        return f"no file-backed erofs here: {error}"
    return ""


@pytest.fixture(scope="module", autouse=True)
def power(tmp_path_factory):
    reason = _reason(tmp_path_factory.mktemp("power"))
    if reason:
        pytest.skip(reason)


pytestmark = pytest.mark.root


@pytest.fixture
def store(tmp_path):
    made = ImageStore(str(tmp_path / "store"))
    yield made
    made.close()


def _gnu_tar(root, *options: str) -> bytes:
    return subprocess.run(
        [
            "tar",
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "--sort=name",
            *options,
            "-C",
            str(root),
            "-c",
            ".",
        ],
        check=True,
        capture_output=True,
    ).stdout


def _unpack(tars: list[bytes], target) -> None:
    """Layer over layer: whiteouts first, then what the layer brings."""
    os.mkdir(target)
    for data in tars:
        names = subprocess.run(["tar", "-t"], input=data, check=True, capture_output=True).stdout.split(b"\n")
        for name in names:
            parent, _, base = name.rpartition(b"/")
            place = os.path.join(os.fsencode(target), parent)
            if base == b".wh..wh..opq":
                for victim in os.listdir(place):
                    _remove(os.path.join(place, victim))
            elif base.startswith(b".wh."):
                _remove(os.path.join(place, base[4:]))
        subprocess.run(
            ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-permissions", "--exclude=.wh.*",
             "-C", str(target), "-x"],
            input=data, check=True,
        )  # fmt: skip


def _remove(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _lower(root) -> None:
    for name in ("etc/opt", "usr/bin", "usr/lib", "var/cache/deep/er", "gone/sub", "swap", "many", "empty"):
        os.makedirs(root / name)
    os.symlink("usr/lib", root / "lib")
    # not to be written through: the reference's tar would follow it to the host
    os.symlink("/usr/bin", root / "bin")
    os.symlink("x" * 1000, root / "etc/long-link")
    os.symlink("y" * 4000, root / "etc/longest-link")
    (root / "etc/empty").touch()
    (root / "etc/passwd").write_bytes(b"root:x:0:0::/:/bin/sh\n")
    (root / "usr/bin/tool").write_bytes(os.urandom(5_000_001))
    (root / "usr/lib/block").write_bytes(os.urandom(4096))
    (root / "usr/lib/zeros").write_bytes(bytes(3_000_000) + b"x" + bytes(100_000))
    (root / "usr/lib/allzero").write_bytes(bytes(20_000))
    (root / "gone/sub/file").write_bytes(b"gone" * 999)
    (root / "swap/file").write_bytes(b"swap")
    (root / "var/cache/deep/er/x").write_bytes(b"x" * 2000)
    for size in (1, 511, 1023, 1024, 1025, 4095, 4097, 8192):
        (root / f"many/s{size}").write_bytes(os.urandom(size))
    for index in range(700):
        (root / f"many/{index:03}-{'n' * (index % 200)}").write_bytes(b"%d" % index)
    (root / "many" / ("m" * 255)).write_bytes(b"max")
    with open(os.path.join(os.fsencode(root), b"many/\xff\xfe-\x01raw"), "wb") as file:
        file.write(b"raw")
    with open(root / "usr/lib/holes", "wb") as file:
        for at in (0, 1 << 20, 50 << 20):
            file.seek(at)
            file.write(b"data" * 100)
        file.truncate(77 << 20)
    with open(root / "usr/lib/only-hole", "wb") as file:
        file.truncate(5_000_000)
    os.link(root / "usr/bin/tool", root / "usr/bin/tool2")
    os.link(root / "etc/passwd", root / "etc/opt/passwd-link")
    os.link(root / "etc/long-link", root / "etc/link-to-link")
    _special(root)


def _special(root) -> None:
    os.mknod(root / "etc/null", 0o020666, os.makedev(1, 3))
    os.mknod(root / "etc/loop", 0o060660, os.makedev(259, 70_000))
    os.mkfifo(root / "etc/fifo", 0o640)
    os.chown(root / "etc/fifo", 70_000, 4_000_000_000)
    os.chmod(root / "usr/bin/tool", 0o6755)
    os.chmod(root / "var/cache", 0o1777)
    os.setxattr(
        root / "usr/bin/tool",
        "security.capability",
        bytes.fromhex("0100000200040000000000000000000000000000"),
    )
    acl = bytes.fromhex(
        "0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff"
    )
    os.setxattr(root / "etc/passwd", "system.posix_acl_access", acl)
    for index in range(20):
        path = root / f"many/s{(1, 511, 1023, 4097)[index % 4]}"
        os.setxattr(path, f"user.k{index}", b"shared" if index % 2 else b"v%d" % index)
    os.setxattr(root / "swap", "user.on-folder", bytes(range(256)) * 8)
    os.utime(root / "swap/file", ns=(1, -1_500_000_000))
    os.utime(root / "swap", ns=(1, 4_102_444_800_123_456_789))


def _upper(root) -> list:
    for name in ("etc", "usr/lib", "var/cache/deep", "swap", "many"):
        os.makedirs(root / name)
    (root / "etc/passwd").write_bytes(b"alice:x:1000:1000::/:/bin/sh\n")
    (root / "etc/.wh.fifo").touch()
    (root / ".wh.gone").touch()
    (root / "var/cache/deep/.wh..wh..opq").touch()
    (root / "var/cache/deep/new").write_bytes(b"new")
    (root / "usr/lib/allzero").symlink_to("block")
    (root / "empty").write_bytes(b"a file in place of a folder")
    os.makedirs(root / "etc/null/inside")
    # a layer brings a folder's whole set (overlay shows the upper's only); a plain unpack would keep old ones
    os.setxattr(root / "swap", "user.on-folder", bytes(range(256)) * 8)
    os.setxattr(root / "swap", "user.other", b"1")


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    lower, upper = tmp_path_factory.mktemp("lower"), tmp_path_factory.mktemp("upper")
    _lower(lower)
    _upper(upper)
    third = support.tar(
        support.member("usr/bin/third", kind=b"1", linkname="usr/bin/tool"),
        support.member("lib/through-link", b"followed"),
        support.folder("bin2"),
        support.member("etc/opt/over", b"", b"2", linkname="../passwd"),
    )
    return [_gnu_tar(lower, "--format=posix", "--sparse"), _gnu_tar(upper, "--format=posix"), third]


IMPLIED = {b"/", b"/usr/lib", b"/usr/bin", b"/etc/opt"}  # folders whose time a plain unpack moves


def test_equals_an_independent_unpack(store, tars, tmp_path):
    _unpack(tars, tmp_path / "wanted")
    image = store.ingest(support.source(tars))
    (tmp_path / "mnt").mkdir()
    with support.mounted(image, str(tmp_path / "mnt")):
        found = support.snapshot(str(tmp_path / "mnt"))
    wanted = support.snapshot(str(tmp_path / "wanted"))
    assert sorted(found) == sorted(wanted)
    for name in wanted:
        if name in IMPLIED:
            assert found[name][:3] == wanted[name][:3]
        else:
            assert found[name] == wanted[name], name
    assert not store._collector._pool.busy


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "ustar"])
def test_other_archive_forms(store, tmp_path, form):
    root = tmp_path / "root"
    root.mkdir()
    (root / "sub").mkdir()
    long = "long/" * 30
    os.makedirs(root / long)
    (root / long / "name").write_bytes(b"data" * 3000)
    if form != "ustar":
        (root / ("n" * 200)).write_bytes(b"n")
        (root / "link").symlink_to("t" * 180)
    with open(root / "holes", "wb") as file:
        for index in range(60):
            file.seek(index * 200_000)
            file.write(b"%d" % index)
    for folder, _, names in os.walk(root):
        for name in [*names, "."]:
            os.utime(os.path.join(folder, name), (1, 1_600_000_000), follow_symlinks=False)
    sparse = () if form == "ustar" else ("--sparse",)
    data = subprocess.run(
        ["tar", f"--format={form}", *sparse, "-C", str(root), "-c", "."], check=True, capture_output=True
    ).stdout
    image = store.ingest(support.source([data]))
    (tmp_path / "mnt").mkdir()
    with support.mounted(image, str(tmp_path / "mnt")):
        assert support.snapshot(str(tmp_path / "mnt")) == support.snapshot(str(root))


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_pax_sparse_forms(store, tmp_path, version):
    root = tmp_path / "root"
    root.mkdir()
    with open(root / "holes", "wb") as file:
        for index in range(300):
            file.seek(index * 50_000)
            file.write(os.urandom(700))
        file.truncate(20_000_000)
    image = store.ingest(
        support.source([_gnu_tar(root, "--format=posix", "--sparse", f"--sparse-version={version}")])
    )
    assert store.usage()["pool_allocated"] < 4_000_000
    (tmp_path / "mnt").mkdir()
    with support.mounted(image, str(tmp_path / "mnt"), ",directio"):
        assert support.snapshot(str(tmp_path / "mnt")) == support.snapshot(str(root))


def test_one_overlay_over_it(store, tars, tmp_path):
    image = store.ingest(support.source(tars))
    for name in ("mnt", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    with support.mounted(image, str(tmp_path / "mnt")):
        options = f"lowerdir={tmp_path}/mnt,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        subprocess.run(
            ["mount", "-t", "overlay", "-o", options, "none", str(tmp_path / "merged")], check=True
        )
        try:
            before = support.snapshot(str(tmp_path / "mnt"))
            assert sorted(before) == sorted(support.snapshot(str(tmp_path / "merged")))
            (tmp_path / "merged/etc/passwd").write_bytes(b"changed")
            assert support.snapshot(str(tmp_path / "mnt")) == before
        finally:
            subprocess.run(["umount", str(tmp_path / "merged")], check=True)


def test_attributes_that_speak_to_the_host_are_dropped(store, tmp_path):
    attributes = {
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.security.selinux": "label",
        "SCHILY.xattr.user.kept": "1",
    }
    data = support.tar(support.member("f", b"x", pax_headers=attributes))
    image = store.ingest(support.source([data]))
    (tmp_path / "mnt").mkdir()
    with support.mounted(image, str(tmp_path / "mnt")):
        assert os.listxattr(tmp_path / "mnt/f") == ["user.kept"]


@pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="erofs-utils is not installed")
def test_the_tools_of_erofs_read_it(store, tars, tmp_path):
    image = store.ingest(support.source(tars))
    said = subprocess.run(
        ["fsck.erofs", f"--device={image.rootfs.pool}", f"--extract={tmp_path}/out", image.rootfs.tree],
        capture_output=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    (tmp_path / "mnt").mkdir()
    with support.mounted(image, str(tmp_path / "mnt")):
        wanted = support.snapshot(str(tmp_path / "mnt"))
    found = support.snapshot(str(tmp_path / "out"))
    assert sorted(found) == sorted(wanted)
    for name, facts in wanted.items():
        # fsck.erofs 1.5 leaves holes out of what it extracts instead of leaving holes in it
        if facts[6] is not None and not name.endswith((b"/holes", b"/only-hole")):
            assert found[name][6] == facts[6], name


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(tmp_path / "small")], check=True)
    try:
        store = ImageStore(str(tmp_path / "small"))
        store.ingest(support.source([support.tar(support.member("a", os.urandom(20_000)))]))
        before = support.footprint(store)
        big = support.tar(*(support.member(f"{n}", os.urandom(300_000)) for n in range(30)))
        for layers in ([support.layer(big)], [support.layer(big), support.layer(big)]):
            with pytest.raises(Unavailable, match="No space left"):
                store.ingest(support.source([big] * len(layers), layers=layers, keep_blobs=False))
            assert support.footprint(store) == before
        store.close()
    finally:
        subprocess.run(["umount", str(tmp_path / "small")], check=True)
