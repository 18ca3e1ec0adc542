"""What `knarr bench` prints and refuses; the measurements themselves need the real thing."""

from __future__ import annotations

import io
import json

import pytest

from knarr.bench import main
from knarr.bench.measure import Figure, Report, Subject, compare, interleave
from knarr.model.errors import Invalid

FIELDS = {"name", "value", "unit", "peer", "ratio"}


def test_every_line_has_the_promised_fields_with_and_without_a_peer() -> None:
    out = io.StringIO()
    report = Report(as_json=True, out=out)
    samples = {"api": (2.0, 4.0, 3.0), "floor": (2.0, 1.0, 1.5)}
    report.add(compare(samples, "start.container.api", "api", "floor"))
    report.add(compare(samples, "start.container.api", "api", "runc"))
    report.add(Figure(name="memory", value=1.5, unit="MiB"))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert all(line.keys() >= FIELDS for line in lines)
    assert (lines[0]["peer"], lines[0]["ratio"], lines[0]["value"]) == ("floor", 2.0, 3.0)
    assert [line["peer"] for line in lines[1:]] == [None, None]


def test_raw_samples_are_in_the_file_as_soon_as_they_are_known(tmp_path) -> None:
    path = tmp_path / "raw"
    report = Report(as_json=False, raw_path=str(path))
    report.add(Figure(name="a", value=1.0, unit="ms", samples=(1.0, 2.0)))
    assert json.loads(path.read_text())["samples"] == [1.0, 2.0]


def test_a_raw_file_that_cannot_be_written_is_refused_first(tmp_path) -> None:
    with pytest.raises(Invalid, match="--raw"):
        Report(as_json=True, raw_path=str(tmp_path / "no" / "file"))


@pytest.mark.parametrize("samples", [0, -3])
def test_no_samples_are_refused(tmp_path, samples) -> None:
    with pytest.raises(Invalid, match="--samples"):
        main.run("start", root=str(tmp_path), run_folder=str(tmp_path), as_json=True, samples=samples)


def test_interleaving_takes_each_subject_its_own_number_of_times() -> None:
    calls: list[str] = []

    def sample(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    subjects = [
        Subject(name="a", sample=lambda: sample("a")),
        Subject(name="b", sample=lambda: sample("b"), count=2),
    ]
    found = interleave(subjects, 5, warm=1)
    assert (len(found["a"]), len(found["b"])) == (5, 2)
    assert calls[:2] == ["a", "b"]
