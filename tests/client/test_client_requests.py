"""What the client puts on the wire and takes from it: framing, memory, addresses, keys."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from rounding_server import RoundingServer, answering, described, npy

from service.client import AsyncClient, Client, ProtocolError
from service.client.calls import PIECE_BYTES, Kind
from service.client.configuration import KEEP_ALIVE_S, configure
from service.errors import MissingTensor
from service.wire import FORMATS
from service.wire.message import Bundle

X = np.float32([0.4, 1.6])
LARGE = np.arange(1_000_000, dtype=np.float32)


class PieceByPiece(httpx.BaseTransport):
    """Keeps the body as it is handed over, unlike `httpx.MockTransport`, and answers in small pieces."""

    def __init__(self, server: RoundingServer, *, announce: bool = True, fail_first: bool = False) -> None:
        self.server = server
        self.announce = announce
        self.fail_first = fail_first
        self.pieces: list[list[memoryview]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Keep the pieces, then let the server answer."""
        assert isinstance(request.stream, httpx.SyncByteStream)
        pieces = [memoryview(piece) for piece in request.stream]
        self.pieces.append(pieces)
        if self.fail_first and len(self.pieces) == 1:
            raise httpx.ReadError("gone")
        whole = httpx.Request(request.method, request.url, headers=request.headers, content=b"".join(pieces))
        answer = self.server(whole)
        if not self.announce:
            del answer.headers["content-length"]
        return httpx.Response(answer.status_code, headers=answer.headers, stream=InSmallPieces(answer.content))


