"""Claims of user ids: disjoint between instances and workloads, and again the same after a restart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.model.errors import Invalid, Unavailable
from knarr.networks.host import LocalStore
from knarr.store import ranges
from knarr.store.ranges import BLOCK, FIRST, SHARED, Ranges
from knarr.store.settings import parse


@pytest.fixture(autouse=True)
def nothing_delegated(monkeypatch):
    monkeypatch.setattr(ranges, "_SUB_IDS", ())


def test_instances_get_blocks_of_their_own(tmp_path):
    stores = [LocalStore() for _ in range(3)]
    instances = [Ranges(f"{number:06x}", store, str(tmp_path)) for number, store in enumerate(stores)]
    firsts = [item.take(65536, ()) for item in instances]
    assert firsts == [FIRST + number * BLOCK + SHARED for number in range(3)]
    assert instances[0].shared() == FIRST
    assert not instances[1].hold(firsts[0], 65536)
    assert instances[0].hold(firsts[0], 65536)
    instances[0].release()
    assert not list(tmp_path.glob(f"ids-{FIRST:08x}"))
    assert instances[1].hold(firsts[0], 65536)


def test_a_block_that_another_takes_as_it_is_released_stays_the_others(tmp_path):
    other = Ranges("b", LocalStore(), str(tmp_path))

    class Racing(LocalStore):
        def delete(self, pattern):
            done = super().delete(pattern)
            if done:
                assert other.hold(FIRST, 1)
            return done

    first = Ranges("a", Racing(), str(tmp_path))
    first.take(1, ())
    first.release()
    assert not Ranges("c", LocalStore(), str(tmp_path)).hold(FIRST, 1)
    assert other.hold(FIRST, 1)


def test_a_new_daemon_with_the_same_holder_has_its_blocks(tmp_path):
    store = LocalStore()
    first = Ranges("a", store, str(tmp_path)).take(1000, ())
    again = Ranges("a", store, str(tmp_path))
    assert again.take(1000, [(first, 1000)]) == first + 1000


def test_a_full_block_is_followed_by_another_and_the_end_is_told(tmp_path):
    mine = Ranges("a", LocalStore(), str(tmp_path))
    first = mine.take(1, ())
    assert mine.take(65536, [(first, BLOCK - SHARED)]) == FIRST + BLOCK + SHARED
    others = Ranges("b", LocalStore(), str(tmp_path))
    while True:
        try:
            taken = others.take(BLOCK - SHARED, [(block, BLOCK) for block in others.blocks()])
        except Unavailable:
            break
        assert taken // BLOCK != FIRST // BLOCK
    with pytest.raises(Unavailable):
        mine.take(BLOCK, ())


def test_what_the_host_gave_to_its_users_is_left_alone(tmp_path, monkeypatch):
    file = tmp_path / "subuid"
    file.write_text(f"alice:{FIRST + 5}:10\nbroken\nbob:x:y\n")
    monkeypatch.setattr(ranges, "_SUB_IDS", (str(file), str(tmp_path / "missing")))
    assert Ranges("a", LocalStore(), str(tmp_path)).take(10, ()) == FIRST + BLOCK + SHARED


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=12), st.data())
def test_no_two_overlap_however_they_come_and_go(sizes, data):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        mine, live = Ranges("a", LocalStore(), folder), []
        for size in sizes:
            start = mine.take(size, live)
            assert all(start + size <= first or first + count <= start for first, count in live)
            live.append((start, size))
            if data.draw(st.booleans()):
                live.pop(data.draw(st.integers(0, len(live) - 1)))
        mine.release()


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"userns": "keep-id"}', b'{"userns": []}', b'{"other": 1}'])
def test_wrong_settings_name_the_file(text):
    with pytest.raises(Invalid, match=r"^/a/settings\.json: "):
        parse("/a/settings.json", text)
