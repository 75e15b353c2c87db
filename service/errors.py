"""Every error a caller can meet, with its stable code and HTTP status: each written once.

The family says whose turn it is. A `RequestError` is the caller's to fix, a `CapacityError` may be
sent again later (`retry_after_s`), a `DeviceFault` is the operator's to look into. The server turns
them into problem documents (RFC 9457), the client raises the same classes again by their code.
"""

from __future__ import annotations

from typing import ClassVar


class StequantError(Exception):
    """Base of all errors that stequant raises; `str()` is the detail a person reads."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The server failed; the request may be right"

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.request_id: str | None = None


class RequestError(StequantError, ValueError):
    """The request has to change before it can succeed."""

    code, status, title = "bad_request", 400, "The request is not what HTTP allows"


class CapacityError(StequantError):
    """The same request may succeed later; `retry_after_s` says when to try."""

    code, status, title = "unavailable", 503, "The service cannot take the request now"

    def __init__(self, detail: str, *, retry_after_s: float | None = 1.0) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)


class DeviceFault(CapacityError):
    """The device failed underneath a good request."""

    code, status, title = "device_lost", 503, "The device is not usable"


# 400: bytes that cannot be what their format says ---------------------------------------------------


class BadFraming(RequestError):
    """Headers that HTTP/1.1 forbids: two `Host`, two `Content-Length`, a missing `Host`."""

    code, status, title = "bad_framing", 400, "The request's framing is not valid HTTP/1.1"


class UntrustedHost(RequestError):
    """`Host` is none of the names that the server was told to answer to."""

    code, status, title = "untrusted_host", 400, "The server does not answer to this host name"


class MalformedBody(RequestError):
    """The body is broken, truncated, followed by more, or contradicts itself."""

    code, status, title = "malformed_body", 400, "The body is not what its media type says"


# 401 to 431: HTTP -----------------------------------------------------------------------------------


class Unauthorized(RequestError):
    """No key, or a key that is not known."""

    code, status, title = "unauthorized", 401, "A valid bearer key is needed"


class NotFound(RequestError):
    """There is nothing at this path."""

    code, status, title = "not_found", 404, "There is nothing at this path"


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    code, status, title = "method_not_allowed", 405, "The path does not answer this method"

    def __init__(self, detail: str, *, allow: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.allow = allow


class NotAcceptable(RequestError):
    """No format that the caller accepts can hold the answer."""

    code, status, title = "not_acceptable", 406, "No accepted media type can hold the answer"


class RequestTimeout(RequestError):
    """The request arrived too slowly."""

    code, status, title = "request_timeout", 408, "The request arrived too slowly"


class LengthRequired(RequestError):
    """A body is needed, and neither `Content-Length` nor chunks announce one."""

    code, status, title = "length_required", 411, "The length of the body is not announced"


class BodyTooLarge(RequestError):
    """The body is larger than the server's limit for its format."""

    code, status, title = "body_too_large", 413, "The body is larger than the server allows"


class TooManyTensors(RequestError):
    """More tensors in one call than the server allows."""

    code, status, title = "too_many_tensors", 413, "The call holds more tensors than the server allows"


class UriTooLong(RequestError):
    """The request target is longer than the server allows."""

    code, status, title = "uri_too_long", 414, "The URL is longer than the server allows"


class UnsupportedMediaType(RequestError):
    """`Content-Type` or `Content-Encoding` names nothing that the server reads."""

    code, status, title = "unsupported_media_type", 415, "The server does not read this media type"


class HeadersTooLarge(RequestError):
    """The header section is larger than the server allows."""

    code, status, title = "headers_too_large", 431, "The headers are larger than the server allows"


# 422: well formed, but not allowed ------------------------------------------------------------------


class NotAllowed(RequestError):
    """Family of the 422 errors: the request can be read and asks for something that is not allowed."""

    code, status, title = "not_allowed", 422, "The request asks for something that is not allowed"


class BadExpression(NotAllowed):
    """The syntax of `op` is wrong."""

    code, title = "bad_expression", "The operator expression cannot be read"


class UnknownOperator(NotAllowed):
    """No operator has this name."""

    code, title = "unknown_operator", "No operator has this name"