class InSmallPieces(httpx.SyncByteStream):
    """An answer as a network delivers it."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self.content), 1000):
            yield self.content[start : start + 1000]


def address(buffer: object) -> int:
    return np.frombuffer(buffer, np.uint8).ctypes.data  # type: ignore[call-overload]


@pytest.mark.parametrize("wire", ["npy", "msgpack"])
def test_a_body_is_announced_and_never_chunked(wire: str) -> None:
    server = RoundingServer()
    Client(transport=server.transport, format=wire).quantize("round", [X, LARGE])  # type: ignore[arg-type]
    (request,) = server.requests
    assert request.headers["content-length"] == str(len(request.content))
    assert "transfer-encoding" not in request.headers
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("wire", ["npy", "msgpack"])
def test_the_pieces_of_a_large_body_are_the_callers_memory(wire: str) -> None:
    transport = PieceByPiece(RoundingServer())
    Client(transport=transport, format=wire).quantize("round", LARGE)  # type: ignore[arg-type]
    (pieces,) = transport.pieces
    of_x = [piece for piece in pieces if address(LARGE) <= address(piece) < address(LARGE) + LARGE.nbytes]
    assert sum(piece.nbytes for piece in of_x) == LARGE.nbytes
    assert max(piece.nbytes for piece in pieces) <= PIECE_BYTES


def test_many_small_tensors_are_not_many_writes() -> None:
    transport = PieceByPiece(RoundingServer())
    Client(transport=transport).quantize("round", [X] * 1000)
    assert len(transport.pieces[0]) <= 3


def test_a_body_is_sent_again_from_its_beginning() -> None:
    transport = PieceByPiece(RoundingServer(), fail_first=True)
    y = Client(transport=transport, sleep=lambda _: None).quantize("round", LARGE)
    np.testing.assert_array_equal(y, LARGE)
    first, second = transport.pieces
    assert list(map(bytes, first)) == list(map(bytes, second))


@pytest.mark.parametrize("announce", [True, False], ids=["announced", "chunked"])
def test_an_answer_is_received_into_one_piece_of_memory(announce: bool) -> None:
    """An answer without a length, as some proxies make them, is read all the same."""
    y = Client(transport=PieceByPiece(RoundingServer(), announce=announce)).quantize("round", LARGE)
    np.testing.assert_array_equal(y, LARGE)
    assert not y.flags.owndata
    assert y.flags.writeable


def test_an_answer_that_a_proxy_compressed_is_read() -> None:
    zipped = gzip.compress(npy([np.rint(X)]))
    server = RoundingServer([answering(content=zipped, **{"content-encoding": "gzip"})])
    np.testing.assert_array_equal(Client(transport=server.transport).quantize("round", X), [0, 2])


@pytest.mark.parametrize("content_type", ["application/x-npy", "application/vnd.numpy", "Application/X-NPY ; v=1"])
def test_every_name_of_the_format_is_understood(content_type: str) -> None:
    server = RoundingServer([answering(content=npy([X]), content_type=content_type)])
    np.testing.assert_array_equal(Client(transport=server.transport).quantize("round", X), X)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (npy([X.astype(np.float64)]), "dtype float64 and shape"),
        (npy([X.reshape(1, 2)]), r"shape \(1, 2\)"),
        (npy([X[:1]]), r"shape \(1,\)"),
        (npy([X, X]), "cannot be read as npy"),
        (npy([X])[:-1], "cannot be read as npy"),
        (npy([X]) + b"\0", "cannot be read as npy"),
        (b"", "cannot be read as npy"),
        (b"<html>", "cannot be read as npy"),
        (bytes(10_000_000), "announces 10000000 bytes"),
    ],
    ids=["dtype", "rank", "size", "count", "truncated", "trailing", "empty", "other", "huge"],
)
def test_an_answer_that_is_not_one_to_the_call_is_refused(content: bytes, complaint: str) -> None:
    server = RoundingServer([answering(content=content)])
    with pytest.raises(ProtocolError, match=complaint):
        Client(transport=server.transport).quantize("round", X)
    assert len(server.requests) == 1, "asking again would give the same"


@pytest.mark.parametrize("length", ["100", "200", str(10**18)])
def test_an_answer_of_another_length_than_announced_is_refused(length: str) -> None:
    server = RoundingServer([answering(content=npy([X]), **{"content-length": length})])
    with pytest.raises(ProtocolError, match=r"the answer announces|the answer goes on"):
        Client(transport=server.transport).quantize("round", X)


def test_an_endless_answer_is_refused_without_taking_memory_for_it() -> None:
    server = RoundingServer([answering(content=bytes(1_000_000))])
    with pytest.raises(ProtocolError, match="the answer goes on after"):
        Client(transport=PieceByPiece(server, announce=False)).quantize("round", X)


def test_an_answer_in_another_format_is_refused() -> None:
    server = RoundingServer([answering(content=b"{}", content_type="application/json")])
    with pytest.raises(ProtocolError, match=r"is 'application/json', asked for was 'application/x-npy'"):
        Client(transport=server.transport).quantize("round", X)


def test_an_answer_with_other_names_is_refused() -> None:
    client = Client(transport=RoundingServer([lambda request: RoundingServer().computed(request)] * 2).transport)
    assert client.quantize("round", {"a": X})
    other = RoundingServer()

    def renamed(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=other(request).headers, content=other(request).content.replace(b"\xa1a", b"\xa1b"))

    with pytest.raises(ProtocolError, match=r"names \['b'\], expected \['a'\]"):
        Client(transport=RoundingServer([renamed]).transport).quantize("round", {"a": X})


def test_an_answer_that_lacks_a_gradient_is_refused() -> None:
    lacking = b"".join(FORMATS["msgpack"].encode({"grad_x": Bundle.of(described(X))}))
    server = RoundingServer([answering(content=lacking, content_type="application/vnd.msgpack")])
    with pytest.raises(ProtocolError, match=r"holds \['grad_x'\], expected \['grad_w', 'grad_x'\]"):
        Client(transport=server.transport).grad("round", X, X, w=X)


def test_described_bytes_go_in_and_come_out_as_such() -> None:
    """For callers who hold files or bodies: no array library has to know the dtype."""
    client = Client(transport=RoundingServer().transport)
    x, g = (Bundle((described(value), described(value[:1])), names=("b", "a")) for value in (X, 2 * X))
    y = client.exchange("quantize", "round", {"x": x})
    assert {name: (bundle.names, bundle.single) for name, bundle in y.items()} == {"y": (("b", "a"), False)}
    assert [bytes(tensor.data) for tensor in y["y"].tensors] == [np.rint(X).tobytes(), np.rint(X[:1]).tobytes()]
    parameters = {name: Bundle.of(described(np.array(3, np.float32))) for name in "wb"}
    results = client.exchange("grad", "affine_k_bit_quantize(4, w, b)", {"x": x, "grad_output": g} | parameters)
    assert list(results) == ["grad_x", "grad_w", "grad_b"]
    assert bytes(results["grad_x"].tensors[0].data) == (6 * X).tobytes()


@pytest.mark.parametrize(("kind", "missing"), [("quantize", "x"), ("grad", "grad_output")])
def test_an_exchange_without_an_operand_is_refused(kind: Kind, missing: str) -> None:
    with pytest.raises(MissingTensor, match=f"'{missing}' is missing"):
        Client(transport=RoundingServer().transport).exchange(kind, "round", {})


# addresses, keys, closing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "asked"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/quantize"),
        ("https://example.org/", "https://example.org/quantize"),
        ("http://[::1]:80/behind/a/proxy/", "http://[::1]/behind/a/proxy/quantize"),
    ],
)
def test_calls_go_to_the_base_url_and_its_path(base_url: str, asked: str) -> None:
    server = RoundingServer()
    Client(base_url, transport=server.transport).quantize("round", X)
    assert str(server.requests[0].url) == f"{asked}?op=round"


@pytest.mark.parametrize(
    "base_url", ["127.0.0.1:8000", "localhost", "ftp://a", "http://", "http://a?b=c", "http://a#b", "http://a:b:c", ""]
)
def test_an_address_that_is_none_is_refused_at_once(base_url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Client(base_url)


@pytest.mark.parametrize(
    "arguments",
    [{"format": "json"}, {"deadline_s": 0}, {"deadline_s": float("nan")}, {"timeout": 0}, {"timeout": -1}, {"retries": -1}],
    ids=str,
)
def test_an_argument_that_is_not_allowed_is_named(arguments: dict[str, object]) -> None:
    name = "max_attempts" if "retries" in arguments else next(iter(arguments))
    with pytest.raises(ValueError, match=f"{name} is"):
        Client(**arguments)  # type: ignore[arg-type]


def test_a_socket_path_and_a_transport_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        Client(uds="/run/stequant.sock", transport=RoundingServer().transport)
    with pytest.raises(ValueError, match="exclude each other"):
        AsyncClient(uds="/run/stequant.sock", transport=RoundingServer().transport)


def test_idle_connections_are_given_up_before_the_server_does() -> None:
    server_keep_alive_s = 65
    assert server_keep_alive_s / 2 > KEEP_ALIVE_S


def test_the_key_is_a_bearer_and_in_nothing_that_is_printed() -> None:
    server = RoundingServer()
    client = Client(api_key="s3cret", transport=server.transport)
    client.quantize("round", X)
    assert server.requests[0].headers["authorization"] == "Bearer s3cret"
    assert repr(client) == "Client('http://127.0.0.1:8000')"
    asynchronous = AsyncClient(api_key="s3cret", transport=server.transport)
    assert repr(asynchronous) == "AsyncClient('http://127.0.0.1:8000')"
    for owner in (client, asynchronous):
        assert "s3cret" not in "".join(map(repr, vars(owner).values()))


@pytest.mark.parametrize("key", ["two words", "line\n", "cl\u00e9", "tab\t", "\x7f"], ids=ascii)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        Client(api_key=key)
    assert key not in str(caught.value)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        Client("http://me:s3cret@localhost")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "variable", "sent"),
    [(None, "v", "Bearer v"), ("a", "v", "Bearer a"), ("", "v", None), (None, "", None), (None, None, None)],
)
def test_an_argument_goes_before_the_variable(argument: str | None, variable: str | None, sent: str | None) -> None:
    config = configure("http://a", api_key=argument, environment={} if variable is None else {"STEQUANT_API_KEY": variable})
    assert config.http["headers"].get("Authorization") == sent


def test_operators_are_listed() -> None:
    server = RoundingServer()
    assert Client(transport=server.transport).operators() == [{"name": "round"}]
    assert str(server.requests[0].url) == "http://127.0.0.1:8000/operators"
    assert "content-type" not in server.requests[0].headers


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"operators": 1}', b'{"operators": [1]}', b"[" * 100_000, b"\xff"])
def test_a_list_of_operators_that_is_none_is_refused(content: bytes) -> None:
    server = RoundingServer([answering(content=content, content_type="application/json")])
    with pytest.raises(ProtocolError, match="operators"):
        Client(transport=server.transport).operators()


def test_a_client_closes_its_transport_and_can_be_closed_twice() -> None:
    class Closing(httpx.MockTransport):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    transport = Closing(RoundingServer())
    with Client(transport=transport) as client:
        client.quantize("round", X)
    client.close()
    assert transport.closed >= 1
    with pytest.raises(RuntimeError, match="closed"):
        client.quantize("round", X)


def test_neither_torch_nor_a_web_framework_is_needed() -> None:
    """And the key comes from the variable."""
    program = """
import sys
for name in ("torch", "fastapi", "starlette", "uvicorn", "ml_dtypes"):
    sys.modules[name] = None
import httpx
import numpy as np
from service.client import Client
from service.ops import Round

def echo(request):
    assert request.headers["authorization"] == "Bearer of-the-environment"
    return httpx.Response(200, headers={"content-type": request.headers["content-type"]}, content=request.content)

with Client(transport=httpx.MockTransport(echo)) as client:
    y = client.quantize(Round(), np.float32([1, 2]))
assert y.tolist() == [1, 2]
"""
    environment = {**os.environ, "STEQUANT_API_KEY": "of-the-environment"}
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=environment, timeout=60)


def test_torch_is_not_imported_for_those_who_do_not_use_it() -> None:
    program = "import sys, service.client; sys.exit('torch' in sys.modules or 'fastapi' in sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
