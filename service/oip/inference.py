"""Calls of the models, from the head of a request to its answer.

The head says little of such a call: what is to be computed stands in the JSON of the body. It is read first, on the
event loop where it is short; then the tensors in shared memory are counted as if they had come over the socket.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from service import head as heads
from service import wire
from service.answer import CALLER_GONE, Answer
from service.call import Call, plan
from service.core import (
    SMALL_BYTES,
    SMALL_JSON_BYTES,
    Admitted,
    Core,
    check_is_post,
    check_length,
    instant_bytes,
    too_late,
)
from service.errors import BodyTooLarge
from service.head import Head
from service.job import Job
from service.oip import request as requests
from service.oip import response as responses
from service.oip.models import MODELS, VERSION, Model, outputs_of
from service.oip.regions import Bytes, Regions
from service.oip.request import InferRequest
from service.oip.statistics import Statistics, Times
from service.wire.message import Bundle, Message, WireTensor

# The paths on which each model is called, as routes are written: a metric's label must not depend on what callers send.
ROUTES = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
_JSON = wire.FORMATS["json"]


class Format(NamedTuple):
    """By what name the format is counted."""

    name: str


OIP = Format("oip")


class InferTerms(NamedTuple):
    """What the head says of a call: its model, and how many bytes of the body are JSON, None if all are."""

    service: OpenInference
    model: Model
    json_bytes: int | None
    path: str
    limit_bytes: int
    length: int | None
    timeout_s: float | None
    format: Format = OIP
    # What a call costs is not known before its JSON is read.
    instant_bytes: float = -1.0

    @property
    def operator(self) -> str:
        """The label under which the call is counted."""
        return self.model.label

    async def answer(self, job: Job, body: memoryview, is_wanted: Callable[[], bool]) -> Answer:
        """The answer; raises the errors of the service."""
        return await self.service.answer(job, self, body, is_wanted)


class Work(NamedTuple):
    """A call that was read and found right. `sources` are to be read into their buffers before it is computed."""

    model: Model
    request: InferRequest
    call: Call
    sources: tuple[tuple[Bytes, memoryview], ...]
    outputs: tuple[responses.Placed, ...]
    is_small: bool

    @property
    def touches_shared_memory(self) -> bool:
        """Whether any tensor comes from there or goes there."""
        return bool(self.sources) or any(output.target is not None for output in self.outputs)

    @property
    def has_binary_answer(self) -> bool:
        """Whether the answer is sent from the memory of the call."""
        return any(output.wanted.binary and output.target is None for output in self.outputs)

    def load(self) -> None:
        """Read what is in shared memory."""
        for source, buffer in self.sources:
            source.read(buffer)

    def answer(self, message: Message) -> Answer:
        """The answer, after what belongs into shared memory was written there."""
        results = [(output, message[output.wanted.name].tensors[0]) for output in self.outputs]
        for output, tensor in results:
            if output.target is not None:
                output.target.write(tensor.data)
        return responses.encode(self.model, self.request, results)


class OpenInference:
    """The protocol's state beside the core's: regions of shared memory, and statistics."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.regions = Regions(core.settings.shared_memory_names or ())
        self.statistics = Statistics(MODELS)
        self._models = {
            route.format(model=model.name, version=VERSION): (route, model) for route in ROUTES for model in MODELS.values()
        }

    @property
    def routes(self) -> Mapping[str, str]:
        """The paths of calls, each with the label of its route."""
        return MappingProxyType({path: route for path, (route, _) in self._models.items()})

    def terms(self, head: Head, found: heads.Fields) -> InferTerms:
        """Check the head of a call in the order method, coding, length, length of the JSON."""
        _, model = self._models[head.path]
        check_is_post(head)
        heads.check_encoding(found)
        heads.check_length_is_announced(head, found)
        settings = self.core.settings
        json_bytes = requests.json_length(head)
        limit_bytes = settings.limit_of("json" if json_bytes is None else OIP.name)
        check_length(found.content_length or 0, limit_bytes, OIP if json_bytes is not None else _JSON)
        requests.check_json_length(json_bytes or 0, settings.limit_of("json"))
        return InferTerms(self, model, json_bytes, head.path, limit_bytes, found.content_length, self.core.timeout_s(found))

    async def answer(self, job: Job, terms: InferTerms, body: memoryview, is_wanted: Callable[[], bool]) -> Answer:
        """The answer to a call; `CALLER_GONE` when it is not wanted any more."""
        answer = None
        try:
            answer = await self._answer(job, terms, body, is_wanted)
        finally:
            job.ended = time.perf_counter()
            if answer is None or answer is CALLER_GONE:
                self.statistics.failed(terms.model, _ns(job.ended - job.started))
        return answer

    async def _answer(self, job: Job, terms: InferTerms, body: memoryview, is_wanted: Callable[[], bool]) -> Answer:
        clock = _Clock(terms, job)
        request = await self._read(terms, body)
        clock.has_read()
        if not is_wanted():
            return CALLER_GONE  # before anything is reserved that nobody would release
        work = self._work(job, terms, body, request)
        engine = self.core.engine
        if not work.is_small:
            answer = await engine.submit(lambda: self._run(clock, work) if is_wanted() else CALLER_GONE)
        elif engine.device.small_calls_are_instant or work.touches_shared_memory:
            answer = self._run(clock, work)
        else:
            clock.begin()
            message = await engine.compute(work.call)
            clock.has_computed()
            answer = work.answer(message)
        if answer is not CALLER_GONE:
            self.statistics.succeeded(terms.model, clock.times())
            if not work.has_binary_answer:
                for _, buffer in work.sources:
                    self.core.pool.give(buffer)
        return answer

    async def _read(self, terms: InferTerms, body: memoryview) -> InferRequest:
        def read() -> InferRequest:
            return requests.read(body, terms.json_bytes, self.core.settings.max_tensors)

        json_bytes = body.nbytes if terms.json_bytes is None else terms.json_bytes
        return read() if json_bytes <= SMALL_JSON_BYTES else await self.core.engine.submit(read)

    def _work(self, job: Job, terms: InferTerms, body: memoryview, request: InferRequest) -> Work:
        """Check the call as a whole, and reserve what its tensors in shared memory need."""
        model, settings = terms.model, self.core.settings
        expression = model.expression(request.parameters, frozenset(one.name for one in request.inputs))
        located = {one.name: self.regions.locate(one.shared) for one in request.inputs if one.shared is not None}
        nbytes = body.nbytes + request.shared_bytes
        if nbytes > settings.max_body_bytes:
            raise BodyTooLarge(f"the call has {nbytes} bytes, those in shared memory included; allowed: {settings.max_body_bytes}")
        self.core.reserve(job, request.shared_bytes)
        buffers = {name: self.core.pool.take(source.byte_size) for name, source in located.items()}
        message = {one.name: Bundle.of(_filled(one.tensor, buffers.get(one.name))) for one in request.inputs}
        call = plan(model.kind, expression, message)
        outputs = responses.placed(request, _sizes(call), self.regions, settings.max_json_bytes)
        has_json = request.has_json_data or any(output.as_json for output in outputs)
        limit_bytes = instant_bytes(call.kind, expression, call.output, (_JSON,) if has_json else ())
        sources = tuple((located[name], buffer) for name, buffer in buffers.items())
        work = Work(model, request, call, sources, outputs, is_small=nbytes <= limit_bytes)
        copied_bytes = sum(output.target.byte_size for output in outputs if output.target is not None) + request.shared_bytes
        return work._replace(is_small=work.is_small and copied_bytes <= SMALL_BYTES)

    def _run(self, clock: _Clock, work: Work) -> Answer:
        clock.begin()
        work.load()
        clock.has_loaded()
        message = self.core.engine.run(work.call)
        clock.has_computed()
        return work.answer(message)


