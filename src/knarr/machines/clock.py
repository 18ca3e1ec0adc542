"""The host's time stamp counter in kHz: told to guests under TCG, whose own calibration hangs under load.

TCG's rdtsc counts host ticks. /proc/cpuinfo's MHz is today's clock of a core, not the counter's rate, so
it is measured against CLOCK_MONOTONIC_RAW.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time

# rdtsc; shl rdx, 32; or rax, rdx; ret
_RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")
_SECONDS = 0.05
_FALLBACK_KHZ = 2_000_000


def tsc_khz() -> int:
    """Measured over 50 ms; the best of three readings at each end keeps a preemption out of it."""
    if platform.machine() != "x86_64":
        return _FALLBACK_KHZ
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_RDTSC)
        anchor = ctypes.c_char.from_buffer(page)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))
        first = min((_sample(read) for _ in range(3)), key=lambda item: item[2])
        time.sleep(_SECONDS)
        second = min((_sample(read) for _ in range(3)), key=lambda item: item[2])
        del read, anchor
    return round((second[0] - first[0]) * 1_000_000 / (second[1] - first[1]))


def _sample(read: ctypes._CFunctionType) -> tuple[int, int, int]:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    ticks = int(read())
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    return ticks, (before + after) // 2, after - before
