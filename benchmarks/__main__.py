"""`python -m benchmarks http | ops | peers | gpu | batch | compact | shm | report`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from benchmarks.machine import use_cores
from benchmarks.results import GpuResults, HttpResults, OperatorResults

HERE = Path(__file__).parent
LEAST_ROUNDS = 5


def main(arguments: list[str] | None = None) -> int:
    """Measure and write what was measured; partial runs only print it."""
    options = _parser().parse_args(arguments)
    use_cores(options.cores)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    if options.what == "http":
        return run_http(options)
    if options.what == "ops":
        return run_operators(options)
    if options.what == "peers":
        return run_peers(options)
    if options.what == "batch":
        return run_batch(options)
    if options.what == "compact":
        return run_compact(options)
    if options.what == "shm":
        return run_shared_memory(options)
    if options.what == "gpu":
        return run_gpu(options)
    write_report(options.out or HERE)
    return 0


def run_http(options: argparse.Namespace) -> int:
    """The servers; 1 where something failed on the way."""
    from benchmarks import over_http, report
    from benchmarks.bench import Bench

    with Bench(device=options.device, without=frozenset(options.without)) as bench:
        results = over_http.run(
            bench, rounds=options.rounds, quick=options.quick, only=options.only, device=options.device, say=_say
        )
    _keep(options, f"{options.name or 'http'}.json", results, report.write(results, None))
    return 1 if results.failures else 0


def run_operators(options: argparse.Namespace) -> int:
    """The operators alone."""
    from benchmarks import operators, report

    results = operators.run(quick=options.quick, only=options.only, say=_say)
    _keep(options, f"{options.name or 'ops'}.json", results, report.write(None, results))
    return 0


def run_peers(options: argparse.Namespace) -> int:
    """Ours beside other tensor servers; 1 where one of them failed, or is missing."""
    from benchmarks.peers import report, run

    results = run.run(
        rounds=options.rounds,
        quick=options.quick,
        only=options.only,
        without=options.without,
        device=options.device,
        say=_say,
    )
    _keep(options, f"{options.name or 'peers'}.json", results, report.write(results))
    return 1 if results.failures or any(peer.missing for peer in results.peers) else 0


def run_gpu(options: argparse.Namespace) -> int:
    """The engine and the server on a CUDA device; 1 where there is none."""
    from benchmarks import gpu
    from benchmarks.bench import Bench

    try:
        with Bench(device="cuda", without=frozenset(options.without)) as bench:
            results = gpu.run(bench, rounds=options.rounds, quick=options.quick, say=_say)
    except gpu.NoDevice as error:
        _say(f"nothing was measured: {error}")
        return 1
    _keep(options, f"{options.name or 'gpu'}.json", results, gpu.write(results))
    return 0


def run_batch(options: argparse.Namespace) -> int:
    """A job beside the generator; printed only. 1 where the disk is too small."""
    from benchmarks import batch

    volume = batch.QUICK if options.quick else batch.FULL
    try:
        print(batch.run(volume, rounds=options.rounds, device=options.device, say=_say).as_text())
    except OSError as error:
        _say(f"not measured: {error}")
        return 1
    return 0


def run_compact(options: argparse.Namespace) -> int:
    """Compact answers beside values; printed only."""
    from benchmarks import compact

    sizes_bytes = compact.QUICK_SIZES_BYTES if options.quick else compact.SIZES_BYTES
    results = compact.run(sizes_bytes, rounds=options.rounds, device=options.device, say=_say)
    print("\n".join(rates.as_text() for rates in results))
    return 0


def run_shared_memory(options: argparse.Namespace) -> int:
    """Shared memory beside the socket; printed only."""
    from benchmarks import shared_memory

    found = shared_memory.run(rounds=options.rounds, quick=options.quick, device=options.device, say=_say)
    print("\n".join(compared.as_text() for compared in found))
    return 0


def write_report(folder: Path) -> None:
    """RESULTS.md and the plot from `results/http.json` and `results/ops.json`; PEERS.md and GPU.md from those of their names."""
    from benchmarks import report

    http_path, operators_path = folder / "results" / "http.json", folder / "results" / "ops.json"
    http = HttpResults.model_validate_json(http_path.read_text()) if http_path.exists() else None
    operators = OperatorResults.model_validate_json(operators_path.read_text()) if operators_path.exists() else None
    plot = None
    if http:
        try:
            from benchmarks.plot import draw
        except ModuleNotFoundError as error:
            _say(f"no plot: {error}")
        else:
            draw(http, folder / "results" / "http")
            plot = "results/http.svg"
    if http or operators:
        (folder / "RESULTS.md").write_text(report.write(http, operators, plot))
        _say(f"written: {folder / 'RESULTS.md'}")
    write_peers_report(folder)
    write_gpu_report(folder)


def write_peers_report(folder: Path) -> None:
    """PEERS.md, from `results/peers.json`."""
    from benchmarks.peers import report
    from benchmarks.peers.results import PeerResults

    path = folder / "results" / "peers.json"
    if path.exists():
        (folder / "PEERS.md").write_text(report.write(PeerResults.model_validate_json(path.read_text())))
        _say(f"written: {folder / 'PEERS.md'}")


def write_gpu_report(folder: Path) -> None:
    """GPU.md, from `results/gpu.json`."""
    path = folder / "results" / "gpu.json"
    if path.exists():
        from benchmarks import gpu

        (folder / "GPU.md").write_text(gpu.write(GpuResults.model_validate_json(path.read_text())))
        _say(f"written: {folder / 'GPU.md'}")


def _keep(options: argparse.Namespace, name: str, results: HttpResults | OperatorResults | GpuResults, text: str) -> None:
    print(text)
    partial = options.quick or options.only or options.without or options.rounds < LEAST_ROUNDS
    if partial and options.out is None:
        _say("a partial run: nothing written; --out FOLDER writes it")
        return
    folder = options.out or HERE
    (folder / "results").mkdir(parents=True, exist_ok=True)
    (folder / "results" / name).write_text(results.model_dump_json(indent=1) + "\n")
    write_report(folder)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules["benchmarks"].__doc__)
    parser.add_argument("what", choices=["http", "ops", "peers", "gpu", "batch", "compact", "shm", "report"])
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer sizes and rounds, shorter cells")
    parser.add_argument("--only", default="", metavar="TEXT", help="only what has this in its name, as the progress lines show it")
    parser.add_argument(
        "--without", action="append", default=[], metavar="SERVER", help="leave a server out: ours, naive, ceiling, …"
    )
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS)
    parser.add_argument("--cores", type=int, default=2, help="cores that servers and generator share; 0: all (default: 2)")
    parser.add_argument("--device", default="cpu", help="the device of the service (default: cpu)")
    parser.add_argument("--name", help="name of the JSON file in results/ (default: http, ops, peers, gpu)")
    parser.add_argument("--out", type=Path, help="folder for RESULTS.md, PEERS.md, GPU.md and results/ (default: here)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
