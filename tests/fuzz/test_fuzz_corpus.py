"""The targets of fuzzing in every run of the tests: the corpus again, some inputs more, and the engine where it can be had."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from fuzz_checks import MAX_INPUT_BYTES, unless_refused
from fuzz_mutation import Finding, mutants, run
from fuzz_targets import CORPUS, TARGETS, Target

from service.errors import MalformedBody, RequestError
from service.wire import FORMATS

HERE = Path(__file__).parent
MOST_FILES = 300
MOST_BYTES = 1_000_000

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@every_target
def test_nothing_is_found_in_the_seeds_and_in_the_corpus(target: Target) -> None:
    for data in target.inputs():
        target.check(data)


@every_target
def test_nothing_is_found_in_some_thousand_inputs_made_of_them(target: Target) -> None:
    assert run(target, seed=1, runs=2000) == 2000


@pytest.mark.parametrize(
    ("form", "fields"),
    [("npy", ("x",)), *((form, ("x", "grad_output")) for form in ("msgpack", "json", "safetensors"))],
)
def test_every_seed_of_a_format_is_accepted_so_that_its_oracle_is_asked(form: str, fields: tuple[str, ...]) -> None:
    for data in TARGETS[form].seeds():
        FORMATS[form].decode(memoryview(data), fields, 64)


def test_every_kept_input_belongs_to_a_target_and_they_are_few_and_small() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= set(TARGETS)
    assert 0 < len(files) <= MOST_FILES
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_an_exception_that_is_no_refusal_is_found_with_its_input() -> None:
    def check(data: bytes) -> None:
        assert b"\x93" not in data

    target = Target("planted", check, lambda: [b"\x92" * 8], [b"word"])
    with pytest.raises(Finding) as found:
        run(target, seed=1, runs=100_000)
    assert b"\x93" in found.value.data
    assert isinstance(found.value.__cause__, AssertionError)


def test_a_refusal_is_none_and_what_is_no_refusal_is_raised() -> None:
    def fails(error: Exception) -> None:
        raise error

    assert issubclass(MalformedBody, RequestError)
    assert unless_refused(lambda: fails(MalformedBody("it is not"))) is None
    with pytest.raises(IndexError):
        unless_refused(lambda: fails(IndexError("a decoder read on")))
    with pytest.raises(AssertionError, match="a problem of"):
        unless_refused(lambda: fails(MalformedBody("the whole body " * 1000)))


def test_the_same_seed_makes_the_same_inputs() -> None:
    def some(seed: int) -> list[bytes]:
        made = mutants(TARGETS["json"], seed)
        return [next(made) for _ in range(50)]

    assert some(1) == some(1) != some(2)
    assert max(map(len, some(1))) <= MAX_INPUT_BYTES


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "run.py"), *arguments], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("engine", ["plain", "atheris"])
def test_the_command_runs_an_engine_and_counts_its_executions(engine: str, tmp_path: Path) -> None:
    if engine == "atheris" and importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; it has packages for Linux on x86-64 only")
    done = command("json", "oip", "--engine", engine, "--runs", "400", "--seed", "1", "--found", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    told: Mapping[str, str] = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert told["engine"].startswith(engine)
    assert int(told["json"].split()[0]) >= 200
    # Only what is instrumented has branches to be guided by; each of the two takes more than a hundred.
    branches = re.search(r"(\d+) branches", told["json"])
    assert (branches is not None and int(branches[1]) > 100) == (engine == "atheris")
    assert "nothing found" in told["oip"]
    assert not list(tmp_path.iterdir())


def test_the_command_shows_an_input_again(tmp_path: Path) -> None:
    given = tmp_path / "input"
    given.write_bytes(b'{"x":[1]}')
    done = command("json", "--replay", str(given))
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "json")
