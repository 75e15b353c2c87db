"""Files that cannot be processed are told with their reasons, and never keep the others from being done."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_trees import BAD, DONE, USAGE, Batch, npy, npz, numbers, outputs, safetensors, write

X = numbers((6, 7))
GOOD = npy(X)
ROUNDED = npy(np.rint(X))


def zipped(members: dict[str, bytes], **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def damaged(data: bytes, at: int) -> bytes:
    """One byte other than it was."""
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


DEFLATED = npz({"x": np.zeros((100, 100), np.float32)}, compressed=True)
TENSORS = safetensors({"x": X})

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.npy": (b"", "empty"),
    "magic.npy": (b"no array at all", "no array starts"),
    "cut in its header.npy": (GOOD[:50], "header"),
    "cut in its data.npy": (GOOD[:-1], "truncated"),
    "followed by more.npy": (GOOD + b"more", "no array starts"),
    "integers.npy": (npy(np.arange(6)), "i8"),
    "objects.npy": (npy(np.array([1.0])).replace(b"'<f8'", b"'|O' "), "O"),
    "complex.npy": (npy(np.zeros(3, np.complex64)), "c8"),
    "no zip.npz": (b"PK no archive", "archive"),
    "cut.npz": (npz({"x": X})[:-30], "archive"),
    "damaged.npz": (damaged(npz({"x": X}), 250), "CRC"),
    "damaged and deflated.npz": (damaged(DEFLATED, len(DEFLATED) // 3), "archive"),
    "integers.npz": (npz({"x": X, "step": np.array(7)}), "i8"),
    "other members.npz": (zipped({"x.npy": GOOD, "notes.txt": b"notes"}), "notes.txt"),
    "several arrays.npz": (zipped({"x.npy": GOOD + GOOD}), "2 arrays"),
    "no array.npz": (zipped({"x.npy": b""}), "0 arrays"),
    "cut member.npz": (zipped({"x.npy": GOOD[:-4]}), "truncated"),
    "no header.safetensors": (b"\xff" * 40, "safetensors"),
    "cut.safetensors": (TENSORS[:-1], "safetensors"),
    "followed by more.safetensors": (TENSORS + b"\0", "safetensors"),
    "integers.safetensors": (safetensors({"x": X, "step": np.array([7])}), "I64"),
}


def test_every_kind_of_broken_file_is_told_and_the_good_ones_are_done(tmp_path: Path, anywhere: Batch) -> None:
    source = write(tmp_path / "in", {name: data for name, (data, _) in BROKEN.items()} | {"a.npy": GOOD, "z/z.npy": GOOD})
    ended = anywhere(source, tmp_path / "out", "--json")
    assert ended.code == BAD
    assert outputs(tmp_path / "out") == {"a.npy": ROUNDED, "z/z.npy": ROUNDED}
    reasons = {Path(bad["path"]).name: bad["reason"] for bad in ended.summary["bad"]}
    assert set(reasons) == set(BROKEN)
    for name, (_, word) in BROKEN.items():
        assert word in reasons[name], name
        assert f"{source / name}: {reasons[name]}" in ended.err
    assert ended.summary["files"] == {"total": len(BROKEN) + 2, "done": 2, "skipped": 0, "bad": len(BROKEN)}


def test_a_file_that_was_bad_is_tried_again(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {"a.npy": GOOD, "b.npy": GOOD[:-1]})
    for _ in range(2):
        assert batch.json(source, tmp_path / "out").code == BAD
    write(source, {"b.npy": GOOD})
    ended = batch.json(source, tmp_path / "out")
    assert (ended.code, ended.summary["files"]["skipped"]) == (DONE, 1)
    assert outputs(tmp_path / "out") == {"a.npy": ROUNDED, "b.npy": ROUNDED}


def test_parts_of_bad_files_do_not_stay(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {name: data for name, (data, _) in BROKEN.items()})
    assert batch(source, tmp_path / "out").code == BAD
    assert list((tmp_path / "out/.stequant/parts").iterdir()) == []


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: os.mkfifo(path), "not a regular file"),
    ],
    ids=["broken link", "pipe"],
)
def test_what_is_no_file_is_told(tmp_path: Path, batch: Batch, make: Callable[[Path], None], word: str) -> None:
    source = write(tmp_path / "in", {"a.npy": GOOD})
    make(source / "odd.npy")
    ended = batch(source, tmp_path / "out")
    assert ended.code == BAD
    assert word in ended.err


def test_a_name_that_is_not_utf_8_is_told(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {"a.npy": GOOD})
    (source / os.fsdecode(b"\xff.npy")).write_bytes(GOOD)
    ended = batch.json(source, tmp_path / "out")
    assert ended.code == BAD
    assert [bad["reason"] for bad in ended.summary["bad"]] == ["its name is not UTF-8"]


# What an operator refuses ------------------------------------------------------------------------------------


def test_what_an_operator_refuses_is_told_for_each_file(tmp_path: Path, anywhere: Batch) -> None:
    source = write(tmp_path / "in", {"half.npy": npy(numbers(5, "float16")), "a.npy": GOOD})
    ended = anywhere.json(source, tmp_path / "out", op="k_bit_quantize(16)")
    assert ended.code == BAD
    assert [Path(bad["path"]).name for bad in ended.summary["bad"]] == ["half.npy"]
    assert "15" in ended.err


def test_a_tensor_without_elements_is_refused_by_an_operator_that_reduces(tmp_path: Path, anywhere: Batch) -> None:
    source = write(tmp_path / "in", {"none.npy": npy(numbers((0, 3))), "a.npy": GOOD})
    ended = anywhere.json(source, tmp_path / "out", op="clamp_by_linear")
    assert (ended.code, len(outputs(tmp_path / "out"))) == (BAD, 1)
    assert "at least one element" in ended.err


def test_a_tensor_parameter_that_does_not_fit_a_file_is_told(tmp_path: Path, anywhere: Batch) -> None:
    source = write(tmp_path / "in", {"fits.npy": GOOD, "shape.npy": npy(numbers((7, 6))), "dtype.npy": npy(X.astype(np.float64))})
    w = write(tmp_path, {"w.npy": npy(numbers(7))}) / "w.npy"
    ended = anywhere.json(source, tmp_path / "out", "--tensor", f"w={w}", op="affine_k_bit_quantize(4, w, 0)")
    assert ended.code == BAD
    assert list(outputs(tmp_path / "out")) == ["fits.npy"]
    assert "broadcast" in ended.err
    assert "float64" in ended.err


# Gradients ------------------------------------------------------------------------------------------------


def test_a_gradient_that_does_not_fit_makes_its_source_bad(tmp_path: Path, anywhere: Batch) -> None:
    names = ("fits.npy", "missing.npy", "shape.npy", "dtype.npy", "count.npy", "broken.npy", "names.npz")
    source = write(tmp_path / "in", {name: npz({"a": X}) if name.endswith("z") else GOOD for name in names})
    grads = write(
        tmp_path / "grads",
        {
            "fits.npy": GOOD,
            "shape.npy": npy(X[:5]),
            "dtype.npy": npy(X.astype(np.float16)),
            "count.npy": GOOD + GOOD,
            "broken.npy": GOOD[:-1],
            "names.npz": npz({"b": X}),
        },
    )
    ended = anywhere.json(source, tmp_path / "out", "--grad", grads, op="clamp(0, 1)")
    assert ended.code == BAD
    assert list(outputs(tmp_path / "out")) == ["fits.npy"]
    reasons = {Path(bad["path"]).name: bad["reason"] for bad in ended.summary["bad"]}
    assert set(reasons) == set(names) - {"fits.npy"}
    for name, word in {
        "missing.npy": "No such file",
        "shape.npy": "shape",
        "dtype.npy": "float16",
        "broken.npy": "truncated",
    }.items():
        assert word in reasons[name]


# Arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "options", "word"),
    [
        ("rounded", (), "rounded"),
        ("k_bit_quantize(k=0)", (), "'k'"),
        ("round |", (), "the end"),
        ("affine_k_bit_quantize(4, w, 0)", (), "--tensor w=FILE"),
        ("round", ("--tensor", "w=w.npy"), "w.npy"),
        ("round", ("--tensor", "w"), "NAME=FILE"),
        ("round", ("--shard", "2/2"), "0 <= I < N"),
        ("round", ("--chunk-bytes", "16MB"), "16MiB"),
        ("round", ("--chunk-bytes", "0"), "above 0"),
        ("round", ("--concurrency", "0"), "> 0"),
        ("round", ("--concurrency", "two"), "whole number"),
        ("round", ("--retries", "-1"), "whole number"),
        ("round", ("--timeout", "-1"), ">= 0"),
        ("round", ("--timeout", "nan"), ">= 0"),
        ("round", ("--grace", "inf"), ">= 0"),
        ("round", ("--give-up-after", "soon"), ">= 0"),
        ("round", ("--url", "http://a", "--uds", "b"), "not allowed with"),
        ("round", ("--verify", "--dry-run"), "not allowed with"),
        ("round", ("--device", "cuda:99"), "cuda:99"),
        ("round", ("--device", "abacus"), "abacus"),
        ("round", ("--unknown",), "--unknown"),
    ],
)
def test_wrong_usage_ends_with_status_2_and_what_is_allowed(
    tmp_path: Path, batch: Batch, op: str, options: tuple[str, ...], word: str
) -> None:
    source = write(tmp_path / "in", {"a.npy": GOOD})
    ended = batch(source, tmp_path / "out", *options, op=op)
    assert ended.code == USAGE
    assert word in ended.err
    assert ended.out == ""
    assert outputs(tmp_path / "out") == {}


@pytest.mark.parametrize("source", ["empty", "nothing", "nothing*", "@empty.txt", "notes.txt", "out"])
def test_where_nothing_is_found_status_2_says_so_and_nothing_is_made(tmp_path: Path, batch: Batch, source: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path, {"empty.txt": b"# nothing\n", "notes.txt": b"notes"})
    name = f"@{tmp_path}/{source[1:]}" if source.startswith("@") else f"{tmp_path}/{source}"
    ended = batch(name, tmp_path / "out")
    assert ended.code == USAGE
    assert source.lstrip("@") in ended.err
    assert not (tmp_path / "out").exists()


def test_two_sources_of_one_output_are_refused_before_anything_is_done(tmp_path: Path, batch: Batch) -> None:
    one, other = write(tmp_path / "one", {"a.npy": GOOD}), write(tmp_path / "other", {"a.npy": GOOD})
    ended = batch(one, other, tmp_path / "out")
    assert ended.code == USAGE
    for word in (str(one / "a.npy"), str(other / "a.npy"), "'a.npy'"):
        assert word in ended.err
    assert not (tmp_path / "out").exists()


def test_a_dest_that_cannot_be_a_folder_is_wrong_usage(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {"a.npy": GOOD})
    (tmp_path / "out").write_bytes(b"a file")
    ended = batch(source, tmp_path / "out")
    assert (ended.code, "cannot be written" in ended.err) == (USAGE, True)
    assert (tmp_path / "out").read_bytes() == b"a file"


def test_dest_may_lie_in_the_source_and_be_used_again(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {"a.npy": GOOD, "b/c.npy": GOOD})
    for skipped in (0, 2):
        ended = batch.json(source, source / "out")
        assert ended.code == DONE
        assert ended.summary["files"] == {"total": 2, "done": 2 - skipped, "skipped": skipped, "bad": 0}
    assert outputs(source / "out") == {"a.npy": ROUNDED, "b/c.npy": ROUNDED}
