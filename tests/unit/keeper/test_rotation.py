"""Rotation: nothing lost or doubled by a kill at any step, lines whole, tails and followers over generations."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.keeper import logfiles
from knarr.keeper.logfiles import Rotation
from knarr.keeper.logs import LogReader
from knarr.keeper.logwriter import LogWriter
from knarr.keeper.stream import Stream

NAMES = {1: "out", 2: "err"}
CHUNKS = st.lists(
    st.tuples(st.sampled_from([1, 2]), st.text("ab\n", min_size=1, max_size=9).map(str.encode)), max_size=30
)


class Writer:
    """A mover that can be killed: between any two calls, or after the splice and before the record."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.log = LogWriter(folder)

    def write(self, number: int, data: bytes) -> None:
        r, w = os.pipe()
        os.write(w, data)
        os.close(w)
        stream = Stream("w", NAMES[number], r, self.log)
        while not stream.ended:
            stream.move()
            assert not stream.retry_at, stream.failure
        stream.close()

    def spliced(self, number: int, data: bytes) -> None:
        """Moved, and killed before it was recorded."""
        while data:
            fd, position, room = self.log.target(number)
            os.pwrite(fd, data[:room], position)
            data = data[room:]
            self.die()

    def die(self) -> None:
        self.log.close()
        self.log = LogWriter(self.folder)
        self.log.recover()


def read(folder: str, **how: int) -> dict[int, bytes]:
    with contextlib.closing(LogReader(folder)) as reader:
        pieces = [(stream, data) for _, stream, data in reader.read(**how)]
    return {number: b"".join(data for stream, data in pieces if stream == number) for number in (1, 2)}


def whole(chunks) -> dict[int, bytes]:
    return {number: b"".join(data for stream, data, *_ in chunks if stream == number) for number in (1, 2)}


@settings(deadline=None)
@given(CHUNKS, st.lists(st.sampled_from(["write", "splice", "die"]), max_size=30), st.integers(1, 12))
def test_nothing_is_lost_or_doubled(chunks, ways, size):
    with tempfile.TemporaryDirectory() as folder:
        logfiles.set_rotation(folder, Rotation(size, 10_000))
        writer = Writer(folder)
        for number, (stream, data) in enumerate(chunks):
            way = ways[number] if number < len(ways) else "write"
            if way == "die":
                writer.die()
            writer.spliced(stream, data) if way == "splice" else writer.write(stream, data)
        writer.log.close()
        assert read(folder) == whole(chunks)
        assert logfiles.totals(folder) == {number: len(data) for number, data in whole(chunks).items()}
        used = [sum(_size(folder, kind, number) for kind in ("out", "err")) for number in range(len(chunks))]
        assert max(used, default=0) <= size


def _size(folder: str, kind: str, number: int) -> int:
    try:
        return os.stat(os.path.join(folder, logfiles.name(kind, number))).st_size
    except FileNotFoundError:
        return 0


@settings(deadline=None)
@given(CHUNKS, st.integers(1, 12), st.integers(1, 3))
def test_what_is_kept_begins_with_a_line(chunks, size, files):
    with tempfile.TemporaryDirectory() as folder:
        logfiles.set_rotation(folder, Rotation(size, files))
        writer = Writer(folder)
        for stream, data in chunks:
            writer.write(stream, data)
        writer.log.close()
        kept, everything = read(folder), whole(chunks)
        assert len(logfiles.generations(folder)) <= files
        for number in (1, 2):
            assert everything[number].endswith(kept[number])
            before = everything[number][: len(everything[number]) - len(kept[number])]
            assert not kept[number] or not before or before.endswith(b"\n")


@settings(deadline=None)
@given(CHUNKS, st.integers(1, 12), st.integers(0, 8))
def test_a_tail_is_the_same_with_and_without_rotation(chunks, size, count):
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as rotated:
        logfiles.set_rotation(rotated, Rotation(size, 10_000))
        # lines that were not mixed: which of two unfinished ones began first is the order of the pieces
        for folder in (plain, rotated):
            writer = Writer(folder)
            for stream, data in chunks:
                writer.write(stream, data + b"\n")
            writer.log.close()
        assert read(rotated, tail=count) == read(plain, tail=count)


def test_a_follower_goes_on_into_the_next_generations(tmp_path):
    logfiles.set_rotation(str(tmp_path), Rotation(10, 10_000))
    writer = Writer(str(tmp_path))
    found = b""
    with contextlib.closing(LogReader(str(tmp_path))) as reader:
        for number in range(30):
            writer.write(1, b"line %d\n" % number)
            found += b"".join(data for _, _, data in reader.read())
    assert found == b"".join(b"line %d\n" % number for number in range(30))


