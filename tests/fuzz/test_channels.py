"""What processes tell each other: the guest's agent, the client's HTTP and frames, journal, log index, zone, DNS."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile

from hypothesis import strategies as st

from knarr.client import frames, http
from knarr.keeper import journal, protocol
from knarr.keeper.logs import LogReader
from knarr.machines import status, wire
from knarr.model.errors import Failed, KnarrError
from knarr.networks import dnscodec
from knarr.networks.zone import Zone, ZoneWriter
from support.fuzzing import JSON, damaged, fuzzed

NONCE = bytes(16)


@st.composite
def guest_frames(draw):
    """Frames as a guest could send them: right in form, wrong in all else."""
    found = b""
    for _ in range(draw(st.integers(0, 12))):
        payload = draw(st.binary(max_size=60) | st.just(b"x" * wire.PAYLOAD_MAX))
        kind = draw(st.sampled_from(list(wire.FromGuest)) | st.integers(0, 255))
        found += (
            wire.HEADER.pack(len(payload), kind, draw(st.integers(0, 255)), draw(st.integers(0, 3))) + payload
        )
    return found


@fuzzed(guest_frames() | guest_frames().flatmap(damaged), st.integers(1, 5000))
def test_a_guest_s_frames(data, piece):
    decoder = wire.Decoder(NONCE)
    decoder.feed(b"KNSYNC\r\n" + NONCE)
    with contextlib.suppress(Failed):
        for at in range(0, len(data), piece):
            for event in decoder.feed(data[at : at + piece]):
                with contextlib.suppress(Failed):
                    records = wire.unpack_records(event.payload)
                    wire.number(records, "code")
                    assert wire.text(records, "text").isprintable()


@fuzzed(st.binary(max_size=400) | st.just(b"started\noom\nexit 7\nfailed 2 127 no\n").flatmap(damaged))
def test_a_guest_s_status(data):
    told = status.parse(data)
    assert told.exit_code is None or 0 <= told.exit_code <= 255
    assert told.failure is None or told.failure[1].isprintable()
    assert min(*status.disk_traffic(data), *status.net_traffic(data)) >= 0


ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\n\r\nraw",
    b"HTTP/1.0 404 Not\r\nX: y\r\n\r\nuntil the end",
]


def answer(data, piece):
    parser, found = http.ResponseParser("GET"), b""
    try:
        for part in (*(data[at : at + piece] for at in range(0, len(data), piece)), b""):
            for event in parser.feed(part):
                if isinstance(event, bytes):
                    found += event
            if parser.complete:
                break
    except http.ProtocolError:
        return None
    return found


@fuzzed(st.sampled_from(ANSWERS).flatmap(damaged) | st.binary(max_size=200), st.integers(1, 40))
def test_an_http_answer_is_the_same_however_it_is_cut(data, piece):
    assert answer(data, piece) == answer(data, len(data) + 1)


@fuzzed(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=30))), st.integers(1, 50), st.data())
def test_the_api_s_frames(sent, piece, data):
    stream = b"".join(frames.encode(*frame) for frame in sent)
    reader, found = frames.FrameReader(), []
    for at in range(0, len(stream), piece):
        found += reader.feed(stream[at : at + piece])
    assert found == sent
    with contextlib.suppress(frames.FrameError):
        for _, payload in frames.FrameReader().feed(data.draw(damaged(stream))):
            frames.decode_control(payload)


@fuzzed(st.binary(max_size=300) | JSON.map(lambda value: repr(value).encode("utf-8", "surrogatepass")))
def test_packets_of_the_instance(data):
    with contextlib.suppress(ValueError):
        assert isinstance(protocol.decode(data), dict)
    assert protocol.encode_words(tuple(protocol.decode_words(data))) == data


ENTRY = journal.Entry("ab", 7, 9, [["Mkdir", {}]], ["tree"], running=True, status=0, time=3)
JOURNAL = b"".join(journal._line(record) for record in [["B", "boot"], *ENTRY.records(), ["F", "ab"]])


@fuzzed(damaged(JOURNAL) | st.binary(max_size=200))
def test_a_torn_journal_says_what_is_whole(data):
    entries = journal.replay(data, "boot")[0]
    assert set(entries) <= {"ab"}


RECORDS = st.lists(
    st.tuples(st.integers(0, 1 << 63), st.integers(0, 3000) | st.integers(0, (1 << 64) - 1),
              st.integers(0, 3000) | st.integers(0, (1 << 32) - 1), st.sampled_from([1, 2]) | st.integers(0, (1 << 32) - 1)),
    max_size=8,
)  # fmt: skip


@fuzzed(RECORDS, st.binary(max_size=900), st.integers(0, 5) | st.none(), examples=100)
def test_a_log_s_index_that_lies_gives_no_more_than_the_files_hold(records, data, tail):
    with tempfile.TemporaryDirectory() as folder:
        index = b"".join(struct.pack("<QQII", *record) for record in records)
        for name, content in (("out", data), ("err", data), ("index", index)):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        with contextlib.closing(LogReader(folder)) as reader:
            pieces = list(reader.read(tail=tail) if tail is not None else reader.read())
        assert all(piece in data for _, _, piece in pieces)


@fuzzed(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from(["10.0.0.1", "10.0.0.2"]),
            st.lists(st.text(max_size=8) | st.sampled_from(["x", "y"]), max_size=3),
        )
    ),
    st.data(),
)
def test_zones(changes, data):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "zone")
        writer = ZoneWriter(path, "10.0.0.0/16")
        writer.replace({})
        for key, address, names in changes:
            writer.set(key, address, names)
        writer.close()
        with open(path, "rb") as file:
            whole = file.read()
        with open(path, "wb") as file:
            file.write(data.draw(damaged(whole) | st.just(whole)))
        zone = Zone(path)
        zone.refresh()
        assert all(found for found in zone.addresses.values())
        if zone._fd >= 0:
            os.close(zone._fd)


QUESTION = (
    bytes.fromhex("123401000001000000000001")
    + b"\5alpha\0"
    + bytes.fromhex("00010001")
    + b"\0\0\x29\x04\xd0"
    + bytes(6)
)


@fuzzed(damaged(QUESTION) | st.binary(max_size=600))
def test_questions_to_the_resolver(data):
    with contextlib.suppress(dnscodec.Malformed):
        query = dnscodec.parse_query(data)
        assert len(dnscodec.response(query, 0, dnscodec.addresses(["10.0.0.1"] * 50))) <= 512 + len(
            query.question
        )
        dnscodec.reverse_address(query.name)


@fuzzed(st.dictionaries(st.sampled_from(["kind", "message", "hint", "exit_code"]), JSON))
def test_an_error_from_the_daemon(value):
    from knarr.model import errors

    assert isinstance(errors.from_json(value), KnarrError)
