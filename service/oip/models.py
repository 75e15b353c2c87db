"""The models: each operator is one, its gradient another; and two whose parameter is a chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from service.call import Kind, fields
from service.dtypes import DTYPES, DType
from service.errors import BadParameter, MissingParameter, NotFound, UnknownParameter, UnsupportedDtype
from service.head import parameter_value
from service.ops import REGISTRY, Expression, Operator, parse
from service.ops.expression import build
from service.ops.parameters import Value, allowed_values, type_name
from service.wire import json

VERSION = "1"
PLATFORM = "stequant"
CHAIN = "chain"

# The protocol's names of the dtypes.
DATATYPES: dict[str, DType] = {
    "FP16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
    "FP32": DTYPES["float32"],
    "FP64": DTYPES["float64"],
}
DATATYPE_OF: dict[DType, str] = {dtype: name for name, dtype in DATATYPES.items()}
# A model's documents name one datatype for each tensor; the others are taken as well.
_DESCRIBED = "FP32"

Document = dict[str, json.Value]


class Model(NamedTuple):
    """An operator, or any chain where `operator` is None, applied as `kind` says."""

    name: str
    kind: Kind
    operator: type[Operator] | None

    @property
    def label(self) -> str:
        """The operator under which its calls are counted."""
        return CHAIN if self.operator is None else self.operator.name

    @property
    def tensor_parameters(self) -> tuple[str, ...]:
        """The parameters that may be tensors; a chain names its tensors as it likes."""
        cls = self.operator
        return () if cls is None else tuple(name for name in cls.parameters() if type_name(cls, name) == "float or tensor")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that a call may hold, those that are named by a chain left out."""
        return (*fields(self.kind), *self.tensor_parameters)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that an answer may hold, as far as they are known without a call."""
        return outputs_of(self.kind, self.tensor_parameters)

    def expression(self, parameters: Mapping[str, json.Value], inputs: frozenset[str]) -> Expression:
        """What a call with these parameters and these inputs asks for.

        A parameter that may be a tensor is one where an input has its name. Raises what the query string of
        `/quantize` would be refused with.
        """
        if self.operator is None:
            return _chain(parameters)
        known = self.operator.parameters()
        keywords = [(key, _value(key, value) if key in known else "") for key, value in parameters.items()]
        tensors = [(name, name) for name in self.tensor_parameters if name in inputs and parameters.get(name) != name]
        return build(self.operator.name, keywords=[*keywords, *tensors])


def outputs_of(kind: Kind, tensors: tuple[str, ...]) -> tuple[str, ...]:
    """The tensors that a call with these tensor parameters is answered with."""
    return ("y",) if kind == "quantize" else ("grad_x", *(f"grad_{name}" for name in tensors))


def _models() -> dict[str, Model]:
    named: dict[str, type[Operator] | None] = {**REGISTRY, CHAIN: None}
    both = ((Model(name, "quantize", cls), Model(f"{name}.grad", "grad", cls)) for name, cls in named.items())
    return {model.name: model for pair in both for model in pair}


MODELS: dict[str, Model] = _models()


def find(name: str, version: str = VERSION) -> Model:
    """The model of this name and version; `NotFound` lists what there is."""
    if name not in MODELS:
        raise NotFound(f"there is no model {name[:80]!r}; there are: {', '.join(MODELS)}")
    if version != VERSION:
        raise NotFound(f"model {name!r} has no version {version[:80]!r}; it has one: {VERSION}")
    return MODELS[name]


def datatype(name: str, where: str) -> DType:
    """The dtype that the protocol calls so; `UnsupportedDtype` names the four that are taken."""
    try:
        return DATATYPES[name]
    except KeyError:
        raise UnsupportedDtype(f"{where} is {name[:80]!r}; allowed: {', '.join(DATATYPES)}") from None


# Parameters ------------------------------------------------------------------------------------------


def _chain(parameters: Mapping[str, json.Value]) -> Expression:
    for key in parameters:
        if key != "op":
            raise UnknownParameter(f"the models of chains have no parameter {key[:80]!r}; allowed: 'op' (an expression)")
    text = parameters.get("op")
    if text is None:
        raise MissingParameter("the request's parameters have no 'op'; it is an expression: clamp(0, 1) | k_bit_quantize(4)")
    if not isinstance(text, str):
        raise BadParameter(f"parameter 'op' is {str(text)[:80]}; allowed: an expression, as a string")
    return parse(text)


def _value(key: str, value: json.Value) -> Value:
    """A parameter as the query string would give it: its numbers are JSON's, and strings may hold `inf` or a name."""
    if isinstance(value, str):
        return parameter_value(key, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadParameter(f"parameter {key!r} is {_shown(value)}; allowed: a number, or a string: 'inf', '-inf', a tensor's name")
    return parameter_value(key, repr(value))


def _shown(value: json.Value) -> str:
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else "no number"


# Documents -------------------------------------------------------------------------------------------


def metadata(model: Model) -> Document:
    """`GET /v2/models/{model}`."""
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [_tensor_metadata(name) for name in model.inputs],
        "outputs": [_tensor_metadata(name) for name in model.outputs],
    }


def configuration(model: Model) -> Document:
    """`GET /v2/models/{model}/config`, in the words of Triton's model configuration; `parameters` says what they may be."""
    needed = {"x"} if model.kind == "quantize" else {"grad_output"}
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"all": {}},
        "max_batch_size": 0,
        "input": [{**_tensor_configuration(name), "optional": name not in needed} for name in model.inputs],
        "output": [_tensor_configuration(name) for name in model.outputs],
        "parameters": {name: {"string_value": text} for name, text in _parameters(model).items()},
    }


def index(*, ready: bool) -> list[Document]:
    """`POST /v2/repository/index`."""
    state = {"state": "READY", "reason": ""} if ready else {"state": "UNAVAILABLE", "reason": "the device is not ready"}
    return [{"name": name, "version": VERSION, **state} for name in MODELS]


def _tensor_metadata(name: str) -> Document:
    return {"name": name, "datatype": _DESCRIBED, "shape": [-1]}


def _tensor_configuration(name: str) -> Document:
    return {"name": name, "data_type": f"TYPE_{_DESCRIBED}", "dims": [-1]}


def _parameters(model: Model) -> dict[str, str]:
    cls = model.operator
    if cls is None:
        return {"op": "an expression: clamp(0, 1) | k_bit_quantize(4)"}
    return {
        name: allowed_values(cls, name) + ("" if field.is_required() else f"; default {field.default}")
        for name, field in cls.parameters().items()
    }
