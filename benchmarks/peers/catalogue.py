"""The peers: what each is, how it is started, in which form it takes tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.payloads import Payload
from benchmarks.peers.payloads import PAYLOADS, Form, RawPayload
from benchmarks.servers import ROOT, Kind

HERE = Path(__file__).parent
KEEP_ALIVE_S = "65"  # uvicorn's 5 s are shorter than eight warm-up calls of 64 MiB
TUNED = "STEQUANT_PEER_TUNED"  # tells a server to work in place
DEADLINE_MS, MAX_BODY_BYTES = "300000", str(1 << 30)


@dataclass(frozen=True)
class Peer:
    """Another tensor server."""

    name: str
    package: str
    tensors: str  # how they travel, in the words of the table
    form: Form
    path: str
    ready_path: str
    program: Callable[[Path, str], list[str]]  # from the bin folder of its environment, and a port
    tuned: Callable[[Path, str], list[str]] | None = None  # the same, driven further than its documentation does

    @property
    def folder(self) -> Path:
        """Where its code and its requirements lie."""
        return HERE / self.name.lower()

    @property
    def requirements(self) -> Path:
        """Every package of its environment, with its version."""
        return self.folder / "requirements.txt"

    @property
    def version(self) -> str:
        """The version that its requirements pin."""
        found = re.search(rf"^{re.escape(self.package)}==(\S+)$", self.requirements.read_text(), re.MULTILINE)
        if found is None:
            raise ValueError(f"{self.requirements} does not pin {self.package}")
        return found.group(1)

    def payload(self, payload: Payload) -> RawPayload:
        """The tensor of a payload, in the form of this peer."""
        return PAYLOADS[self.form](payload, self.path)

    @property
    def names(self) -> list[str]:
        """Its rows: as documented, and tuned where there is such a way."""
        return [self.name, tuned_name(self.name)] if self.tuned else [self.name]

    def kinds(self, environment: Path) -> list[Kind]:
        """How it is started from its environment, for each of its rows."""
        programs = [(self.program, ""), (self.tuned, "1")] if self.tuned else [(self.program, "")]

        def command(program: Callable[[Path, str], list[str]], tuned: str, address: str) -> list[str]:
            settings = [
                f"PYTHONPATH={ROOT}",
                f"BENTOML_HOME={environment / 'home'}",
                "BENTOML_DO_NOT_TRACK=True",
                f"{TUNED}={tuned}",
            ]
            return ["env", *settings, *program(environment / "bin", address.rpartition(":")[2])]

        return [
            Kind(name, partial(command, program, tuned), self.ready_path)
            for name, (program, tuned) in zip(self.names, programs, strict=True)
        ]


def tuned_name(name: str) -> str:
    """The row of a peer that is driven further than its documentation does."""
    return f"{name}, tuned"


def _litserve(binaries: Path, port: str) -> list[str]:
    return [str(binaries / "python"), str(HERE / "litserve" / "server.py"), "--port", port]


def _bentoml(module: str, binaries: Path, port: str) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", port]
    service = f"benchmarks.peers.bentoml.{module}:Quantize"
    return [str(binaries / "bentoml"), "serve", service, *where, "--timeout-keep-alive", KEEP_ALIVE_S]


def _mosec(binaries: Path, port: str) -> list[str]:
    limits = ["--timeout", DEADLINE_MS, "--max-request-size", MAX_BODY_BYTES]
    program = [str(binaries / "python"), str(HERE / "mosec" / "server.py")]
    return [*program, "--address", "127.0.0.1", "--port", port, *limits, "--log-level", "warning"]


def _triton(binaries: Path, port: str) -> list[str]:
    return [str(binaries / "python"), str(HERE / "triton" / "server.py"), "--port", port]


PEERS = (
    Peer("LitServe", "litserve", "raw bytes through a FastAPI dependency", "raw", "/predict", "/health", _litserve),
    Peer(
        "BentoML",
        "bentoml",
        "raw bytes, mounted ASGI application",
        "raw",
        "/v1/quantize",
        "/readyz",
        partial(_bentoml, "service"),
        partial(_bentoml, "tuned"),
    ),
    Peer("mosec", "mosec", "raw bytes", "raw", "/inference", "/", _mosec, _mosec),
    Peer(
        "Triton",
        "nvidia-pytriton",
        "binary tensors over HTTP, Python backend",
        "triton",
        "/v2/models/k_bit_quantize/infer",
        "/v2/health/ready",
        _triton,
        _triton,
    ),
)
