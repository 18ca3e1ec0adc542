"""Templates without a machine: the device list is the same in all three births, keys, folders, the limit."""

from __future__ import annotations

import dataclasses
import os

import pytest

from knarr.machines import jail, plan, templates
from knarr.machines.kernels import GuestKernel
from knarr.machines.plan import Birth
from knarr.model.errors import NotFound
from knarr.model.resource import Attachment
from knarr.model.workload import Resources

ATTACHMENT = Attachment(
    address="10.88.0.7", prefix=16, gateway="10.88.0.1", mac="02:00:00:00:00:07", bridge="br", link="tap7"
)
BOX = jail.Jail(root="/jails/one", program="/usr/bin/qemu")
ABOUT = templates.About(kernel="6.1", accelerator="tcg", memory=512 << 20, cpus=1)


@pytest.fixture
def machine(tmp_path):
    for name in ("vmlinux", "initramfs"):
        (tmp_path / name).write_bytes(b"1")
    kernel = GuestKernel(
        version="6.1", vmlinux=str(tmp_path / "vmlinux"), initramfs=str(tmp_path / "initramfs")
    )
    return plan.MachineInput(kernel=kernel, accel="tcg", tsc_khz=2_600_000)


def devices(machine):
    words = plan.argv(machine)
    found = [words[at + 1] for at, word in enumerate(words) if word == "-device"]
    # the address is part of the state
    return [word.partition(",mac=")[0] for word in found]


def test_every_birth_and_every_use_has_the_same_devices(machine):
    expected = devices(templates.blank(machine))
    for more in ({}, {"stdin": True}, {"tty": True}, {"attachment": ATTACHMENT}):
        for birth in (Birth.COLD, Birth.RESUME):
            assert devices(dataclasses.replace(machine, birth=birth, **more)) == expected


def test_a_template_is_written_shared_and_resumed_private(machine):
    made, resumed = (
        " ".join(plan.argv(dataclasses.replace(machine, birth=birth)))
        for birth in (Birth.TEMPLATE, Birth.RESUME)
    )
    assert "mem-path=/mem,share=on" in made
    assert "mem-path=/mem,share=off" in resumed
    assert "-incoming defer" in resumed
    assert "null-co" in made
    assert "null-co" not in resumed
    assert "fdset/10" not in made


def test_folders_and_templates_exclude_each_other(machine):
    with pytest.raises(ValueError, match="folders"):
        plan.argv(dataclasses.replace(machine, birth=Birth.RESUME, folders=("fs0",)))


def test_a_template_fits_every_workload_of_its_class_and_no_other_class(machine):
    first = templates.key(machine, BOX)
    same = dataclasses.replace(machine, tty=True, resources=Resources(pids=9))
    assert templates.key(same, BOX) == first
    with_network = dataclasses.replace(machine, attachment=ATTACHMENT)
    elsewhere = dataclasses.replace(
        machine, attachment=dataclasses.replace(ATTACHMENT, mac="02:00:00:00:00:08")
    )
    assert templates.key(with_network, BOX) == templates.key(elsewhere, BOX)
    others = [
        templates.key(with_network, BOX),
        templates.key(dataclasses.replace(machine, resources=Resources(memory=2 << 30)), BOX),
        templates.key(dataclasses.replace(machine, resources=Resources(cpus=2)), BOX),
        templates.key(dataclasses.replace(machine, tsc_khz=2_600_001), BOX),
        templates.key(machine, dataclasses.replace(BOX, root="/jails/two")),
    ]
    with open(machine.kernel.initramfs, "ab") as file:
        file.write(b"another agent")
    assert len({first, *others, templates.key(machine, BOX)}) == 7


def made(store, key):
    scratch = store.begin()
    for name in (templates.MEMORY, templates.STATE, "console.log"):
        with open(os.path.join(scratch, name), "wb") as file:
            file.write(b"x")
    store.publish(scratch, key, ABOUT)
    return store.find(key)


def test_what_is_published_can_be_read_by_all_and_written_by_none(tmp_path):
    found = made(templates.TemplateStore(str(tmp_path)), "aa11")
    assert found.about == ABOUT
    assert os.stat(tmp_path / "templates").st_mode & 0o777 == 0o700
    assert sorted(os.listdir(found.folder)) == ["about", "mem", "state"]
    assert {os.stat(path).st_mode & 0o777 for path in (found.memory, found.state)} == {0o444}


def test_the_least_used_go_beyond_the_limit(tmp_path):
    store = templates.TemplateStore(str(tmp_path))
    keys = [f"k{number}" for number in range(templates.LIMIT + 2)]
    for number, key in enumerate(keys[: templates.LIMIT]):
        os.utime(os.path.join(made(store, key).folder, "about"), (number, number))
    store.touch(store.find("k0"))
    for key in keys[templates.LIMIT :]:
        made(store, key)
    left = {item.key for item in store.list()}
    assert len(left) == templates.LIMIT
    assert left == set(keys) - {"k1", "k2"}


def test_half_made_and_broken_ones_are_no_templates(tmp_path):
    store = templates.TemplateStore(str(tmp_path))
    scratch = store.begin()
    os.mkdir(tmp_path / "templates" / "beef")
    assert store.list() == ()
    assert store.find("beef") is None
    store.sweep()
    assert not os.path.exists(scratch)


def test_removal_takes_a_short_key_and_only_a_clear_one(tmp_path):
    store = templates.TemplateStore(str(tmp_path))
    for key in ("aa11", "aa22"):
        made(store, key)
    for wanted in ("aa", "bb", ""):
        with pytest.raises(NotFound):
            store.remove(wanted)
    assert store.remove("aa1").key == "aa11"
    assert [item.key for item in store.list()] == ["aa22"]
    assert os.listdir(tmp_path / "templates") == ["aa22"]
