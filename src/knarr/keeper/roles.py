"""How the instance's own programs are started: an interpreter with an isolated path, and nothing else.

`-I` ignores the environment and the working directory, `-S` the site packages; each role gets exactly the
folders it needs. Out of scope: when they are started (`keeper.boot`, the daemon).
"""

from __future__ import annotations

import os
import sys

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""the folder that holds the package `knarr`"""


def argv(module: str, *arguments: str, packages: bool = False) -> tuple[str, ...]:
    """The command line that runs `module.main()` with `sys.argv[1:] = arguments`."""
    folders = [SOURCE, *([site_packages()] if packages else [])]
    code = f"import sys; sys.path[:0] = {folders!r}; from {module} import main; raise SystemExit(main())"
    return (sys.executable, "-IS", "-c", code, *arguments)


def site_packages() -> str:
    """Where the interpreter's environment keeps the daemon's dependencies (with -S nobody else tells)."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    prefix = os.path.dirname(os.path.dirname(sys.executable))
    folder = os.path.join(prefix, "lib", version, "site-packages")
    if os.path.exists(os.path.join(prefix, "pyvenv.cfg")) and os.path.isdir(folder):
        return folder
    import sysconfig

    return sysconfig.get_path("purelib")


def holder_argv(run: str) -> tuple[str, ...]:
    return (native("holder"), run)


def native(name: str) -> str:
    """One of the static programs that scripts/build-native makes."""
    return os.path.join(SOURCE, "knarr", "native-bin", name)


def core(root: str, run: str) -> dict[str, tuple[str, ...]]:
    """The roles of every instance in the order of their start; they are ended in reverse."""
    return {
        "mover-0": argv("knarr.keeper.mover", root, run),
        "keeper": argv("knarr.keeper.main", root, run),
        "daemon": argv("knarr.daemon", root, run, packages=True),
    }
