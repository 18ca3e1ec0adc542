"""`help` and `completion`."""

from __future__ import annotations

from knarr.cli.context import Context
from knarr.cli.main import find
from knarr.cli.options import Arguments, Command, Option


def show_help(_: Context, a: Arguments) -> int:
    import sys

    from knarr.cli import help as pages
    from knarr.cli import man

    if a.man:
        sys.stdout.write(man.page())
    elif a.operands:
        sys.stdout.write(pages.page(find(a.operands)[0]))
    else:
        sys.stdout.write(pages.overview())
    return 0


def completion(_: Context, a: Arguments) -> int:
    import sys

    from knarr.cli import completion as scripts
    from knarr.model.errors import Invalid

    shell = a.operands[0]
    if shell not in scripts.SHELLS:
        raise Invalid(f"no completion for {shell!r}", hint="one of: " + ", ".join(scripts.SHELLS))
    sys.stdout.write(scripts.SHELLS[shell]())
    return 0


HELP_VERB = Command(
    show_help,
    "help on a command",
    "[COMMAND...]",
    (Option("--man", "the manual page, as troff: knarr help --man | man -l -"),),
)
COMPLETION = Command(
    completion,
    "print a shell's completion script",
    "bash|zsh|fish",
    notes="bash: source <(knarr completion bash)",
)