class _Clock:
    """When the stages of a call began, in seconds of `time.perf_counter`."""

    def __init__(self, terms: Admitted, job: Job) -> None:
        self._terms = terms
        self._job = job
        self._read_at = self._loaded_at = self._computed_at = 0.0

    def has_read(self) -> None:
        """The JSON was read."""
        self._read_at = time.perf_counter()

    def begin(self) -> None:
        """A thread has time for the call; `DeadlineExceeded` when that is too late."""
        self._job.began = self._loaded_at = time.perf_counter()
        if self._job.began > self._job.deadline:
            raise too_late(self._terms)

    def has_loaded(self) -> None:
        """All tensors are there."""
        self._loaded_at = time.perf_counter()

    def has_computed(self) -> None:
        """The results are there."""
        self._computed_at = time.perf_counter()

    def times(self) -> Times:
        """The stages of a call that is answered now."""
        job, now = self._job, time.perf_counter()
        reading_s = (self._read_at - job.received) + (self._loaded_at - job.began)
        return Times(
            _ns(now - job.started),
            _ns(job.began - self._read_at),
            _ns(reading_s),
            _ns(self._computed_at - self._loaded_at),
            _ns(now - self._computed_at),
        )


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


def _filled(tensor: WireTensor, buffer: memoryview | None) -> WireTensor:
    return tensor if buffer is None else tensor.like(buffer)


def _sizes(call: Call) -> dict[str, int]:
    """The bytes of each tensor of the answer."""
    tensors = (call.operand.tensors[0], *call.tensors.values())
    # Tensor parameters are answered by their gradients, where there are any.
    names = outputs_of(call.kind, tuple(call.tensors))
    return {name: tensor.data.nbytes for name, tensor in zip(names, tensors, strict=False)}
