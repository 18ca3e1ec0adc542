"""Log drivers by docker's names: which options they have, where the bytes go, what can be read again.

All keep the same files (`keeper.logfiles`): `json-file` without a bound, `local` within five of 20 MiB unless
told otherwise, `none` in RUN, a little only, for those who are attached. Out of scope: writing and reading.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from knarr.keeper import logfiles
from knarr.keeper.logfiles import Rotation
from knarr.model import units
from knarr.model.errors import Invalid, Unsupported
from knarr.model.logs import DRIVERS, JSON_FILE, LOCAL, NONE, Logging
from knarr.store.trees import Removal

if TYPE_CHECKING:
    from knarr.engine.driver import Workload

_UNSEEN = Rotation(1 << 20, 1)
_LOCAL = {"max-size": "20m", "max-file": "5"}
_BOUNDS = ("max-size", "max-file")
_NEVER = ("labels", "labels-regex", "env", "env-regex", "tag")
_ANY = ("mode", "max-buffer-size", "compress")


def complete(wanted: Logging, standard: Logging) -> Logging:
    """With what the settings say, whose options are their driver's. Raises `Invalid`, `Unsupported`."""
    base = standard.driver or JSON_FILE
    driver = wanted.driver or base
    options = {**standard.options, **wanted.options} if driver == base else wanted.options
    found = Logging(driver=driver, options=dict(options))
    rotation(found)
    return found


def rotation(log: Logging) -> Rotation:
    """Raises `Invalid`, `Unsupported`."""
    driver = log.driver or JSON_FILE
    if driver not in DRIVERS:
        raise Unsupported(f"log driver {driver[:100]!r} is not there", hint="one of: " + ", ".join(DRIVERS))
    for key, value in log.options.items():
        _check(driver, key, value)
    if driver == NONE:
        return _UNSEEN
    options = {**_LOCAL, **log.options} if driver == LOCAL else log.options
    size, files = options.get("max-size", "-1"), options.get("max-file", "1")
    limit = 0 if size == "-1" else units.parse_bytes(size)
    count = int(files) if files.isdecimal() and len(files) < 6 else 0
    if size != "-1" and not limit:
        raise Invalid("log option max-size can't be 0", hint="-1 is no bound, or a size such as 10m")
    if not count:
        raise Invalid(f"log option max-file: {files[:40]!r} is not a number of files", hint="1 or more")
    if not limit and "max-file" in log.options and count > 1:
        raise Invalid("log option max-file says nothing without max-size", hint="--log-opt max-size=10m")
    return Rotation(limit, count)


def _check(driver: str, key: str, value: str) -> None:
    """Docker's options of that driver; what would be left undone is refused."""
    if key in _NEVER and driver == JSON_FILE:
        raise Unsupported(
            f"log option {key!r} is not there: lines are kept as they were written",
            hint="labels and environment are in inspect",
        )
    if key not in (*_ANY, *(() if driver == NONE else _BOUNDS)):
        raise Invalid(f"log option {key[:100]!r} is unknown to the driver {driver!r}")
    if (key, value) in (("mode", "blocking"), ("compress", "false")):
        return
    if key in _ANY:
        raise Unsupported(
            f"log option {key}={value[:100]} is not there", hint="mode=blocking, compress=false"
        )


def make(run: str, w: Workload) -> None:
    """Its log folder, which may be there, but empty. What is not to be kept lies in RUN, which is memory on
    most hosts. Raises OSError.
    """
    folder = os.path.join(w.dir, "log")
    wanted = rotation(w.spec.log)
    if w.spec.log.driver == NONE:
        if os.path.isdir(folder):
            os.rmdir(folder)
        os.symlink(os.path.join(run, "unseen", w.id), folder)
        renew(w)
        return
    os.makedirs(folder, 0o700, exist_ok=True)
    if wanted.max_size:
        logfiles.set_rotation(folder, wanted)


def renew(w: Workload) -> None:
    """Before a start: RUN does not outlive the host. Raises OSError."""
    if w.spec.log.driver != NONE:
        return
    folder = os.readlink(os.path.join(w.dir, "log"))
    os.makedirs(folder, 0o700, exist_ok=True)
    if not logfiles.has_rotation(folder):
        logfiles.set_rotation(folder, _UNSEEN)


def remove(folder: str) -> None:
    """What a workload's folder `folder` has outside of it."""
    try:
        unseen = os.readlink(os.path.join(folder, "log"))
    except OSError:
        return
    Removal(unseen).run()


def require_readable(w: Workload) -> None:
    """Raises `Unsupported` in docker's words for one whose output is not kept."""
    if w.spec.log.driver == NONE:
        raise Unsupported(
            f"workload {w.name!r}: its log driver 'none' does not support reading",
            hint="attach to it, or create it with --log-driver local",
        )
