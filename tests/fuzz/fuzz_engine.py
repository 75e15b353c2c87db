"""Run one target in this process: `python fuzz_engine.py TARGET ENGINE RUNS SECONDS SEED FOUND [NEW]`.

A process of its own for each target, because libFuzzer ends the one in which it runs. What it fuzzes has to
be imported here for the first time, so that atheris can count which of its branches are taken.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# Seconds for one input, after which libFuzzer calls it a finding; and the memory of the process.
_TIMEOUT_S = 20
_MEMORY_MIB = 2048


def main(name: str, engine: str, runs: int, seconds: float, seed: int, found: Path, new: Path | None) -> int:
    """Fuzz; the exit status is 0 when nothing was found. `runs` and `seconds` are no bounds where they are 0."""
    if engine == "atheris":
        return _guided(name, runs, seconds, seed, found, new)
    return _plain(name, runs, seconds, seed, found)


def _guided(name: str, runs: int, seconds: float, seed: int, found: Path, new: Path | None) -> int:
    import atheris

    # What atheris puts around comparisons keeps the arrays that are compared, 10 KB for each execution: 2 GB after 140 000.
    with atheris.instrument_imports(include=["service"], exclude=["service.wire.json_numbers"]):
        from fuzz_targets import TARGETS
    from fuzz_checks import MAX_INPUT_BYTES

    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as work:
        given, words = Path(work, "given"), Path(work, "words")
        given.mkdir()
        for i, data in enumerate(target.inputs()):
            (given / f"{i:05}").write_bytes(data)
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        bounds = [f"-runs={runs}"] * bool(runs) + [f"-max_total_time={max(1, round(seconds))}"] * bool(seconds)
        limits = [f"-max_len={MAX_INPUT_BYTES}", f"-timeout={_TIMEOUT_S}", f"-rss_limit_mb={_MEMORY_MIB}"]
        places = [f"-artifact_prefix={found}/{name}-", f"-dict={words}", *([str(new)] if new else []), str(given)]
        atheris.Setup([sys.argv[0], *bounds, *limits, f"-seed={seed}", "-print_final_stats=1", *places], target.check)
        atheris.Fuzz()
    return 0


def _escaped(word: bytes) -> str:
    return "".join(chr(byte) if re.fullmatch(rb"[ !#-\[\]-~]", bytes([byte])) else f"\\x{byte:02x}" for byte in word)


def _plain(name: str, runs: int, seconds: float, seed: int, found: Path) -> int:
    from fuzz_mutation import Finding, run
    from fuzz_targets import TARGETS

    started = time.monotonic()
    try:
        done = run(TARGETS[name], seed=seed, runs=runs or None, seconds=seconds or None)
    except Finding as finding:
        place = found / f"{name}-{seed}"
        place.write_bytes(finding.data)
        print(f"{finding.__cause__!r} for the input in {place}", file=sys.stderr)
        return 1
    print(f"Done {done} runs in {time.monotonic() - started:.0f} second(s)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    _name, _engine, _runs, _seconds, _seed, _found, *_new = sys.argv[1:]
    sys.exit(main(_name, _engine, int(_runs), float(_seconds), int(_seed), Path(_found), Path(_new[0]) if _new else None))
