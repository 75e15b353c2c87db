"""What a second run makes of a first: nothing is done twice, and nothing that changed is left."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from job_harness import forecast, run, started
from job_relay import Relay
from job_trees import (
    check_output,
    check_tree,
    corrupt,
    digest,
    outputs,
    snapshot,
    values,
    write_gradients,
    write_npy,
    write_npz,
    write_tree,
)
from server_process import ServerProcess, eventually

FLOAT32 = np.dtype(np.float32)
CHUNK_BYTES = 64 * 1024
FLAGS = ("--chunk-bytes", "64KiB", "--concurrency", "2")


def large(seed: int = 21) -> np.ndarray:
    """Ten chunks."""
    return values(np.random.default_rng(seed), (10 * CHUNK_BYTES // 4,), FLOAT32)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_after_a_kill_the_file_is_continued_at_its_first_missing_chunk(suffix: str, tmp_path: Path, server: ServerProcess) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    if suffix == ".npy":
        write_npy(source / "x.npy", large())
    else:
        write_npz(source / "x.npz", compressed=True, x=large())
    with Relay(server.port, allowance=6) as relay, started(source, dest, "--url", relay.url, *FLAGS) as job:
        eventually(lambda: len(relay.calls) == 8, "six chunks are answered, two wait")
        eventually(lambda: forecast(source, dest)["continue"] == 1, "the journal knows of some")
        job.kill()
    assert outputs(dest) == [], "nothing has its final name before it is complete"
    chunks = run(source, dest, "--url", server.url, *FLAGS).expect(0).summary.chunks
    assert chunks.sent + chunks.skipped == 10
    assert 4 <= chunks.sent < 10
    check_tree(source, dest)


def test_a_gradient_is_continued_too(tmp_path: Path, server: ServerProcess) -> None:
    source, dest, flags = tmp_path / "in", tmp_path / "out", (*FLAGS, "--grad", str(tmp_path / "grads"))
    write_npy(source / "x.npy", large())
    write_gradients(source, tmp_path / "grads")
    with Relay(server.port, allowance=6) as relay, started(source, dest, "--url", relay.url, *flags) as job:
        eventually(lambda: len(relay.calls) == 8, "six chunks are answered, two wait")
        eventually(lambda: forecast(source, dest, "--grad", str(tmp_path / "grads"))["continue"] == 1, "the journal knows of some")
        job.kill()
    assert run(source, dest, "--url", server.url, *flags).expect(0).summary.chunks.sent < 10
    run(source, tmp_path / "undisturbed", "--url", server.url, *flags).expect(0)
    assert digest(dest) == digest(tmp_path / "undisturbed")


def test_another_size_of_chunks_and_another_place_continue_a_file(tmp_path: Path, server: ServerProcess) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    write_npy(source / "x.npy", large())
    with Relay(server.port, allowance=6) as relay, started(source, dest, "--url", relay.url, *FLAGS) as job:
        eventually(lambda: len(relay.calls) == 8, "six chunks are answered, two wait")
        eventually(lambda: forecast(source, dest)["continue"] == 1, "the journal knows of some")
        job.kill()
    assert run(source, dest, "--chunk-bytes", "10000").expect(0).summary.chunks.skipped > 0
    check_tree(source, dest)


def test_what_is_done_is_skipped_and_only_what_changed_is_done_again(tmp_path: Path, server: ServerProcess) -> None:
    source, dest, url = tmp_path / "in", tmp_path / "out", ("--url", server.url)
    for name in ("same", "longer", "other", "gone"):
        write_npy(source / f"{name}.npy", values(np.random.default_rng(22), (100,), FLOAT32))
    run(source, dest, *url).expect(0)
    before = {path.name: path.stat().st_ino for path in outputs(dest)}
    write_npy(source / "longer.npy", values(np.random.default_rng(23), (101,), FLOAT32))
    write_npy(source / "other.npy", values(np.random.default_rng(24), (100,), FLOAT32))
    write_npy(source / "new.npy", values(np.random.default_rng(25), (100,), FLOAT32))
    (dest / "gone.npy").unlink()
    assert forecast(source, dest) == {"todo": 2, "continue": 0, "changed": 2, "done": 1, "bad": 0}
    files = run(source, dest, *url).expect(0).summary.files
    assert (files.total, files.done, files.skipped) == (5, 4, 1)
    check_tree(source, dest)
    assert (dest / "same.npy").stat().st_ino == before["same.npy"]


@pytest.mark.parametrize("jump_s", [-86_400, 86_400], ids=["back", "forth"])
def test_other_bytes_of_the_same_length_are_seen_whichever_way_the_clock_jumped(
    jump_s: int, tmp_path: Path, server: ServerProcess
) -> None:
    source, dest, url = tmp_path / "in", tmp_path / "out", ("--url", server.url)
    write_npy(source / "x.npy", large(1))
    then = (source / "x.npy").stat().st_mtime
    run(source, dest, *url).expect(0)
    write_npy(source / "x.npy", large(2))
    os.utime(source / "x.npy", (then + jump_s, then + jump_s))
    assert run(source, dest, *url).expect(0).summary.files.done == 1
    check_tree(source, dest)


def test_the_same_bytes_under_another_time_are_not_sent_again(tmp_path: Path, server: ServerProcess) -> None:
    source, dest, url = tmp_path / "in", tmp_path / "out", ("--url", server.url)
    write_npy(source / "x.npy", large())
    run(source, dest, *url).expect(0)
    for time_s in (1_000_000, 4_000_000_000):
        os.utime(source / "x.npy", (time_s, time_s))
        summary = run(source, dest, *url).expect(0).summary
        assert (summary.files.skipped, summary.chunks.sent) == (1, 0)
    run(source, dest, "--verify").expect(0)


def test_a_source_that_changed_while_its_output_was_half_done_is_begun_anew(tmp_path: Path, server: ServerProcess) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    write_npy(source / "x.npy", large(1))
    with Relay(server.port, allowance=6) as relay, started(source, dest, "--url", relay.url, *FLAGS) as job:
        eventually(lambda: len(relay.calls) == 8, "six chunks are answered, two wait")
        eventually(lambda: forecast(source, dest)["continue"] == 1, "the journal knows of some")
        job.kill()
    write_npy(source / "x.npy", large(2))
    assert run(source, dest, "--url", server.url, *FLAGS).expect(0).summary.chunks.sent == 10
    check_tree(source, dest)


def test_a_source_that_changes_while_it_is_read_is_not_published(tmp_path: Path, server: ServerProcess) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    write_npy(source / "x.npy", large(1))
    with Relay(server.port, allowance=4) as relay, started(source, dest, "--url", relay.url, *FLAGS) as job:
        eventually(lambda: len(relay.calls) == 6, "four chunks are answered, two wait")
        write_npy(source / "x.npy", large(2))
        relay.let_pass(None)
        assert "changed" in job.wait().expect(1).summary.bad[str(source / "x.npy")]
    assert outputs(dest) == []
    run(source, dest, "--url", server.url).expect(0)
    check_tree(source, dest)


def test_force_does_everything_again(tmp_path: Path, server: ServerProcess) -> None:
    write_tree(tmp_path / "in", files=9, largest_bytes=1000)
    first = run(tmp_path / "in", tmp_path / "out", "--url", server.url).expect(0).summary
    second = run(tmp_path / "in", tmp_path / "out", "--url", server.url, "--force").expect(0).summary
    assert (second.files, second.chunks) == (first.files, first.chunks)
    check_tree(tmp_path / "in", tmp_path / "out")


# --dry-run and --verify -------------------------------------------------------------------------------------


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, server: ServerProcess) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    paths = write_tree(source, files=9, largest_bytes=1000)
    corrupt(paths[7], 1)
    nothing = {"todo": 8, "continue": 0, "changed": 0, "done": 0, "bad": 1}
    assert forecast(source, dest) == nothing
    assert not dest.exists()
    run(source, dest, "--url", server.url).expect(1)
    before = snapshot(dest)
    assert forecast(source, dest) == nothing | {"todo": 0, "done": 8}
    assert snapshot(dest) == before


def test_verify_finds_a_flipped_byte_on_either_side_and_writes_nothing(tmp_path: Path, server: ServerProcess) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    write_tree(source, files=9, largest_bytes=5000)
    run(source, dest, "--url", server.url).expect(0)
    assert run(source, dest, "--verify").expect(0).summary.bad == {}
    flip(dest / "0001.npz" if (dest / "0001.npz").exists() else outputs(dest)[0])
    flip(source / "c/0007.npy")
    before = snapshot(dest)
    found = run(source, dest, "--verify").expect(1).summary.bad
    assert len(found) == 2
    assert "source" in found[str(source / "c/0007.npy")]
    assert snapshot(dest) == before


def flip(path: Path) -> None:
    """One bit, at the same time as before."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_verify_lists_what_is_missing_or_not_done_yet(tmp_path: Path, server: ServerProcess) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    write_npy(source / "x.npy", np.ones(3))
    write_npy(source / "y.npy", np.ones(3))
    run(source, dest, "--url", server.url).expect(0)
    (dest / "x.npy").unlink()
    write_npy(source / "z.npy", np.ones(3))
    found = run(source, dest, "--verify").expect(1).summary.bad
    assert sorted(Path(path).name for path in found) == ["x.npy", "z.npy"]
    check_output(source / "y.npy", dest / "y.npy")
