"""From a request's head and body to its answer, whichever way they came in.

A way in (the ASGI application, the protocol class) makes a `job`, calls `admit` with the head, reads the
body into memory of its own, calls `answer` or `answer_at_once`, sends what it gets, and calls `done`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast, get_args

from service import ahead, wire
from service import head as heads
from service.ahead import FIRST_LOOK_BYTES, NEVER, Ahead
from service.answer import CALLER_GONE, Answer, problem
from service.budget import Budget
from service.call import OUTPUTS, Call, Kind, fields, plan
from service.device.buffers import Pool, no_memory
from service.device.engine import Engine
from service.device.faults import is_out_of_memory
from service.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    DeviceFault,
    MethodNotAllowed,
    NotAcceptable,
    NotReady,
    OutOfMemory,
    StequantError,
)
from service.head import Head
from service.hosts import TrustedHosts
from service.job import Identities, Job, given_id
from service.keys import Keys
from service.logs import dropped_lines, log, log_exchange
from service.metrics import Exchange, Metrics, Stages
from service.ops import Expression
from service.ops.codes import Output, check_output
from service.settings import Settings
from service.shortcuts import Learned, Shortcuts, one
from service.wire.compact import CompactBundle
from service.wire.message import Message

if TYPE_CHECKING:
    from service.tracing.spans import Spans

# Up to these sizes the event loop does the work itself: a thread hop would cost more than it saves, and other
# connections wait no longer than while a body of this size is received.
SMALL_ELEMENTWISE_BYTES = 2 * 2**20 + 4096
# Operators that reduce over a tensor, or meet other tensors, take several passes and temporaries.
SMALL_BYTES = 256 * 1024
# JSON is text, and in short bodies each number becomes a Python object: about a hundred times the work per byte.
SMALL_JSON_BYTES = 4 * 1024
# Longer chains are computed when their body is there, on a lane: what the loop does between two receives stays short.
_MAX_OPERATORS_AHEAD = 4

PATHS: dict[str, Kind] = {f"/{kind}": kind for kind in get_args(Kind)}


class Terms(NamedTuple):
    """What the head alone says of a call; the same for every request with the same head.

    `offers` are the formats for the answer, best first; bodies up to `instant_bytes` are answered on the
    event loop; `operator` is the label under which the call is counted; it has `timeout_s` seconds from its
    head to its answer; `shortcuts` knows the last one of them; `output` is the form of the answer.
    """

    kind: Kind
    expression: Expression
    format: wire.Format
    offers: tuple[wire.Choice, ...]
    limit_bytes: int
    length: int | None
    instant_bytes: float
    operator: str
    timeout_s: float | None
    shortcuts: Shortcuts
    output: Output = "values"

    @property
    def path(self) -> str:
        """Where such calls are sent."""
        return f"/{self.kind}"


class Readiness(NamedTuple):
    """Whether calls are welcome, and what the device's fault is where it has failed."""

    ready: bool
    fault: DeviceFault | None


class Admitted(Protocol):
    """What the ways in and the metrics need to know of a call, in whatever protocol it is written."""

    @property
    def path(self) -> str:
        """The path to which it is sent."""

    @property
    def format(self) -> Named:
        """By what its body is counted and limited."""

    @property
    def limit_bytes(self) -> int:
        """The largest body."""

    @property
    def length(self) -> int | None:
        """The bytes of the body, where they are announced."""

    @property
    def instant_bytes(self) -> float:
        """Up to which size of the body the event loop does the work."""

    @property
    def operator(self) -> str:
        """The operator under which it is counted."""

    @property
    def timeout_s(self) -> float | None:
        """How many seconds it has from its head to its answer."""


class Named(Protocol):
    """A format, as far as it is counted and limited."""

    @property
    def name(self) -> str:
        """How it is called in metrics and errors."""


class Foreign(Admitted, Protocol):
    """The terms of a call in another protocol, which answers it itself; never on the event loop's fast way (`is_small`)."""

    async def answer(self, job: Job, body: memoryview, is_wanted: Callable[[], bool]) -> Answer:
        """The answer; raises the errors of the service. `CALLER_GONE` when it is not wanted any more."""


