"""From a request's head and body to its answer, whichever way they came in.

A way in (the ASGI application, the protocol class) makes a `job`, calls `admit` with the head, reads the
body into memory of its own, calls `answer` or `answer_at_once`, sends what it gets, and calls `done`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, get_args

from service import head as heads
from service import wire
from service.answer import CALLER_GONE, Answer, problem
from service.budget import Budget
from service.call import Kind, fields, plan
from service.device.buffers import Pool
from service.device.engine import Engine
from service.errors import BodyTooLarge, DeadlineExceeded, DeviceFault, MethodNotAllowed, NotAcceptable, NotReady, StequantError
from service.head import Head
from service.hosts import TrustedHosts
from service.job import Identities, Job, given_id
from service.keys import Keys
from service.logs import log, log_exchange
from service.metrics import Exchange, Metrics, Stages
from service.ops import Expression
from service.settings import Settings
from service.shortcut import Shortcut, learn

# Up to these sizes the event loop does the work itself: a thread hop would cost more than it saves, and other
# connections wait no longer than while a body of this size is received.
SMALL_ELEMENTWISE_BYTES = 2 * 2**20 + 4096
# Operators that reduce over a tensor, or meet other tensors, take several passes and temporaries.
SMALL_BYTES = 256 * 1024
# JSON makes a Python object of every number: about a hundred times the work per byte.
SMALL_JSON_BYTES = 4 * 1024

PATHS: dict[str, Kind] = {f"/{kind}": kind for kind in get_args(Kind)}


class Terms(NamedTuple):
    """What the head alone says of a call; the same for every request with the same head.

    `offers` are the formats for the answer, best first; bodies up to `instant_bytes` are answered on the
    event loop; `operator` is the label under which the call is counted; it has `timeout_s` seconds from its
    head to its answer; `shortcuts` holds the one that was learned last, if any.
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
    shortcuts: list[Shortcut]


