"""The pauses between restarts are docker's."""

from __future__ import annotations

from knarr.engine import restarts


def test_pauses_double_up_to_a_minute_and_begin_anew_after_a_good_run() -> None:
    pause, seen = 0.0, []
    for _ in range(12):
        pause = restarts.next_pause(pause, 0.5)
        seen.append(pause)
    assert seen[:4] == [0.1, 0.2, 0.4, 0.8]
    assert seen[-1] == 60.0
    assert restarts.next_pause(60.0, 10.0) == 0.1
