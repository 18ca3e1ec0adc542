"""A base image from a distribution's own packages: mmdebstrap, reproducible for a given state of the mirror.

The mirror, its proxy and its keys are the host's. What was built is kept by (release files, packages), so
that the same again takes a moment. Trust in the packages is mmdebstrap's and apt's, checked by keyring.
"""

from __future__ import annotations

import calendar
import contextlib
import fcntl
import hashlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import IO, Final

import zstandard

from knarr.images import aptsources
from knarr.images.aptsources import DISTRIBUTIONS, Distribution, Source
from knarr.images.archives import read_extent, rootfs_config
from knarr.images.source import ImageSource, Layer, NoProgress, Progress, never
from knarr.images.tarindex import Extent
from knarr.model.errors import Denied, Failed, Invalid, Unavailable, Unsupported
from knarr.model.names import host_platform, parse_reference

MMDEBSTRAP: Final = "/usr/bin/mmdebstrap"
_APT_HELPER = "/usr/lib/apt/apt-helper"
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(?::[a-z0-9-]+)?(?:=[A-Za-z0-9.+:~-]+)?", re.ASCII)
_SUITE = re.compile(r"[a-z][a-z0-9.-]{0,62}", re.ASCII)
_DATE = re.compile(rb"^Date: (.+)$", re.MULTILINE)
_KEPT = 4
"""builds kept for another time"""
_PIECE = 1 << 20
_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.25
_FORMAT = 1
"""raised when what is done to a root file system changes: older builds are not used any more"""
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
Cancel = Callable[[], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Build:
    """What is remembered of a build, beside its compressed layer."""

    key: str
    diff_id: str
    digest: str
    size: int
    epoch: int


@contextlib.contextmanager
def bootstrap(
    distribution: str,
    include: tuple[str, ...],
    cache: str,
    *,
    reference: str = "",
    progress: Progress | None = None,
    cancel: Cancel = never,
    apt: str = "/etc/apt",
) -> Iterator[ImageSource]:
    """`debian:bookworm` with these packages, as an image; the layer can be read until the `with` ends.

    `cache` is a folder of ours. `reference` is the image's name if it shall not be the distribution's.
    Raises `Invalid`, `Denied` (not root), `Unsupported` (no mmdebstrap, no keys), `Unavailable` (mirror),
    `Failed`.
    """
    progress = progress or NoProgress()
    family, suite = _parse(distribution)
    packages = _packages(include)
    name = parse_reference(reference or distribution).canonical
    _check_host()
    sources = aptsources.for_suite(family, suite, aptsources.read_sources(apt))
    progress.update(distribution, "reading release files", 0, None)
    digest, epoch = _mirror_state(sources, suite)
    key = _key(family, suite, sources, packages, digest)
    os.makedirs(cache, mode=0o700, exist_ok=True)
    build = _load(cache, key)
    if build is None:
        order = _Order(distribution, family, suite, sources, packages, epoch, key)
        with _alone(cache, cancel):
            build = _load(cache, key) or _make(order, cache, progress, cancel)
            _forget_old(cache)
    else:
        progress.update(distribution, "built before", 1, 1)
    with open(_layer_path(cache, key), "rb") as file:
        yield _source(build, name, file.fileno(), packages)


def _source(build: _Build, name: str, fd: int, packages: tuple[str, ...]) -> ImageSource:
    whole = Extent(0, build.size)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(build.epoch))
    comment = "mmdebstrap --variant=minbase" + (f" --include={','.join(packages)}" if packages else "")
    return ImageSource(
        manifest=b"",
        manifest_digest="",
        config=rootfs_config(build.diff_id, settings={"Cmd": ["bash"]}, created=created, comment=comment),
        layers=(
            Layer(
                digest=build.digest,
                media_type=_LAYER_TYPE,
                size=build.size,
                open=lambda: contextlib.nullcontext(read_extent(fd, whole)),
            ),
        ),
        references=(name,),
    )


def _parse(text: str) -> tuple[Distribution, str]:
    name, _, suite = text.partition(":")
    family = DISTRIBUTIONS.get(name)
    if family is None:
        known = " or ".join(f"{one}:SUITE" for one in DISTRIBUTIONS)
        raise Unsupported(f"{name[:60]!r} can't be bootstrapped", hint=f"{known}, such as debian:bookworm")
    suite = family.suites.get(suite or "latest", suite)
    if not _SUITE.fullmatch(suite):
        raise Invalid(f"{suite[:60]!r} is not a suite of {name}", hint="such as debian:bookworm")
    return family, suite


def _packages(include: tuple[str, ...]) -> tuple[str, ...]:
    names = sorted({name.strip() for words in include for name in words.split(",") if name.strip()})
    for name in names:
        if not _PACKAGE.fullmatch(name):
            raise Invalid(f"{name[:60]!r} is not a package's name", hint="--include python3,curl")
    return tuple(names)


