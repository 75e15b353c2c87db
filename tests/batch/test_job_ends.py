"""How jobs end: every documented exit status, and the one line that says why."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from job_harness import STOPS, arguments_of, forecast, run, run_raw, started
from job_relay import Relay
from job_trees import ELEMENTWISE, WHOLE, check_tree, outputs, snapshot, values, write_npy
from server_process import ServerProcess, eventually, serving

FLOAT32 = np.dtype(np.float32)
CHUNK_BYTES = 64 * 1024


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One file of ten chunks."""
    write_npy(tmp_path / "in/x.npy", values(np.random.default_rng(11), (10 * CHUNK_BYTES // 4,), FLOAT32))
    return tmp_path / "in"


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that nobody else takes, and on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    yield from mounted(tmp_path / "disk", "size=2m")


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# 2: what was asked for cannot be done ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--op", "no_such(1)"), "no_such"),
        (("--op", "clamp(1"), "clamp"),
        (("--op", "affine_k_bit_quantize(k=4, w=w, b=0)"), "--tensor w=FILE"),
        (("--op", "round", "--chunk-bytes", "0"), "0"),
        (("--op", "round", "--chunk-bytes", "many"), "many"),
        (("--op", "round", "--concurrency", "0"), "0"),
        (("--op", "round", "--shard", "3/3"), "3/3"),
        (("--op", "round", "--shard", "one"), "one"),
        (("--op", "round", "--url", "gopher://a"), "gopher"),
        (("--op", "round", "--url", "http://a", "--uds", "b"), "--uds"),
        (("--op", "round", "--grace", "-1"), "-1"),
        (("--op", "round", "--verify", "--dry-run"), "--dry-run"),
        (("--op", "round", "--no-such-option"), "--no-such-option"),
        (("--op", "round", "--verify"), "no job"),
        ((), "--op"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_2_names_what_is_wrong_and_writes_nothing(
    flags: tuple[str, ...], named: str, source: Path, tmp_path: Path
) -> None:
    ended = run_raw(str(source), str(tmp_path / "out"), *flags).expect(2)
    assert named in ended.stderr
    assert ended.stdout == ""
    assert not (tmp_path / "out").exists()


def test_sources_that_name_nothing_or_have_no_files_are_2(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("not a tensor")
    for given in (
        tmp_path / "in",
        tmp_path / "missing",
        f"{tmp_path}/in/*.npy",
        f"{tmp_path}/in/notes.txt",
        f"@{tmp_path}/no-list",
    ):
        ended = run(given, tmp_path / "out").expect(2)
        assert str(given).removeprefix("@") in ended.stderr
    assert not (tmp_path / "out").exists()


def test_two_sources_of_one_output_are_2_and_both_are_named(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_npy(tmp_path / folder / "x.npy", np.ones(3))
    ended = run_raw(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "out"), "--op", "round").expect(2)
    assert str(tmp_path / "a/x.npy") in ended.stderr
    assert str(tmp_path / "b/x.npy") in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["JOB_COMPLETION_INDEX", "JOB_COMPLETION_COUNT"])
def test_half_a_shard_in_the_environment_is_2(name: str, source: Path, tmp_path: Path) -> None:
    ended = run(source, tmp_path / "out", variables={name: "1"}).expect(2)
    assert "JOB_COMPLETION_INDEX" in ended.stderr
    assert "JOB_COMPLETION_COUNT" in ended.stderr


def test_a_dest_of_another_expression_or_kind_is_2_and_force_starts_over(
    source: Path, tmp_path: Path, server: ServerProcess
) -> None:
    dest, url = tmp_path / "out", ("--url", server.url)
    run(source, dest, *url, op="round").expect(0)
    before = snapshot(dest)
    for ended in (run(source, dest, *url), run(source, dest, *url, "--dry-run"), run(source, dest, *url, "--verify")):
        assert "round" in ended.expect(2).stderr
        assert "k_bit_quantize" in ended.stderr
    other_kind = run(source, dest, *url, "--grad", str(source), op="round").expect(2)
    assert "quantize" in other_kind.stderr
    assert "grad" in other_kind.stderr
    assert snapshot(dest) == before
    assert run(source, dest, *url, "--force").expect(0).summary.files.done == 1
    check_tree(source, dest)
    assert run(source, dest, *url).expect(0).summary.files.skipped == 1


def test_another_spelling_of_the_expression_is_the_same_job(source: Path, tmp_path: Path, server: ServerProcess) -> None:
    run(source, tmp_path / "out", "--url", server.url).expect(0)
    spelled = "clamp(max_value=1.0,min_value=-1)|k_bit_quantize(k=4)"
    assert run(source, tmp_path / "out", "--url", server.url, op=spelled).expect(0).summary.files.skipped == 1


def test_a_dest_where_nothing_can_be_written_is_2(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    # Nobody makes folders in /proc, the superuser included.
    for dest in (tmp_path / "file", tmp_path / "file/out", Path("/proc/stequant-out")):
        assert str(dest) in run(source, dest).expect(2).stderr


def test_a_dest_on_a_read_only_file_system_is_2_and_goes_on_once_it_is_writable(
    source: Path, tmp_path: Path, server: ServerProcess
) -> None:
    for disk in mounted(tmp_path / "disk", "size=16m"):
        dest = disk / "out"
        run(source, dest, "--url", server.url).expect(0)
        write_npy(source / "new.npy", np.ones(3, np.float32))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert str(dest) in run(source, dest, "--url", server.url).expect(2).stderr
        run(source / "x.npy", dest, "--verify").expect(0)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert run(source, dest, "--url", server.url).expect(0).summary.files.skipped == 1
        check_tree(source, dest)


def test_a_tensor_or_chunk_above_the_servers_limit_is_2_before_anything_is_computed(source: Path, tmp_path: Path) -> None:
    with serving("--max-body-bytes", "100000") as small, Relay(small.port) as relay:
        ended = run(source, tmp_path / "out", "--url", relay.url, op=WHOLE).expect(2)
        assert str(source / "x.npy") in ended.stderr
        assert (
            "--chunk-bytes"
            in run(source, tmp_path / "out", "--url", relay.url, "--chunk-bytes", "200000", "--force").expect(2).stderr
        )
        assert relay.calls == []
        run(source, tmp_path / "out", "--url", relay.url, "--chunk-bytes", "64KiB", "--force").expect(0)
    check_tree(source, tmp_path / "out")


# 3: gave up, to be continued --------------------------------------------------------------------------------


def test_a_server_that_nobody_reaches_is_3_and_the_job_goes_on_later(
    source: Path, tmp_path: Path, server: ServerProcess, free_port: int
) -> None:
    dest = tmp_path / "out"
    url = f"http://127.0.0.1:{free_port}"
    ended = run(source, dest, "--url", url, "--give-up-after", "0.5").expect(3)
    assert ended.summary.status == "gave_up"
    assert url in ended.stderr
    assert outputs(dest) == []
    run(source, dest, "--url", server.url).expect(0)
    check_tree(source, dest)


def test_a_server_that_dies_in_the_middle_is_3_and_what_it_answered_is_kept(
    source: Path, tmp_path: Path, server: ServerProcess, free_port: int
) -> None:
    dest, flags = tmp_path / "out", ("--chunk-bytes", "64KiB", "--concurrency", "1")
    with (
        Relay(server.port, allowance=4) as relay,
        started(source, dest, "--url", relay.url, "--give-up-after", "0.5", *flags) as job,
    ):
        eventually(lambda: len(relay.calls) == 5, "four chunks are answered, one waits")
        relay.upstream = free_port
        relay.drop()
        relay.let_pass(None)
        ended = job.wait().expect(3)
    assert ended.summary.chunks.sent == 4
    rest = run(source, dest, "--url", server.url, *flags).expect(0).summary.chunks
    assert (rest.sent, rest.skipped) == (6, 4)
    check_tree(source, dest)


def test_a_dest_that_is_being_worked_on_is_3_and_its_holder_is_named(source: Path, tmp_path: Path, server: ServerProcess) -> None:
    dest = tmp_path / "out"
    with Relay(server.port, allowance=0) as relay, started(source, dest, "--url", relay.url) as job:
        eventually(lambda: len(relay.calls) == 1, "the first job is at work")
        for flags in ((), ("--force",), ("--shard", "0/2")):
            ended = run(source, dest, "--url", server.url, *flags).expect(3)
            assert f"pid {job.process.pid}" in ended.stderr
            assert socket.gethostname() in ended.stderr
        relay.let_pass(None)
        job.wait().expect(0)
    check_tree(source, dest)


def test_beside_a_shard_only_the_other_shards_of_its_count_are_let_in(source: Path, tmp_path: Path, server: ServerProcess) -> None:
    dest = tmp_path / "out"
    own = next(index for index in range(2) if forecast(source, dest, "--shard", f"{index}/2")["todo"])
    with Relay(server.port, allowance=0) as relay, started(source, dest, "--url", relay.url, "--shard", f"{own}/2") as job:
        eventually(lambda: len(relay.calls) == 1, "the shard is at work")
        for flags in ((), ("--shard", f"{own}/2"), ("--shard", "0/3"), ("--force",), ("--shard", f"{1 - own}/2", "--force")):
            assert f"pid {job.process.pid}" in run(source, dest, "--url", server.url, *flags).expect(3).stderr
        run(source, dest, "--url", server.url, "--shard", f"{1 - own}/2").expect(0)
        relay.let_pass(None)
        job.wait().expect(0)
    check_tree(source, dest)


def test_a_full_disk_is_3_and_the_job_goes_on_once_there_is_room(small_disk: Path, tmp_path: Path, server: ServerProcess) -> None:
    random = np.random.default_rng(12)
    for number in range(8):
        write_npy(tmp_path / f"in/{number}.npy", values(random, (100_000,), FLOAT32))
    dest, flags = small_disk / "out", ("--url", server.url, "--chunk-bytes", "64KiB", "--concurrency", "2")
    ended = run(tmp_path / "in", dest, *flags).expect(3)
    assert "No space left" in ended.stderr
    assert ended.summary.status == "gave_up"
    kept = len(outputs(dest))
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    assert run(tmp_path / "in", dest, *flags).expect(0).summary.files.skipped >= kept
    check_tree(tmp_path / "in", dest)


def test_a_quota_on_files_is_3_and_the_job_goes_on_without_it(source: Path, tmp_path: Path, server: ServerProcess) -> None:
    dest = tmp_path / "out"
    write_npy(source / "small.npy", np.ones(3, np.float32))
    quota = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, {resource.RLIM_INFINITY})); "
    prefix = (sys.executable, "-c", quota + "os.execv(sys.argv[1], sys.argv[1:])")
    ended = run(source, dest, "--url", server.url, prefix=prefix).expect(3)
    assert "File too large" in ended.stderr
    run(source, dest, "--url", server.url).expect(0)
    check_tree(source, dest)


# 130 and 143: stopped, to be continued ----------------------------------------------------------------------


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_lets_what_is_in_flight_end_and_the_next_run_sends_the_rest(
    number: signal.Signals, source: Path, tmp_path: Path, server: ServerProcess
) -> None:
    dest, flags = tmp_path / "out", ("--chunk-bytes", "64KiB", "--concurrency", "2")
    with Relay(server.port, allowance=3) as relay, started(source, dest, "--url", relay.url, *flags) as job:
        eventually(lambda: len(relay.calls) == 5, "three chunks are answered, two wait")
        job.signal(number)
        relay.let_pass(2)
        ended = job.wait().expect(STOPS[number])
    assert (ended.summary.status, ended.summary.chunks.sent) == ("stopped", 5)
    assert outputs(dest) == []
    rest = run(source, dest, "--url", server.url, *flags).expect(0).summary.chunks
    assert (rest.sent, rest.skipped) == (5, 5)
    check_tree(source, dest)


def test_what_does_not_end_within_the_grace_period_is_left_for_the_next_run(
    source: Path, tmp_path: Path, server: ServerProcess
) -> None:
    dest, flags = tmp_path / "out", ("--chunk-bytes", "64KiB", "--concurrency", "2")
    with Relay(server.port, allowance=3) as relay, started(source, dest, "--url", relay.url, "--grace", "0.2", *flags) as job:
        eventually(lambda: len(relay.calls) == 5, "three chunks are answered, two wait")
        job.signal(signal.SIGTERM)
        assert job.wait().expect(143).summary.chunks.sent == 3
    rest = run(source, dest, "--url", server.url, *flags).expect(0).summary.chunks
    assert (rest.sent, rest.skipped) == (7, 3)
    check_tree(source, dest)


@pytest.mark.parametrize("number", STOPS)
def test_a_second_signal_ends_the_job_at_once(number: signal.Signals, source: Path, tmp_path: Path, server: ServerProcess) -> None:
    with Relay(server.port, allowance=0) as relay, started(source, tmp_path / "out", "--url", relay.url, "--grace", "600") as job:
        eventually(lambda: len(relay.calls) == 1, "a chunk waits")

        def has_ended() -> bool:
            # Two signals that arrive together are one: so another, until one was a second one.
            job.signal(number)
            return not job.is_running

        eventually(has_ended, "the second signal ends it")
        assert job.wait().exit_code == STOPS[number]
    run(source, tmp_path / "out", "--url", server.url).expect(0)
    check_tree(source, tmp_path / "out")


def test_a_signal_while_the_server_is_awaited_stops_the_wait(source: Path, tmp_path: Path, free_port: int) -> None:
    with started(source, tmp_path / "out", "--url", f"http://127.0.0.1:{free_port}") as job:
        eventually(lambda: (tmp_path / "out/.stequant/job.json").exists(), "the job has begun")
        began = time.monotonic()
        job.signal(signal.SIGTERM)
        job.wait().expect(143)
        assert time.monotonic() - began < 20, "the grace period is for what is in flight"


# What is said -----------------------------------------------------------------------------------------------


def test_a_job_says_one_line_at_its_end_and_nothing_when_quiet(source: Path, tmp_path: Path, server: ServerProcess) -> None:
    flags = arguments_of(source, tmp_path / "out", "--url", server.url)
    loud = run_raw(*flags).expect(0)
    assert (loud.stdout, loud.stderr.count("\n")) == ("", 1)
    assert "1 file" in loud.stderr
    quiet = run_raw(*flags, "--quiet").expect(0)
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_a_tensor_parameter_is_read_from_its_file(tmp_path: Path, server: ServerProcess) -> None:
    x = values(np.random.default_rng(13), (6, 4), FLOAT32)
    w = np.array([1, 2, -1, 0.5], np.float32)
    write_npy(tmp_path / "in/x.npy", x)
    write_npy(tmp_path / "w.npy", w)
    flags = ("--tensor", f"w={tmp_path}/w.npy", "--url", server.url)
    expression = f"{ELEMENTWISE} | affine_k_bit_quantize(k=4, w=w, b=0.25)"
    run(tmp_path / "in", tmp_path / "out", *flags, op=expression).expect(0)
    y = np.load(tmp_path / "out/x.npy")
    assert os.path.getsize(tmp_path / "out/x.npy") == os.path.getsize(tmp_path / "in/x.npy")
    s = np.float32(15)
    clamped = np.where(x < -1, np.float32(-1), np.where(x > 1, np.float32(1), x))
    quantized = np.rint(clamped * s) / s
    np.testing.assert_array_equal(y, (np.rint(quantized * s) / s) * w + np.float32(0.25))
    write_npy(tmp_path / "w.npy", w * 2)
    assert "'w'" in run(tmp_path / "in", tmp_path / "out", *flags, op=expression).expect(2).stderr