class ChainTooLong(NotAllowed):
    """The chain has more operators than are allowed."""

    code, title = "chain_too_long", "The chain has too many operators"


class UnknownParameter(NotAllowed):
    """The operator has no such parameter, or one too many was given."""

    code, title = "unknown_parameter", "The operator has no such parameter"


class MissingParameter(NotAllowed):
    """A parameter without a default was not given."""

    code, title = "missing_parameter", "A parameter is missing"


class RepeatedParameter(NotAllowed):
    """A parameter was given twice."""

    code, title = "repeated_parameter", "A parameter was given more than once"


class BadParameter(NotAllowed):
    """A parameter's value is of the wrong type or outside its bounds."""

    code, title = "bad_parameter", "A parameter's value is not allowed"


class ParameterDoesNotFit(NotAllowed):
    """A parameter's value cannot be represented in the dtype it meets."""

    code, title = "parameter_does_not_fit", "A parameter does not fit the dtype of a tensor"


class UnsupportedDtype(NotAllowed):
    """The operators take float16, bfloat16, float32 and float64 only."""

    code, title = "unsupported_dtype", "The dtype is not one the operators take"


class DtypeMismatch(NotAllowed):
    """Two tensors that must agree in dtype do not."""

    code, title = "dtype_mismatch", "Two tensors must agree in dtype"


class ShapeMismatch(NotAllowed):
    """Two tensors that must agree in shape do not, or one does not broadcast to the other."""

    code, title = "shape_mismatch", "Two tensors must agree in shape"


class StructureMismatch(NotAllowed):
    """`x` and `grad_output` differ in count, names or nesting."""

    code, title = "structure_mismatch", "'x' and 'grad_output' must have the same structure"


class BadTensor(NotAllowed):
    """A value stands where a tensor is expected and is none."""

    code, title = "bad_tensor", "A value is not a tensor"


class NotRepresentable(NotAllowed):
    """`output` asks for codes or a mask where the results have none, or where too few of them are codes."""

    code, title = "not_representable", "The results cannot be written in the form that 'output' asks for"


class UnknownOutput(NotAllowed):
    """The model has no output of this name."""

    code, title = "unknown_output", "The model has no such output"


class BadRegion(NotAllowed):
    """A region of shared memory is not there, not allowed, or too small."""

    code, title = "bad_region", "The shared memory cannot be used so"


class EmptyTensor(NotAllowed):
    """An operator that reduces over a tensor met one without elements."""

    code, title = "empty_tensor", "The operator needs at least one element"


class MissingTensor(NotAllowed):
    """A tensor that the call needs is not in the body."""

    code, title = "missing_tensor", "A tensor is missing"


class SurplusTensor(NotAllowed):
    """The body holds a tensor that the call has no use for."""

    code, title = "surplus_tensor", "The body holds a tensor that the call does not use"


class OddArrayCount(NotAllowed):
    """An npy body of /grad must hold pairs of `x` and `grad_output`."""

    code, title = "odd_array_count", "The npy body must hold pairs of arrays"


# 429, 503, 504: later -------------------------------------------------------------------------------


class Overloaded(CapacityError):
    """Too many bytes in flight."""

    code, status, title = "overloaded", 429, "Too much is in flight"


class NotReady(CapacityError):
    """The server is starting, or its device is not ready."""

    code, status, title = "not_ready", 503, "The service is not ready"


class Draining(CapacityError):
    """The server is about to stop and takes no new work."""

    code, status, title = "draining", 503, "The service is draining"


class OutOfMemory(DeviceFault):
    """The device has no memory left for this call."""

    code, status, title = "out_of_memory", 503, "The device has no memory left for this call"


class DeadlineExceeded(CapacityError):
    """The request's deadline passed before it was answered."""

    code, status, title = "deadline_exceeded", 504, "The deadline passed before the answer was ready"


def _tree(cls: type[StequantError]) -> list[type[StequantError]]:
    return [cls, *(error for child in cls.__subclasses__() for error in _tree(child))]


# One class a code: what the client looks up and what OpenAPI lists.
BY_CODE: dict[str, type[StequantError]] = {cls.code: cls for cls in reversed(_tree(StequantError))}
