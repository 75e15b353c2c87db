"""Bytes on the wire: however a request is cut, pipelined or framed, the answer is the same, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from examples import assert_same_bits
from http_bodies import JSON, MSGPACK, NPY, decode, encode, npy, tensor_map
from http_cases import DTYPES, moderate
from server_process import ServerProcess, Wire, eventually, get, post, serving

SMALL, ROUNDED = npy(torch.tensor([0.6, -0.4])), npy(torch.tensor([1.0, -0.0]))
MIB = 2**20


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server that logs as machines read it; every line must be JSON."""
    with serving("--log-format", "json") as running:
        yield running
    for line in running.lines:
        assert isinstance(json.loads(line), dict)


@pytest.fixture(scope="module")
def other(server: ServerProcess) -> Iterator[Wire]:
    """A second connection, to know that the server has seen what the first has sent."""
    with Wire(server) as one:
        yield one


def settle(other: Wire) -> None:
    """Return when what was sent before, on any connection, has been received: the loop went round."""
    for _ in range(2):
        assert other.ask(get("/healthz")).status == 200


# Cuts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["announced", "chunked"])
def test_a_request_may_be_cut_at_every_byte(server: ServerProcess, other: Wire, form: str) -> None:
    request = post(SMALL, chunks=[SMALL[:100], SMALL[100:]] if form == "chunked" else None)
    with Wire(server) as wire:
        for cut in range(1, len(request)):
            wire.send(request[:cut])
            settle(other)
            wire.send(request[cut:])
            answer = wire.read()
            assert (answer.status, answer.body) == (200, ROUNDED), cut


def test_a_request_may_come_byte_by_byte(server: ServerProcess, other: Wire) -> None:
    with Wire(server) as wire:
        for byte in post(SMALL):
            wire.send(bytes((byte,)))
            assert other.ask(get("/healthz")).status == 200
        assert wire.read().body == ROUNDED


