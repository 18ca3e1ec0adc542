"""What a workload may not send: one scenario of test_networks.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

from network_tools import arp_frame, heard, ip_frame, mac, net, refused, sniffer


def scenario_spoofing():
    with net() as n:
        bad, good, victim = n.box("bad"), n.box("good"), n.box("victim")
        raw, ear = sniffer(bad.ns), sniffer(victim.ns)
        me, it, him = bad.a, victim.a, good.a
        vlan = b"\x81\x00\x00\x05"
        fine = ip_frame(me.mac, it.mac, me.address, it.address)
        arp = arp_frame(me.mac, me.mac, me.address, it.address)
        for frame in (fine, arp, arp_frame(me.mac, me.mac, me.address, it.address, 1)):
            raw.send(frame)
            assert heard(ear, b"MARK", 2), "the honest frame must pass"
        while heard(ear, b"", 0.1):
            pass  # the victim's own answer quotes the mark
        spoofed = ip_frame(me.mac, it.mac, him.address, it.address)
        bad_arp = arp_frame(me.mac, me.mac, it.gateway, it.address)
        ra = (
            mac("33:33:00:00:00:01")
            + mac(me.mac)
            + b"\x86\xdd"
            + b"\x60\0\0\0\0\x08\x3a\xff"
            + b"\xfe\x80"
            + b"\0" * 30
            + b"\x86MARK"
        )
        frames = {
            "address": spoofed,
            "mac": ip_frame(him.mac, it.mac, me.address, it.address),
            "both": ip_frame(him.mac, it.mac, him.address, it.address),
            "arp address": bad_arp,
            "arp mac": arp_frame(me.mac, him.mac, me.address, it.address),
            "arp ether": arp_frame(him.mac, me.mac, me.address, it.address),
            "arp request": arp_frame(me.mac, me.mac, it.gateway, it.address, 1),
            "rarp": arp_frame(me.mac, me.mac, me.address, it.address, 4),
            "router advertisement": ra,
            "dhcp server": ip_frame(me.mac, it.mac, me.address, it.address, 67, 68),
            "vlan": fine[:12] + vlan + fine[12:],
            "vlan arp": bad_arp[:12] + vlan + bad_arp[12:],
            "vlan 0": bad_arp[:12] + b"\x81\x00\x00\x00" + bad_arp[12:],
            "802.1ad": bad_arp[:12] + b"\x88\xa8\x00\x05" + bad_arp[12:],
            "other protocol": it_frame(me, it),
        }
        passed = []
        for name, frame in frames.items():
            raw.send(frame)
            if heard(ear, b"MARK", 0.1):
                passed.append(name)
        assert not passed, passed
        # link-local frames go past the prerouting hook: the table of ports must not learn from them
        raw.send(mac("01:80:c2:00:00:0e") + mac(him.mac) + b"\x88\xcc" + b"\0" * 46)
        time.sleep(0.05)
        shown = subprocess.run(["bridge", "fdb"], capture_output=True, text=True, check=True).stdout
        assert [line for line in shown.splitlines() if him.mac in line and him.link not in line] == []
        steals(n, raw, bad, victim)
        raw.close()
        ear.close()
        for box in (bad, good, victim):
            n.manager.detach(box.id)
            os.close(box.ns)


def it_frame(me, it):
    return mac(it.mac) + mac(me.mac) + b"\x88\xb5" + b"MARK" * 12


def steals(n, raw, bad, victim):
    """What is addressed to this host's loopback, and to the clouds' metadata service."""
    local = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    local.bind(("127.0.0.1", 2000))
    local.settimeout(0.2)
    gateway_mac = f"02:6b:{socket.inet_aton(bad.a.gateway).hex(':')}"
    os.system("ip addr add 169.254.169.254/32 dev lo")
    cloud = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    cloud.bind(("169.254.169.254", 2000))
    cloud.settimeout(0.2)
    for sock, target in ((local, "127.0.0.1"), (cloud, "169.254.169.254")):
        raw.send(ip_frame(bad.a.mac, gateway_mac, bad.a.address, target))
        assert refused(sock.recv, 100), target
        sock.close()
    # once it is detached, a namespace that lives on is cut off
    n.manager.detach("bad")
    n.manager._slots.run(lambda: None)
    ear = sniffer(victim.ns)
    raw.send(ip_frame(bad.a.mac, victim.a.mac, bad.a.address, victim.a.address))
    assert not heard(ear, b"MARK", 0.2)
    ear.close()


if __name__ == "__main__":
    globals()[f"scenario_{sys.argv[1]}"]()
