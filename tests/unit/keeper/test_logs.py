"""Log files: order, times, tails, what a kill leaves, what a follower sees. Real files, real splices."""

from __future__ import annotations

import contextlib
import os
import select
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.keeper.logfiles import RECORD, RECOVERED
from knarr.keeper.logs import LogReader, lines
from knarr.keeper.logwriter import LogWriter
from knarr.keeper.stream import Stream

CHUNKS = st.lists(
    st.tuples(st.sampled_from([1, 2]), st.text("ab\n", min_size=1, max_size=8).map(str.encode)), max_size=25
)


def write(folder, chunks):
    """Through real pipes, one splice for each chunk."""
    log = LogWriter(folder)
    for stream, data in chunks:
        r, w = os.pipe()
        os.write(w, data)
        mover = Stream("w", {1: "out", 2: "err"}[stream], r, log)
        mover.move()
        assert not mover.retry_at
        mover.close()
        os.close(w)
    log.close()


def read(folder, **how):
    with contextlib.closing(LogReader(folder)) as reader:
        return [(stream, data) for _, stream, data in reader.read(**how)]


def tail_of(chunks, count):
    """The model: lines in the order of their first bytes, the last `count`, as bytes of each stream."""
    found, open_line = [], {}
    for stream, data in chunks:
        for part in data.splitlines(keepends=True):
            if stream not in open_line:
                open_line[stream] = len(found)
                found.append([stream, b""])
            found[open_line[stream]][1] += part
            if part.endswith(b"\n"):
                del open_line[stream]
    kept = found[max(0, len(found) - count) :] if count else []
    return {stream: b"".join(text for number, text in kept if number == stream) for stream in (1, 2)}


def by_stream(pieces):
    return {number: b"".join(data for stream, data in pieces if stream == number) for number in (1, 2)}


@settings(deadline=None)
@given(CHUNKS)
def test_what_is_written_is_read_in_order(chunks):
    with tempfile.TemporaryDirectory() as folder:
        write(folder, chunks)
        assert read(folder) == chunks


@settings(deadline=None)
@given(CHUNKS, st.integers(0, 12))
def test_tail_counts_lines_of_both_streams(chunks, count):
    with tempfile.TemporaryDirectory() as folder:
        write(folder, chunks)
        assert by_stream(read(folder, tail=count)) == tail_of(chunks, count)


def test_positions_go_on_where_the_last_read_stopped(tmp_path):
    folder = str(tmp_path)
    write(folder, [(1, b"one\n")])
    with contextlib.closing(LogReader(folder)) as reader:
        assert [data for *_, data in reader.read()] == [b"one\n"]
        write(folder, [(2, b"two\n")])
        position = reader.position
        assert [data for *_, data in reader.read()] == [b"two\n"]
        assert [data for *_, data in reader.read(position=position)] == [b"two\n"]
        assert reader.position == reader.end()


def test_times_select(tmp_path):
    folder = str(tmp_path)
    write(folder, [(1, b"one\n"), (2, b"two\n"), (1, b"three\n")])
    with contextlib.closing(LogReader(folder)) as reader:
        times = [when for when, *_ in reader.read()]
    assert times == sorted(times)
    assert read(folder, since=times[1]) == [(2, b"two\n"), (1, b"three\n")]
    assert read(folder, until=times[1]) == [(1, b"one\n"), (2, b"two\n")]
    assert read(folder, since=times[1], until=times[1]) == [(2, b"two\n")]


def test_bytes_without_a_record_are_recovered_once(tmp_path):
    folder = str(tmp_path)
    write(folder, [(1, b"before\n"), (2, b"err\n")])
    with open(tmp_path / "out", "ab") as file:
        file.write(b"spliced, then killed\n")
    with open(tmp_path / "index", "ab") as file:
        file.write(b"torn")
    write(folder, [(1, b"after\n")])
    assert by_stream(read(folder)) == {1: b"before\nspliced, then killed\nafter\n", 2: b"err\n"}
    flags = [stream for *_, stream in RECORD.iter_unpack((tmp_path / "index").read_bytes())]
    assert flags == [1, 2, 1 | RECOVERED, 1]


def test_a_follower_is_woken(tmp_path):
    with contextlib.closing(LogReader(str(tmp_path))) as reader:
        assert list(reader.read()) == []
        assert select.select([reader], [], [], 0)[0] == []
        write(str(tmp_path), [(1, b"x\n")])
        assert select.select([reader], [], [], 1)[0] == [reader]
        reader.changed()
        assert [data for *_, data in reader.read()] == [b"x\n"]
        assert select.select([reader], [], [], 0)[0] == []


def test_large_output_comes_in_pieces(tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "out").write_bytes(data)
    write(str(tmp_path), [(1, b"!")])
    pieces = read(str(tmp_path))
    assert b"".join(piece for _, piece in pieces) == data + b"!"
    assert max(len(piece) for _, piece in pieces) <= 65536


def test_links_in_the_log_folder_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "index").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic links"):
        LogWriter(str(folder)).target(1)
    with pytest.raises(OSError, match="symbolic links"):
        read(str(folder))


def test_lines_are_assembled_with_the_time_of_their_first_byte():
    pieces = [(1, 1, b"a"), (2, 2, b"x\ny"), (3, 1, b"b\nc\nd"), (4, 1, b"\n")]
    assert list(lines(iter(pieces))) == [
        (2, 2, b"x\n"),
        (1, 1, b"ab\n"),
        (3, 1, b"c\n"),
        (3, 1, b"d\n"),
        (2, 2, b"y"),
    ]


def test_files_are_only_made_for_who_writes(tmp_path):
    log = LogWriter(str(tmp_path))
    r, w = os.pipe()
    stream = Stream("w", "out", r, log)
    stream.move()
    assert (stream.empty, stream.ended) == (True, False)
    os.close(w)
    stream.move()
    assert (stream.empty, stream.ended) == (True, True)
    assert os.listdir(tmp_path) == []
    stream.close()


def test_a_log_whose_folder_is_gone_ends(tmp_path):
    log = LogWriter(str(tmp_path / "gone"))
    r, w = os.pipe()
    stream = Stream("w", "out", r, log)
    os.write(w, b"x")
    stream.move()
    assert stream.ended
    assert not stream.retry_at
    stream.close()
    os.close(w)


def test_recovery_needs_no_further_byte(tmp_path):
    (tmp_path / "err").write_bytes(b"spliced, then killed\n")
    log = LogWriter(str(tmp_path))
    log.recover()
    log.close()
    assert read(str(tmp_path)) == [(2, b"spliced, then killed\n")]
