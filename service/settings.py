"""The server's settings: environment variables `STEQUANT_*`, each also a flag of `stequant serve`.

One field a setting; the flags, the help text and the README's table are made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 2**20

# A name, an address (IPv6 in brackets), or all names below one; a port does not matter and is left out.
HostPattern = Annotated[str, Field(pattern=r"^((\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])$")]

# As fnmatch reads it: *, ? and [abc] stand for others. A slash may only come first, as in shm_open's names.
SharedMemoryPattern = Annotated[str, Field(pattern=r"^/?[!-.0-~]{1,255}$")]


class Settings(BaseSettings):
    """What a server may be told. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="STEQUANT_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one")
    uds: Path | None = Field(None, description="path of a Unix socket; then no TCP port is opened")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$", description="auto, cpu, cuda or cuda:N")
    device_timeout_s: float = Field(60, gt=0, description="time a call may keep a CUDA device, before it is taken to hang")
    workers: int = Field(1, ge=1, le=1024, description="processes that share the port")
    max_body_bytes: int = Field(256 * MIB, ge=1, description="largest body")
    max_json_bytes: int = Field(4 * MIB, ge=1, description="largest JSON body")
    max_in_flight_bytes: int | None = Field(
        None, ge=1, description="bytes of all bodies at once in one worker, above which calls get 429; default 4 x max_body_bytes"
    )
    max_tensors: int = Field(16384, ge=1, description="most tensors in one call")
    header_timeout_s: float = Field(5, gt=0, description="time for the headers to arrive")
    body_idle_timeout_s: float = Field(10, gt=0, description="longest pause within a body")
    body_timeout_s: float = Field(300, gt=0, description="time for a whole body to arrive")
    min_body_bytes_per_s: int = Field(1024, ge=0, description="slowest body, on average, after its first body_idle_timeout_s")
    request_timeout_s: float | None = Field(
        None, gt=0, description="time from a call's head to its answer, after which it gets 504; X-Request-Timeout may ask for less"
    )
    max_url_bytes: int = Field(8192, ge=128, description="longest request target")
    max_header_bytes: int = Field(16384, ge=1024, description="size of all headers of a request")
    max_headers: int = Field(100, ge=16, description="number of headers of a request")
    max_pipelined: int = Field(32, ge=1, description="requests that may wait on one connection for their predecessors' answers")
    max_connections: int = Field(20_000, ge=1, description="connections to one worker")
    max_connections_per_address: int | None = Field(None, ge=1, description="connections to one worker from one address")
    write_timeout_s: float = Field(30, gt=0, description="longest time in which a reader takes nothing")
    keep_alive_s: float = Field(65, gt=0, description="time an idle connection is kept")
    drain_delay_s: float = Field(0, ge=0, description="time between SIGTERM, when /readyz turns 503, and the end of listening")
    grace_s: float = Field(30, gt=0, description="longest time for calls in flight to end after SIGTERM")
    worker_start_timeout_s: float = Field(300, gt=0, description="longest time in which one of several workers gets ready")
    worker_timeout_s: float = Field(
        60, gt=0, description="longest time in which the event loop of one of several workers stands still before it is replaced"
    )
    api_keys_file: Path | None = Field(None, description="file of bearer keys, one a line; without it everyone may call")
    metrics_without_key: bool = Field(False, description="whether /metrics is answered without a key")
    trusted_hosts: tuple[HostPattern, ...] | None = Field(
        None, description="names that Host may have, with commas between them; *.example.org is all below it; default any name"
    )
    shared_memory_names: tuple[SharedMemoryPattern, ...] | None = Field(
        None,
        description="names of shared memory objects that callers of /v2 may use, with commas between them; * stands for any "
        "characters; default none; with one worker only",
    )
    tls_cert_file: Path | None = Field(None, description="certificate and its chain, as PEM; with it, https is served, and no http")
    tls_key_file: Path | None = Field(None, description="key of the certificate; default the file of the certificate")
    tls_key_password_file: Path | None = Field(None, description="password of the key, if it has one")
    tls_ca_file: Path | None = Field(
        None, description="authorities, one of which must have signed the certificate that a client then needs"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="text for people, or one JSON object a line")

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object, info: ValidationInfo) -> object:
        # Compose files pass on unset variables as empty ones.
        may_be_absent = info.field_name is not None and cls.model_fields[info.field_name].default is None
        return None if value == "" and may_be_absent else value

    @field_validator("trusted_hosts", "shared_memory_names", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) and value else value

    @model_validator(mode="after")
    def _one_body_fits(self) -> Settings:
        if self.in_flight_limit_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_in_flight_bytes ({self.max_in_flight_bytes}) must be at least max_body_bytes ({self.max_body_bytes})"
            )
        return self

    @model_validator(mode="after")
    def _regions_are_known_to_all(self) -> Settings:
        if self.shared_memory_names and self.workers > 1:
            raise ValueError(f"shared_memory_names needs workers to be 1, not {self.workers}: each would know other regions")
        return self

    @model_validator(mode="after")
    def _nothing_of_tls_without_a_certificate(self) -> Settings:
        if self.tls_cert_file is None:
            for name in ("tls_key_file", "tls_key_password_file", "tls_ca_file"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} ({getattr(self, name)}) needs tls_cert_file; without it plain http would be served")
        return self

    @property
    def in_flight_limit_bytes(self) -> int:
        """The limit in force for the bytes in flight."""
        return 4 * self.max_body_bytes if self.max_in_flight_bytes is None else self.max_in_flight_bytes

    def limit_of(self, format_name: str) -> int:
        """The largest body of a format, in bytes."""
        return min(self.max_json_bytes, self.max_body_bytes) if format_name == "json" else self.max_body_bytes