BOUNDARIES = {
    "a body of 256 KiB": lambda itemsize: (256 * 1024 - 128) // itemsize,
    "256 KiB of elements": lambda itemsize: 256 * 1024 // itemsize,
    "a body of 2 MiB and a page": lambda itemsize: (2 * MIB + 4096 - 128) // itemsize,
    "a block of 1 MiB": lambda itemsize: MIB // itemsize,
    "a receive buffer of 64 KiB": lambda itemsize: (64 * 1024 - 128) // itemsize,
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_around_every_boundary_give_the_bits_of_the_plain_expression(server: ServerProcess, dtype: str) -> None:
    itemsize = DTYPES[dtype].itemsize
    lengths = {0, 1, 2, *(boundary(itemsize) + d for boundary in BOUNDARIES.values() for d in (-1, 0, 1))}
    values = moderate(DTYPES[dtype], (max(lengths),))
    grads = moderate(DTYPES[dtype], (max(lengths),), seed=1)
    with Wire(server) as wire:
        for length in sorted(lengths):
            x, g = values[:length], grads[:length]
            answer = wire.ask(post(npy(x), "op=clamp(-1,1)%7Ck_bit_quantize(4)"))
            assert answer.body == npy(torch.round(x.clamp(-1, 1) * 15) / 15), length
            answer = wire.ask(post(npy(x) + npy(g), "op=clamp(-1,1)%7Cround", path="/grad"))
            assert answer.body == npy(torch.where((x >= -1) & (x <= 1), g, torch.zeros_like(g))), length
            chunked = wire.ask(post(b"", "op=clamp(-1,1)", chunks=[npy(x)[: length // 2], npy(x)[length // 2 :]]))
            assert chunked.body == npy(x.clamp(-1, 1)), length


@pytest.mark.parametrize(
    "op", ["round", "clamp(-1,1)", "step_quantize(0.1)", "affine_k_bit_quantize(4,0.5,-1)", "clamp_by_linear", "floor|ceil"]
)
def test_the_fast_ways_in_give_the_bits_of_the_chunked_one(server: ServerProcess, op: str) -> None:
    """Announced bodies are received into tensor memory, chunked ones are not; small ones are computed at once."""
    query = f"op={op.replace('|', '%7C')}"
    with Wire(server) as wire:
        for length in (3, 70_000, 600_000):
            x, g = npy(moderate(torch.float32, (length,))), npy(moderate(torch.float32, (length,), seed=1))
            for path, body in (("/quantize", x), ("/grad", x + g)):
                plain = wire.ask(post(body, query, path=path, chunks=[body[i : i + 99_991] for i in range(0, len(body), 99_991)]))
                fast = wire.ask(post(body, query, path=path))
                assert plain.status == fast.status == 200
                assert plain.body == fast.body


ALIKE: list[tuple[str, tuple[int, ...]]] = [
    ("float32", (6,)),
    ("float32", (2, 3)),
    ("float32", (3, 2)),
    ("float32", (6, 1)),
    ("float16", (12,)),
    ("bfloat16", (12,)),
    ("bfloat16", (3, 4)),
    ("float64", (3,)),
    ("float64", ()),
    ("float32", (0,)),
]


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_calls_that_resemble_each_other_are_told_apart(server: ServerProcess, chunked: bool) -> None:
    """Bodies of one length, heads that repeat, data that differ: in any order, on two connections."""
    kinds = [(dtype, shape, form, answer) for dtype, shape in ALIKE for form in ("npy", "msgpack") for answer in (NPY, MSGPACK)]
    with Wire(server) as first, Wire(server) as second:
        for number in range(400):
            # Each kind several times in a row, then others between.
            dtype, shape, form, accept = kinds[(number // 3 * 7) % len(kinds)]
            wire = second if number % 5 == 0 else first
            x, g = (moderate(DTYPES[dtype], shape, seed=number + offset) for offset in (0, 5000))
            media_type = NPY if form == "npy" else MSGPACK
            query, expected = [
                ("op=clamp(-1,1)", x.clamp(-1, 1)),
                ("op=k_bit_quantize(2)", torch.round(x * 3) / 3),
                ("op=k_bit_quantize&k=2", torch.round(x * 3) / 3),
            ][number % 3]
            path, message, result = "/quantize", {"x": x}, "y"
            if number % 11 == 0:
                path, message, result, query, expected = "/grad", {"x": x, "grad_output": g}, "grad_x", "op=round", g
            body = encode(form, message)
            answer = wire.ask(
                post(
                    body,
                    query,
                    f"Accept: {accept}",
                    path=path,
                    media_type=media_type,
                    chunks=[body[:50], body[50:]] if chunked else None,
                )
            )
            assert answer.status == 200, answer
            assert answer.headers["content-type"] == accept
            assert_same_bits(decode(accept, answer.body, result)[result], expected, (number, dtype, shape))
            if number % 13 == 0:  # one that is broken, between: its length, its end
                broken = wire.ask(post(body[:-1] + (b"" if number % 2 else b"xx"), query, path=path, media_type=media_type))
                assert broken.status == 400


# Pipelines -----------------------------------------------------------------------------------------------


def test_two_requests_in_one_packet_are_answered_in_order(server: ServerProcess) -> None:
    with Wire(server) as wire:
        wire.send(post(SMALL) + post(SMALL, "op=floor"))
        assert wire.read().body == ROUNDED
        assert wire.read().body == npy(torch.tensor([0.0, -1.0]))
        assert wire.ask(get("/healthz")).status == 200


def test_fifty_requests_of_all_kinds_in_one_packet_are_answered_in_order(server: ServerProcess) -> None:
    large = npy(torch.full((100_000,), 0.6))
    kinds = [
        (post(SMALL), 200, ROUNDED),
        (get("/healthz"), 200, None),
        (post(SMALL, "op=nothing"), 422, None),
        (post(large), 200, npy(torch.ones(100_000))),
        (get("/nothing"), 404, None),
        (post(SMALL[:-1]), 400, None),
        (post(SMALL, chunks=[SMALL[:9], SMALL[9:]]), 200, ROUNDED),
        (post(SMALL, media_type="text/plain"), 415, None),
        (get("/quantize"), 405, None),
        (post(SMALL, "op=clamp_by_linear(0)"), 200, npy(torch.tensor([1.0, 0.0]))),
    ]
    requests = kinds * 5
    with Wire(server) as wire:
        wire.send(b"".join(request for request, _, _ in requests))
        for number, (_, status, body) in enumerate(requests):
            answer = wire.read()
            assert answer.status == status, (number, answer)
            assert body is None or answer.body == body, number
        assert wire.ask(post(SMALL)).body == ROUNDED


def test_small_calls_behind_a_large_one_wait_for_it(server: ServerProcess) -> None:
    large = npy(torch.full((600_000,), 0.6))
    with Wire(server) as wire:
        wire.send(post(large) + post(SMALL) + get("/healthz") + post(large, "op=floor") + post(SMALL, "op=ceil"))
        assert wire.read().body == npy(torch.ones(600_000))
        assert wire.read().body == ROUNDED
        assert wire.read().status == 200
        assert wire.read().body == npy(torch.zeros(600_000))
        assert wire.read().body == npy(torch.tensor([1.0, -0.0]))


def test_the_end_of_a_body_and_the_next_head_may_share_a_packet(server: ServerProcess, other: Wire) -> None:
    for first in (SMALL, npy(torch.full((600_000,), 0.6))):
        with Wire(server) as wire:
            one, two = post(first), post(SMALL, "op=floor")
            wire.send(one[:-4])
            settle(other)
            wire.send(one[-4:] + two[:50])
            assert len(wire.read().body) == len(first)
            wire.send(two[50:])
            assert wire.read().body == npy(torch.tensor([0.0, -1.0]))


def test_a_connection_is_used_again_after_every_kind_of_answer(server: ServerProcess) -> None:
    with Wire(server) as wire:
        for status, request in [
            (200, post(SMALL)),
            (422, post(SMALL, "op=nothing")),
            (400, post(b"")),
            (200, post(encode("msgpack", {"x": torch.ones(3)}), media_type=MSGPACK)),
            (422, post(SMALL, "op=nothing", chunks=[SMALL])),
            (404, post(SMALL, path="/nothing")),
            (415, post(npy(torch.ones(200_000)), media_type="text/plain")),  # its body is skipped
            (405, get("/quantize", method="DELETE")),
            (200, post(b'{"x": [1.5]}', media_type=JSON)),
            (200, get("/metrics")),
        ] * 2:
            answer = wire.ask(request)
            assert answer.status == status, answer
            if status >= 400:
                assert answer.code


# Expect: 100-continue --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["announced", "chunked"])
def test_continue_is_said_to_an_admitted_call_only(server: ServerProcess, other: Wire, form: str) -> None:
    def request(query: str) -> tuple[bytes, bytes]:
        head, _, body = post(SMALL, query, "Expect: 100-continue", chunks=[SMALL] if form == "chunked" else None).partition(
            b"\r\n\r\n"
        )
        return head + b"\r\n\r\n", body

    with Wire(server) as wire:
        for _ in range(2):
            head, body = request("op=round")
            assert wire.ask(head).status == 100
            wire.send(body)
            answer = wire.read()
            assert (answer.status, answer.body) == (200, ROUNDED)
    with Wire(server) as wire:
        head, _ = request("op=nothing")
        answer = wire.ask(head)
        assert (answer.status, answer.code) == (422, "unknown_operator")


def test_a_body_that_does_not_wait_for_continue_is_read_too(server: ServerProcess) -> None:
    with Wire(server) as wire:
        for _ in range(3):
            wire.send(post(SMALL, "op=round", "Expect: 100-continue"))
            answer = wire.read()
            if answer.status == 100:
                answer = wire.read()
            assert answer.body == ROUNDED


def test_a_hundred_gigabytes_are_not_asked_for(server: ServerProcess) -> None:
    with Wire(server) as wire:
        answer = wire.ask(post(b"", "op=round", "Expect: 100-continue", length=100 * 2**30))
        assert (answer.status, answer.code) == (413, "body_too_large")


# Ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        post(SMALL, "op=round", "Connection: close"),
        get("/healthz", "Connection: close"),
        post(SMALL, "op=nothing", "Connection: close"),
    ],
)
def test_a_connection_is_closed_when_the_caller_asks(server: ServerProcess, request_: bytes) -> None:
    with Wire(server) as wire:
        answer = wire.ask(request_)
        assert answer.status in (200, 422)
        assert answer.headers["connection"] == "close"
        assert wire.is_closed()


@pytest.mark.parametrize("lines", [(), ("Connection: keep-alive",)])
def test_http_1_0_is_answered_and_closed(server: ServerProcess, lines: tuple[str, ...]) -> None:
    with Wire(server) as wire:
        assert wire.ask(post(SMALL, "op=round", *lines, version="1.0")).body == ROUNDED
        assert wire.is_closed() or lines
    with Wire(server) as wire:
        assert wire.ask(get("/healthz", *lines, version="1.0", host=None)).status == 200


@pytest.mark.parametrize(
    "requests",
    [
        [post(SMALL)],
        [get("/healthz")],
        [post(SMALL, "op=nothing")],
        [post(SMALL, chunks=[SMALL])],
        [post(npy(torch.ones(600_000)))],
        [post(SMALL), post(SMALL, "op=floor"), post(SMALL, "op=ceil")],
        [get("/healthz"), post(SMALL), get("/nothing")],
        [post(npy(torch.ones(600_000))), get("/healthz"), post(SMALL)],
    ],
    ids=["small", "get", "refused", "chunked", "large", "three small", "mixed", "behind a large one"],
)
def test_whoever_sends_no_more_still_gets_all_answers(server: ServerProcess, requests: list[bytes]) -> None:
    """As `nc -N` does: the requests, then the end of sending, then reading."""
    with Wire(server) as wire:
        wire.send(b"".join(requests))
        wire.half_close()
        statuses = [wire.read().status for _ in requests]
        assert set(statuses) <= {200, 404, 422}
        assert wire.is_closed()


def test_whoever_ends_in_the_middle_of_a_request_is_let_go(server: ServerProcess) -> None:
    for part in (post(SMALL)[:40], post(SMALL)[:-1], post(SMALL, chunks=[SMALL])[:-3]):
        with Wire(server) as wire:
            wire.send(part)
            wire.half_close()
            assert wire.is_closed()


# What is no HTTP, or not allowed in it -----------------------------------------------------------------------


def head(*lines: str, start: str = "POST /quantize?op=round HTTP/1.1") -> bytes:
    return "\r\n".join([start, *lines, "", ""]).encode("latin-1")


HOST, TYPE, LENGTH = "Host: a", "Content-Type: application/x-npy", f"Content-Length: {len(SMALL)}"


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (head(HOST, HOST, TYPE, LENGTH) + SMALL, 400, "bad_framing"),
        (head(HOST, "hOST: b", TYPE, LENGTH) + SMALL, 400, "bad_framing"),
        (head(TYPE, LENGTH) + SMALL, 400, "bad_framing"),
        (head(HOST, TYPE, TYPE, LENGTH) + SMALL, 400, "bad_framing"),
        (head(HOST, TYPE, LENGTH, LENGTH) + SMALL, 400, "bad_framing"),
        (head(HOST, TYPE, LENGTH, "Content-Length: 3") + SMALL, 400, "bad_framing"),
        (head(HOST, TYPE, "Content-Length: 136, 136") + SMALL, 400, "bad_framing"),
        (head(HOST, TYPE, LENGTH, "Transfer-Encoding: chunked") + SMALL, 400, "bad_framing"),
        (head(HOST, TYPE, "Transfer-Encoding: gzip") + SMALL, 400, "bad_framing"),
        (head(HOST, TYPE, "Transfer-Encoding: chunked, gzip") + SMALL, 400, "bad_framing"),
        (head(HOST, TYPE, "Content-Length: -1"), 400, "bad_framing"),
        (head(HOST, TYPE, "Content-Length: 0x88") + SMALL, 400, "bad_framing"),
        (head(HOST, TYPE, f"Content-Length: {10**30}"), 400, "bad_framing"),
        (head(HOST, TYPE, f"Content-Length: {2**64 + 136}") + SMALL, 400, "bad_framing"),
        (head(HOST, TYPE, f"Content-Length: {10**17}"), 413, "body_too_large"),
        (head(HOST, TYPE), 411, "length_required"),
        (head(HOST, TYPE, "Transfer-Encoding: chunked") + b"zz\r\n", 400, "bad_framing"),
        (head(HOST, TYPE, "Transfer-Encoding: chunked") + b"-1\r\n", 400, "bad_framing"),
        (head(HOST, TYPE, "Transfer-Encoding: chunked") + b"f" * 17 + b"\r\n", 400, "bad_framing"),
        (head(HOST, start="GET /healthz HTTP/9.9"), 400, "bad_framing"),
        (head(HOST, start="GET  HTTP/1.1"), 400, "bad_framing"),
        (head(HOST, start="get /healthz HTTP/1.1"), 400, "bad_framing"),
        (head(HOST, "X : 1", start="GET /healthz HTTP/1.1"), 400, "bad_framing"),
        (head(HOST, "X\x00Y: 1", start="GET /healthz HTTP/1.1"), 400, "bad_framing"),
        (head(HOST, "no colon", start="GET /healthz HTTP/1.1"), 400, "bad_framing"),
        (head(start="GET /healthz HTTP/1.1"), 400, "bad_framing"),
        (head(HOST, HOST, start="GET /healthz HTTP/1.1"), 400, "bad_framing"),
        (b"\x00\x01\x02\x03" * 20, 400, "bad_framing"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400, "bad_framing"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400, "bad_framing"),
        (b"\x93NUMPY" + bytes(100), 400, "bad_framing"),
        (b"hello\r\n\r\n", 400, "bad_framing"),
        (b"GET http://a/healthz HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_framing"),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else str(value),
)
def test_what_http_forbids_is_refused(server: ServerProcess, request_: bytes, status: int, code: str) -> None:
    with Wire(server) as wire:
        wire.send_until_refused(request_)
        answer = wire.read()
        assert (answer.status, answer.code) == (status, code), answer


@pytest.mark.parametrize(
    "doubtful",
    [
        head(HOST, TYPE, LENGTH, "Content-Length: 0") + SMALL,
        head(HOST, TYPE, "Content-Length: 0", LENGTH) + SMALL,
        head(HOST, TYPE, LENGTH, "Transfer-Encoding: chunked") + SMALL,
        head(HOST, TYPE, "Transfer-Encoding: chunked", LENGTH) + b"0\r\n\r\n",
        head(HOST, TYPE, "Transfer-Encoding: chunked") + b"1\r\nxyz\r\n0\r\n\r\n",
        head(HOST, TYPE, "Transfer-Encoding: chunked") + b"zz\r\nx\r\n0\r\n\r\n",
        head(HOST, TYPE, "Transfer-Encoding: xchunked") + b"0\r\n\r\n",
        b"\0\0\0\0",
    ],
    ids=[
        "two lengths",
        "two lengths, turned",
        "length and chunks",
        "chunks and length",
        "a long chunk",
        "no size",
        "xchunked",
        "zeros",
    ],
)
def test_where_a_request_ends_is_never_guessed(server: ServerProcess, doubtful: bytes) -> None:
    """What follows one whose end is in doubt might be a part of it: it is not answered, the connection is closed."""
    with Wire(server) as wire:
        wire.send_until_refused(doubtful + get("/healthz"))
        answer = wire.read()
        assert (answer.status, answer.code) == (400, "bad_framing")
        assert wire.is_closed()


def test_garbage_after_a_body_that_came_on_its_own_is_refused(server: ServerProcess) -> None:
    whole = head(HOST, TYPE, LENGTH) + SMALL
    with Wire(server) as wire:
        for part in (whole[: -len(SMALL)], SMALL[:5], SMALL[5:]):
            wire.send(part)
        assert wire.read().status == 200
        wire.send(b"\x00\x01garbage\r\n\r\n")
        answer = wire.read()
        assert (answer.status, answer.code) == (400, "bad_framing")
        assert wire.is_closed()


@pytest.mark.parametrize("start", ["POST /quantize?op=round HTTP/1.1", "GET /healthz HTTP/1.1"])
@pytest.mark.parametrize(
    ("lines", "status", "code"),
    [
        (["X-Long: " + "a" * 16_400], 431, "headers_too_large"),
        (["X-" + "a" * 16_400 + ": 1"], 431, "headers_too_large"),
        ([f"X-{i}: {'a' * 170}" for i in range(95)], 431, "headers_too_large"),
        ([f"X-{i}: 1" for i in range(101)], 431, "headers_too_large"),
    ],
    ids=["a long value", "a long name", "95 of 170 bytes", "101 headers"],
)
def test_too_many_headers_are_refused(server: ServerProcess, start: str, lines: list[str], status: int, code: str) -> None:
    with Wire(server) as wire:
        wire.send_until_refused(head(HOST, TYPE, *lines, "Content-Length: 0", start=start))
        answer = wire.read()
        assert (answer.status, answer.code) == (status, code)
        assert wire.is_closed()


def test_headers_without_end_are_refused_while_they_come(server: ServerProcess) -> None:
    """64 MiB of them are neither read nor kept."""
    with Wire(server) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ")
        wire.send_until_refused(b"a" * (64 * MIB))
        assert wire.read().status == 431


def test_as_many_headers_as_are_allowed_are_read(server: ServerProcess) -> None:
    with Wire(server) as wire:
        lines = [f"X-{i}: {'a' * 100}" for i in range(97)]
        assert wire.ask(post(SMALL, "op=round", *lines)).body == ROUNDED
        assert wire.ask(get("/healthz", *lines)).status == 200
        assert wire.ask(get("/healthz", "X: " + "a" * 15_000)).status == 200


@pytest.mark.parametrize("path", ["/quantize?op=round&x=", "/healthz?x=", "/"])
def test_too_long_a_url_is_refused(server: ServerProcess, path: str) -> None:
    with Wire(server) as wire:
        wire.send_until_refused(get(path + "a" * 8192))
        assert (answer := wire.read()).status == 414
        assert answer.code == "uri_too_long"
        assert wire.is_closed()
    with Wire(server) as wire:
        wire.send_until_refused(b"GET /" + b"a" * MIB)
        assert wire.read().status == 414


def test_a_chain_of_32_operators_fits_into_a_url(server: ServerProcess) -> None:
    chain = "%7C".join(["affine_k_bit_quantize(k%3D15%2Cw%3D1.0000000000000002%2Cb%3D-0.0000000000000001)"] * 32)
    with Wire(server) as wire:
        assert wire.ask(post(SMALL, f"op={chain}")).status == 200


def test_an_offer_to_upgrade_is_ignored(server: ServerProcess) -> None:
    h2c = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    websocket = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    )
    for lines in (h2c, websocket):
        with Wire(server) as wire:
            for _ in range(2):
                assert wire.ask(get("/healthz", *lines)).status == 200
                assert wire.ask(post(SMALL, "op=round", *lines)).body == ROUNDED
            large = npy(torch.full((300_000,), 0.6))
            assert wire.ask(post(large, "op=round", *lines)).body == npy(torch.ones(300_000))
            wire.send(post(SMALL, "op=round", *lines) + post(SMALL, "op=floor"))
            assert wire.read().body == ROUNDED
            assert wire.read().body == npy(torch.tensor([0.0, -1.0]))
            assert wire.ask(post(SMALL, "op=round", *lines, chunks=[SMALL])).status in (200, 400, 411)


def test_an_absolute_target_is_a_path(server: ServerProcess) -> None:
    """RFC 9112, 3.2.2: a server must accept the absolute form."""
    with Wire(server) as wire:
        assert wire.ask(get("http://a/healthz")).status == 200


@pytest.mark.parametrize("path", ["/quantize?op=round", "/healthz", "/nothing"])
@pytest.mark.parametrize("lines", [(), ("Content-Length: 0",)])
def test_head_has_no_body_and_leaves_the_connection_in_order(server: ServerProcess, path: str, lines: tuple[str, ...]) -> None:
    with Wire(server) as wire:
        answer = wire.ask(get(path, *lines, method="HEAD"), head_only=True)
        assert answer.status in (200, 404, 405)
        answer = wire.ask(post(SMALL))
        assert (answer.status, answer.body) == (200, ROUNDED)


@pytest.mark.parametrize("target", ["*", "/quantize"])
def test_options_is_answered(server: ServerProcess, target: str) -> None:
    with Wire(server) as wire:
        assert wire.ask(get(target, method="OPTIONS")).status in (200, 204, 404, 405)
        assert wire.ask(post(SMALL)).body == ROUNDED


def test_percent_encoded_paths_are_the_same_paths(server: ServerProcess) -> None:
    with Wire(server) as wire:
        assert wire.ask(post(SMALL, path="/%71uantize")).body == ROUNDED


def test_sixteen_thousand_tensors_come_back_and_one_more_does_not(server: ServerProcess) -> None:
    import msgpack

    one = tensor_map(torch.tensor(0.6))
    with Wire(server) as wire:
        for count, status in [(16_384, 200), (16_385, 413)]:
            assert wire.ask(post(msgpack.packb({"x": [one] * count}), media_type=MSGPACK)).status == status


# The log -------------------------------------------------------------------------------------------------


def test_no_request_can_forge_a_line_of_the_log(server: ServerProcess) -> None:
    mark = "forged-by-a-test"
    forged = "%0D%0A%7B%22level%22%3A%22error%22%7D%1B%5B31m%E2%80%A8%85"
    with Wire(server) as wire:
        assert wire.ask(get(f"/{mark}{forged}", f"X-Forwarded-For: {mark}")).status == 404
        wire.ask(post(SMALL, f"op={mark}{forged}"))

    def logged() -> dict[str, object] | None:
        return next((json.loads(line) for line in list(server.lines) if mark in line), None)

    line = eventually(logged, "the request is logged")
    assert line["status"] == 404
    assert line["level"] == "info"
    for one in list(server.lines):
        assert isinstance(json.loads(one), dict)
        assert one.isprintable()


def test_every_request_is_a_line_of_the_log(server: ServerProcess) -> None:
    def lines() -> list[dict[str, object]]:
        return [line for line in map(json.loads, list(server.lines)) if line.get("path") == "/grad" and line.get("status") == 200]

    with Wire(server) as wire:
        before = len(lines())
        for _ in range(3):
            assert wire.ask(post(SMALL * 2, "op=clamp(0,1)", path="/grad")).status == 200
    eventually(lambda: len(lines()) >= before + 3, "three lines")
    line = lines()[-1]
    assert (line["method"], line["format"], line["operator"]) == ("POST", "npy", "clamp")
    assert (line["received_bytes"], line["sent_bytes"]) == (2 * len(SMALL), len(SMALL))
    assert isinstance(line["duration_s"], float)


def test_after_all_this_nothing_is_in_flight(server: ServerProcess) -> None:
    assert server.metric("stequant_in_flight_bytes") == 0
    assert server.metric("stequant_requests_total", status="500") == 0
