"""The server's settings: environment variables `STEQUANT_*`, each also a flag of `stequant serve`.

One field a setting; the flags, the help text and the README's table are made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 2**20


class Settings(BaseSettings):
    """What a server may be told. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="STEQUANT_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one")
    uds: Path | None = Field(None, description="path of a Unix socket; then no TCP port is opened")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$", description="auto, cpu, cuda or cuda:N")
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
    write_timeout_s: float = Field(30, gt=0, description="longest time in which a reader takes nothing")
    keep_alive_s: float = Field(65, gt=0, description="time an idle connection is kept")
    drain_delay_s: float = Field(0, ge=0, description="time between SIGTERM, when /readyz turns 503, and the end of listening")
    grace_s: float = Field(30, gt=0, description="longest time for calls in flight to end after SIGTERM")
    api_keys_file: Path | None = Field(None, description="file of bearer keys, one a line; without it everyone may call")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="text for people, or one JSON object a line")

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("uds", "api_keys_file", "max_in_flight_bytes", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        # Compose files pass on unset variables as empty ones.
        return None if value == "" else value

    @model_validator(mode="after")
    def _one_body_fits(self) -> Settings:
        if self.in_flight_limit_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_in_flight_bytes ({self.max_in_flight_bytes}) must be at least max_body_bytes ({self.max_body_bytes})"
            )
        return self

    @property
    def in_flight_limit_bytes(self) -> int:
        """The limit in force for the bytes in flight."""
        return 4 * self.max_body_bytes if self.max_in_flight_bytes is None else self.max_in_flight_bytes

    def limit_of(self, format_name: str) -> int:
        """The largest body of a format, in bytes."""
        return min(self.max_json_bytes, self.max_body_bytes) if format_name == "json" else self.max_body_bytes
