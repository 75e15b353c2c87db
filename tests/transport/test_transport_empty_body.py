"""A request whose body is announced to be empty is complete with its head, and is worked then and only then."""

from __future__ import annotations

import json

from server_process import Wire, get, post, serving


def test_calls_without_a_body_are_answered_once_and_in_their_order() -> None:
    one = post(b"", path="/v2/models/ceil/infer", query="", media_type="application/json")
    # In the end there must be no traceback in the server's log: of a second answer to the same call.
    with serving() as server, Wire(server) as wire:
        assert [wire.ask(one).code for _ in range(3)] == ["malformed_body"] * 3
        wire.send(one + post(b"", query="op=nothing") + one + get("/healthz"))
        answers = [wire.read() for _ in range(4)]
        stats = json.loads(wire.ask(get("/v2/models/ceil/stats")).body)
    assert [answer.status for answer in answers] == [400, 422, 400, 200]
    assert [answer.code for answer in answers[:3]] == ["malformed_body", "unknown_operator", "malformed_body"]
    assert stats["model_stats"][0]["inference_stats"]["fail"]["count"] == 5
