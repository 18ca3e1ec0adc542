"""Settings of a workload's own namespaces: shared memory, sysctls, hosts, resolvers; the same behind every wall."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conformance.harness import Wall


@pytest.mark.smoke
def test_settings_are_in_force(wall: Wall) -> None:
    opts = (
        *("--shm-size", "96m", "--sysctl", "net.core.somaxconn=777", "--sysctl", "kernel.shmmni=321"),
        *("--sysctl", "net.ipv4.ip_unprivileged_port_start=1000", "--add-host", "mars:10.1.2.3"),
        *("--add-host", "here=host-gateway", "--dns", "192.0.2.53", "--dns-search", "example.test"),
        *("--dns-option", "timeout:1", "--ulimit", "nofile=100:200", "--ulimit", "core=0"),
    )
    script = (
        "df -k /dev/shm | tail -1 | awk '{print $2}'; cd /proc/sys;"
        " cat net/core/somaxconn kernel/shmmni net/ipv4/ip_unprivileged_port_start; cat /etc/resolv.conf;"
        " grep mars /etc/hosts; grep -c here /etc/hosts; ulimit -Sn; ulimit -Hn; ulimit -c"
    )
    result = wall.shell(script, opts)
    assert result.lines == [
        *("98304", "777", "321", "1000"),
        *("nameserver 192.0.2.53", "search example.test", "options timeout:1"),
        *("10.1.2.3\tmars", "1", "100", "200", "0"),
    ], result


@pytest.mark.parametrize("name", ["kernel.hostname", "kernel.core_pattern", "vm.swappiness", "fs.file-max"])
def test_a_setting_of_the_whole_host_is_refused_by_name(wall: Wall, name: str) -> None:
    result = wall.run("true", opts=("--sysctl", f"{name}=1"))
    assert result.code == 125
    assert name in result.err
    assert "whole host" in result.err


@pytest.mark.parametrize(
    "text", ["net/../kernel/core_pattern=x", "net.core.nosuch=1", "net.core.somaxconn=many"]
)
def test_a_setting_that_is_none_is_an_error(wall: Wall, text: str) -> None:
    result = wall.run("true", opts=("--sysctl", text))
    assert result.code == 125
    assert "Traceback" not in result.err


def test_bad_hosts_and_resolvers_are_refused(wall: Wall) -> None:
    for option, value in (
        *(("--add-host", "mars"), ("--add-host", "mars:nowhere"), ("--add-host", "a b:1.2.3.4")),
        *(("--dns", "resolver"), ("--dns-search", "a\nnameserver 6.6.6.6"), ("--shm-size", "lots")),
    ):
        result = wall.run("true", opts=(option, value))
        assert result.code == 125, (option, value, result)
        assert "Traceback" not in result.err


def test_hosts_without_a_network(wall: Wall) -> None:
    result = wall.shell("cat /etc/hosts", ("--network", "none", "--add-host", "mars:10.1.2.3"))
    assert "10.1.2.3\tmars" in result.lines, result


@pytest.mark.smoke
def test_unconfined_system_paths(wall: Wall) -> None:
    script = (
        "ls /sys/firmware | wc -l; (echo 0 > /proc/sys/net/ipv4/ip_forward) 2>&1; mount | grep -c ' /proc/'"
    )
    confined = wall.shell(script).lines
    assert confined[0] == "0"
    assert "Read-only file system" in confined[1]
    unconfined = wall.shell(script, ("--security-opt", "systempaths=unconfined")).lines
    assert unconfined[0] != "0"
    assert unconfined[-1] == "0"


def test_a_limit_beyond_the_kernels_is_told(wall: Wall) -> None:
    result = wall.shell("ulimit -n", ("--ulimit", "nofile=99999999999"))
    assert "rlimit nofile" in result.err
    assert int(result.out) >= 1024
    name = wall.create("true", opts=("--ulimit", "nofile=99999999999"))
    try:
        warnings = json.loads(wall.knarr("inspect", name).out)[0]["warnings"]
        assert any("nofile" in text for text in warnings)
    finally:
        wall.knarr("rm", name)
