"""What on this host stands in the way of workloads' packets, for `knarr system check`.

Out of scope: changing it: another engine's firewall is its owner's.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from knarr.kernel.nft import Nft

if TYPE_CHECKING:
    from typing import Any


def forward_drops() -> tuple[str, ...]:
    """Base chains at the forward hook whose policy is drop: published ports and outgoing traffic die there.

    Docker sets such a policy for example. Raises OSError when nftables can't be asked.
    """
    nft = Nft()
    try:
        found = [item["chain"] for item in nft.list_json("chains") if "chain" in item]
    finally:
        nft.close()
    chains = [_name(chain) for chain in found if _drops(chain)]
    return (*chains, *_legacy())


def _drops(chain: dict[str, Any]) -> bool:
    routed = chain.get("family") in ("ip", "inet") and chain.get("hook") == "forward"
    return routed and chain.get("policy") == "drop"


def _name(chain: dict[str, Any]) -> str:
    return f"nftables chain {chain['family']} {chain['table']} {chain['name']}"


def _legacy() -> list[str]:
    """The old iptables has a table of its own, which nftables doesn't show."""
    program = shutil.which("iptables-legacy")
    if program is None:
        return []
    done = subprocess.run([program, "-S", "FORWARD"], capture_output=True, text=True, check=False, timeout=10)
    return ["iptables-legacy chain FORWARD"] if done.stdout.startswith("-P FORWARD DROP") else []
