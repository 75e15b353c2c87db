"""Minutes of good, bad, slow and disconnecting clients: nobody gets a wrong answer, and the server does not grow."""

from __future__ import annotations

import os
import time
from statistics import median

import pytest
from process_figures import MIB, Figures, look_at, slope_per_s
from server_process import ServerProcess, eventually, serving
from soak_clients import CLIENTS, HASTE, Crowd, crowd

SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "20"))
# At first caches fill and the allocator finds its size.
WARM_UP_SHARE = 0.2


def watched(server: ServerProcess, clients: Crowd, minutes: float) -> list[Figures]:
    """The server's figures of every second, until the time is over or something went wrong."""
    begin = time.monotonic()
    figures = []
    while (now := time.monotonic() - begin) < minutes * 60 and not clients.wrong:
        figures.append(look_at(server.pid, now))
        time.sleep(1)
    return figures


@pytest.mark.parametrize(
    ("minutes", "most_mib_in_10_minutes"),
    [
        # In half a minute a single buffer more looks like a slope: this finds leaks of each request only.
        pytest.param(0.5, 300, marks=pytest.mark.slow),
        pytest.param(SOAK_MINUTES, 1, marks=[pytest.mark.slow, pytest.mark.soak]),
    ],
    ids=["briefly", "long"],
)
def test_a_server_does_not_grow_under_clients_of_every_kind(minutes: float, most_mib_in_10_minutes: float) -> None:
    with serving(*HASTE) as server:
        idle = look_at(server.pid, 0)
        with crowd(server) as clients:
            figures = watched(server, clients, minutes)
        assert not clients.wrong, clients.wrong[:5]
        assert clients.rounds.keys() == CLIENTS.keys()
        later = figures[int(len(figures) * WARM_UP_SHARE) :]
        times_s = [one.at_s for one in later]
        growth = slope_per_s(times_s, [one.resident_bytes for one in later]) * 600 / MIB
        half = len(later) // 2
        descriptors = [median(one.descriptors for one in part) for part in (later[:half], later[half:])]
        answered = server.metric("stequant_requests_total")
        print(
            f"{answered:.0f} requests, clients {dict(clients.rounds)}; "
            f"resident {idle.resident_bytes / MIB:.0f} MiB idle, {figures[-1].resident_bytes / MIB:.0f} MiB in the end, "
            f"{growth:+.2f} MiB in 10 minutes; descriptors {idle.descriptors} idle, {descriptors} in the halves; "
            f"threads {sorted({one.threads for one in later})}"
        )
        assert growth < most_mib_in_10_minutes
        assert len({one.threads for one in later}) == 1
        assert abs(descriptors[1] - descriptors[0]) <= 5
        eventually(lambda: look_at(server.pid, 0).descriptors <= idle.descriptors, "every descriptor was closed")
        assert server.metric("stequant_in_flight_bytes") == 0
        assert server.metric("stequant_requests_total", status="500") == 0
