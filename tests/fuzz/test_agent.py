"""The guest's agent in C, built with sanitizers: archives and frames of any kind end in a word, never in a crash.

Its verdict on an archive is compared with the host's own reader, which unpacks into containers.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st

from knarr.kernel import archive
from knarr.machines import wire
from support import corpus
from support.fuzzing import damaged_tars, fuzzed
from support.shapes import shape

pytestmark = pytest.mark.root
REPOSITORY = Path(__file__).resolve().parents[2]
SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=77:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "halt_on_error=1:exitcode=77",
}
TARS = [
    case.layers[0]
    for case in corpus.cases("/somewhere")
    if len(case.layers) == 1 and len(case.layers[0]) < 60_000
]
NONCE = b"0123456789abcdef"


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    if shutil.which("gcc") is None:
        pytest.skip("power missing: gcc")
    folder = tmp_path_factory.mktemp("agent")

    def make(name: str) -> str:
        source, target = REPOSITORY / f"tests/support/{name}.c", folder / name
        words = [
            "gcc",
            "-std=gnu11",
            "-g",
            "-O1",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
        ]
        include = f"-I{REPOSITORY}/src/knarr/csrc"
        subprocess.run([*words, "-w", include, "-o", str(target), str(source)], check=True, timeout=120)
        return str(target)

    return make


def by_agent(program: str, root: str, data: bytes) -> bool:
    done = subprocess.run(
        [program, root], input=data, capture_output=True, env=SANITIZERS, timeout=30, check=False
    )
    assert done.returncode not in (77, 99), done.stderr.decode(errors="replace")[-3000:]
    assert done.returncode >= 0, f"signal {-done.returncode}"
    assert not done.returncode or (done.stderr and b"\n" not in done.stderr.strip(b"\n"))
    return done.returncode == 0


def by_host(root: str, data: bytes) -> bool:
    pieces = iter((data,))
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        archive.unpack(fd, "/t", lambda: next(pieces, b""))
    except (OSError, ValueError):
        return False
    finally:
        os.close(fd)
    return True


@pytest.fixture(scope="module")
def unpacker(build):
    return build("agent_unpack")


@fuzzed(damaged_tars(TARS), examples=120)
def _both_readers_agree(data):
    found = []
    for unpack in (
        lambda root: by_agent(_both_readers_agree.program, root, data),
        lambda root: by_host(root, data),
    ):
        with tempfile.TemporaryDirectory(prefix="knarr-fuzz-") as root:
            os.mkdir(f"{root}/t", 0o755)
            found.append((unpack(root), shape(root)))
            for name in os.listdir(root):
                assert name == "t" or stat.S_ISDIR(os.lstat(f"{root}/{name}").st_mode), name
    assert found[0][0] == found[1][0], found
    if found[0][0]:
        assert found[0][1] == found[1][1]


def test_both_readers_agree(unpacker):
    _both_readers_agree.program = unpacker
    _both_readers_agree()


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["op", "path", "argv", "env", "etc", "mount", "tty", "stdin", "detach", "user", "cap", "x"]),
        st.binary(max_size=40) | st.sampled_from([b"get", b"put", b"stats", b"top", b"update", b"freeze", b"/", b"1"]),
    ),
    max_size=6,
).map(tuple)  # fmt: skip


@st.composite
def host_frames(draw):
    """Whole frames; of those that hold records many have some."""
    found = b""
    for _ in range(draw(st.integers(1, 10))):
        kind = draw(st.sampled_from([3, 4, 5, 6, 7, 8, 9, 10, 11]) | st.integers(0, 255))
        body = st.binary(max_size=200) | REQUESTS.map(wire.pack_records) | st.just(b"x" * wire.PAYLOAD_MAX)
        payload = draw(body)
        found += wire.HEADER.pack(
            len(payload), kind, draw(st.sampled_from([0, 0, 1])), draw(st.integers(0, 4))
        )
        found += payload
    return found


class Running:
    """The agent's loop in an empty root, asked by frames."""

    def __init__(self, program: str, root: str) -> None:
        with open(f"{root}/status", "w", encoding="ascii"):
            os.chmod(f"{root}/status", 0o666)
        os.chmod(root, 0o755)
        self.port, theirs = socket.socketpair()
        self.port.settimeout(30)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        words = [program, root, str(theirs.fileno())]
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stderr=self.log, env=SANITIZERS,
            pass_fds=[theirs.fileno()], start_new_session=True,
        )  # fmt: skip
        theirs.close()

    def ask(self, data: bytes) -> None:
        """Send it, then a hello: its answer tells that all before was survived."""
        hello = wire.frames(wire.ToGuest.CREDIT, 99)[0] + wire.frames(wire.ToGuest.HELLO, 0, NONCE)[0]
        seen = b""
        try:
            self.port.sendall(data + hello)
            while b"KNSYNC\r\n" + NONCE not in seen:
                piece = self.port.recv(65536)
                if not piece:
                    break
                seen = seen[-64:] + piece
        except (BrokenPipeError, ConnectionResetError):
            seen = b""
        assert b"KNSYNC" in seen, self.errors()

    def errors(self) -> str:
        self.process.wait(10)
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-3000:]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.port.close()
        self.log.close()


def test_the_agent_survives_any_frames(build, tmp_path):
    running = Running(build("agent_frames"), str(tmp_path))

    @fuzzed(host_frames(), examples=50)
    def survives(data):
        running.ask(data)

    try:
        survives()
    finally:
        running.end()