class Dialect(Protocol):
    """Another protocol in which calls come."""

    @property
    def routes(self) -> Mapping[str, str]:
        """The paths of its calls, each with the label under which it is counted."""

    def terms(self, head: Head, found: heads.Fields) -> Foreign:
        """The terms of a call, by its head; raises what is wrong with it."""


class Core:
    """What every way in shares: settings, engine, keys, budget, metrics, and the state of the service."""

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics, spans: Spans | None = None) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self.spans = spans
        self.hosts = TrustedHosts(settings.trusted_hosts)
        self.keys = Keys(settings.api_keys_file, metrics_are_open=settings.metrics_without_key)
        self.budget = Budget(settings.in_flight_limit_bytes)
        self.pool = Pool(engine.device.allocate)
        self.identities = Identities()
        self._learned = Learned()
        self.ready = False
        self.draining = False
        self.repeated_calls = 0
        # The paths of calls, with the labels of their routes, and who answers those that are not ours.
        self.routes: dict[str, str] = {path: path for path in PATHS}
        self.urls: dict[bytes, str] = {path.encode(): path for path in PATHS}
        self._dialects: dict[str, Dialect] = {}
        engine.on_failure(self._device_has_failed)

    def speak(self, dialect: Dialect) -> None:
        """Answer calls in another protocol, too."""
        self.routes |= dialect.routes
        self.urls |= {path.encode(): path for path in dialect.routes}
        self._dialects |= dict.fromkeys(dialect.routes, dialect)

    def check(self, head: Head) -> heads.Fields:
        """What holds for every path: framing, host, then authentication."""
        found = heads.fields(head)
        self.hosts.check(head.path, found.host)
        self.keys.check(head.path, found.authorization)
        return found

    def job(self, head: Head) -> Job:
        """A request that has come."""
        return Job(self.identities.of(given_id(head.headers)))

    def admit(self, job: Job, head: Head) -> Admitted:
        """Accept a request by its head, and reserve the bytes of its body."""
        terms = self.terms(head)
        self.begin(job, terms)
        return terms

    def terms(self, head: Head) -> Admitted:
        """Check a head in the order framing, host, key, path, method, media type, length, query."""
        found = self.check(head)
        if head.path in self._dialects:
            return self._dialects[head.path].terms(head, found)
        kind = PATHS[head.path]
        check_is_post(head)
        heads.check_encoding(found)
        request_format = wire.of_content_type(found.content_type)
        offers = _offers(found.accept, request_format)
        heads.check_length_is_announced(head, found)
        limit_bytes = self.settings.limit_of(request_format.name)
        check_length(found.content_length or 0, limit_bytes, request_format)
        expression = heads.parse_query(head.query)
        output = heads.parse_output(head.query, OUTPUTS[kind])
        check_output(expression, output)
        if kind == "grad" and expression.tensor_names:
            offers = _offers_with_names(offers)
        operators = expression.operators
        operator = operators[0].name if len(operators) == 1 else "chain"
        small_bytes = instant_bytes(kind, expression, output, (request_format, offers[0][0]))
        return Terms(
            kind,
            expression,
            request_format,
            offers,
            limit_bytes,
            found.content_length,
            small_bytes,
            operator,
            self.timeout_s(found),
            Shortcuts(self._learned),
            output,
        )

    def timeout_s(self, found: heads.Fields) -> float | None:
        """How many seconds a call has, by its own wish and by the settings."""
        timeouts = (heads.timeout_s(found), self.settings.request_timeout_s)
        return min((limit_s for limit_s in timeouts if limit_s is not None), default=None)

    def begin(self, job: Job, terms: Admitted) -> None:
        """Reserve what a job on these terms needs; `NotReady` and `Overloaded` when it is not the time."""
        if not self.ready:
            raise self.engine.fault or NotReady("the device is not ready; /readyz says when it is")
        self.reserve(job, terms.length or 0)
        job.terms = terms
        if terms.timeout_s is not None:
            job.deadline = job.started + terms.timeout_s

    def reserve(self, job: Job, nbytes: int) -> None:
        """Count `nbytes` more for the job, or raise `Overloaded`."""
        self.budget.reserve(nbytes)
        job.reserved_bytes += nbytes

    def passes(self, nbytes: int) -> bool:
        """Whether a call of `nbytes` is welcome that is answered before anything else happens; then it is counted as in flight."""
        return self.ready and self.budget.passes(nbytes)

    def is_small(self, terms: Admitted, nbytes: int) -> bool:
        """Whether the event loop may do the work itself."""
        return nbytes <= terms.instant_bytes and self.engine.device.small_calls_are_instant

    def answer_at_once(self, job: Job, body: memoryview) -> Answer:
        """The answer to a call, computed here and now."""
        terms: Terms = job.terms  # type: ignore[assignment]  # those of other protocols are never small
        job.began = time.perf_counter()
        try:
            if job.began > job.deadline:
                raise too_late(terms)
            return self._computed(terms, body) if job.ahead is None else self._computed_ahead(job, job.ahead)
        except Exception as error:
            return failed(error, terms)
        finally:
            job.ended = time.perf_counter()

    def _computed(self, terms: Terms, body: memoryview) -> Answer:
        shortcut = terms.shortcuts.find(body)
        if shortcut is not None:
            return shortcut.answer(self.engine, body)
        call = self._call(terms, body, self.settings.max_tensors)
        offer = self._offer(terms, body)
        if terms.output != "values":
            return _encoded(call, self.engine.condense(call), offer)
        answer = _encoded(call, self.engine.run(call), offer)
        terms.shortcuts.learn(call, body, answer, self.engine.device)
        return answer

    def first_look_bytes(self, terms: Admitted, nbytes: int, *, on_loop: bool = True) -> int:
        """How much of a body of `nbytes` has to be there for `look_ahead`; more than there will ever be where that is in vain.

        On the loop, beside others, a lane computes while it receives; and long chains would keep others waiting. Small
        calls are worth it only where a shortcut is known. Most gradients need `x` first, which is the first half of the body.
        """
        if not isinstance(terms, Terms) or terms.format.name == "json":
            return NEVER
        if on_loop and self.budget.in_flight_bytes > 2 * nbytes:
            return NEVER
        if nbytes <= terms.instant_bytes:
            known = terms.shortcuts.known
            if isinstance(known, one.Shortcut) and known.bind is not None:
                return known.arrives_at + FIRST_LOOK_BYTES
            return NEVER
        expression = terms.expression
        if not expression.elementwise or expression.tensor_names:
            return NEVER
        if on_loop and len(expression.operators) > _MAX_OPERATORS_AHEAD:
            return NEVER
        operands = len(fields(terms.kind, terms.output))
        return FIRST_LOOK_BYTES + nbytes // operands * (operands - 1)

    def look_ahead(self, job: Job, body: memoryview, received_bytes: int) -> int:
        """Begin with a call of whose body so much has come; how much has to be there for `job.ahead` to go on.

        Where that is not possible, for whatever reason, nothing has happened: the whole body will say why.
        """
        terms: Terms = job.terms  # type: ignore[assignment]  # there is no first look for others
        try:
            job.ahead = self._begun(terms, body, received_bytes)
        except (StequantError, MemoryError, RuntimeError):  # torch raises RuntimeError where memory has run out
            return NEVER
        return NEVER if job.ahead is None else job.ahead.advance(received_bytes)

    def _begun(self, terms: Terms, body: memoryview, received_bytes: int) -> Ahead | None:
        known = terms.shortcuts.known
        if isinstance(known, one.Shortcut):
            repeated = ahead.repeated(self.engine, known, body, received_bytes)
            if repeated is not None:
                return repeated
        offer = self._offer(terms, body)
        # Calls with more tensors than operands are not computed ahead: they need not be read to the end to find that out.
        call = self._call(terms, body, min(self.settings.max_tensors, len(fields(terms.kind, terms.output))))
        return ahead.planned(self.engine, call, body, received_bytes, lambda result: _encoded(call, result, offer))

    @staticmethod
    def _computed_ahead(job: Job, begun: Ahead) -> Answer:
        answer = begun.answer()
        # What was computed while the body came is counted as computing, not as reading.
        job.received = job.began = time.perf_counter() - begun.compute_s
        return answer

    def _call(self, terms: Terms, body: memoryview, max_tensors: int) -> Call:
        message = terms.format.decode(body, fields(terms.kind, terms.output), max_tensors)
        return plan(terms.kind, terms.expression, message, terms.output)

    def _offer(self, terms: Terms, body: memoryview) -> wire.Choice:
        """The best offer that can hold the answer to this body: JSON only up to the limit for JSON."""
        for offer in terms.offers:
            if offer[0].name != "json" or body.nbytes <= self.settings.max_json_bytes:
                return offer
        raise NotAcceptable(
            f"the answer to a body of {body.nbytes} bytes is too large for JSON; allowed: {self.settings.max_json_bytes} "
            "(npy and msgpack have no such limit)"
        )

    async def answer(self, job: Job, body: memoryview) -> Answer:
        """The answer to a call: small ones here, large ones on the device's lanes."""
        job.is_received()
        assert job.terms is not None
        if self.is_small(job.terms, body.nbytes):
            return self.answer_at_once(job, body)
        try:
            async with asyncio.timeout(None if job.deadline == math.inf else job.left_s()):
                return await self.answer_elsewhere(job, body)
        except TimeoutError:
            raise too_late(job.terms) from None

    async def answer_elsewhere(self, job: Job, body: memoryview, is_wanted: Callable[[], bool] = lambda: True) -> Answer:
        """The answer to a call, computed on the device's lanes; a small one together with others that wait there.

        Like `answer_at_once` it raises nothing, also when the device fails while the call waits. `CALLER_GONE` when it
        is not wanted any more at the time when a lane is free.
        """
        terms = job.terms
        assert terms is not None
        try:
            if not isinstance(terms, Terms):
                return await cast(Foreign, terms).answer(job, body, is_wanted)
            if body.nbytes > terms.instant_bytes or terms.output != "values":
                return await self.engine.submit(lambda: self.answer_at_once(job, body) if is_wanted() else CALLER_GONE)
            return await self._answer_together(job, terms, body)
        except StequantError as error:
            job.ended = time.perf_counter()
            return problem(error, terms.path)
        except Exception as error:
            job.ended = time.perf_counter()
            what = f"a call of {terms.expression if isinstance(terms, Terms) else terms.path}"
            return problem(unexpected(error, what), terms.path)

    async def _answer_together(self, job: Job, terms: Terms, body: memoryview) -> Answer:
        job.began = time.perf_counter()
        if job.began > job.deadline:
            raise too_late(terms)
        call = self._call(terms, body, self.settings.max_tensors)
        answer_format, media_type = self._offer(terms, body)
        answer = Answer.of(200, media_type, answer_format.encode(await self.engine.compute(call)))
        job.ended = time.perf_counter()
        return answer

    async def readiness(self) -> Readiness:
        """Whether calls are welcome; asks the device."""
        fault = await self.engine.probe() if self.ready else self.engine.fault
        return Readiness(self.ready and not self.draining and fault is None, fault)

    def _device_has_failed(self, fault: DeviceFault) -> None:
        """Refuse what comes from now on; called on whichever thread has noticed."""
        self.ready = False
        log.error("%s; nothing can be computed any more until the process is started again", fault.detail)

    def publish(self) -> None:
        """Bring everything that was counted into the metrics; called several times a second."""
        self.budget.look()
        metrics = self.metrics
        metrics.in_flight_bytes.set(self.budget.in_flight_bytes)
        metrics.in_flight_limit_bytes.set(self.budget.limit_bytes)
        metrics.pool_bytes.set(self.pool.bytes)
        metrics.ready.set(self.ready and not self.draining)
        metrics.coalesced_calls.follow(self.engine.coalesced_calls)
        metrics.repeated_calls.follow(self.repeated_calls)
        metrics.dropped_lines.follow(dropped_lines())
        for kind, nbytes in self.engine.device.memory().items():
            metrics.device_memory_bytes.labels(kind).set(nbytes)
        metrics.flush()

    def exposition(self) -> bytes:
        """The metrics, for `GET /metrics`."""
        self.publish()
        return self.metrics.exposition()

    def done(self, head: Head, answer: Answer, job: Job, received_bytes: int) -> Exchange:
        """Count and log an answered request of a hot path, and release what it had reserved; what was counted."""
        self.budget.release(job.reserved_bytes)
        job.reserved_bytes = 0
        if answer.code == OutOfMemory.code:
            # It will be sent again, and may need what is kept for others.
            self.pool.clear()
        terms = job.terms
        now = time.perf_counter()
        exchange = Exchange(
            head.method,
            head.path,
            self.routes.get(head.path, head.path),
            answer.status,
            received_bytes,
            answer.length,
            now - job.started,
            job.request_id,
            "" if terms is None else terms.operator,
            "" if terms is None else terms.format.name,
            answer.code,
            None
            if terms is None
            else Stages(job.received - job.started, job.began - job.received, job.ended - job.began, now - job.ended),
        )
        if self.spans is not None:
            exchange = self.spans.traced(head, exchange)
        self.metrics.count(exchange)
        log_exchange(exchange)
        return exchange