def _check_host() -> None:
    if not os.access(MMDEBSTRAP, os.X_OK):
        raise Unsupported("mmdebstrap is not installed on this host", hint="apt install mmdebstrap")
    if os.geteuid() != 0:
        raise Denied("bootstrapping an image needs root", hint="run the daemon as root")


def _mirror_state(sources: tuple[Source, ...], suite: str) -> tuple[str, int]:
    """One digest over all release files, and the newest of their dates."""
    seen = hashlib.sha256()
    epoch = 0
    with tempfile.TemporaryDirectory(prefix="knarr-release-") as folder:
        os.chmod(folder, 0o755)
        for number, source in enumerate(sources):
            data = _release(source, f"{folder}/{number}", required=source.suite == suite)
            seen.update(hashlib.sha256(data).digest())
            match = _DATE.search(data)
            if match:
                epoch = max(epoch, _seconds(match[1].decode("ascii", "replace")))
    return seen.hexdigest(), epoch


def _seconds(date: str) -> int:
    with contextlib.suppress(ValueError):
        return calendar.timegm(time.strptime(date.strip(), "%a, %d %b %Y %H:%M:%S %Z"))
    return 0


def _release(source: Source, path: str, *, required: bool) -> bytes:
    """By apt's own downloader, so that the host's proxies and transports count."""
    base = f"{source.uri.rstrip('/')}/dists/{source.suite}"
    for name in ("InRelease", "Release"):
        done = subprocess.run(
            [_APT_HELPER, "download-file", f"{base}/{name}", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
            env=_environment(),
        )
        if done.returncode == 0:
            with open(path, "rb") as file:
                return file.read()
    if not required:
        # a suite that is not out yet has no updates
        return b""
    raise Unavailable(
        f"the mirror has no suite {source.suite!r}, or does not answer",
        hint="check the suite's name, the network, and the host's apt sources: apt update",
    )


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    return {**kept, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}


def _key(
    family: Distribution, suite: str, sources: tuple[Source, ...], packages: tuple[str, ...], state: str
) -> str:
    parts = [
        _FORMAT,
        family.name,
        suite,
        [source.line() for source in sources],
        packages,
        state,
        str(host_platform()),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _layer_path(cache: str, key: str) -> str:
    return f"{cache}/{key}.tar.zst"


def _load(cache: str, key: str) -> _Build | None:
    try:
        with open(f"{cache}/{key}.json", "rb") as file:
            build = _Build(**json.load(file))
        size = os.stat(_layer_path(cache, key)).st_size
    except (OSError, ValueError, TypeError):
        return None
    return build if build.size == size and build.key == key else None


def _forget_old(cache: str) -> None:
    kept = sorted(
        (name for name in os.listdir(cache) if name.endswith(".json")),
        key=lambda name: os.stat(f"{cache}/{name}").st_mtime,
        reverse=True,
    )
    for name in kept[_KEPT:]:
        for path in (f"{cache}/{name}", _layer_path(cache, name.removesuffix(".json"))):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


@dataclass(frozen=True, slots=True)
class _Order:
    distribution: str
    family: Distribution
    suite: str
    sources: tuple[Source, ...]
    packages: tuple[str, ...]
    epoch: int
    key: str


@contextlib.contextmanager
def _alone(cache: str, cancel: Cancel) -> Iterator[None]:
    """One build at a time, and first the removal of what a killed daemon's build left."""
    with open(f"{cache}/lock", "wb") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if cancel():
                    raise Failed("bootstrapping was cancelled") from None
                time.sleep(_LOOK_SECONDS)
        for name in os.listdir(cache):
            if name.startswith("new-") or name.endswith(".new"):
                _unlink(f"{cache}/{name}")
        yield


def _make(order: _Order, cache: str, progress: Progress, cancel: Cancel) -> _Build:
    with contextlib.ExitStack() as stack:
        # not in the daemon's own folder: apt drops to a user of its own, who must be able to enter
        folder = tempfile.TemporaryDirectory(prefix="knarr-bootstrap-", ignore_cleanup_errors=True)
        work = stack.enter_context(folder)
        os.chmod(work, 0o755)
        out = stack.enter_context(tempfile.NamedTemporaryFile(dir=cache, prefix="new-", delete=False))
        stack.callback(_unlink, out.name)
        messages = stack.enter_context(open(f"{work}/messages", "w+b"))
        process = stack.enter_context(_started(order, work, messages))
        words = _Words(order.distribution, progress, messages)
        diff_id, digest, size = _squeeze(process, words, out, cancel)
        status = process.wait()
        words.read()
        if status != 0:
            raise _failure(order, words, status)
        out.flush()
        os.fsync(out.fileno())
        build = _Build(key=order.key, diff_id=diff_id, digest=digest, size=size, epoch=order.epoch)
        os.rename(out.name, _layer_path(cache, order.key))
        _write(f"{cache}/{order.key}.json", json.dumps(asdict(build)).encode())
        return build


def _failure(order: _Order, words: _Words, status: int) -> Failed:
    """The first complaint, or the last words, without mmdebstrap's own prefix."""
    complaints = [line for line in words.last if line.startswith("E: ")]
    said = (complaints or list(words.last) or [f"status {status}"])[0].removeprefix("E: ")
    missing = re.search(r"Unable to locate package (\S+)", " ".join(words.last))
    if missing:
        return Failed(
            f"{order.distribution} has no package {missing[1]!r}", hint="check the name in --include"
        )
    return Failed(
        f"building {order.distribution!r} failed: {said[:300]}",
        hint="check that the mirror is reachable: apt update",
    )


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _write(path: str, data: bytes) -> None:
    with open(f"{path}.new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


@contextlib.contextmanager
def _started(order: _Order, work: str, messages: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        _command(order, work),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=messages,
        env={**_environment(), "SOURCE_DATE_EPOCH": str(order.epoch), "TMPDIR": work},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _stop(process)
        if process.stdout is not None:
            process.stdout.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The whole session: mmdebstrap cleans up when asked, then nothing of it may be left."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


_CLEAN = (
    'rm -rf "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/*',
    # the host's own, copied in so that packages could be configured
    'for file in hostname resolv.conf; do : > "$1/etc/$file"; chmod 0644 "$1/etc/$file"; done',
    'rm -f "$1/etc/machine-id" "$1/var/lib/dbus/machine-id"; : > "$1/etc/machine-id"',
    'rm -rf "$1"/var/cache/ldconfig/* "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old',
    'rm -f "$1"/var/cache/apt/*.bin; find "$1/var/log" -type f -delete',
)


def _command(order: _Order, work: str) -> list[str]:
    _write(f"{work}/sources", aptsources.image_sources(order.family, order.sources, order.suite).encode())
    target = f"/etc/apt/sources.list.d/{order.family.name}.sources"
    return [
        *(MMDEBSTRAP, "--mode=root", "--variant=minbase", "--format=tar"),
        *(f"--include={package}" for package in order.packages),
        *("--aptopt=Acquire::Languages none", "--aptopt=Acquire::Retries 3"),
        *(f"--customize-hook={hook}" for hook in _CLEAN),
        f"--customize-hook=upload {shlex.quote(f'{work}/sources')} {target}",
        f'--customize-hook=chmod 0644 "$1{target}"',
        *(order.suite, "-"),
        *(source.line() for source in order.sources),
    ]


class _Words:
    """mmdebstrap's messages, as they come: `I:` lines are progress, the last ones explain a failure."""

    def __init__(self, item: str, progress: Progress, file: IO[bytes]) -> None:
        self._item, self._progress, self._fd = item, progress, file.fileno()
        self._position = 0
        self._rest = b""
        self.last: deque[str] = deque(maxlen=40)

    def read(self) -> None:
        while data := os.pread(self._fd, 65536, self._position):
            self._position += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._take(line.decode("ascii", "replace").rpartition("\r")[2].strip())

    def _take(self, line: str) -> None:
        line = "".join(letter if letter.isprintable() else " " for letter in line)
        if line.startswith("I: ") and "/" not in line:
            self._progress.update(self._item, line[3:].removesuffix("..."), 0, None)
        elif line:
            self.last.append(line)


def _squeeze(
    process: subprocess.Popen[bytes], words: _Words, out: IO[bytes], cancel: Cancel
) -> tuple[str, str, int]:
    """stdout, compressed into `out`: (diff id, digest and size of what was written)."""
    plain, squeezed, size = hashlib.sha256(), hashlib.sha256(), 0
    encoder = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()

    def put(data: bytes) -> None:
        nonlocal size
        squeezed.update(data)
        size += len(data)
        out.write(data)

    for piece in _pieces(process, words, cancel):
        plain.update(piece)
        put(encoder.compress(piece))
    put(encoder.flush())
    return f"sha256:{plain.hexdigest()}", f"sha256:{squeezed.hexdigest()}", size


def _pieces(process: subprocess.Popen[bytes], words: _Words, cancel: Cancel) -> Iterator[bytes]:
    if process.stdout is None:
        return
    fd = process.stdout.fileno()
    while True:
        ready, _, _ = select.select([fd], [], [], _LOOK_SECONDS)
        words.read()
        if cancel():
            raise Failed("bootstrapping was cancelled")
        if ready:
            piece = os.read(fd, _PIECE)
            if not piece:
                return
            yield piece
