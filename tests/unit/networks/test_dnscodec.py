from __future__ import annotations

import dnslib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.networks import dnscodec
from knarr.networks.zone import usable


def question(name: str, kind: str = "A") -> bytes:
    return bytes(dnslib.DNSRecord.question(name, kind).pack())


def test_a_query_is_read_and_answered_as_an_independent_codec_does():
    data = question("Web.Example", "A")
    query = dnscodec.parse_query(data)
    assert (query.name, query.type, query.klass, query.size) == ("web.example", 1, 1, 512)
    answer = dnslib.DNSRecord.parse(
        dnscodec.response(query, 0, dnscodec.addresses(["10.90.0.2", "10.90.0.3"]))
    )
    assert [str(record.rdata) for record in answer.rr] == ["10.90.0.2", "10.90.0.3"]
    assert str(answer.q.qname) == "Web.Example."
    assert answer.header.id == dnslib.DNSRecord.parse(data).header.id


def test_a_pointer_record():
    query = dnscodec.parse_query(question("2.0.90.10.in-addr.arpa", "PTR"))
    assert dnscodec.reverse_address(query.name) == "10.90.0.2"
    data = dnscodec.response(query, 0, [(dnscodec.PTR, dnscodec.encode_name("web.example"))])
    assert str(dnslib.DNSRecord.parse(data).rr[0].rdata) == "web.example."


def test_the_askers_size_is_taken_within_limits():
    record = dnslib.DNSRecord.question("a")
    record.add_ar(dnslib.EDNS0(udp_len=65000))
    assert dnscodec.parse_query(record.pack()).size == 4096


def test_many_addresses_are_cut_to_what_every_asker_takes():
    query = dnscodec.parse_query(question("many"))
    data = dnscodec.response(query, 0, dnscodec.addresses(f"10.0.0.{n}" for n in range(200)))
    assert len(data) <= 512
    assert len(dnslib.DNSRecord.parse(data).rr) > 20


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (question("a")[:2] + b"\x80\0" + question("a")[4:], None),
        (question("a")[:2] + b"\x28\0" + question("a")[4:], dnscodec.NOTIMP),
        (question("a")[:5] + b"\x02" + question("a")[6:], dnscodec.FORMERR),
        (question("a")[:12] + b"\xc0\x0c\0\x01\0\x01", dnscodec.FORMERR),
        (question("a")[:12] + b"\x3f" * 70, dnscodec.FORMERR),
        (question("a")[:12] + (b"\x3f" + b"a" * 63) * 5 + b"\0\0\x01\0\x01", dnscodec.FORMERR),
        (question("a")[:-3], dnscodec.FORMERR),
    ],
)
def test_malformed(data: bytes, rcode: int | None):
    with pytest.raises(dnscodec.Malformed) as caught:
        dnscodec.parse_query(data)
    assert caught.value.rcode == rcode


def test_a_dot_inside_a_label_is_not_two_labels():
    data = question("a")[:12] + b"\x03a.b\0\0\x01\0\x01"
    assert dnscodec.parse_query(data).name == "a\\.b"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600), st.booleans())
def test_no_bytes_break_it(data: bytes, framed: bool):
    message = question("x")[:12] + data if framed else data
    query = rcode = None
    try:
        query = dnscodec.parse_query(message)
    except dnscodec.Malformed as error:
        rcode = error.rcode
    if query is not None:
        assert len(dnscodec.response(query, 0, dnscodec.addresses(["1.2.3.4"]))) <= 512
        assert dnscodec.reverse_address(query.name) is None or query.name.endswith(".in-addr.arpa")
    elif rcode is not None:
        assert len(dnscodec.refusal(message, rcode)) == 12


@given(st.text(max_size=80))
def test_usable_names_can_be_asked_for(name: str):
    folded = usable(name)
    if folded is not None:
        assert dnscodec.parse_query(question(folded)).name == folded


def test_answers_belong_to_their_question():
    query = dnscodec.parse_query(question("a.example"))
    good = dnscodec.response(query, 0)
    assert dnscodec.answers(good, query.id, query.question)
    assert not dnscodec.answers(good, query.id ^ 1, query.question)
    assert not dnscodec.answers(question("a.example"), query.id, query.question)
    assert not dnscodec.answers(good[:14], query.id, query.question)
