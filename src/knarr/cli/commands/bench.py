"""`bench`: hands over to the measurements, which are a program above the command line."""

from __future__ import annotations

import os
import sys

from knarr.cli.context import Context
from knarr.cli.options import Arguments, Command, Option
from knarr.cli.spec import whole
from knarr.model.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

GROUPS = ("start", "images", "throughput", "density", "exec", "logs")
_SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
_PROGRAM = """
import json, sys
wanted = json.loads(sys.argv[1])
sys.path.insert(0, wanted.pop("source"))
from knarr.bench.main import run
from knarr.cli.context import complain
from knarr.model.errors import Failed, KnarrError
from knarr.model.workload import Isolation
walls = tuple(Isolation(name) for name in wanted.pop("walls"))
try:
    run(**wanted, **({"walls": walls} if walls else {}))
except KnarrError as error:
    complain(error)
    raise SystemExit(1)
except OSError as error:
    complain(Failed(f"bench: {error.filename or 'system call'}: {error.strerror}"))
    raise SystemExit(1)
except KeyboardInterrupt:
    raise SystemExit(130)
"""


def bench(context: Context, a: Arguments) -> NoReturn:
    import json

    if a.operands[0] not in GROUPS:
        raise Invalid(f"unknown bench group {a.operands[0]!r}", hint="one of: " + ", ".join(GROUPS))
    wanted = {
        "source": _SOURCE,
        "group": a.operands[0],
        "root": context.root,
        "run_folder": context.run,
        "as_json": a.json,
        "samples": None if a.samples is None else whole("--samples", a.samples),
        "count": None if a.count is None else whole("--count", a.count),
        "raw_path": a.raw and os.path.abspath(a.raw),
        "walls": a.isolation,
    }
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-I", "-c", _PROGRAM, json.dumps(wanted)])


BENCH = Command(
    bench,
    "measure this engine beside its peers and the kernel's floor",
    "|".join(GROUPS),
    (
        Option("--json", "one JSON line per figure"),
        Option("--samples", "how often each is measured", value="NUMBER"),
        Option("--count", "how many containers density and a burst have", value="NUMBER"),
        Option("--raw", "write every sample into this file", value="FILE", complete="file"),
        Option("--isolation", "only these walls", value="WALL", many=True, choices=("container", "microvm")),
    ),
)
