"""docker cp's tar semantics, and archives and trees that try to get out."""

from __future__ import annotations

import ctypes
import io
import os
import stat
import tarfile
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.kernel import archive, libc


@pytest.fixture
def tree(tmp_path):
    """(fd of the root, path of the root); beside it lies a folder that nothing may touch."""
    root = tmp_path / "root"
    outside = tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield fd, root
    os.close(fd)
    assert sorted(os.listdir(outside)) == ["secret"]
    assert (outside / "secret").read_text() == "secret"


def packed(fd: int, path: str) -> tarfile.TarFile:
    buffer = io.BytesIO()
    archive.pack(fd, path, buffer.write)
    buffer.seek(0)
    return tarfile.open(fileobj=buffer)


def tar(*entries, fmt=tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fmt) as out:
        for name, kind, extra in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o644
            info.uid, info.gid = os.getuid(), os.getgid()
            data = extra.get("data", b"")
            info.size = len(data)
            for key, value in extra.items():
                if key != "data":
                    setattr(info, key, value)
            out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def reader(data: bytes, size: int = 700):
    pieces = iter([data[i : i + size] for i in range(0, len(data), size)])
    return lambda: next(pieces, b"")


FILE, DIR, SYM, LNK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def test_round_trip(tree, tmp_path):
    fd, root = tree
    (root / "d" / "sub").mkdir(parents=True)
    (root / "d" / "file").write_bytes(b"x" * 70000)
    os.chmod(root / "d" / "file", 0o4751)
    os.utime(root / "d" / "file", ns=(1, 1_600_000_000_123_456_789))
    os.link(root / "d" / "file", root / "d" / "hard")
    os.symlink("/nowhere/at/all", root / "d" / "link")
    os.mkfifo(root / "d" / "fifo")
    (root / "d" / ("n" * 200)).write_text("long")
    (root / "d" / b"b\xff\xfe".decode("utf-8", "surrogateescape")).write_text("bytes")
    os.setxattr(root / "d" / "file", "user.note", b"\x00\xffbin")
    os.utime(root / "d" / "sub", ns=(1, 1_500_000_000_000_000_001))

    buffer = io.BytesIO()
    archive.pack(fd, "/d", buffer.write)
    (root / "to").mkdir()
    archive.unpack(fd, "/to", reader(buffer.getvalue()))

    made = root / "to" / "d"
    assert sorted(os.listdir(made)) == sorted(os.listdir(root / "d"))
    status = os.stat(made / "file")
    assert (made / "file").read_bytes() == b"x" * 70000
    assert stat.S_IMODE(status.st_mode) == 0o4751
    assert status.st_mtime_ns == 1_600_000_000_123_456_789
    assert status.st_ino == os.stat(made / "hard").st_ino
    assert os.readlink(made / "link") == "/nowhere/at/all"
    assert stat.S_ISFIFO(os.stat(made / "fifo").st_mode)
    assert os.getxattr(made / "file", "user.note") == b"\x00\xffbin"
    assert os.stat(made / "sub").st_mtime_ns == 1_500_000_000_000_000_001


def test_names_of_a_pack(tree):
    fd, root = tree
    (root / "a").mkdir()
    (root / "a" / "f").write_text("1")
    assert packed(fd, "/a").getnames() == ["a", "a/f"]
    assert packed(fd, "/a/.").getnames() == [".", "./f"]
    assert packed(fd, "a/f").getnames() == ["f"]


def test_stat_path(tree):
    fd, root = tree
    (root / "a").mkdir()
    os.symlink("a", root / "l")
    assert archive.stat_path(fd, "/l").link_target == "a"
    assert stat.S_ISLNK(archive.stat_path(fd, "/l").mode)
    assert stat.S_ISDIR(archive.stat_path(fd, "/l/").mode)
    assert archive.stat_path(fd, "/").name == "/"
    with pytest.raises(FileNotFoundError):
        archive.stat_path(fd, "/none")


@pytest.mark.parametrize("name", ["../outside/x", "a/../../outside/x", "/../outside/x", "..", "x/.."])
def test_dot_dot_is_refused(tree, name):
    fd, _ = tree
    with pytest.raises(ValueError, match="leads out"):
        archive.unpack(fd, "/", reader(tar((name, FILE, {"data": b"x"}))))


def test_absolute_names_stay_inside(tree):
    fd, root = tree
    archive.unpack(fd, "/", reader(tar(("/etc/x", FILE, {"data": b"x"}))))
    assert (root / "etc" / "x").read_text() == "x"


def test_link_then_write_through(tree):
    fd, root = tree
    outside = str(root.parent / "outside")
    (root / "in").mkdir()
    data = tar(
        ("evil", SYM, {"linkname": outside}),
        ("up", SYM, {"linkname": "../outside"}),
        ("in/abs", SYM, {"linkname": "/in"}),
    )
    archive.unpack(fd, "/", reader(data))
    for name in ("evil/x", "up/x"):
        # resolved as if the root were `/`: made inside, or refused
        try:
            archive.unpack(fd, "/", reader(tar((name, FILE, {"data": b"x"}))))
        except OSError:
            continue
    archive.unpack(fd, "/", reader(tar(("in/abs/y", FILE, {"data": b"y"}))))
    assert (root / "in" / "y").read_text() == "y"


