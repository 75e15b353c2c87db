"""From arguments to a request, and from its answer to the result: everything about a call but its I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, Literal, TypeVar
from urllib.parse import quote

from service.client.answers import Answer, expect_success
from service.client.errors import ProtocolError
from service.client.structure import Structure
from service.client.tensors import Array, Sent, Tensors, send
from service.errors import NotAcceptable, RequestError
from service.ops import Expression
from service.wire import FORMATS, Format
from service.wire.message import Bundle

Wire = Literal["npy", "msgpack"]
Result = TypeVar("Result")
Piece = bytes | bytearray | memoryview

PIECE_BYTES = 1024 * 1024
# Smaller parts are sent together: a call with thousands of small tensors is not thousands of writes.
JOINED_BELOW_BYTES = 64 * 1024
# What one tensor may take in an answer beside its elements: its dtype, shape, padding and keys.
MAX_DESCRIPTION_BYTES = 4096
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Exchange(Generic[Result]):
    """One request, which can be sent any number of times, and how its answer is read."""

    method: Literal["GET", "POST"]
    target: str
    read: Callable[[Answer], Result]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: tuple[bytes | memoryview, ...] = ()
    max_answer_bytes: int = MAX_DOCUMENT_BYTES

    def pieces(self) -> Iterator[Piece]:
        """The body, piece by piece, from its beginning; slices of the callers' tensors, not copies."""
        together = bytearray()
        for part in self.body:
            if len(part) < JOINED_BELOW_BYTES:
                together += part
            if together and (len(together) >= JOINED_BELOW_BYTES or len(part) >= JOINED_BELOW_BYTES):
                yield together
                together = bytearray()
            if len(part) >= JOINED_BELOW_BYTES:
                view = memoryview(part)
                for start in range(0, len(view), PIECE_BYTES):
                    yield view[start : start + PIECE_BYTES]
        if together:
            yield together


def quantize(expression: str | Expression, x: Tensors, tensors: Mapping[str, Array], wire: Wire | None) -> Exchange[Tensors]:
    """`POST /quantize`: `y`, in the structure of `x`."""
    structure = Structure.of(x, "x")
    form = _format(wire, structure, tensors)
    sent = _send_all(structure.split(x, "x"))
    own = _send_own(tensors)
    return _post(
        "/quantize",
        expression,
        form,
        message={"x": _bundle(structure, sent)} | {name: Bundle.of(one.wire) for name, one in own.items()},
        expected={"y": _Expected(structure, sent)},
        read=lambda results: results["y"],
    )


def grad(
    expression: str | Expression, x: Tensors | None, grad_output: Tensors, tensors: Mapping[str, Array], wire: Wire | None
) -> Exchange[tuple[Tensors, dict[str, Array]]]:
    """`POST /grad`: the gradient in the structure of `x` (of `grad_output` where `x` is None), and those of the tensors."""
    structure = Structure.of(grad_output, "grad_output") if x is None else Structure.of(x, "x")
    form = _format(wire, structure, tensors, lacks_x=x is None)
    outputs = _send_all(structure.split(grad_output, "grad_output"))
    inputs = outputs if x is None else _send_all(structure.split(x, "x"))
    own = _send_own(tensors)
    message = {} if x is None else {"x": _bundle(structure, inputs)}
    message["grad_output"] = _bundle(structure, outputs)
    message |= {name: Bundle.of(one.wire) for name, one in own.items()}
    single = Structure("single", 1)
    return _post(
        "/grad",
        expression,
        form,
        message=message,
        expected={"grad_x": _Expected(structure, inputs)}
        | {f"grad_{name}": _Expected(single, (one,)) for name, one in own.items()},
        read=lambda results: (results["grad_x"], {name: results[f"grad_{name}"] for name in own}),  # type: ignore[misc]
    )