def test_a_follower_left_behind_begins_with_a_whole_line(tmp_path):
    logfiles.set_rotation(str(tmp_path), Rotation(10, 2))
    writer = Writer(str(tmp_path))
    with contextlib.closing(LogReader(str(tmp_path))) as reader:
        writer.write(1, b"line 0\n")
        assert [data for _, _, data in reader.read()] == [b"line 0\n"]
        for number in range(1, 30):
            writer.write(1, b"line %d\n" % number)
        found = b"".join(data for _, _, data in reader.read())
    assert found.endswith(b"line 29\n")
    # the rest of the first is what it had open; behind what is missing lines begin anew
    assert all(line.startswith(b"line ") for line in found.splitlines()[1:])


def test_who_is_attached_misses_nothing_and_holds_nobody_for_ever(tmp_path):
    logfiles.set_rotation(str(tmp_path), Rotation(10, 1))
    writer = Writer(str(tmp_path))
    with contextlib.closing(LogReader(str(tmp_path), hold=True)) as reader:
        reader.position = reader.end()
        for number in range(30):
            writer.write(1, b"line %d\n" % number)
        found = b"".join(data for _, _, data in reader.read())
        assert found == b"".join(b"line %d\n" % number for number in range(30))
    writer.write(1, b"x" * 30)
    assert len(logfiles.generations(str(tmp_path))) == 1
    assert len([name for name in os.listdir(tmp_path) if name.startswith("out")]) <= 1


def test_the_workload_waits_for_who_is_attached_and_reads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("knarr.keeper.logwriter._HELD", 50)
    logfiles.set_rotation(str(tmp_path), Rotation(10, 1))
    writer = Writer(str(tmp_path))
    reader = LogReader(str(tmp_path), hold=True)
    reader.position = reader.end()
    r, w = os.pipe()
    os.write(w, b"0123456789" * 20)
    stream = Stream("w", "out", r, writer.log)
    for _ in range(30):
        stream.move()
    assert stream.retry_at
    assert "does not read" in stream.failure
    found = b""
    while not stream.empty or not found:
        found += b"".join(data for _, _, data in reader.read())
        stream.move()
    found += b"".join(data for _, _, data in reader.read())
    assert found == b"0123456789" * 20
    reader.close()
    stream.close()
    os.close(w)


@pytest.mark.parametrize("step", ["rename", "unlink", "write"])
def test_a_rotation_cut_short_by_an_error_is_tried_again(tmp_path, monkeypatch, step):
    logfiles.set_rotation(str(tmp_path), Rotation(10, 1))
    writer = Writer(str(tmp_path))
    writer.write(1, b"012345678\n")
    real = getattr(os, step)

    def fail(*args):
        if step != "write" or len(args[1]) > logfiles.RECORD.size:
            raise OSError(errno.EIO, "broken")
        return real(*args)

    r, w = os.pipe()
    os.write(w, b"next\n")
    stream = Stream("w", "out", r, writer.log)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        stream.move()
    writer.die()
    other = Stream("w", "out", os.dup(r), writer.log)
    other.move()
    stream.close()
    other.close()
    os.close(w)
    assert read(str(tmp_path))[1].endswith(b"next\n")
    assert logfiles.totals(str(tmp_path))[1] == 15


def test_the_lock_is_on_what_is_read_only(tmp_path):
    logfiles.set_rotation(str(tmp_path), Rotation(10, 10_000))
    writer = Writer(str(tmp_path))
    with contextlib.closing(LogReader(str(tmp_path), hold=True)) as reader:
        reader.position = reader.end()
        writer.write(1, b"x" * 25)
        assert b"".join(data for _, _, data in reader.read()) == b"x" * 25
        for number, free in ((0, True), (1, True), (2, False)):
            with open(tmp_path / logfiles.name("index", number), "rb") as file:
                if free:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                else:
                    with pytest.raises(BlockingIOError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_a_full_index_did_not_take_is_recorded_before_the_other_stream_rotates(tmp_path):
    logfiles.set_rotation(str(tmp_path), Rotation(10, 10_000))
    writer = Writer(str(tmp_path))
    writer.write(2, b"e")
    fd, position, _ = writer.log.target(1)
    os.pwrite(fd, b"x" * 20, position)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(tmp_path / "index").st_size, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            writer.log.moved(1, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    writer.write(2, b"next")
    assert logfiles.generations(str(tmp_path)) == [0, 1]
    assert read(str(tmp_path)) == {1: b"x" * 20, 2: b"enext"}


def test_bounds_that_nobody_can_read_hold_up_one_workload_only(tmp_path):
    (tmp_path / "rotation").write_bytes(b"")
    r, w = os.pipe()
    os.write(w, b"word")
    stream = Stream("w", "out", r, LogWriter(str(tmp_path)))
    stream.move()
    assert (stream.failure, stream.ended) == ("not a log's bounds", False)
    logfiles.set_rotation(str(tmp_path), Rotation(10, 2))
    stream.move()
    assert (stream.failure, read(str(tmp_path))[1]) == ("", b"word")
    stream.close()
    os.close(w)
