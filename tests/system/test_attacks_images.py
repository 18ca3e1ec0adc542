"""What an image or a registry says is never policy, and a password is kept nowhere (classes 9, 11, 22 and 24)."""

from __future__ import annotations

import os

import pytest

from conformance.harness import Instance
from knarr.client.client import Client
from knarr.model.errors import KnarrError
from support.hostile import Reply, hostile_registry
from support.images import busybox_archive

pytestmark = pytest.mark.root
PASSWORD = "tide-and-wind-4711"
GREED = {
    "Privileged": True,
    "CapAdd": ["ALL"],
    "SecurityOpt": ["seccomp=unconfined"],
    "NetworkMode": "host",
    "Binds": ["/:/host"],
    "HostConfig": {
        "Privileged": True,
        "Binds": ["/:/host"],
        "PidMode": "host",
        "Devices": [{"PathOnHost": "/dev/sda"}],
    },
    "Runtime": "runc",
}
LABELS = {
    f"{prefix}.{key}": value
    for prefix in ("knarr", "io.knarr", "com.docker", "io.containerd", "io.kubernetes.cri")
    for key, value in {
        "privileged": "true",
        "isolation": "container",
        "mount": "/:/host",
        "hook": "/bin/sh",
    }.items()
}
LOOK = "grep -E '^(Cap|Seccomp|NoNewPrivs)' /proc/self/status; ls /host 2>/dev/null; ls /dev | sort; ip -o link | wc -l"


@pytest.fixture(scope="module")
def instance(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    folder = tmp_path_factory.mktemp("images")
    made = Instance()
    try:
        made.knarr("daemon", "start", check=True)
        for name, more in (
            ("plain", {}),
            ("greedy", {"labels": LABELS, **GREED}),
            ("over", {"Volumes": {"/proc": {}}}),
            ("climbing", {"Volumes": {"/../../../etc/knarr-canary": {}}}),
        ):
            archive = busybox_archive(str(folder / "a.tar"), tag=f"{name}:1", **more)
            made.knarr("load", "-i", archive, check=True)
        yield made
    finally:
        made.close()


def look(instance, wall: str, image: str) -> list[str]:
    words = ("run", "--rm", "--isolation", wall, "--network", "none", image, "sh", "-c", LOOK)
    return instance.knarr(*words, check=True).lines


def test_an_image_can_not_give_itself_rights(instance):
    plain, greedy = look(instance, "container", "plain:1"), look(instance, "container", "greedy:1")
    assert any(line.startswith("CapEff") for line in plain)
    assert plain == greedy


@pytest.mark.vm
def test_an_image_can_not_give_itself_rights_in_a_machine(instance):
    rights = [line for line in look(instance, "container", "plain:1") if line.startswith(("Cap", "NoNew"))]
    greedy = look(instance, "microvm", "greedy:1")
    assert [line for line in greedy if line.startswith(("Cap", "NoNew"))] == rights
    assert "sda" not in greedy


def test_what_an_image_adds_is_checked_like_what_a_user_adds(instance):
    by_user = instance.knarr("run", "--rm", "-v", "x:/proc", "plain:1", "true")
    by_image = instance.knarr("run", "--rm", "over:1", "true")
    assert by_user.code == by_image.code == 125
    assert "/proc" in by_image.err


def test_a_volume_of_an_image_that_climbs_stays_inside(instance):
    result = instance.knarr(
        "run", "--rm", "climbing:1", "sh", "-c", "touch /etc/knarr-canary/x; ls /etc/knarr-canary"
    )
    assert (result.code, result.out) in ((0, "x\n"), (125, "")), result
    assert not os.path.exists("/etc/knarr-canary")


def test_a_password_is_kept_nowhere(instance):
    """Not in events, errors, logs or any file of ROOT and RUN, whether the registry takes it or not."""
    with hostile_registry() as server:
        challenge = {"WWW-Authenticate": 'Basic realm="x"'}
        server.routes["/v2/"] = Reply(401, headers=challenge)
        server.routes["/v2/a/manifests/1"] = lambda request: Reply(
            401 if "Authorization" not in request.headers else 500,
            f'{{"errors":[{{"code":"x","message":"{request.headers.get("Authorization")}"}}]}}'.encode(),
            {} if "Authorization" in request.headers else challenge,
        )
        client = Client(instance.root, instance.run_folder, start=False)
        with pytest.raises(KnarrError) as caught:
            list(client.pull(f"{server.host}/a:1", insecure=True, username="olaf", password=PASSWORD))
        assert any("authorization" in headers for _, headers in server.seen), "the password was never used"
        assert PASSWORD not in str(caught.value.to_json())
    told = instance.knarr("events", "--since", "1h", "--until", "0s")
    assert PASSWORD not in told.out + told.err
    for top in (instance.root, instance.run_folder):
        for folder, _, names in os.walk(top):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.isfile(path) and os.path.getsize(path) < 1 << 24:
                    with open(path, "rb") as file:
                        assert PASSWORD.encode() not in file.read(), path
