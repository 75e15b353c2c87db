"""What a client is told once, checked, and as httpx takes it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import httpx

from service import __version__
from service.client.answers import Answer, AnswerBuffer
from service.client.calls import WIRES, Exchange, Wire
from service.client.retries import Attempts, RetryPolicy

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0
DEFAULT_RETRIES = 5
# httpcore looks at all pairs of idle connections for every request: over loopback, 100 small calls at once
# took 0.3 s of CPU with 16 connections, 0.8 s with 32, 2.6 s with 100. Calls beyond this many queue.
DEFAULT_CONNECTIONS = 16
API_KEY_VARIABLE = "STEQUANT_API_KEY"
# Shorter than the 65 s for which the server keeps an idle connection, so that it is never the server
# that closes one while a request is on its way.
KEEP_ALIVE_S = 30.0
READINESS_POLL_S = 0.2


class HttpOptions(TypedDict):
    """The arguments that `httpx.Client` and `httpx.AsyncClient` share."""

    headers: dict[str, str]
    limits: httpx.Limits
    trust_env: bool
    verify: ssl.SSLContext | bool


class RequestOptions(TypedDict):
    """The arguments that `httpx.Client.stream` and `httpx.AsyncClient.stream` share."""

    method: str
    url: str
    headers: Mapping[str, str]
    timeout: httpx.Timeout


@dataclass(frozen=True, slots=True)
class Configuration:
    """The checked arguments of a client. The key is in nothing that is printed."""

    base_url: str
    timeout: httpx.Timeout
    policy: RetryPolicy
    deadline_s: float | None
    wire: Wire | None
    http: HttpOptions = field(repr=False)

    def attempts(self) -> Attempts:
        """The attempts of one call that starts now."""
        return Attempts(self.policy, self.deadline_s)

    def one_attempt(self, deadline_s: float | None) -> Attempts:
        """A single attempt, starting now, within `deadline_s` seconds where that is sooner than the client's deadline."""
        deadlines_s = [limit_s for limit_s in (self.deadline_s, deadline_s) if limit_s is not None]
        return Attempts(self.policy, min(deadlines_s, default=None), retried=False)

    def request(self, exchange: Exchange[Any], attempts: Attempts) -> RequestOptions:
        """The request as httpx takes it, but for its body."""
        return {
            "method": exchange.method,
            "url": self.base_url + exchange.target,
            "headers": exchange.headers,
            "timeout": attempts.timeout(self.timeout),
        }

    def answer(self, response: httpx.Response, received: AnswerBuffer) -> Answer:
        """The answer, read to its end."""
        return Answer(response.status_code, response.headers, received.body(), self.policy.wall_clock())


def configure(
    base_url: str,
    *,
    timeout: float | httpx.Timeout | None = DEFAULT_TIMEOUT_S,
    retries: int | RetryPolicy = DEFAULT_RETRIES,
    deadline_s: float | None = None,
    api_key: str | None = None,
    format: Wire | None = None,  # noqa: A002  # the caller's word for it
    max_connections: int = DEFAULT_CONNECTIONS,
    trust_env: bool = True,
    verify: ssl.SSLContext | bool = True,
    environment: Mapping[str, str] = os.environ,
) -> Configuration:
    """A client's arguments, checked: `ValueError` names the one that is not allowed."""
    if format not in (None, *WIRES):
        raise ValueError(f"format is {format!r}; allowed: {', '.join(map(repr, WIRES))} or None, which chooses for each call")
    if deadline_s is not None and not deadline_s > 0:
        raise ValueError(f"deadline_s is {deadline_s}; allowed: above 0, or None")
    headers = {
        # Tensors do not shrink; compressing them only costs time at both ends.
        "Accept-Encoding": "identity",
        "User-Agent": f"stequant/{__version__}",
    }
    key = environment.get(API_KEY_VARIABLE) if api_key is None else api_key
    if key:
        headers["Authorization"] = f"Bearer {_checked_key(key)}"
    return Configuration(
        base_url=_checked_url(base_url),
        timeout=_timeout(timeout),
        policy=retries if isinstance(retries, RetryPolicy) else RetryPolicy(max_attempts=retries + 1),
        deadline_s=deadline_s,
        wire=format,
        http={
            "headers": headers,
            "limits": httpx.Limits(
                max_connections=max_connections, max_keepalive_connections=max_connections, keepalive_expiry=KEEP_ALIVE_S
            ),
            "trust_env": trust_env,
            "verify": verify,
        },
    )


def _timeout(timeout: float | httpx.Timeout | None) -> httpx.Timeout:
    """A number bounds each step but the wait for a free connection of one's own pool: many calls at once are to queue."""
    if timeout is None or isinstance(timeout, httpx.Timeout):
        return httpx.Timeout(timeout)
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}; allowed: above 0, an httpx.Timeout, or None")
    return httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT_S), pool=None)


def _checked_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url cannot be read: {error}") from error
    if url.userinfo:
        raise ValueError("base_url holds a user name or password; keys are given as api_key")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ValueError(f"base_url is {text!r}; allowed: http:// or https://, a host, a port and a path")
    return str(url).rstrip("/")


def _checked_key(key: str) -> str:
    # httpx would show the whole header in its error.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("the API key has blanks, control characters or letters outside ASCII")
    return key
