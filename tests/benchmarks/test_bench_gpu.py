"""The GPU benchmark measures what it says, here on the CPU; how fast anything is, is not asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import __main__, gpu
from benchmarks.cells import CEILING, NAIVE, OURS, QUANTIZE
from benchmarks.results import GpuResults, Measured, Row, Sample
from benchmarks.units import KIB, MIB
from service.device.devices import Cpu
from service.device.engine import Engine


def nothing(_: str) -> None:
    """What is said while it runs is not looked at."""


def results() -> GpuResults:
    engine = Engine(Cpu("test"))
    copies = list(gpu.engine_times(engine, gpu.EXPRESSIONS[:1], (4 * KIB,), rounds=2, say=nothing))
    small = list(gpu.small_calls(engine, (1, 3), rounds=2, seconds=0.02, say=nothing))
    engine.close()
    sample = Sample(requests=100, elapsed_s=1.0, cpu_s=0.1, latency_us={})
    rows = {label: Row(size_bytes=MIB, samples=[sample]) for label in (CEILING, NAIVE, OURS)}
    over_http = [Measured(group=QUANTIZE, size_bytes=MIB, connections=8, rows=rows)]
    return GpuResults(
        machine={"device": "cuda:0, a name"}, settings={"rounds": "2"}, copies=copies, small_calls=small, over_http=over_http
    )


def test_every_size_and_every_number_of_callers_is_measured_and_written(tmp_path: Path) -> None:
    measured = results()
    (one,) = measured.copies
    assert [len(times) for times in (one.seconds, one.copies_s, one.overlapped_s)] == [2, 2, 2]
    assert min(*one.seconds, *one.copies_s, *one.overlapped_s) > 0
    assert [(calls.callers, len(calls.together), len(calls.apart)) for calls in measured.small_calls] == [(1, 2, 2), (3, 2, 2)]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "gpu.json").write_text(measured.model_dump_json())
    __main__.write_report(tmp_path)
    text = (tmp_path / "GPU.md").read_text()
    assert text == gpu.write(measured)
    assert "| device | cuda:0, a name |" in text
    assert "| `k_bit_quantize(k=4)`, 4 KiB |" in text
    assert "| 1 MiB, 8 | 100 | 100 | 100 | 1.00 | 1.00 |" in text


def test_without_a_device_it_says_so_and_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert __main__.main(["gpu", "--cores", "0", "--out", str(tmp_path)]) == 1
    assert "nothing was measured: device 'cuda' is not there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