def instant_bytes(kind: Kind, expression: Expression, output: Output, formats: tuple[wire.Format, ...]) -> float:
    """Up to which size of the body a call, read and answered in these formats, is done on the event loop."""
    if any(one.name == "json" for one in formats):
        return SMALL_JSON_BYTES
    if output != "values":
        return SMALL_BYTES
    if kind == "grad" and expression.backward_is_identity:
        return math.inf  # nothing is computed, nothing is copied
    return SMALL_ELEMENTWISE_BYTES if expression.elementwise and not expression.tensor_names else SMALL_BYTES


def _encoded(call: Call, result: Message | CompactBundle, offer: wire.Choice) -> Answer:
    """The answer that a result is, in the format that was chosen for it."""
    answer_format, media_type = offer
    if isinstance(result, CompactBundle):
        return Answer.of(200, media_type, answer_format.encode_compact(result))._replace(headers=_how_to_decode(call))
    return Answer.of(200, media_type, answer_format.encode(result))


def _how_to_decode(call: Call) -> tuple[tuple[bytes, bytes], ...]:
    """The header that says whose codes an answer holds, as npy has no other place for it."""
    return () if call.output == "mask" else ((b"x-stequant-decode", str(call.expression.operators[-1]).encode()),)


def unexpected(error: Exception, what: str) -> StequantError:
    """What the caller is told where `what` failed with an error that is none of ours, within its `except` clause.

    Memory that has run out comes back: nobody is to be woken for it. Everything else is our mistake, and logged.
    """
    if is_out_of_memory(error):
        return no_memory("this call")
    log.exception("%s failed", what)
    return StequantError("the call failed inside the server; its log has the details")


