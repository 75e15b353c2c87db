"""Deadlines that a caller sets, and limits on what one address, or all, may hold open."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from http_bodies import npy
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess, Wire, eventually, get, post, serving

MIB = 2**20
SMALL = npy(torch.tensor([0.6, -0.4]))
# Many reductions over megabytes of float64: on the device's thread, for long enough to be waited for in vain.
SLOW = npy(torch.from_numpy(np.random.default_rng(0).random(16 * MIB // 8)))
SLOW_CHAIN = "op=" + "%7C".join(["clamp_by_linear"] * 32)
BEHIND = npy(torch.rand(MIB // 4))


@pytest.fixture(scope="module")
def strict() -> Iterator[ServerProcess]:
    with serving(
        *("--max-connections", "8", "--max-connections-per-address", "6", "--max-pipelined", "4", "--max-headers", "20"),
        *("--max-url-bytes", "300", "--max-header-bytes", "2000", "--min-body-bytes-per-s", "1000", "--body-idle-timeout-s", "0.6"),
    ) as running:
        yield running


def value(wire: Wire, name: str, **labels: str) -> float:
    """A sample of the metrics, 0 where there is none."""
    text = wire.ask(get("/metrics")).body.decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return next((one.value for one in samples if one.name == name and labels.items() <= one.labels.items()), 0.0)


# Deadlines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "-1", "soon", "1e3", "86401", "1,5", "", "0.0"])
def test_a_deadline_that_is_none_is_refused(server: ServerProcess, text: str) -> None:
    with Wire(server) as wire:
        answer = wire.ask(post(SMALL, "op=round", f"X-Request-Timeout: {text}"))
        assert (answer.status, answer.code) == (400, "bad_request")
        assert "86400" in answer.body.decode()


@pytest.mark.parametrize("text", ["30", "0.5", "86400"])
def test_a_call_that_is_answered_in_time_does_not_notice_its_deadline(server: ServerProcess, text: str) -> None:
    with Wire(server) as wire:
        for _ in range(2):
            assert wire.ask(post(SMALL, "op=round", f"X-Request-Timeout: {text}")).status == 200


def test_a_call_whose_body_comes_after_its_deadline_is_not_computed(server: ServerProcess) -> None:
    with Wire(server) as wire:
        request = post(SMALL, "op=round", "X-Request-Timeout: 0.3")
        wire.send(request[:-4])
        answer = wire.read()
        assert (answer.status, answer.code) == (504, "deadline_exceeded")
        assert "0.3 s" in answer.body.decode()


def test_a_call_that_waits_behind_others_until_its_deadline_is_told_so_and_its_connection_goes_on(server: ServerProcess) -> None:
    blockers = [Wire(server) for _ in range(9)]
    try:
        with Wire(server) as wire:
            for blocker in blockers:
                blocker.send(post(SLOW, SLOW_CHAIN))
            answer = wire.ask(post(BEHIND, "op=clamp_by_linear", "X-Request-Timeout: 0.1"))
            assert (answer.status, answer.code) == (504, "deadline_exceeded")
            assert wire.ask(post(SMALL)).status == 200
        assert [blocker.read().status for blocker in blockers] == [200] * 9
    finally:
        for blocker in blockers:
            blocker.socket.close()
    with Wire(server) as wire:
        eventually(lambda: value(wire, "stequant_in_flight_bytes") == 0, "all memory is free again")


# Limits --------------------------------------------------------------------------------------------------


def test_connections_beyond_those_of_one_address_are_told_why(strict: ServerProcess) -> None:
    kept = [Wire(strict) for _ in range(6)]
    try:
        assert [wire.ask(get("/healthz")).status for wire in kept] == [200] * 6
        with Wire(strict) as surplus:
            answer = surplus.read()
            assert (answer.status, answer.code) == (429, "overloaded")
            assert answer.headers["retry-after"] == "1"
            assert "6 connections from your address" in answer.body.decode()
        assert value(kept[0], "stequant_cut_connections_total", reason="too_many_from_address") == 1
    finally:
        for wire in kept:
            wire.socket.close()

    def free() -> bool:
        with Wire(strict) as wire:
            return wire.ask(post(SMALL)).status == 200

    eventually(free, "the closed connections do not count any more")


def test_connections_are_counted(server: ServerProcess) -> None:
    with Wire(server) as one:
        before = value(one, "stequant_connections")
        with Wire(server) as two:
            assert two.ask(get("/healthz")).status == 200
            assert value(one, "stequant_connections") == before + 1
        eventually(lambda: value(one, "stequant_connections") == before, "the closed connection is not counted")


def test_more_pipelined_requests_than_may_wait_end_the_connection_after_the_answers_of_those_that_may(
    strict: ServerProcess,
) -> None:
    with Wire(strict) as wire:
        wire.send(get("/operators") + post(SMALL) * 9)
        statuses = [wire.read().status for _ in range(5)]
        assert statuses == [200] * 5
        last = wire.read()
        assert (last.status, last.code, last.headers["connection"]) == (429, "overloaded", "close")
        assert wire.is_closed()


@pytest.mark.parametrize(
    ("request_bytes", "status", "limit"),
    [
        (get("/healthz?" + "x" * 300), 414, "300"),
        (get("/healthz", *[f"X-{i}: 1" for i in range(20)]), 431, "20"),
        (get("/healthz", "X: " + "y" * 2000), 431, "2000"),
    ],
)
def test_limits_of_a_head_are_settings(strict: ServerProcess, request_bytes: bytes, status: int, limit: str) -> None:
    with Wire(strict) as wire:
        answer = wire.ask(request_bytes)
        assert answer.status == status
        assert limit in answer.body.decode()


def test_a_body_that_dribbles_is_too_slow_although_it_never_pauses_long(strict: ServerProcess) -> None:
    with Wire(strict) as wire, Wire(strict) as other:
        request = post(SMALL)
        wire.send(request[: -len(SMALL)])
        sent = iter(SMALL)

        def answered() -> bool:
            wire.send(bytes((next(sent),)))
            return not wire.is_silent(0.1)

        eventually(answered, "the server has lost its patience")
        answer = wire.read()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert "1000 bytes a second" in answer.body.decode()
        assert value(other, "stequant_cut_connections_total", reason="slow_body") >= 1
