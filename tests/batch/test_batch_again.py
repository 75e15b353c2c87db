"""A second run does what is missing or changed, and nothing else; it refuses what belongs to another job."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_trees import BAD, DONE, GAVE_UP, USAGE, Batch, later, npy, npz, numbers, outputs, quantized, write
from scripted_server import Asked, Problem, scripted

from service.batch.dest import Dest
from service.batch.lock import DestLock

A, B = numbers((30, 40)), numbers(500, seed=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "in", {"a.npy": npy(A), "b/b.npy": npy(B)})


def right(source: Path, folder: Path, op: str = "round") -> dict[str, bytes]:
    """What every .npy file below a folder becomes."""
    return {path.relative_to(source).as_posix(): quantized(path, folder, op) for path in sorted(source.rglob("*.npy"))}


def rows(dest: Path) -> dict[str, dict[str, Any]]:
    """What the journal says of each file."""
    with sqlite3.connect(dest / ".stequant/journal.sqlite") as database:
        database.row_factory = sqlite3.Row
        found = {row["path"]: dict(row) for row in database.execute("SELECT * FROM files")}
    database.close()
    return found


def test_what_is_done_is_not_done_again(tmp_path: Path, source: Path, anywhere: Batch) -> None:
    first = anywhere.json(source, tmp_path / "out")
    assert (first.code, first.sent) == (DONE, 2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}
    again = anywhere.json(source, tmp_path / "out")
    assert again.summary["files"] == {"total": 2, "done": 0, "skipped": 2, "bad": 0}
    assert (again.code, again.sent) == (DONE, 0)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_journal_says_what_was_read_and_written(tmp_path: Path, source: Path, batch: Batch) -> None:
    assert batch(source, tmp_path / "out", "--chunk-bytes", 1000, op="clamp(0, 1)").code == DONE
    row = rows(tmp_path / "out")["a.npy"]
    data, output = (source / "a.npy").read_bytes(), (tmp_path / "out/a.npy").read_bytes()
    assert (row["state"], row["expression"], row["chunks"]) == ("done", "clamp(min_value=0, max_value=1)", 5)
    assert (row["source_bytes"], row["source_crc32"]) == (len(data), zlib.crc32(data))
    assert row["source_mtime_ns"] == (source / "a.npy").stat().st_mtime_ns
    assert (row["output_bytes"], row["output_crc32"]) == (len(output), zlib.crc32(output))


@pytest.mark.parametrize("seconds", [3600, -3600], ids=["later", "earlier"])
def test_another_time_with_the_same_bytes_changes_only_the_journal(
    tmp_path: Path, source: Path, batch: Batch, seconds: float
) -> None:
    assert batch(source, tmp_path / "out").code == DONE
    later(source / "a.npy", seconds)
    again = batch.json(source, tmp_path / "out")
    assert (again.code, again.sent, again.summary["files"]["skipped"]) == (DONE, 0, 2)
    row = rows(tmp_path / "out")["a.npy"]
    assert (row["state"], row["source_mtime_ns"]) == ("done", (source / "a.npy").stat().st_mtime_ns)


@pytest.mark.parametrize("seconds", [3600, -3600], ids=["later", "earlier"])
def test_a_changed_source_is_done_again_also_when_the_clock_went_back(
    tmp_path: Path, source: Path, batch: Batch, seconds: float
) -> None:
    assert batch(source, tmp_path / "out").code == DONE
    time_before = (source / "a.npy").stat()
    write(source, {"a.npy": npy(A + 1)})
    os.utime(source / "a.npy", ns=(time_before.st_atime_ns, time_before.st_mtime_ns + int(seconds * 1e9)))
    again = batch.json(source, tmp_path / "out")
    assert (again.code, again.sent) == (DONE, 1)
    assert outputs(tmp_path / "out") == right(source, tmp_path)


def test_a_source_of_another_length_is_done_again_whatever_its_time(tmp_path: Path, source: Path, batch: Batch) -> None:
    assert batch(source, tmp_path / "out").code == DONE
    status = (source / "a.npy").stat()
    write(source, {"a.npy": npy(A[:20])})
    os.utime(source / "a.npy", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert batch.json(source, tmp_path / "out").sent == 1
    assert outputs(tmp_path / "out") == right(source, tmp_path)


def test_a_changed_gradient_is_done_again_and_a_touched_one_is_not(tmp_path: Path, source: Path, batch: Batch) -> None:
    grads = write(tmp_path / "grads", {"a.npy": npy(A), "b/b.npy": npy(B)})
    arguments = (source, tmp_path / "out", "--grad", grads)
    assert batch.json(*arguments, op="clamp(0, 1)").sent == 2
    later(grads / "a.npy", 5)
    assert batch.json(*arguments, op="clamp(0, 1)").sent == 0
    write(grads, {"a.npy": npy(A * 2)})
    later(grads / "a.npy", 10)
    assert batch.json(*arguments, op="clamp(0, 1)").sent == 1
    np.testing.assert_array_equal(np.load(tmp_path / "out/a.npy"), np.where((A >= 0) & (A <= 1), A * 2, 0))


@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_an_output_that_is_not_there_any_more_is_made_again(tmp_path: Path, source: Path, batch: Batch, harm: str) -> None:
    assert batch(source, tmp_path / "out").code == DONE
    output = tmp_path / "out/b/b.npy"
    if harm == "removed":
        output.unlink()
    else:
        output.write_bytes(output.read_bytes()[:-1])
    assert batch.json(source, tmp_path / "out").sent == 1
    assert outputs(tmp_path / "out") == right(source, tmp_path)


def test_new_sources_are_added(tmp_path: Path, source: Path, batch: Batch) -> None:
    assert batch(source, tmp_path / "out").code == DONE
    write(source, {"c/d/e.npy": npy(B)})
    assert batch.json(source, tmp_path / "out").sent == 1
    assert outputs(tmp_path / "out") == right(source, tmp_path)


# Another job -------------------------------------------------------------------------------------------------


def test_a_dest_of_another_expression_is_refused_with_both_named(tmp_path: Path, source: Path, batch: Batch) -> None:
    assert batch(source, tmp_path / "out", op="clamp(0, 1)").code == DONE
    before = outputs(tmp_path / "out")
    for options, op in (((), "round"), (("--grad", source), "clamp(0, 1)")):
        ended = batch(source, tmp_path / "out", *options, op=op)
        assert ended.code == USAGE
        assert "quantize 'clamp(min_value=0, max_value=1)'" in ended.err
        assert ("quantize 'round()'" if op == "round" else "grad 'clamp(min_value=0, max_value=1)'") in ended.err
        assert "--force" in ended.err
    assert outputs(tmp_path / "out") == before
    assert batch(source, tmp_path / "out", op="clamp(0,1)").code == DONE, "the same expression, written in another way"


def test_force_starts_over(tmp_path: Path, source: Path, batch: Batch) -> None:
    assert batch(source, tmp_path / "out", op="clamp(0, 1)").code == DONE
    ended = batch.json(source, tmp_path / "out", "--force", op="floor")
    assert (ended.code, ended.sent) == (DONE, 2)
    assert outputs(tmp_path / "out") == right(source, tmp_path, "floor")
    assert json.loads((tmp_path / "out/.stequant/job.json").read_text())["expression"] == "floor()"
    assert batch.json(source, tmp_path / "out", op="floor").sent == 0


def test_a_dest_made_with_another_tensor_is_refused(tmp_path: Path, source: Path, batch: Batch) -> None:
    arguments = (source, tmp_path / "out", "--tensor", f"w={tmp_path / 'w.npy'}")
    op = "affine_k_bit_quantize(4, w=w, b=0)"
    write(tmp_path, {"w.npy": npy(np.float32(2))})
    assert batch(*arguments, op=op).code == DONE
    write(tmp_path, {"w.npy": npy(np.float32(3))})
    ended = batch(*arguments, op=op)
    assert (ended.code, "tensor 'w'" in ended.err) == (USAGE, True)
    assert batch.json(*arguments, "--force", op=op).sent == 2


@pytest.mark.parametrize("content", ["", "not json", '{"layout": 99, "made_by": "stequant 9"}'])
def test_a_dest_that_cannot_be_understood_is_refused(tmp_path: Path, source: Path, batch: Batch, content: str) -> None:
    assert batch(source, tmp_path / "out").code == DONE
    (tmp_path / "out/.stequant/job.json").write_text(content)
    ended = batch(source, tmp_path / "out")
    assert (ended.code, "--force" in ended.err) == (USAGE, True)
    assert batch(source, tmp_path / "out", "--force").code == DONE


def test_a_dest_on_which_another_job_works_is_left_alone(tmp_path: Path, source: Path, batch: Batch) -> None:
    dest = Dest(tmp_path / "out")
    dest.prepare()
    with DestLock(dest.folder, None):
        for options in ((), ("--force",), ("--shard", "0/2")):
            ended = batch.json(source, tmp_path / "out", *options)
            assert (ended.code, ended.summary["status"]) == (GAVE_UP, "gave_up")
            assert "pid" in ended.err
    assert outputs(tmp_path / "out") == {}


# A part of a file ---------------------------------------------------------------------------------------------


def stopped_after(chunks: int, batch: Batch, *arguments: object) -> None:
    """Run the job until so many chunks are done, and the server takes no more."""

    def script(asked: Asked) -> Problem | None:
        return None if asked.probe or len(server.chunks) <= chunks else Problem(503, "not_ready", {"Retry-After": "0"})

    with scripted(script) as server:
        ended = batch.json(*arguments, "--url", server.url, "--concurrency", 1, "--give-up-after", 0)
    assert (ended.code, ended.sent) == (GAVE_UP, chunks)


@pytest.mark.parametrize("size", ["400", "1", "16MiB", "600"])
def test_a_file_is_continued_at_its_first_missing_chunk_also_with_another_chunk_size(
    tmp_path: Path, batch: Batch, size: str
) -> None:
    x = numbers(250)
    source = write(tmp_path / "in", {"x.npy": npy(x)})
    stopped_after(1, batch, source, tmp_path / "out", "--chunk-bytes", 400)
    assert outputs(tmp_path / "out") == {}
    ended = batch.json(source, tmp_path / "out", "--chunk-bytes", size)
    assert ended.code == DONE
    assert ended.summary["bytes"]["in"] == 600
    assert ended.summary["chunks"]["skipped"] == 1
    assert outputs(tmp_path / "out") == {"x.npy": npy(np.rint(x))}
    assert batch(source, tmp_path / "out", "--verify").code == DONE


def test_an_archive_is_continued_too(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {"x.npz": npz({"a": A, "b": B}, compressed=True)})
    stopped_after(3, batch, source, tmp_path / "out", "--chunk-bytes", 1000)
    ended = batch.json(source, tmp_path / "out", "--chunk-bytes", 1000)
    assert ended.summary["chunks"] == {"sent": 4, "retried": 0, "skipped": 3}
    undisturbed = batch(source, tmp_path / "undisturbed")
    assert undisturbed.code == DONE
    assert outputs(tmp_path / "out") == outputs(tmp_path / "undisturbed")


@pytest.mark.parametrize("change", ["source", "part", "cut part"])
def test_a_file_whose_beginning_is_not_to_be_trusted_is_begun_anew(tmp_path: Path, batch: Batch, change: str) -> None:
    source = write(tmp_path / "in", {"a.npy": npy(A)})
    stopped_after(3, batch, source, tmp_path / "out", "--chunk-bytes", 1000)
    (part,) = (tmp_path / "out/.stequant/parts").iterdir()
    if change == "source":
        write(source, {"a.npy": npy(A + 1)})
        later(source / "a.npy", 10)
    elif change == "part":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1])
    ended = batch.json(source, tmp_path / "out", "--chunk-bytes", 1000)
    assert ended.summary["chunks"] == {"sent": 5, "retried": 0, "skipped": 0}
    assert outputs(tmp_path / "out") == right(source, tmp_path)
    assert list((tmp_path / "out/.stequant/parts").iterdir()) == []


def test_a_sealed_file_gets_its_name_without_being_computed_again(tmp_path: Path, source: Path, batch: Batch) -> None:
    """As after a kill between the row that seals a file and its new name."""
    out = tmp_path / "out"
    assert batch(source, out).code == DONE
    expected = outputs(out)
    (out / "b/b.npy").rename(out / ".stequant/parts/0123.part")
    (out / "b").rmdir()
    with sqlite3.connect(out / ".stequant/journal.sqlite") as database:
        database.execute("UPDATE files SET state = 'sealed', part = '0123.part' WHERE path = 'b/b.npy'")
    database.close()
    ended = batch.json(source, out)
    assert (ended.code, ended.sent, ended.summary["files"]["skipped"]) == (DONE, 0, 2)
    assert outputs(out) == expected
    assert rows(out)["b/b.npy"]["state"] == "done"


def test_a_name_that_cannot_be_given_stops_the_job_and_costs_no_work_once_it_can(
    tmp_path: Path, source: Path, batch: Batch
) -> None:
    (tmp_path / "out/a.npy").mkdir(parents=True)
    ended = batch.json(source, tmp_path / "out")
    assert (ended.code, ended.sent) == (GAVE_UP, 2)
    assert "directory" in ended.err
    (tmp_path / "out/a.npy").rmdir()
    again = batch.json(source, tmp_path / "out")
    assert (again.code, again.sent) == (DONE, 0)
    assert outputs(tmp_path / "out") == right(source, tmp_path)


def test_parts_that_no_journal_knows_are_removed(tmp_path: Path, source: Path, batch: Batch) -> None:
    assert batch(source, tmp_path / "out").code == DONE
    write(tmp_path / "out/.stequant/parts", {"left.part": b"x", "left.x": b"x"})
    assert batch(source, tmp_path / "out").code == DONE
    assert list((tmp_path / "out/.stequant/parts").iterdir()) == []


# Shards ------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write(tmp_path / "in", {f"{number % 5}/{number}.npy": npy(numbers(50, seed=number)) for number in range(40)})


def test_shards_share_the_work_and_the_result_is_that_of_one(tmp_path: Path, many: Path, batch: Batch) -> None:
    parts = [batch.json(many, tmp_path / "out", "--shard", f"{index}/3") for index in range(3)]
    assert [part.code for part in parts] == [DONE] * 3
    assert [part.summary["shard"] for part in parts] == ["0/3", "1/3", "2/3"]
    assert sum(part.sent for part in parts) == 40
    assert all(part.sent == part.summary["files"]["total"] > 0 for part in parts)
    assert outputs(tmp_path / "out") == right(many, tmp_path)


def test_another_number_of_shards_does_nothing_again(tmp_path: Path, many: Path, batch: Batch) -> None:
    assert batch.json(many, tmp_path / "out", "--shard", "0/2").code == DONE
    sent = [batch.json(many, tmp_path / "out", "--shard", f"{index}/3").sent for index in range(3)]
    undivided = batch.json(many, tmp_path / "out")
    assert batch.json(many, tmp_path / "out", "--shard", "1/2").sent == 0
    assert (undivided.sent, undivided.summary["files"]["skipped"]) == (0, 40)
    assert 0 < sum(sent) < 40
    assert outputs(tmp_path / "out") == right(many, tmp_path)
    assert batch(many, tmp_path / "out", "--verify").code == DONE


def test_a_file_that_one_shard_began_is_continued_by_another(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {"a.npy": npy(A)})
    index = next(
        index
        for index in (0, 1)
        if batch.json(source, tmp_path / "dry", "--shard", f"{index}/2", "--dry-run").out.count('"files": 1')
    )
    stopped_after(3, batch, source, tmp_path / "out", "--chunk-bytes", 1000, "--shard", f"{index}/2")
    ended = batch.json(source, tmp_path / "out", "--chunk-bytes", 1000)
    assert ended.summary["chunks"] == {"sent": 2, "retried": 0, "skipped": 3}
    assert outputs(tmp_path / "out") == right(source, tmp_path)


def test_a_shard_without_files_is_done_at_once(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {"a.npy": npy(A)})
    totals = []
    for index in range(4):
        ended = batch.json(source, tmp_path / "out", "--shard", f"{index}/4")
        assert ended.code == DONE
        totals.append(ended.summary["files"]["total"])
    assert sorted(totals) == [0, 0, 0, 1]


def test_a_pod_of_an_indexed_job_takes_its_shard_by_itself(
    tmp_path: Path, many: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert batch(many, tmp_path / "out").code == USAGE
    monkeypatch.setenv("JOB_COMPLETION_COUNT", "2")
    ended = batch.json(many, tmp_path / "out")
    assert ended.summary["shard"] == "1/2"
    assert 0 < ended.sent < 40


# Looking -----------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {f"{name}.npy": npy(A) for name in ("done", "touched", "changed", "gone", "part")})
    out = tmp_path / "out"
    fresh = batch(source, out, "--dry-run")
    assert fresh.code == DONE
    assert fresh.out.splitlines()[0].split() == ["to", "do", "5", "files", "24.1", "KiB"]
    assert not out.exists()
    (source / "part.npy").rename(tmp_path / "part.npy")
    assert batch(source, out).code == DONE
    (tmp_path / "part.npy").rename(source / "part.npy")
    stopped_after(2, batch, source, out, "--chunk-bytes", 1000)
    write(source, {"changed.npy": npy(A + 1), "new.npy": npy(B), "bad.npy": npy(B)[:-1]})
    later(source / "changed.npy", 10)
    later(source / "touched.npy", -10)
    (out / "gone.npy").unlink()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}
    ended = batch.json(source, out, "--dry-run")
    assert ended.code == BAD
    told = ended.summary
    assert {standing: told[standing]["files"] for standing in ("todo", "continue", "changed", "done", "bad")} == {
        "todo": 2,
        "continue": 1,
        "changed": 1,
        "done": 2,
        "bad": 1,
    }
    assert told["todo"]["bytes"] == len(npy(A)) + len(npy(B))
    assert "bad.npy" in ended.err
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()} == before
    did = batch.json(source, out, "--chunk-bytes", 1000)
    assert did.summary["files"] == {"total": 7, "done": 4, "skipped": 2, "bad": 1}


def test_verify_lists_what_is_not_as_it_was(tmp_path: Path, batch: Batch) -> None:
    names = ("good", "source changed", "source gone bad", "output changed", "output gone")
    source = write(tmp_path / "in", {f"{name}.npy": npy(A) for name in names})
    out = tmp_path / "out"
    assert batch(source, out).code == DONE
    assert batch(source, out, "--verify").code == DONE
    write(source, {"source changed.npy": npy(A + 1), "source gone bad.npy": npy(A)[:-1], "new.npy": npy(B)})
    data = bytearray((out / "output changed.npy").read_bytes())
    data[-1] ^= 1
    (out / "output changed.npy").write_bytes(data)
    (out / "output gone.npy").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    ended = batch.json(source, out, "--verify")
    assert ended.code == BAD
    reasons = {Path(bad["path"]).stem: bad["reason"] for bad in ended.summary["bad"]}
    assert reasons == {
        "source changed": "the source is not what it was",
        "source gone bad": "the source is not what it was",
        "output changed": "the output output changed.npy is not what it was",
        "output gone": "the output output gone.npy is not what it was",
        "new": "is not done yet",
    }
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_there_must_be_a_job_to_verify(tmp_path: Path, source: Path, batch: Batch) -> None:
    ended = batch(source, tmp_path / "out", "--verify")
    assert (ended.code, "no job" in ended.err) == (USAGE, True)
    assert not (tmp_path / "out").exists()
