"""Completion scripts for bash, zsh and fish, made from the option tables.

Names of workloads and images are asked from the engine when the user presses tab, and only if it runs.
"""

from __future__ import annotations

from knarr.cli import registry
from knarr.cli.main import GLOBAL_OPTIONS
from knarr.cli.options import HELP, Command, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_ASK = {
    "workload": "knarr ps -a --format '{{.Name}}' 2>/dev/null",
    "image": "knarr images --format '{{.Repository}}:{{.Tag}}' 2>/dev/null",
}


def _verbs() -> list[str]:
    return [*registry.VERBS, *registry.GROUPS]


def _names(options: Iterable[Option]) -> list[str]:
    return [name for option in options for name in option.names]


def _bash_case(name: str, command: Command) -> str:
    options = " ".join(_names((*command.options, HELP)))
    values = "".join(
        f"      {'|'.join(option.names)}) {_bash_value(option)}; return ;;\n"
        for option in command.options
        if option.takes_value
    )
    operand = _bash_operand(command.complete)
    chosen = f'    case "$previous" in\n{values}    esac\n' if values else ""
    return (
        f'  "{name}")\n{chosen}'
        f'    if [[ "$word" == -* ]]; then COMPREPLY=($(compgen -W "{options}" -- "$word"))\n'
        f"    else {operand}; fi ;;\n"
    )


def _bash_value(option: Option) -> str:
    if option.choices:
        return f'COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$word"))'
    flag = {"file": "-f", "folder": "-d"}.get(option.complete)
    return f'COMPREPLY=($(compgen {flag} -- "$word"))' if flag else ":"


def _bash_operand(kind: str) -> str:
    if kind in _ASK:
        return f'COMPREPLY=($(compgen -W "$({_ASK[kind]})" -- "$word"))'
    return 'COMPREPLY=($(compgen -f -- "$word"))' if kind == "file" else ":"


def bash() -> str:
    """The verb is the first word that is neither an option nor the value of a global one."""
    groups = " ".join(registry.GROUPS)
    below = "".join(
        f'  {group}) COMPREPLY=($(compgen -W "{" ".join(verbs)}" -- "$word")) ;;\n'
        for group, (_, verbs) in registry.GROUPS.items()
    )
    cases = "".join(_bash_case(name, command) for name, command in registry.all_commands())
    return f"""# bash completion for knarr
_knarr() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" verb="" index=1 item
  while (( index < COMP_CWORD )); do
    item="${{COMP_WORDS[index]}}"
    case "$item" in
      --root|--run) (( index += 2 )); continue ;;
      -*) ;;
      *) if [[ -z "$verb" ]]; then verb="$item"; [[ " {groups} " == *" $verb "* ]] || break
         else verb="$verb $item"; break; fi ;;
    esac
    (( index += 1 ))
  done
  COMPREPLY=()
  case "$verb" in
  "") COMPREPLY=($(compgen -W "{" ".join([*_verbs(), *_names(GLOBAL_OPTIONS)])}" -- "$word")) ;;
{below}{cases}  esac
}}
complete -o default -F _knarr knarr
"""


def zsh() -> str:
    """Through zsh's own adapter of bash completions."""
    return "#compdef knarr\nautoload -U +X bashcompinit && bashcompinit\n" + bash()


def _fish_option(condition: str, option: Option) -> str:
    words = [f"complete -c knarr -n {condition}"]
    words += [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    if option.choices:
        words.append(f"-x -a '{' '.join(option.choices)}'")
    elif option.takes_value:
        words.append("-r" if option.complete in ("file", "folder") else "-x")
    return " ".join(words) + f" -d {_fish_text(option.help)}"


def _fish_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _fish_command(name: str, command: Command) -> list[str]:
    group, _, verb = name.partition(" ")
    seen = f"__fish_seen_subcommand_from {group}"
    condition = f"'{seen}; and __fish_seen_subcommand_from {verb}'" if verb else f"'{seen}'"
    lines = [_fish_option(condition, option) for option in command.options]
    if command.complete in _ASK:
        lines.append(f'complete -c knarr -n {condition} -f -a "({_ASK[command.complete]})"')
    return lines


def fish() -> str:
    lines = ["# fish completion for knarr"]
    lines += [_fish_option("__fish_use_subcommand", option) for option in GLOBAL_OPTIONS]
    for verb, target in registry.VERBS.items():
        summary = _fish_text(registry.load(target).summary)
        lines.append(f"complete -c knarr -n __fish_use_subcommand -f -a {verb} -d {summary}")
    for group, (summary, verbs) in registry.GROUPS.items():
        lines.append(f"complete -c knarr -n __fish_use_subcommand -f -a {group} -d {_fish_text(summary)}")
        inside = f"'__fish_seen_subcommand_from {group}'"
        lines.append(f"complete -c knarr -n {inside} -f -a '{' '.join(verbs)}'")
    for name, command in registry.all_commands():
        lines += _fish_command(name, command)
    return "\n".join(lines) + "\n"


SHELLS: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
