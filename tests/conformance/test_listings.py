"""ps, stats, inspect, events, prune: filters, sizes and columns, the same behind every wall."""

from __future__ import annotations

import json
import time
import uuid

import pytest

from conformance.harness import IMAGE, Wall, eventually


def names(wall: Wall, *filters: str) -> list[str]:
    words = [word for text in filters for word in ("--filter", text)]
    return wall.knarr("ps", "-a", "--format", "{{.Names}}", *words, check=True).lines


def test_filters_of_ps(wall: Wall) -> None:
    mark = uuid.uuid4().hex[:8]
    opts = ("-l", f"mark={mark}", "--tmpfs", "/scratch", "-p", "127.0.0.1::4321")
    first = wall.create("true", opts=opts)
    second = wall.create("true", opts=("-l", f"mark={mark}", "--network", "none"))
    ours = f"label=mark={mark}"
    try:
        assert names(wall, ours) == [second, first]
        assert names(wall, ours, f"name=^{first}$") == [first]
        assert names(wall, ours, f"name=^/{first}$") == [first]
        assert names(wall, ours, f"name={first[1:]}") == [first]
        assert names(wall, ours, f"name=^{first[1:]}") == []
        assert names(wall, ours, f"before={second}") == [first]
        assert names(wall, ours, f"since={first}") == [second]
        assert names(wall, ours, "volume=/scratch") == [first]
        assert names(wall, ours, "network=none") == [second]
        assert names(wall, ours, "publish=4321/tcp") == [first]
        assert names(wall, ours, "status=created", f"isolation={wall.isolation}") == [second, first]
        assert wall.knarr("ps", "-a", "--filter", "colour=red").code == 1
        assert wall.knarr("ps", "-a", "--filter", "before=nobody").code == 1
        assert wall.knarr("ps", "-l", "-q").lines == [wall.knarr("ps", "-n", "1", "-q").out.strip()]
    finally:
        wall.knarr("rm", "-f", first, second)


def test_sizes_of_ps(wall: Wall) -> None:
    with wall.box("sh", "-c", "head -c 3000000 /dev/urandom > /big; sync; sleep 1000") as name:
        show = ("ps", "--filter", f"name={name}", "--format", "{{.Size}}")
        eventually(lambda: wall.exec(name, "test", "-s", "/big").code == 0, what="the file")
        eventually(lambda: "MB (virtual " in wall.knarr(*show).out, what="the size")
        assert "SIZE" in wall.knarr("ps", "-s", check=True).out


@pytest.mark.smoke
def test_stats_count_network_and_disk(wall: Wall) -> None:
    script = "ping -c 3 -W 2 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') >/dev/null; sleep 1000"
    with wall.box("sh", "-c", script, opts=("-m", "64m")) as name:

        def row() -> dict[str, str]:
            return json.loads(wall.knarr("stats", "--no-stream", "--format", "json", name, check=True).out)

        eventually(lambda: row()["NetPackets"] != "0 / 0", what="packets")
        found = row()
        assert found["Name"] == name
        assert set(found) >= {"ID", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"}
        assert found["MemUsage"].endswith(" / 67.1MB")
        assert found["MemPerc"].endswith("%")
        assert found["NetIO"] != "0B / 0B"
        heads = wall.knarr("stats", "--no-stream", name).lines[0]
        assert heads.split("  ")[0] == "ID"
        assert "MEM %" in heads


def test_inspect_has_dockers_names_for_limits(wall: Wall) -> None:
    name = wall.create("true", opts=("-m", "64m", "--cpus", "0.5", "--log-opt", "max-size=1m"))
    try:
        form = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.LogConfig.Type}}"
        assert wall.knarr("inspect", "-f", form, name).out.strip() == f"{64 << 20} 500000000 json-file"
    finally:
        wall.knarr("rm", name)


def test_events_are_filtered_by_label_and_kind(wall: Wall) -> None:
    mark, began = uuid.uuid4().hex[:8], str(time.time())
    name = wall.create("true", opts=("-l", f"mark={mark}"))
    wall.knarr("rm", name, check=True)
    form = "{{.Action}} {{.Attributes.mark}}"
    show = ("events", "--since", began, "--no-follow", "--format", form, "--filter")
    assert wall.knarr(*show, f"label=mark={mark}").lines == [f"create {mark}", f"destroy {mark}"]
    both = (*show, f"container={name}", "--filter", "event=destroy")
    assert wall.knarr(*both).lines == [f"destroy {mark}"]
    assert wall.knarr(*show, "type=volume", "--filter", f"label=mark={mark}").lines == []


def test_prune_goes_by_its_filters(wall: Wall) -> None:
    mark = uuid.uuid4().hex[:8]
    old = wall.create("true", opts=("-l", f"mark={mark}", "-l", "keep"))
    new = wall.create("true", opts=("-l", f"mark={mark}"))
    ours = f"label=mark={mark}"
    try:
        wall.knarr("prune", "-f", "--filter", ours, "--filter", "until=1h", check=True)
        assert names(wall, ours) == [new, old]
        wall.knarr("prune", "-f", "--filter", ours, "--filter", "label!=keep", check=True)
        assert names(wall, ours) == [old]
        result = wall.knarr("system", "prune", "-f", "--filter", ours, check=True)
        assert result.lines[0] == "workloads:"
        assert "freed" in result.lines[-1]
        assert names(wall, ours) == []
        assert IMAGE in wall.knarr("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").out
        assert wall.knarr("prune", "-f", "--filter", "colour=red").code == 1
        assert wall.knarr("volume", "prune", "-f", "--filter", "until=1h").code == 1
        kept = wall.knarr("volume", "create", "-l", f"mark={mark}", check=True).out.strip()
        wall.knarr("volume", "prune", "-f", "--filter", "label=mark=other", check=True)
        assert kept in wall.knarr("volume", "ls", "-q").lines
        wall.knarr("volume", "prune", "-f", "--filter", ours, check=True)
        assert kept not in wall.knarr("volume", "ls", "-q").lines
    finally:
        wall.knarr("rm", "-f", old, new)
