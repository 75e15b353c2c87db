"""What a model has done in this process: how many calls, and how long their stages took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from service.oip.models import VERSION, Document, Model


class Times(NamedTuple):
    """How long an answered call took, in nanoseconds: in all, waiting, getting its tensors, computing, writing its answer."""

    total_ns: int
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass
class _Duration:
    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def document(self) -> Document:
        return {"count": self.count, "ns": self.ns}


@dataclass
class _Counted:
    last_inference_ms: int = 0
    fail: _Duration = field(default_factory=_Duration)
    stages: dict[str, _Duration] = field(default_factory=lambda: {stage: _Duration() for stage in Times._fields})


class Statistics:
    """The calls of each model. Used on the event loop only, so it needs no lock."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._counted = {name: _Counted() for name in models}

    def succeeded(self, model: Model, times: Times) -> None:
        """Count an answered call."""
        counted = self._counted[model.name]
        counted.last_inference_ms = time.time_ns() // 1_000_000
        for stage, ns in times._asdict().items():
            counted.stages[stage].add(ns)

    def failed(self, model: Model, total_ns: int) -> None:
        """Count a call that was admitted and then answered with an error."""
        self._counted[model.name].fail.add(total_ns)

    def document(self, model: Model) -> Document:
        """An entry of `model_stats`. Nothing is batched or cached: each call is executed once, as a batch of one."""
        counted = self._counted[model.name]
        stages = {stage.removesuffix("_ns"): duration.document() for stage, duration in counted.stages.items()}
        calls = counted.stages["total_ns"].count
        compute = {f"compute_{stage}": stages[stage] for stage in ("input", "infer", "output")}
        nothing = _Duration().document()
        return {
            "name": model.name,
            "version": VERSION,
            "last_inference": counted.last_inference_ms,
            "inference_count": calls,
            "execution_count": calls,
            "inference_stats": {
                "success": stages["total"],
                "fail": counted.fail.document(),
                "queue": stages["queue"],
                **compute,
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [{"batch_size": 1, **compute}] if calls else [],
            "memory_usage": [],
        }