def failed(error: Exception, terms: Terms) -> Answer:
    """The answer to a call that could not be computed, within the `except` clause of the error."""
    if isinstance(error, StequantError):
        return problem(error)
    return problem(unexpected(error, f"a call of {terms.expression}"))


def check_is_post(head: Head) -> None:
    """`MethodNotAllowed` for anything but a POST."""
    if head.method != "POST":
        raise MethodNotAllowed(f"{head.path} answers POST, not {head.method[:20]}", allow="POST")


def too_late(terms: Admitted) -> DeadlineExceeded:
    """The error of a call whose deadline has passed."""
    return DeadlineExceeded(f"the call was not answered within its {terms.timeout_s:g} s", retry_after_s=None)


def late(job: Job) -> Answer:
    """The answer to a call whose deadline has passed."""
    assert job.terms is not None
    return problem(too_late(job.terms), job.terms.path)


def check_length(nbytes: int, limit_bytes: int, request_format: Named) -> None:
    """`BodyTooLarge` for a body of more than its format's limit."""
    if nbytes > limit_bytes:
        raise BodyTooLarge(f"the body has {nbytes} bytes; allowed for {request_format.name}: {limit_bytes}")


@lru_cache(maxsize=1024)
def _offers(accept: str | None, request_format: wire.Format) -> tuple[wire.Choice, ...]:
    return wire.negotiate(accept, request_format)


def _offers_with_names(offers: tuple[wire.Choice, ...]) -> tuple[wire.Choice, ...]:
    """The offers that can hold the gradients of tensor parameters."""
    left = tuple(offer for offer in offers if offer[0].holds_names)
    if not left:
        able = ", ".join(one.media_type for one in wire.FORMATS.values() if one.holds_names)
        raise NotAcceptable(f"{offers[0][1]} cannot hold the gradients of tensor parameters; these can: {able}")
    return left