class Core:
    """What every way in shares: settings, engine, keys, budget, metrics, and the state of the service."""

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self.hosts = TrustedHosts(settings.trusted_hosts)
        self.keys = Keys(settings.api_keys_file, metrics_are_open=settings.metrics_without_key)
        self.budget = Budget(settings.in_flight_limit_bytes)
        self.pool = Pool(engine.device.allocate)
        self.identities = Identities()
        self.ready = False
        self.draining = False
        engine.on_failure(self._device_has_failed)

    def check(self, head: Head) -> heads.Fields:
        """What holds for every path: framing, host, then authentication."""
        found = heads.fields(head)
        self.hosts.check(head.path, found.host)
        self.keys.check(head.path, found.authorization)
        return found

    def job(self, head: Head) -> Job:
        """A request that has come."""
        return Job(self.identities.of(given_id(head.headers)))

    def admit(self, job: Job, head: Head) -> Terms:
        """Accept a request by its head, and reserve the bytes of its body."""
        terms = self.terms(head)
        self.begin(job, terms)
        return terms

    def terms(self, head: Head) -> Terms:
        """Check a head in the order framing, host, key, path, method, media type, length, query."""
        found = self.check(head)
        kind = PATHS[head.path]
        if head.method != "POST":
            raise MethodNotAllowed(f"{head.path} answers POST, not {head.method[:20]}", allow="POST")
        heads.check_encoding(found)
        request_format = wire.of_content_type(found.content_type)
        offers = _offers(found.accept, request_format)
        heads.check_length_is_announced(head, found)
        limit_bytes = self.settings.limit_of(request_format.name)
        check_length(found.content_length or 0, limit_bytes, request_format)
        expression = heads.parse_query(head.query)
        if kind == "grad" and expression.tensor_names:
            offers = _offers_with_names(offers)
        operators = expression.operators
        operator = operators[0].name if len(operators) == 1 else "chain"
        instant_bytes = _instant_bytes(kind, expression, (request_format, offers[0][0]))
        timeouts = [limit_s for limit_s in (heads.timeout_s(found), self.settings.request_timeout_s) if limit_s is not None]
        return Terms(
            kind,
            expression,
            request_format,
            offers,
            limit_bytes,
            found.content_length,
            instant_bytes,
            operator,
            min(timeouts, default=None),
            [],
        )

    def begin(self, job: Job, terms: Terms) -> None:
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

    def is_small(self, terms: Terms, nbytes: int) -> bool:
        """Whether the event loop may do the work itself."""
        return nbytes <= terms.instant_bytes and self.engine.device.small_calls_are_instant

    def answer_at_once(self, job: Job, body: memoryview) -> Answer:
        """The answer to a call, computed here and now."""
        terms = job.terms
        assert terms is not None
        job.began = time.perf_counter()
        try:
            if job.began > job.deadline:
                raise _too_late(terms)
            return self._computed(terms, body)
        except StequantError as error:
            return problem(error)
        except Exception:
            log.exception("a call of %s failed", terms.expression)
            return problem(StequantError("the call failed inside the server; its log has the details"))
        finally:
            job.ended = time.perf_counter()

    def _computed(self, terms: Terms, body: memoryview) -> Answer:
        for shortcut in terms.shortcuts:
            if shortcut.fits(body):
                return shortcut.answer(self.engine, body)
        message = terms.format.decode(body, fields(terms.kind), self.settings.max_tensors)
        call = plan(terms.kind, terms.expression, message)
        answer_format, media_type = self._offer(terms, body)
        answer = Answer.of(200, media_type, answer_format.encode(self.engine.run(call)))
        learned = learn(call, body, answer)
        if learned is not None:
            terms.shortcuts[:] = (learned,)
        return answer

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
            raise _too_late(job.terms) from None

    async def answer_elsewhere(self, job: Job, body: memoryview, is_wanted: Callable[[], bool] = lambda: True) -> Answer:
        """The answer to a call, computed on the device's lanes; a small one together with others that wait there.

        Like `answer_at_once` it raises nothing, also when the device fails while the call waits. `CALLER_GONE` when it
        is not wanted any more at the time when a lane is free.
        """
        terms = job.terms
        assert terms is not None
        try:
            if body.nbytes > terms.instant_bytes:
                return await self.engine.submit(lambda: self.answer_at_once(job, body) if is_wanted() else CALLER_GONE)
            return await self._answer_together(job, terms, body)
        except StequantError as error:
            job.ended = time.perf_counter()
            return problem(error)
        except Exception:
            log.exception("a call of %s failed", terms.expression)
            return problem(StequantError("the call failed inside the server; its log has the details"))

    async def _answer_together(self, job: Job, terms: Terms, body: memoryview) -> Answer:
        job.began = time.perf_counter()
        if job.began > job.deadline:
            raise _too_late(terms)
        message = terms.format.decode(body, fields(terms.kind), self.settings.max_tensors)
        call = plan(terms.kind, terms.expression, message)
        answer_format, media_type = self._offer(terms, body)
        answer = Answer.of(200, media_type, answer_format.encode(await self.engine.compute(call)))
        job.ended = time.perf_counter()
        return answer

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
        for kind, nbytes in self.engine.device.memory().items():
            metrics.device_memory_bytes.labels(kind).set(nbytes)
        metrics.flush()

    def exposition(self) -> bytes:
        """The metrics, for `GET /metrics`."""
        self.publish()
        return self.metrics.exposition()

    def done(self, head: Head, answer: Answer, job: Job, received_bytes: int) -> None:
        """Count and log an answered request of a hot path, and release what it had reserved."""
        self.budget.release(job.reserved_bytes)
        job.reserved_bytes = 0
        terms = job.terms
        now = time.perf_counter()
        exchange = Exchange(
            head.method,
            head.path,
            head.path,
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
        self.metrics.count(exchange)
        log_exchange(exchange)


def _instant_bytes(kind: Kind, expression: Expression, formats: tuple[wire.Format, ...]) -> float:
    """Up to which size of the body a call, read and answered in these formats, is done on the event loop."""
    if any(one.name == "json" for one in formats):
        return SMALL_JSON_BYTES
    if kind == "grad" and expression.backward_is_identity:
        return math.inf  # nothing is computed, nothing is copied
    return SMALL_ELEMENTWISE_BYTES if expression.elementwise and not expression.tensor_names else SMALL_BYTES


def _too_late(terms: Terms) -> DeadlineExceeded:
    return DeadlineExceeded(f"the call was not answered within its {terms.timeout_s:g} s", retry_after_s=None)


def late(job: Job) -> Answer:
    """The answer to a call whose deadline has passed."""
    assert job.terms is not None
    return problem(_too_late(job.terms))


def check_length(nbytes: int, limit_bytes: int, request_format: wire.Format) -> None:
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
