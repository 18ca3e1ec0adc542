"""The manual page knarr(1), made from the option tables."""

from __future__ import annotations

from knarr.cli import registry
from knarr.cli.help import option_help, option_usage
from knarr.cli.main import GLOBAL_OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from knarr.cli.options import Command, Option


def page() -> str:
    """troff with man macros."""
    from knarr import __version__

    parts = [
        f'.TH KNARR 1 "" "knarr {__version__}" "Knarr"',
        ".SH NAME\nknarr \\- run one image as a container or as a virtual machine",
        ".SH SYNOPSIS\n.B knarr\n[\\fB\\-\\-root\\fR DIR] [\\fB\\-\\-run\\fR DIR] COMMAND [OPTIONS] ...",
        (
            ".SH DESCRIPTION\nKnarr runs OCI images behind a wall chosen per workload: "
            "\\fBcontainer\\fR (namespaces, cgroups, seccomp) or "
            "\\fBmicrovm\\fR (a kernel of its own in QEMU)."
            " The verbs mean the same behind each."
        ),
        ".SH GLOBAL OPTIONS\n" + _options(GLOBAL_OPTIONS),
        ".SH COMMANDS",
        *(_command(name, command) for name, command in registry.all_commands()),
        (
            ".SH EXIT STATUS\n\\fBrun\\fR, \\fBexec\\fR and \\fBstart \\-a\\fR exit with the program's code; "
            "125 when Knarr failed, 126 when the program can't be executed, 127 when it isn't there, "
            "128+n when signal n ended it. Other commands exit with 0, or 1 after an error."
        ),
        (
            ".SH ENVIRONMENT\n.TP\nKNARR_ROOT, KNARR_RUN\nDefaults of the global options."
            "\n.TP\nKNARR_DEBUG\nWhen set, errors come with a traceback."
        ),
        ".SH FILES\n.TP\n/var/lib/knarr\nImages and workloads.\n.TP\n/run/knarr\nSockets and run-time state.",
    ]
    return "\n".join(parts) + "\n"


def _command(name: str, command: Command) -> str:
    usage = escape(command.operands)
    text = f".SS knarr {escape(name)} {usage}".rstrip() + f"\n{escape(command.summary)}"
    if command.notes:
        text += f"\n.PP\n{escape(command.notes)}"
    return text + ("\n" + _options(command.options) if command.options else "")


def _options(options: Iterable[Option]) -> str:
    return "\n".join(
        f".TP\n\\fB{escape(option_usage(option))}\\fR\n{escape(option_help(option))}" for option in options
    )


def escape(text: str) -> str:
    """Plain text for troff: backslashes, hyphens, and dots or quotes that would begin a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{text}" if text.startswith((".", "'")) else text
