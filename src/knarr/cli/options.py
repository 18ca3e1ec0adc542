"""Options as data: one table gives the parser, the help, the man page and the shell completion.

Reads a command line as docker's does (pflag): `--name=x`, `--name x`, `-it`, `-p80:80`, `--rm=false`, `--`.
Out of scope: what values mean; the commands turn text into values.
"""

from __future__ import annotations

from knarr.model.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from knarr.cli.context import Context

    Handler = Callable[[Context, "Arguments"], int]

_TRUE = {"true", "1", "t", "yes"}
_FALSE = {"false", "0", "f", "no"}


class Option:
    """One option. Without `value` it is a flag; `many` collects every occurrence."""

    __slots__ = ("choices", "complete", "dest", "help", "many", "names", "optional", "value")

    def __init__(
        self,
        names: str,
        help: str,  # noqa: A002
        *,
        value: str = "",
        many: bool = False,
        choices: tuple[str, ...] = (),
        complete: str = "",
        optional: str | None = None,
        dest: str = "",
    ) -> None:
        """`complete`: what a shell offers (`file`, `folder`, `image`, `workload`). `optional`: the value that
        stands for `--name` alone; such an option takes another value as `--name=value` only.
        """
        self.names = tuple(names.split())
        self.help = help
        self.value = value
        self.many = many
        self.choices = choices
        self.complete = complete
        self.optional = optional
        first_long = next((name for name in self.names if name.startswith("--")), self.names[0])
        self.dest = dest or first_long.lstrip("-").replace("-", "_")

    @property
    def takes_value(self) -> bool:
        return bool(self.value)


class Command:
    """One verb: how it is called, what it says of itself, and the function that does it."""

    def __init__(
        self,
        handler: Handler,
        summary: str,
        operands: str = "",
        options: Sequence[Option] = (),
        *,
        intermixed: bool = True,
        exact_codes: bool = False,
        complete: str = "",
        notes: str = "",
    ) -> None:
        """`operands` is the usage text: `IMAGE [COMMAND...]`. `intermixed`: options may follow operands.
        `exact_codes`: an error exits with its own code (docker's 125), not with 1.
        """
        self.handler = handler
        self.summary = summary
        self.operands = operands
        self.options = tuple(options)
        self.intermixed = intermixed
        self.exact_codes = exact_codes
        self.complete = complete
        self.notes = notes
        words = operands.split()
        self.minimum = sum(1 for word in words if not word.startswith("["))
        self.maximum = None if "..." in operands else len(words)


class Arguments:
    """What a command line said: an attribute per option, `operands` for the rest."""

    def __init__(self, options: Sequence[Option]) -> None:
        self.operands: list[str] = []
        self.given: set[str] = set()
        self.values: dict[str, Any] = {option.dest: _nothing(option) for option in options}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None


HELP = Option("-h --help", "show what the command does and its options")


def _nothing(option: Option) -> Any:
    if option.many:
        return []
    return None if option.takes_value else False


def parse(options: Sequence[Option], words: Sequence[str], *, intermixed: bool = True) -> Arguments:
    """Sort words into options and operands. Raises `Invalid`."""
    parser = _Parser(options)
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            parser.found.operands += rest
            break
        if word.startswith("--"):
            parser.long(word, rest)
        elif word.startswith("-") and word != "-":
            parser.short(word, rest)
        else:
            parser.found.operands.append(word)
            if not intermixed:
                parser.found.operands += rest
                break
    return parser.found


class _Parser:
    def __init__(self, options: Sequence[Option]) -> None:
        self.found = Arguments(options)
        # the first one wins: -h is a host name where a command has one, and help elsewhere
        self.by_name = {name: option for option in reversed(options) for name in option.names}

    def long(self, word: str, rest: list[str]) -> None:
        name, equals, value = word.partition("=")
        option = self._option(name)
        if equals:
            self._set(option, name, value)
        elif not option.takes_value:
            self._set(option, name, "true")
        elif option.optional is not None:
            self._set(option, name, option.optional)
        else:
            self._set(option, name, self._next(option, name, rest))

    def short(self, word: str, rest: list[str]) -> None:
        """A cluster such as `-it`, or `-p80:80`, or `-p 80:80`, or `-p=80:80`."""
        for index, letter in enumerate(word[1:], 2):
            name = "-" + letter
            option = self._option(name)
            if option.takes_value:
                attached = word[index:].removeprefix("=")
                self._set(option, name, attached or self._next(option, name, rest))
                return
            if word[index : index + 1] == "=":
                self._set(option, name, word[index + 1 :])
                return
            self._set(option, name, "true")

    def _option(self, name: str) -> Option:
        option = self.by_name.get(name)
        if option is None:
            raise Invalid(f"unknown option {name}", hint=suggest(name, self.by_name, "--help lists them"))
        return option

    def _next(self, option: Option, name: str, rest: list[str]) -> str:
        if not rest:
            raise Invalid(f"option {name} needs a value", hint=f"{name} {option.value}: {option.help}")
        return rest.pop(0)

    def _set(self, option: Option, name: str, text: str) -> None:
        value: object = text
        if not option.takes_value:
            value = _boolean(name, text)
        elif option.choices and text not in option.choices:
            raise Invalid(
                f"{name}: {text!r} is none of its values", hint="one of: " + ", ".join(option.choices)
            )
        self.found.given.add(option.dest)
        if option.many:
            self.found.values[option.dest].append(value)
        else:
            self.found.values[option.dest] = value


def _boolean(name: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise Invalid(f"{name}: {text!r} is neither true nor false")


def check_operands(name: str, command: Command, operands: Sequence[str]) -> None:
    """Raises `Invalid` when there are too few or too many."""
    usage = f"usage: knarr {name} {command.operands}".rstrip()
    if len(operands) < command.minimum:
        missing = [word for word in command.operands.split() if not word.startswith("[")][len(operands)]
        raise Invalid(f"{name}: {missing.rstrip('.')} is missing", hint=usage)
    if command.maximum is not None and len(operands) > command.maximum:
        raise Invalid(f"{name}: unexpected argument {operands[command.maximum]!r}", hint=usage)


def suggest(
    word: str, known: Sequence[str] | dict[str, Any], otherwise: str = "knarr help lists what there is"
) -> str:
    """The known word nearest to a mistyped one, as a hint."""
    import difflib

    close = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"did you mean {close[0]}?" if close else otherwise
