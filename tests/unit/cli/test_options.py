"""Command lines read as docker's readers expect, and every command's table is sound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.cli import completion, man, registry
from knarr.cli import help as pages
from knarr.cli.main import GLOBAL_OPTIONS
from knarr.cli.options import HELP, Option, check_operands, parse
from knarr.model.errors import Invalid

OPTIONS = (
    Option("-i --interactive", "x"),
    Option("-t --tty", "x"),
    Option("-p --publish", "x", value="PORT", many=True),
    Option("--name", "x", value="NAME"),
    Option("--rm", "x"),
    Option("--when", "x", value="W", choices=("a", "b")),
    Option("--proxy", "x", value="BOOL", optional="true"),
)


@pytest.mark.parametrize(
    ("words", "values", "operands"),
    [
        (["-it", "img"], {"interactive": True, "tty": True}, ["img"]),
        (["-itp", "80:80", "img"], {"tty": True, "publish": ["80:80"]}, ["img"]),
        (["-p80:80", "-p=81:81", "--publish=82:82"], {"publish": ["80:80", "81:81", "82:82"]}, []),
        (["--name", "x", "--name=y"], {"name": "y"}, []),
        (["--rm=false", "--tty=true"], {"rm": False, "tty": True}, []),
        (["-t=false"], {"tty": False}, []),
        (["img", "sh", "-c", "exit 1"], {"tty": False}, ["img", "sh", "-c", "exit 1"]),
        (["--", "--name"], {"name": None}, ["--name"]),
        (["--proxy", "img"], {"proxy": "true"}, ["img"]),
        (["--proxy=false"], {"proxy": "false"}, []),
        (["--name", "-x"], {"name": "-x"}, []),
        (["-"], {}, ["-"]),
    ],
)
def test_parsing(words: list[str], values: dict, operands: list[str]) -> None:
    found = parse(OPTIONS, words, intermixed=False)
    assert {key: found.values[key] for key in values} == values
    assert found.operands == operands


def test_options_after_operands_where_allowed() -> None:
    assert parse(OPTIONS, ["x", "--rm"]).rm
    assert not parse(OPTIONS, ["x", "--rm"], intermixed=False).rm


@pytest.mark.parametrize(
    "words", [["--nope"], ["-x"], ["--name"], ["-p"], ["--rm=perhaps"], ["--when", "c"], ["-itx"]]
)
def test_mistakes_name_the_option(words: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        parse(OPTIONS, words)
    assert caught.value.hint or "neither" in caught.value.message


def test_an_option_like_no_other_points_to_the_help() -> None:
    with pytest.raises(Invalid) as caught:
        parse(OPTIONS, ["--zzz"])
    assert caught.value.hint == "--help lists them"


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(Invalid) as caught:
        parse(OPTIONS, ["--pubish", "80"])
    assert "--publish" in (caught.value.hint or "")


@given(st.lists(st.text(max_size=12), max_size=6))
def test_any_words_parse_or_are_refused(words: list[str]) -> None:
    try:
        parse(OPTIONS, words)
    except Invalid:
        pass


ALL = list(registry.all_commands())


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_every_table_is_sound(name: str, command) -> None:
    names = [word for option in (*command.options, HELP) for word in option.names]
    # -h is --hostname for run and create, as in docker
    repeated = {word for word in names if names.count(word) > 1}
    assert repeated <= {"-h"}
    assert all(option.help and not option.help.endswith(".") for option in command.options)
    assert command.summary
    assert not command.summary.endswith(".")
    page = pages.command_page(name, command)
    assert all(word in page for option in command.options for word in option.names)
    assert max(map(len, page.splitlines())) < 260


def test_operands_are_counted() -> None:
    command = dict(ALL)["cp"]
    with pytest.raises(Invalid, match="TARGET is missing"):
        check_operands("cp", command, ["a"])
    with pytest.raises(Invalid, match="unexpected argument 'c'"):
        check_operands("cp", command, ["a", "b", "c"])


def test_help_of_everything() -> None:
    text = pages.overview()
    assert all(f"  {verb} " in text for verb in registry.VERBS)
    for group in registry.GROUPS:
        assert group in pages.page(group)


def test_the_manual_covers_every_option_and_is_valid_troff() -> None:
    page = man.page()
    for _, command in ALL:
        for option in command.options:
            for word in option.names:
                assert man.escape(word) in page
    assert not [line for line in page.splitlines() if line.startswith("'")]
    requests = {line.split()[0] for line in page.splitlines() if line.startswith(".")}
    assert requests <= {".TH", ".SH", ".SS", ".TP", ".PP", ".B"}


@pytest.mark.parametrize("shell", sorted(completion.SHELLS))
def test_completion_names_every_verb(shell: str) -> None:
    script = completion.SHELLS[shell]()
    assert all(verb in script for verb in (*registry.VERBS, *registry.GROUPS))
    assert all(name.lstrip("-") in script for option in GLOBAL_OPTIONS for name in option.names)