def test_a_link_is_replaced_not_followed(tree):
    fd, root = tree
    os.symlink(root.parent / "outside" / "secret", root / "f")
    archive.unpack(fd, "/", reader(tar(("f", FILE, {"data": b"mine"}))))
    assert (root / "f").read_text() == "mine"
    assert not (root / "f").is_symlink()


@pytest.mark.parametrize("target", ["../outside/secret", "a/../../outside/secret"])
def test_hard_link_out_is_refused(tree, target):
    fd, _ = tree
    with pytest.raises(ValueError, match="leads out"):
        archive.unpack(fd, "/", reader(tar(("x", LNK, {"linkname": target}))))


def test_hard_link_through_a_link_stays_inside(tree):
    fd, root = tree
    os.symlink(root.parent / "outside", root / "d")
    with pytest.raises(OSError):
        archive.unpack(fd, "/", reader(tar(("x", LNK, {"linkname": "d/secret"}))))


def test_magic_links_are_refused(tree):
    fd = os.open("/", os.O_PATH)
    try:
        with pytest.raises(OSError):
            archive.stat_path(fd, "/proc/self/root/etc")
        with pytest.raises(OSError):
            archive.unpack(fd, "/proc/self/cwd", reader(b""))
    finally:
        os.close(fd)


def test_folder_and_file_dont_replace_each_other(tree):
    fd, root = tree
    (root / "d").mkdir()
    (root / "f").write_text("x")
    with pytest.raises(IsADirectoryError):
        archive.unpack(fd, "/", reader(tar(("d", FILE, {"data": b"x"}))))
    with pytest.raises(FileExistsError):
        archive.unpack(fd, "/", reader(tar(("f", DIR, {}))))


def test_target_must_be_a_folder(tree):
    fd, root = tree
    (root / "f").write_text("x")
    with pytest.raises(NotADirectoryError):
        archive.unpack(fd, "/f", reader(tar(("x", FILE, {}))))
    with pytest.raises(FileNotFoundError):
        archive.unpack(fd, "/none", reader(tar(("x", FILE, {}))))


def test_gnu_long_names(tree):
    fd, root = tree
    name = "/".join(["p" * 90] * 3)
    archive.unpack(fd, "/", reader(tar((name, FILE, {"data": b"1"}), fmt=tarfile.GNU_FORMAT)))
    assert (root / name).read_text() == "1"


def test_a_folder_that_is_a_link_of_the_tree(tree):
    fd, root = tree
    (root / "usr" / "lib").mkdir(parents=True)
    os.symlink("usr/lib", root / "lib")
    archive.unpack(fd, "/", reader(tar(("lib", DIR, {"mode": 0o755}), ("lib/x", FILE, {"data": b"x"}))))
    assert (root / "lib").is_symlink()
    assert (root / "usr" / "lib" / "x").read_text() == "x"


@pytest.mark.parametrize("cut", [1, 511, 513, 1000])
def test_cut_off(tree, cut):
    fd, _ = tree
    with pytest.raises(ValueError):
        archive.unpack(fd, "/", reader(tar(("x", FILE, {"data": b"x" * 3000}))[:cut]))


def test_not_a_tar(tree):
    fd, _ = tree
    with pytest.raises(ValueError, match="not a tar"):
        archive.unpack(fd, "/", reader(os.urandom(2048)))


def test_oversized_extended_header(tree):
    fd, _ = tree
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    with pytest.raises(ValueError, match="too large"):
        archive.unpack(fd, "/", reader(info.tobuf(tarfile.GNU_FORMAT)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_archives_never_leave(tmp_path_factory, data):
    """Any damage: an error or files inside, nothing else."""
    base = tmp_path_factory.mktemp("m")
    (base / "root").mkdir()
    (base / "outside").mkdir()
    good = bytearray(
        tar(
            ("d", DIR, {"mode": 0o755}),
            ("d/l", SYM, {"linkname": "../../outside"}),
            ("d/f" + "x" * 120, FILE, {"data": b"q" * 600}),
            ("d/h", LNK, {"linkname": "d/l"}),
        )
    )
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    fd = os.open(base / "root", os.O_PATH)
    try:
        archive.unpack(fd, "/", reader(bytes(good)))
    except (OSError, ValueError):
        pass
    finally:
        os.close(fd)
    assert os.listdir(base / "outside") == []


def test_a_tree_that_changes_meanwhile(tree):
    """The workload swaps a folder for a link to the outside as fast as it can: nothing leaves."""
    fd, root = tree
    (root / "a").mkdir()
    os.symlink("../outside", root / "b")
    stop = threading.Event()
    text, number = ctypes.c_char_p, ctypes.c_int
    renameat2 = libc.function("renameat2", [number, text, number, text, ctypes.c_uint], nogil=True)

    def swap() -> None:
        while not stop.is_set():
            # RENAME_EXCHANGE: at every moment both names are there
            renameat2(libc.AT_FDCWD, os.fsencode(root / "a"), libc.AT_FDCWD, os.fsencode(root / "b"), 2)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for index in range(150):
            try:
                archive.unpack(
                    fd, "/", reader(tar((f"a/x{index}", FILE, {"data": b"x"}), ("a/secret", FILE, {})))
                )
            except OSError:
                pass
            try:
                assert b"secret" not in b"".join(_chunks(fd, "/a/secret"))[512:]
            except OSError:
                pass
    finally:
        stop.set()
        thread.join()


def _chunks(fd: int, path: str) -> list[bytes]:
    found: list[bytes] = []
    archive.pack(fd, path, found.append)
    return found
