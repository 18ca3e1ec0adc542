"""`start`, `stop [--workloads]`, `status`, `upgrade` of an instance, for who may not import the keeper.

    control VERB ROOT RUN [--workloads]     prints one JSON object; an error is {"error": {…}} and exit code 1

Out of scope: how a person is told (`cli`).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from knarr.keeper import boot
from knarr.model.errors import Failed, Invalid, KnarrError


def main(argv: list[str] | None = None) -> int:
    try:
        answer, code = _obey(sys.argv[1:] if argv is None else argv), 0
    except KnarrError as error:
        answer, code = {"error": error.to_json()}, 1
    except OSError as error:
        answer, code = {"error": Failed(f"{error.filename or 'daemon'}: {error.strerror}").to_json()}, 1
    print(json.dumps(answer))
    return code


def _obey(argv: list[str]) -> dict[str, Any]:
    flags = {word for word in argv if word.startswith("--")}
    words = [word for word in argv if word not in flags]
    if len(words) != 3 or not flags <= {"--workloads", "--no-daemon"}:
        raise Invalid("usage: control start|stop|status|upgrade ROOT RUN [--workloads]")
    verb, root, run = words
    if verb == "start":
        return boot.start_instance(root, run, daemon="--no-daemon" not in flags)
    if verb == "stop":
        return boot.stop_instance(root, run, workloads="--workloads" in flags)
    if verb == "status":
        return boot.instance_status(root, run)
    if verb == "upgrade":
        return boot.upgrade_instance(root, run)
    raise Invalid(f"unknown verb {verb!r}", hint="start, stop, status or upgrade")