def operators() -> Exchange[list[dict[str, object]]]:
    """`GET /operators`."""

    def read(answer: Answer) -> list[dict[str, object]]:
        expect_success(answer)
        try:
            listed = json.loads(bytes(answer.body))["operators"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProtocolError("the answer to /operators is not a JSON object with the key 'operators'") from error
        if not (isinstance(listed, list) and all(isinstance(operator, dict) for operator in listed)):
            raise ProtocolError("'operators' is not a list of objects")
        return listed

    return Exchange("GET", "/operators", read, {"Accept": "application/json"})


def probe(path: Literal["/healthz", "/readyz"]) -> Exchange[None]:
    """`GET /healthz` or `/readyz`: returns for a 200."""
    return Exchange("GET", path, expect_success)


# A tensor call ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Expected:
    """What an answer has to hold under one name: results of these dtypes and shapes, in this structure."""

    structure: Structure
    like: tuple[Sent, ...]

    def read(self, name: str, bundle: Bundle) -> Tensors:
        """The results as the caller gets them; `ProtocolError` where they are not what the call asked for."""
        tensors = bundle.tensors
        if len(tensors) != len(self.like):
            raise ProtocolError(f"{name!r} has {len(tensors)} tensors, expected {len(self.like)}")
        if bundle.names is not None:
            if set(bundle.names) != set(self.structure.names or ()):
                raise ProtocolError(f"{name!r} has the names {sorted(bundle.names)}, expected {self.structure}")
            by_name = dict(zip(bundle.names, tensors, strict=True))
            tensors = tuple(by_name[key] for key in self.structure.names or ())
        for tensor, like in zip(tensors, self.like, strict=True):
            if (tensor.dtype, tensor.shape) != (like.wire.dtype, like.wire.shape):
                raise ProtocolError(
                    f"{name!r} has a tensor of dtype {tensor.dtype.name} and shape {tensor.shape}, "
                    f"expected {like.wire.dtype.name} and {like.wire.shape}"
                )
        return self.structure.join(like.kind.restore(tensor) for tensor, like in zip(tensors, self.like, strict=True))


def _format(wire: Wire | None, structure: Structure, tensors: Mapping[str, Array], *, lacks_x: bool = False) -> Format:
    """The format of a call: npy where it can hold it, for it leaves every tensor aligned and in its order."""
    reasons = {
        "tensor parameters": bool(tensors),
        "a call without 'x'": lacks_x,
        "an empty list": structure.count == 0,
        "names": structure.kind == "dict",
    }
    form = FORMATS[wire or ("msgpack" if any(reasons.values()) else "npy")]
    # The names of `x` may stay here: its values travel in order and come back in order.
    lacking = [reason for reason, holds in reasons.items() if holds and reason != "names"]
    if lacking and not form.holds_names:
        raise NotAcceptable(f"{form.name} cannot hold {lacking[0]}; leave the client's format out, or choose 'msgpack'")
    return form


def _send_all(labelled: list[tuple[str, Array]]) -> tuple[Sent, ...]:
    return tuple(send(value, label) for label, value in labelled)


def _send_own(tensors: Mapping[str, Array]) -> dict[str, Sent]:
    return {name: send(value, name) for name, value in tensors.items()}


def _bundle(structure: Structure, sent: tuple[Sent, ...]) -> Bundle:
    return Bundle(tuple(one.wire for one in sent), structure.names, single=structure.kind == "single")


def _post(
    path: str,
    expression: str | Expression,
    form: Format,
    *,
    message: Mapping[str, Bundle],
    expected: Mapping[str, _Expected],
    read: Callable[[dict[str, Tensors]], Result],
) -> Exchange[Result]:
    body = tuple(form.encode(message))

    def read_answer(answer: Answer) -> Result:
        expect_success(answer)
        return read(_results(answer, form, expected))

    return Exchange(
        "POST",
        f"{path}?op={_quoted(expression)}",
        read_answer,
        {
            "Accept": form.media_type,
            "Content-Type": form.media_type,
            # With a length httpx does not send the pieces as chunks.
            "Content-Length": str(sum(map(len, body))),
        },
        body,
        max_answer_bytes=_max_answer_bytes(expected),
    )


def _results(answer: Answer, form: Format, expected: Mapping[str, _Expected]) -> dict[str, Tensors]:
    if answer.media_type not in form.media_types:
        raise ProtocolError(f"the answer is {answer.media_type or 'without Content-Type'!r}, asked for was {form.media_type!r}")
    try:
        message = form.decode(answer.body, tuple(expected), max(len(expected), sum(len(one.like) for one in expected.values())))
    except RequestError as error:
        raise ProtocolError(f"the answer cannot be read as {form.name}: {error.detail}") from error
    if set(message) != set(expected):
        raise ProtocolError(f"the answer holds {sorted(message)}, expected {sorted(expected)}")
    return {name: one.read(name, message[name]) for name, one in expected.items()}


def _max_answer_bytes(expected: Mapping[str, _Expected]) -> int:
    sent = chain.from_iterable(one.like for one in expected.values())
    elements = sum(len(one.wire.data) + MAX_DESCRIPTION_BYTES for one in sent)
    names = sum(len(name.encode(errors="replace")) for one in expected.values() for name in one.structure.names or ())
    return elements + names + MAX_DESCRIPTION_BYTES


def _quoted(expression: str | Expression) -> str:
    if not isinstance(expression, str | Expression):
        raise TypeError(f"the expression is of type {type(expression).__name__}; allowed: a str or an operator of service.ops")
    return quote(str(expression), safe="", errors="replace")
