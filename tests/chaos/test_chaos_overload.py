"""Four times as many callers as there is room for: those who fit are served as ever, the others are told at once."""

from __future__ import annotations

import pytest
from overload_callers import Plan, Seen, seen_by
from server_process import serving

# Large enough to be worked on beside the event loop: smaller calls hold their bytes for a moment only, and none is refused.
ELEMENTS = 2**21
BODY_BYTES = 4 * ELEMENTS + 128
# How many calls there is room for.
ROOM = 4


def described(name: str, seen: Seen) -> str:
    """The figures of one phase, for people."""
    times = ", ".join(
        f"{count} x {status} (p50 {seen.p50_s[status] * 1e3:.1f} ms, p99 {seen.p99_s[status] * 1e3:.1f} ms)"
        for status, count in sorted(seen.counts.items())
    )
    return f"{name}: {seen.goodput_per_s:.0f} results a second; {times}"


@pytest.mark.parametrize(
    ("rounds", "seconds", "least_share"),
    [
        # In a few seconds on a busy machine a phase may have bad luck.
        pytest.param(1, 4, 0.6, marks=pytest.mark.slow),
        pytest.param(3, 20, 0.9, marks=[pytest.mark.slow, pytest.mark.soak]),
    ],
    ids=["briefly", "long"],
)
def test_four_times_the_load_costs_nobody_who_fits_anything(rounds: int, seconds: float, least_share: float) -> None:
    """Callers do what the refusal says: they wait for as long as `Retry-After`.

    The load without and the load with too many callers take turns, as the machine may be faster at one time than at another.
    """
    normal: list[Seen] = []
    overload: list[Seen] = []
    with serving("--max-in-flight-bytes", str(ROOM * BODY_BYTES), "--max-body-bytes", str(BODY_BYTES)) as server:

        def phase(name: str, callers: int, seconds: float) -> Seen:
            seen = seen_by(Plan(server.port, callers, seconds, ELEMENTS))
            print(described(name, seen))
            assert not seen.wrong
            return seen

        normal.append(phase("normal", ROOM, seconds / 2))
        for _ in range(rounds):
            overload.append(phase("overload", 4 * ROOM, seconds))
            # It begins within seconds of the overload, which must have left nothing behind.
            normal.append(phase("normal", ROOM, seconds / 2))
        assert server.metric("stequant_in_flight_bytes") == 0
    peak = sum(seen.goodput_per_s for seen in normal) / len(normal)
    goodput = sum(seen.goodput_per_s for seen in overload) / len(overload)
    print(f"goodput {goodput / peak:.0%} of the peak")
    assert all(seen.counts.keys() == {"200"} for seen in normal)
    assert all(seen.counts.keys() == {"200", "429"} for seen in overload)
    assert goodput >= least_share * peak
    assert sorted(seen.p50_s["429"] for seen in overload)[rounds // 2] < 0.02
    assert min(seen.p99_s["200"] for seen in normal[1:]) < 1.5 * normal[0].p99_s["200"] + 0.02
