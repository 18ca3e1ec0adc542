"""Go templates as docker's users type them, tables, times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.cli import tables, template
from knarr.cli.commands import events, listing, logs, stats
from knarr.model.errors import Invalid

VALUE = {
    "id": "abc",
    "exit_code": 3,
    "State": {"Running": True, "Pid": None},
    "labels": {"a.b": "c", "x": "y"},
    "ports": [{"host_port": 80}, {"host_port": 81}],
    "words": ["a", "b"],
    "none": [],
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain", "plain"),
        ("{{.ID}} {{.Id}}", "abc abc"),
        ("{{.ExitCode}}", "3"),
        ("{{.State.Running}}", "true"),
        ("{{.State.Pid}}", "<no value>"),
        ("{{json .ports}}", '[{"host_port": 80}, {"host_port": 81}]'),
        ('{{index .labels "a.b"}}', "c"),
        ('{{index .labels "none"}}', ""),
        ("{{index .words 1}}", "b"),
        ("{{range .ports}}{{.HostPort}};{{end}}", "80;81;"),
        ("{{range .none}}x{{else}}empty{{end}}", "empty"),
        ("{{if .State.Running}}yes{{else}}no{{end}}", "yes"),
        ("{{if not .State.Running}}yes{{else}}no{{end}}", "no"),
        ('{{join .words ","}}', "a,b"),
        ("{{.id | upper}}", "ABC"),
        ("{{len .words}}", "2"),
        (r"{{.id}}\t{{.id}}", "abc\tabc"),
        ("a {{- .id -}} b", "aabcb"),
        ("{{.labels}}", "map[a.b:c x:y]"),
        ("{{.words}}", "[a b]"),
        ("{{println .id}}", "abc\n"),
    ],
)
def test_rendering(text: str, wanted: str) -> None:
    assert template.parse(text).render(VALUE) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "{{.nope}}",
        "{{",
        "{{}}",
        "{{bogus .id}}",
        "{{range .words}}",
        "{{end}}",
        "{{.id.x}}",
        "{{len .exit_code}}",
        "{{id}}",
    ],
)
def test_mistakes_are_refused(text: str) -> None:
    with pytest.raises(Invalid):
        template.parse(text).render(VALUE)


@given(st.text(alphabet='{}. |"`abidjsonrangeendifelse0-', max_size=40))
def test_any_template_renders_or_is_refused(text: str) -> None:
    try:
        template.parse(text).render(VALUE)
    except Invalid:
        pass


def test_tables(capsys) -> None:
    rows = [{"ID": "1", "Name": "a\x1b[31m"}, {"ID": "22", "Name": "bb"}]
    tables.show(rows, ("ID", "Name"), None)
    assert capsys.readouterr().out == "ID  NAME\n1   a\\x1b[31m\n22  bb\n"
    tables.show(rows, ("ID", "Name"), r"table {{.Name}}\t{{.ID}}")
    assert capsys.readouterr().out.splitlines()[0].split() == ["NAME", "ID"]
    tables.show(rows, ("ID", "Name"), "{{.ID}}")
    assert capsys.readouterr().out == "1\n22\n"
    tables.show(rows, ("ID",), "json")
    assert capsys.readouterr().out.count("{") == 2


def test_the_status_column() -> None:
    base = {"started": 1, "finished": 1, "exit_code": 3}
    assert listing.status({**base, "status": "running"}).startswith("Up ")
    assert listing.status({**base, "status": "exited"}).startswith("Exited (3) ")
    assert listing.status({**base, "status": "exited", "exit_code": -1}).startswith("Exited (unknown) ")
    assert listing.status({**base, "status": "created"}) == "Created"


def test_moments() -> None:
    assert logs.moment(None) is None
    assert logs.moment("1700000000.5") == "1700000000.5"
    assert logs.moment("2023-11-14T22:13:20Z") == "1700000000.000000"
    assert float(logs.moment("10m")) > 0
    with pytest.raises(Invalid):
        logs.moment("yesterday")


def test_event_filters() -> None:
    event = {"type": "workload", "action": "die", "id": "abc", "attributes": {"name": "x", "exit_code": "1"}}
    assert events.matches(event, [])
    assert events.matches(event, [("event", "start"), ("event", "die")])
    assert events.matches(event, [("type", "container"), ("container", "x")])
    assert not events.matches(event, [("event", "die"), ("type", "image")])
    assert events.matches(event, [("label", "exit_code=1")])


def test_cpu_percent() -> None:
    assert stats.cpu_percent((1.0, {"cpu_ns": 0}), (2.0, {"cpu_ns": 500_000_000})) == 50.0
    assert stats.cpu_percent(None, (2.0, {"cpu_ns": 5})) == 0.0
