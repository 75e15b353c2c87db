"""From arguments to a request, and from its answer to the result: everything about a call but its I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar, cast, get_args
from urllib.parse import quote

from service.client.answers import Answer, expect_success
from service.client.compact import Answered, Codes, Mask, Packed
from service.client.errors import ProtocolError
from service.client.structure import Structure
from service.client.tensors import Array, Sent, Tensors, send
from service.errors import MissingTensor, NotAcceptable, RequestError
from service.ops import Expression
from service.ops.codes import Output
from service.wire import FORMATS, Format, safetensors
from service.wire.message import Bundle, Message

Kind = Literal["quantize", "grad"]
Wire = Literal["npy", "msgpack", "safetensors"]
WIRES = get_args(Wire)
Result = TypeVar("Result")
AnyCodes: TypeAlias = "Codes | Packed | Sequence[Codes] | Sequence[Packed] | Mapping[str, Codes] | Mapping[str, Packed]"
AnyMask: TypeAlias = "Mask | Sequence[Mask] | Mapping[str, Mask]"
Piece = bytes | bytearray | memoryview

PIECE_BYTES = 1024 * 1024
# Smaller parts are sent together: a call with thousands of small tensors is not thousands of writes.
JOINED_BELOW_BYTES = 64 * 1024
# What a code and what an exception may take in a compact answer; the latter are an eighth of the elements, or a few.
MAX_CODE_BYTES, MAX_EXCEPTION_BYTES, FEW_EXCEPTIONS = 8, 16, 64
# What one tensor may take in an answer beside its elements: its dtype, shape, padding and keys.
MAX_DESCRIPTION_BYTES = 4096
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
_OPERANDS = ("x", "grad_output")


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
    """`POST /quantize` of arrays: `y`, in the structure of `x`."""
    structure = Structure.of(x, "x")
    inputs = _send_all(structure, x, "x")
    message = {"x": _bundle(structure, inputs)} | _bundles(_send_own(tensors))

    def read(results: Message) -> Tensors:
        return _restored(structure, inputs, results["y"])

    return exchange("quantize", expression, message, wire, read)


def grad(
    expression: str | Expression, x: Tensors | None, grad_output: Tensors, tensors: Mapping[str, Array], wire: Wire | None
) -> Exchange[tuple[Tensors, dict[str, Array]]]:
    """`POST /grad` of arrays: the gradient in the structure of `x` (`grad_output` where that is None), and those of the tensors."""
    structure = Structure.of(grad_output, "grad_output") if x is None else Structure.of(x, "x")
    outputs = _send_all(structure, grad_output, "grad_output")
    inputs = outputs if x is None else _send_all(structure, x, "x")
    own = _send_own(tensors)
    message = {} if x is None else {"x": _bundle(structure, inputs)}
    message |= {"grad_output": _bundle(structure, outputs)} | _bundles(own)

    def read(results: Message) -> tuple[Tensors, dict[str, Array]]:
        grads = {name: one.kind.restore(results[f"grad_{name}"].tensors[0]) for name, one in own.items()}
        return _restored(structure, inputs, results["grad_x"]), grads

    return exchange("grad", expression, message, wire, read)


def exchange(
    kind: Kind, expression: str | Expression, message: Message, wire: Wire | None, read: Callable[[Message], Result]
) -> Exchange[Result]:
    """`POST /quantize` or `/grad` of described bytes; `read` gets what came back, checked against what was sent."""
    form = _format(wire, message)
    expected = _expected(kind, message)

    def read_answer(answer: Answer) -> Result:
        expect_success(answer)
        return read(_results(answer, form, expected))

    target = f"/{kind}?op={_quoted(expression)}"
    return _posted(target, form, form, tuple(form.encode(message)), read_answer, _max_answer_bytes(expected))


def form_of(output: Output | Array, tensors: Mapping[str, Array], *compact: Output) -> tuple[Output, dict[str, Array]]:
    """The form that a caller asks for, and his tensors; one that is no text is a tensor that his expression calls `output`.

    Raises `ValueError` for a form that is not among these, nor 'values'.
    """
    if not isinstance(output, str):
        return "values", {**tensors, "output": output}
    if output not in ("values", *compact):
        raise ValueError(f"output is {output!r}; allowed: {', '.join(map(repr, ('values', *compact)))}")
    return output, dict(tensors)


def quantize_compactly(
    expression: str | Expression, x: Tensors, tensors: Mapping[str, Array], wire: Wire | None, output: Output
) -> Exchange[AnyCodes]:
    """`POST /quantize` of arrays: the codes or packed codes of `y`, in the structure of `x`."""
    structure = Structure.of(x, "x")
    inputs = _send_all(structure, x, "x")
    own = {name: bundle.tensors[0] for name, bundle in _bundles(_send_own(tensors)).items()}
    message = {"x": _bundle(structure, inputs)} | {name: Bundle.of(tensor) for name, tensor in own.items()}

    def read(answered: Answered, names: Sequence[str]) -> AnyCodes:
        of = answered.packed if output == "packed" else answered.codes
        return cast(AnyCodes, structure.join(of(name, sent, own) for name, sent in zip(names, inputs, strict=True)))

    return _compact("quantize", expression, message, wire, output, read)


def mask(
    expression: str | Expression,
    x: Tensors | None,
    grad_output: Tensors | None,
    tensors: Mapping[str, Array],
    wire: Wire | None,
) -> Exchange[AnyMask]:
    """`POST /grad` of arrays: the mask outside which the gradient is 0, in the structure of `x`; it needs nothing else."""
    if x is None or grad_output is not None or tensors:
        raise TypeError("a mask is that of x alone: give x, and neither grad_output, which is for Mask.apply, nor other tensors")
    structure = Structure.of(x, "x")
    inputs = _send_all(structure, x, "x")

    def read(answered: Answered, names: Sequence[str]) -> AnyMask:
        return cast(AnyMask, structure.join(answered.mask(name, sent) for name, sent in zip(names, inputs, strict=True)))

    return _compact("grad", expression, {"x": _bundle(structure, inputs)}, wire, "mask", read)


def _compact(
    kind: Kind,
    expression: str | Expression,
    message: Message,
    wire: Wire | None,
    output: Output,
    read: Callable[[Answered, Sequence[str]], Result],
) -> Exchange[Result]:
    """A call for a compact answer, which always comes as safetensors; `read` gets it, and what its tensors are called."""
    form, asked = _format(wire, message), FORMATS["safetensors"]
    operand = message["x"]
    count = len(operand.tensors)
    # What travels in a format without names comes back as if it had none.
    own_names, single = (operand.names, operand.single) if form.holds_names else (None, count == 1)
    names = safetensors.names("y" if kind == "quantize" else "grad_x", own_names, count, single=single)
    elements = sum(tensor.size for tensor in operand.tensors)

    def read_answer(answer: Answer) -> Result:
        expect_success(answer)
        _check_media_type(answer, asked)
        return read(Answered(answer.body, 3 * count), names)

    most_bytes = elements * MAX_CODE_BYTES + (elements // 8 + FEW_EXCEPTIONS * count) * MAX_EXCEPTION_BYTES
    most_bytes += sum(5 * len(name.encode(errors="replace")) for name in names) + MAX_DESCRIPTION_BYTES * (count + 1)
    target = f"/{kind}?op={_quoted(expression)}&output={output}"
    return _posted(target, form, asked, tuple(form.encode(message)), read_answer, most_bytes)


def _posted(
    target: str,
    form: Format,
    asked: Format,
    body: tuple[bytes | memoryview, ...],
    read: Callable[[Answer], Result],
    max_answer_bytes: int,
) -> Exchange[Result]:
    headers = {
        "Accept": asked.media_type,
        "Content-Type": form.media_type,
        # With a length httpx does not send the pieces as chunks.
        "Content-Length": str(sum(map(len, body))),
    }
    return Exchange("POST", target, read, headers, body, max_answer_bytes=max_answer_bytes)


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


# Arrays and messages ---------------------------------------------------------------------------------


def _send_all(structure: Structure, value: Tensors, field: str) -> tuple[Sent, ...]:
    return tuple(send(tensor, label) for label, tensor in structure.split(value, field))


def _send_own(tensors: Mapping[str, Array]) -> dict[str, Sent]:
    return {name: send(tensor, name) for name, tensor in tensors.items()}


def _bundle(structure: Structure, sent: tuple[Sent, ...]) -> Bundle:
    return Bundle(tuple(one.wire for one in sent), structure.names, single=structure.kind == "single")


def _bundles(sent: Mapping[str, Sent]) -> dict[str, Bundle]:
    return {name: Bundle.of(one.wire) for name, one in sent.items()}


def _restored(structure: Structure, sent: tuple[Sent, ...], results: Bundle) -> Tensors:
    return structure.join(one.kind.restore(tensor) for one, tensor in zip(sent, results.tensors, strict=True))


# Messages and bytes ----------------------------------------------------------------------------------


def _format(wire: Wire | None, message: Message) -> Format:
    """The format of a call: npy where it can hold it, for it leaves every tensor aligned and in its order."""
    reasons = {
        "tensor parameters": not set(message) <= set(_OPERANDS),
        "a call without 'x'": "x" not in message,
        "an empty list": not all(bundle.tensors for bundle in message.values()),
        "names": any(bundle.names is not None for bundle in message.values()),
    }
    form = FORMATS[wire or ("msgpack" if any(reasons.values()) else "npy")]
    # The names of `x` may stay here: its values travel in order and come back in order.
    lacking = [reason for reason, holds in reasons.items() if holds and reason != "names"]
    if form.holds_names:
        lacking = ["an empty list"] if form.name == "safetensors" and reasons["an empty list"] else []
    if lacking:
        raise NotAcceptable(f"{form.name} cannot hold {lacking[0]}; leave the client's format out, or choose 'msgpack'")
    return form


def _expected(kind: Kind, message: Message) -> Message:
    """What the answer holds: results of the dtypes, shapes and names of what is sent here."""
    operand = message.get("x") if kind == "quantize" else message.get("x", message.get("grad_output"))
    if operand is None:
        raise MissingTensor(f"{'x' if kind == 'quantize' else 'grad_output'!r} is missing")
    if kind == "quantize":
        return {"y": operand}
    return {"grad_x": operand} | {f"grad_{name}": bundle for name, bundle in message.items() if name not in _OPERANDS}


def _results(answer: Answer, form: Format, expected: Message) -> Message:
    _check_media_type(answer, form)
    try:
        message = form.decode(answer.body, tuple(expected), max(len(expected), _count(expected)))
    except RequestError as error:
        raise ProtocolError(f"the answer cannot be read as {form.name}: {error.detail}") from error
    if set(message) != set(expected):
        raise ProtocolError(f"the answer holds {sorted(message)}, expected {sorted(expected)}")
    return {name: _checked(name, message[name], like) for name, like in expected.items()}


def _check_media_type(answer: Answer, form: Format) -> None:
    if answer.media_type not in form.media_types:
        raise ProtocolError(f"the answer is {answer.media_type or 'without Content-Type'!r}, asked for was {form.media_type!r}")


def _checked(name: str, results: Bundle, like: Bundle) -> Bundle:
    """The results in the order and with the names of what they are results of."""
    tensors = results.tensors
    if len(tensors) != len(like.tensors):
        raise ProtocolError(f"{name!r} has {len(tensors)} tensors, expected {len(like.tensors)}")
    if results.names is not None:
        # safetensors knows no lists: their tensors are called by their numbers.
        names = tuple(map(str, range(len(tensors)))) if like.names is None and not like.single else like.names or ()
        if set(results.names) != set(names):
            raise ProtocolError(f"{name!r} has the names {sorted(results.names)}, expected {sorted(names)}")
        by_name = dict(zip(results.names, tensors, strict=True))
        tensors = tuple(by_name[key] for key in names)
    for got, sent in zip(tensors, like.tensors, strict=True):
        if (got.dtype, got.shape) != (sent.dtype, sent.shape):
            raise ProtocolError(
                f"{name!r} has a tensor of dtype {got.dtype.name} and shape {got.shape}, "
                f"expected {sent.dtype.name} and {sent.shape}"
            )
    return Bundle(tensors, like.names, like.single)


def _count(message: Message) -> int:
    return sum(len(bundle.tensors) for bundle in message.values())


def _max_answer_bytes(expected: Message) -> int:
    elements = sum(len(tensor.data) for bundle in expected.values() for tensor in bundle.tensors)
    names = sum(len(name.encode(errors="replace")) for bundle in expected.values() for name in bundle.names or ())
    return elements + names + MAX_DESCRIPTION_BYTES * (_count(expected) + 1)


def _quoted(expression: str | Expression) -> str:
    if not isinstance(expression, str | Expression):
        raise TypeError(f"the expression is of type {type(expression).__name__}; allowed: a str or an operator of service.ops")
    return quote(str(expression), safe="", errors="replace")
