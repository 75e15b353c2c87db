"""What a job makes: the right bits, under the right names, wherever it is computed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from job_harness import arguments_of, run, run_raw, started
from job_trees import (
    WHOLE,
    check_gradients,
    check_tree,
    corrupt,
    digest,
    inputs,
    outputs,
    values,
    whole,
    write_gradients,
    write_npy,
    write_npz,
    write_tree,
)
from server_process import ServerProcess, serving

FLOAT32 = np.dtype(np.float32)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind; the largest are many chunks of what the tests call a chunk."""
    root = tmp_path_factory.mktemp("tree") / "in"
    write_tree(root, files=45, largest_bytes=600_000)
    return root


@pytest.fixture(scope="module")
def second_server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


def dead_url() -> str:
    """Where nobody listens: the port is taken, and closed to all."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_every_format_dtype_order_and_rank_has_the_bits_that_numpy_computes(
    tree: Path, tmp_path: Path, server: ServerProcess
) -> None:
    ended = run(tree, tmp_path / "out", "--url", server.url, "--chunk-bytes", "64KiB").expect(0)
    assert ended.summary.files.done == ended.summary.files.total == 45
    assert (ended.summary.status, ended.summary.kind, ended.summary.shard, ended.summary.bad) == ("done", "quantize", None, {})
    check_tree(tree, tmp_path / "out")


def test_embedded_one_server_several_and_one_of_them_dead_give_one_tree(
    tree: Path, tmp_path: Path, server: ServerProcess, second_server: ServerProcess
) -> None:
    places = {
        "embedded": (),
        "one": ("--url", server.url),
        "two": ("--url", server.url, "--url", second_server.url),
        "dead": ("--url", dead_url(), "--url", server.url, "--url", second_server.url),
    }
    for name, flags in places.items():
        run(tree, tmp_path / name, *flags, "--chunk-bytes", "50000").expect(0)
    check_tree(tree, tmp_path / "embedded")
    assert {digest(tmp_path / name) for name in places} == {digest(tmp_path / "embedded")}


def test_several_servers_share_the_work(tree: Path, tmp_path: Path, second_server: ServerProcess) -> None:
    with serving() as other:
        before = [one.metric("stequant_received_bytes_total", route="/quantize") for one in (second_server, other)]
        run(tree, tmp_path / "out", "--url", second_server.url, "--url", other.url, "--chunk-bytes", "64KiB").expect(0)
        after = [one.metric("stequant_received_bytes_total", route="/quantize") for one in (second_server, other)]
    assert all(now > then for now, then in zip(after, before, strict=True)), (before, after)


def test_a_unix_socket_gives_the_same_tree(tree: Path, tmp_path: Path) -> None:
    with serving("--uds", str(tmp_path / "socket")):
        run(tree, tmp_path / "out", "--uds", str(tmp_path / "socket")).expect(0)
    check_tree(tree, tmp_path / "out")


@pytest.mark.parametrize("chunk_bytes", ["1", "1000", "16MiB"])
def test_the_size_of_chunks_changes_no_bit(chunk_bytes: str, tmp_path: Path, server: ServerProcess) -> None:
    write_tree(tmp_path / "in", files=9, largest_bytes=2_000, seed=3)
    run(tmp_path / "in", tmp_path / "out", "--url", server.url, "--chunk-bytes", chunk_bytes).expect(0)
    check_tree(tmp_path / "in", tmp_path / "out")


def test_gradients_are_paired_by_path_and_name(tree: Path, tmp_path: Path, server: ServerProcess) -> None:
    write_gradients(tree, tmp_path / "grads")
    flags = ("--grad", str(tmp_path / "grads"), "--url", server.url, "--chunk-bytes", "64KiB")
    assert run(tree, tmp_path / "out", *flags).expect(0).summary.kind == "grad"
    check_gradients(tree, tmp_path / "grads", tmp_path / "out")


def test_a_gradient_that_is_missing_or_of_another_shape_is_a_bad_input(tmp_path: Path, server: ServerProcess) -> None:
    source, grads, dest = tmp_path / "in", tmp_path / "grads", tmp_path / "out"
    for name in ("good", "alone", "crooked"):
        write_npy(source / f"{name}.npy", np.ones((4, 3), np.float32))
    write_npy(grads / "good.npy", np.ones((4, 3), np.float32))
    write_npy(grads / "crooked.npy", np.ones((3, 4), np.float32))
    summary = run(source, dest, "--grad", str(grads), "--url", server.url).expect(1).summary
    assert {Path(path).stem for path in summary.bad} == {"alone", "crooked"}
    assert "(3, 4)" in summary.bad[str(source / "crooked.npy")]
    assert [path.name for path in outputs(dest)] == ["good.npy"]


def test_an_expression_that_needs_the_whole_tensor_gets_it(tmp_path: Path, server: ServerProcess) -> None:
    random = np.random.default_rng(5)
    write_npy(tmp_path / "in/a.npy", random.standard_normal((100, 70)).astype(np.float32))
    write_npy(tmp_path / "in/f.npy", np.asfortranarray(random.standard_normal((100, 70))))
    write_npz(tmp_path / "in/z.npz", compressed=True, a=random.random(5000).astype(np.float16), b=random.random((3, 3)))
    flags = ("--url", server.url, "--chunk-bytes", "1KiB")
    assert run(tmp_path / "in", tmp_path / "out", *flags, op=WHOLE).expect(0).summary.chunks.sent == 4
    check_tree(tmp_path / "in", tmp_path / "out", whole)


def test_one_percent_of_spoilt_inputs_is_listed_and_all_others_are_done(tmp_path: Path, server: ServerProcess) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    paths = write_tree(source, files=400, largest_bytes=4_000, seed=6)
    spoilt = {paths[number * 97 + 3]: corrupt(paths[number * 97 + 3], number) for number in range(4)}
    assert set(spoilt.values()) == {"truncated", "magic", "empty", "dangling"}
    ended = run(source, dest, "--url", server.url).expect(1)
    assert set(ended.summary.bad) == set(map(str, spoilt))
    assert all(ended.summary.bad.values()), "every one has its reason"
    assert all(f"{path}: {ended.summary.bad[path]}" in ended.stderr for path in ended.summary.bad)
    assert (ended.summary.status, ended.summary.files.done, ended.summary.files.bad) == ("bad_inputs", 396, 4)
    check_tree(source, dest, without=list(spoilt))


def test_inputs_of_other_kinds_are_bad_and_said_to_be(tmp_path: Path, server: ServerProcess) -> None:
    source = tmp_path / "in"
    write_npy(source / "good.npy", np.ones(3, np.float32))
    write_npy(source / "integers.npy", np.arange(3))
    np.save(source / "objects.npy", np.array([{}], dtype=object))
    write_npz(source / "mixed.npz", compressed=False, a=np.ones(2), b=np.arange(2))
    os.mkfifo(source / "pipe.npy")
    summary = run(source, tmp_path / "out", "--url", server.url).expect(1).summary
    assert {Path(path).name for path in summary.bad} == {"integers.npy", "objects.npy", "mixed.npz", "pipe.npy"}
    assert "<i8" in summary.bad[str(source / "integers.npy")]
    assert [path.name for path in outputs(tmp_path / "out")] == ["good.npy"]


def test_an_input_that_was_put_right_is_done_in_the_next_run(tmp_path: Path, server: ServerProcess) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    write_npy(source / "good.npy", np.ones(3, np.float32))
    (source / "late.npy").write_bytes(b"\x93NUM")
    run(source, dest, "--url", server.url).expect(1)
    write_npy(source / "late.npy", np.zeros(3, np.float32))
    summary = run(source, dest, "--url", server.url).expect(0).summary
    assert (summary.files.done, summary.files.skipped, summary.chunks.sent) == (1, 1, 1)
    check_tree(source, dest)


# Sources -------------------------------------------------------------------------------------------------


def test_sources_are_files_folders_patterns_and_lists(tmp_path: Path, server: ServerProcess) -> None:
    random = np.random.default_rng(7)
    for place in ("folder/a/x.npy", "pattern/b/y.npy", "pattern/b/skipped.npz", "single.npy", "listed/z.npy", "listed/c/v.npy"):
        path = tmp_path / place
        if path.suffix == ".npy":
            write_npy(path, values(random, (5,), FLOAT32))
        else:
            write_npz(path, compressed=False, a=values(random, (5,), FLOAT32))
    (tmp_path / "list.txt").write_text(f"# what is to be done\n\n  {tmp_path}/listed/z.npy\n{tmp_path}/listed/c\n")
    sources = [f"{tmp_path}/folder", f"{tmp_path}/pattern/**/*.npy", f"{tmp_path}/single.npy", f"@{tmp_path}/list.txt"]
    run_raw(*sources, str(tmp_path / "out"), "--op", "round", "--url", server.url).expect(0)
    found = [path.relative_to(tmp_path / "out").as_posix() for path in outputs(tmp_path / "out")]
    assert found == ["a/x.npy", "b/y.npy", "single.npy", "v.npy", "z.npy"]


def test_a_list_may_come_from_standard_input(tmp_path: Path, server: ServerProcess) -> None:
    write_npy(tmp_path / "x.npy", np.ones(3))
    flags = arguments_of("@-", tmp_path / "out", "--url", server.url)
    run_raw(*flags, standard_input=f"{tmp_path}/x.npy\n").expect(0)
    assert [path.name for path in outputs(tmp_path / "out")] == ["x.npy"]


def test_dest_inside_of_source_is_never_read(tmp_path: Path, server: ServerProcess) -> None:
    write_npy(tmp_path / "in/x.npy", np.ones(3))
    dest = tmp_path / "in/out"
    for expected in ((1, 0), (0, 1)):
        files = run(tmp_path / "in", dest, "--url", server.url).expect(0).summary.files
        assert (files.total, files.done, files.skipped) == (1, *expected)
    assert [path.relative_to(dest).as_posix() for path in outputs(dest)] == ["x.npy"]


def test_linked_files_are_read_and_circles_of_folders_end(tmp_path: Path, server: ServerProcess) -> None:
    write_npy(tmp_path / "elsewhere/x.npy", np.ones(3))
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/linked.npy").symlink_to(tmp_path / "elsewhere/x.npy")
    (tmp_path / "in/a/up").symlink_to(tmp_path / "in")
    run(tmp_path / "in", tmp_path / "out", "--url", server.url).expect(0)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in outputs(tmp_path / "out")] == ["a/linked.npy"]


# Shards --------------------------------------------------------------------------------------------------


def test_shards_side_by_side_do_every_file_once(tree: Path, tmp_path: Path, server: ServerProcess) -> None:
    dest = tmp_path / "out"
    with (
        started(tree, dest, "--url", server.url, "--shard", "0/2") as first,
        started(tree, dest, "--url", server.url, variables={"JOB_COMPLETION_INDEX": "1", "JOB_COMPLETION_COUNT": "2"}) as second,
    ):
        summaries = [job.wait().expect(0).summary for job in (first, second)]
    assert [one.shard for one in summaries] == ["0/2", "1/2"]
    assert sum(one.files.done for one in summaries) == sum(one.files.total for one in summaries) == len(inputs(tree))
    assert all(one.files.done for one in summaries)
    check_tree(tree, dest)


def test_another_number_of_shards_goes_on_where_these_have_stopped(tree: Path, tmp_path: Path, server: ServerProcess) -> None:
    dest = tmp_path / "out"
    flags = ("--url", server.url, "--chunk-bytes", "64KiB")
    first = run(tree, dest, *flags, "--shard", "0/2").expect(0).summary
    later = [run(tree, dest, *flags, "--shard", f"{index}/3").expect(0).summary for index in range(3)]
    assert sum(one.files.skipped for one in later) == first.files.done
    assert sum(one.files.done for one in later) == len(inputs(tree)) - first.files.done
    last = run(tree, dest, *flags).expect(0).summary
    assert (last.files.skipped, last.chunks.sent) == (len(inputs(tree)), 0)
    check_tree(tree, dest)


def test_a_shard_without_files_is_done(tmp_path: Path, server: ServerProcess) -> None:
    write_npy(tmp_path / "in/x.npy", np.ones(3))
    done = [run(tmp_path / "in", tmp_path / "out", "--url", server.url, "--shard", f"{i}/3").expect(0).summary for i in range(3)]
    assert sorted(one.files.total for one in done) == [0, 0, 1]
