"""The program that a start becomes looks users up in the image's own files: any bytes there, under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import strategies as st

from support.fuzzing import fuzzed

SOURCE = Path(__file__).resolve().parents[2] / "src/knarr/csrc"
WORD = st.sampled_from(
    ["root", "0", "1000", "x", "-1", "4294967295", "2147483648", "", " ", "a,b", "#"]
) | st.text(st.characters(exclude_characters="\n"), max_size=9)
LINES = st.lists(st.lists(WORD, max_size=12).map(":".join), max_size=6).map("\n".join)
FILE = LINES.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=300)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("power missing: gcc")
    target = str(tmp_path_factory.mktemp("stage") / "user")
    others = [str(path) for path in sorted((SOURCE / "stage").glob("*.c")) if path.name != "user.c"]
    harness = str(Path(__file__).resolve().parents[1] / "support/stage_user.c")
    words = [
        "gcc",
        "-std=gnu11",
        "-g",
        "-O1",
        "-w",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    subprocess.run([*words, f"-I{SOURCE}", "-o", target, harness, *others], check=True, timeout=120)
    return target


def test_users_of_an_image_s_files(program, tmp_path):
    (tmp_path / "etc").mkdir()
    user = st.sampled_from(["root", "0:0", "x:y", "1000", "", ":", "0:", ":x"]) | st.text(
        st.characters(exclude_characters="\0", codec="utf-8"), max_size=9
    )

    @fuzzed(FILE, FILE, user, examples=150)
    def looked_up(passwd, group, wanted):
        (tmp_path / "etc/passwd").write_bytes(passwd)
        (tmp_path / "etc/group").write_bytes(group)
        done = subprocess.run(
            [program, str(tmp_path), wanted], capture_output=True, timeout=30, check=False,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0:exitcode=77", "UBSAN_OPTIONS": "exitcode=77"},
        )  # fmt: skip
        assert done.returncode in (0, 1), done.stderr.decode(errors="replace")[-2000:]
        if done.returncode == 0:
            assert all(0 <= int(number) < 1 << 31 for number in done.stdout.split())

    looked_up()
