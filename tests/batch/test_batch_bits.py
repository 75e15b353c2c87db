"""A file in chunks has the bits of the whole file: every operator, dtype, order and chunk size.

The oracle is `stequant quantize` (and `grad`) on the whole file, which other tests hold to the plain expression.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from batch_trees import DONE, DTYPES, Array, Batch, carried, members, npy, npz, numbers, outputs, quantized, safetensors, write
from examples import EXAMPLES
from safetensors import deserialize

from service.ops import Operator

# Around the file of 1 000 elements: one element, a few, the edges of the tensor and beyond.
SIZES = ("1", "24", "4000", "3996", "4004", "16MiB")


def tensors_of(op: Operator, folder: Path, dtype: str) -> list[str]:
    """The options for the tensors that an expression names, one element each."""
    options = []
    for index, name in enumerate(op.tensor_names):
        file = write(folder, {f"{name}.npy": npy(numbers((), dtype, seed=50 + index))}) / f"{name}.npy"
        options += ["--tensor", f"{name}={file}"]
    return options


@pytest.mark.parametrize("op", EXAMPLES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_have_the_bits_of_the_whole_file(tmp_path: Path, batch: Batch, dtype: str, op: Operator) -> None:
    x, g = numbers((25, 40), dtype), numbers((25, 40), dtype, seed=1)
    source = write(tmp_path / "in", {"a/x.npy": npy(x)})
    grads = write(tmp_path / "grads", {"a/x.npy": npy(g)})
    options = tensors_of(op, tmp_path, dtype)
    expected = quantized(source / "a/x.npy", tmp_path, str(op), options)
    expected_grad = carried(source / "a/x.npy", grads / "a/x.npy", tmp_path, str(op), options)
    for size in ("404", "16MiB"):
        out, back = tmp_path / f"out{size}", tmp_path / f"back{size}"
        assert batch(source, out, "--chunk-bytes", size, *options, op=str(op)).code == DONE
        assert outputs(out) == {"a/x.npy": expected}
        assert batch(source, back, "--grad", grads, "--chunk-bytes", size, *options, op=str(op)).code == DONE
        assert outputs(back) == {"a/x.npy": expected_grad}


@pytest.mark.parametrize("size", SIZES)
def test_every_chunk_size_gives_the_same_file(tmp_path: Path, anywhere: Batch, size: str) -> None:
    x = numbers(1000)
    source = write(tmp_path / "in", {"x.npy": npy(x)})
    ended = anywhere.json(source, tmp_path / "out", "--chunk-bytes", size, op="clamp(-1, 1) | k_bit_quantize(3)")
    assert ended.code == DONE
    assert ended.sent == -(-4000 // max(4, min(4000, 2**24 if "M" in size else int(size) // 4 * 4)))
    assert outputs(tmp_path / "out")["x.npy"] == quantized(source / "x.npy", tmp_path, "clamp(-1, 1) | k_bit_quantize(3)")


def in_order(x: Array, order: str) -> Array:
    return np.asfortranarray(x) if order == "F" else np.ascontiguousarray(x)


@pytest.mark.parametrize("op", ["clamp(-1, 1)", "round", "affine_k_bit_quantize(4, w, 0)", "clamp_by_linear"])
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
def test_a_gradient_may_lie_in_another_order_than_its_source(tmp_path: Path, anywhere: Batch, orders: str, op: str) -> None:
    x, g = in_order(numbers((8, 5, 3)), orders[0]), in_order(numbers((8, 5, 3), seed=1), orders[1])
    source, grads = write(tmp_path / "in", {"x.npy": npy(x)}), write(tmp_path / "grads", {"x.npy": npy(g)})
    options = ["--tensor", f"w={write(tmp_path, {'w.npy': npy(np.float32([1.5]))}) / 'w.npy'}"] if "w" in op else []
    assert anywhere(source, tmp_path / "out", "--grad", grads, "--chunk-bytes", 64, *options, op=op).code == DONE
    expected = carried(source / "x.npy", grads / "x.npy", tmp_path, op, options)
    assert outputs(tmp_path / "out")["x.npy"] == expected
    assert np.load(tmp_path / "out/x.npy").flags.f_contiguous is (orders[0] == "F")


def test_a_tensor_of_many_elements_is_given_to_whole_files(tmp_path: Path, anywhere: Batch) -> None:
    source = write(tmp_path / "in", {"x.npy": npy(numbers((30, 7)))})
    w = write(tmp_path, {"w.npy": npy(numbers(7, seed=9))}) / "w.npy"
    ended = anywhere.json(
        source, tmp_path / "out", "--tensor", f"w={w}", "--chunk-bytes", 4, op="affine_k_bit_quantize(4, w=w, b=0)"
    )
    assert (ended.code, ended.sent) == (DONE, 1)
    expected = quantized(source / "x.npy", tmp_path, "affine_k_bit_quantize(4, w=w, b=0)", ["--tensor", f"w={w}"])
    assert outputs(tmp_path / "out")["x.npy"] == expected


@pytest.mark.parametrize("descr", [">f2", ">f4", ">f8"])
def test_big_endian_files_become_little_endian_ones_of_the_same_numbers(tmp_path: Path, anywhere: Batch, descr: str) -> None:
    x, g = numbers((30, 7), "float64").astype(descr), numbers((30, 7), "float64", seed=1).astype(descr)
    source, grads = write(tmp_path / "in", {"x.npy": npy(x)}), write(tmp_path / "grads", {"x.npy": npy(g)})
    assert anywhere(source, tmp_path / "out", "--chunk-bytes", 100).code == DONE
    assert outputs(tmp_path / "out")["x.npy"] == quantized(source / "x.npy", tmp_path, "round")
    assert anywhere(source, tmp_path / "back", "--grad", grads, "--chunk-bytes", 100, op="clamp(0, 1)").code == DONE
    assert outputs(tmp_path / "back")["x.npy"] == carried(source / "x.npy", grads / "x.npy", tmp_path, "clamp(0, 1)")


def test_odd_files_come_out_as_the_command_for_one_file_writes_them(tmp_path: Path, anywhere: Batch) -> None:
    """0-d, empty, one element, many dimensions, several arrays in one file, headers of versions 2 and 3."""
    x = numbers((3, 4))
    of_version_2, of_version_3 = (b"\x93NUMPY%c\x00" % version + npy(x)[8:10] + b"\0\0" + npy(x)[10:] for version in (2, 3))
    source = write(
        tmp_path / "in",
        {
            "0d.npy": npy(numbers(())),
            "empty.npy": npy(numbers((0, 5))),
            "one.npy": npy(numbers(1)),
            "deep.npy": npy(numbers((1,) * 30 + (2,))),
            "several.npy": npy(x, numbers(7, "float16"), numbers(()), numbers((0, 2), "float64"), np.asfortranarray(x)),
            "v2.npy": of_version_2,
            "v3.npy": of_version_3,
        },
    )
    for op in ("k_bit_quantize(2)", "affine_k_bit_quantize(2, 2, 1) | round"):
        assert anywhere(source, tmp_path / "out", "--chunk-bytes", 8, "--force", op=op).code == DONE
        assert outputs(tmp_path / "out") == {path.name: quantized(path, tmp_path, op) for path in sorted(source.iterdir())}


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "deflated"])
def test_members_of_an_archive_are_quantized_each_and_keep_their_names(tmp_path: Path, anywhere: Batch, compressed: bool) -> None:
    arrays = {"weight": numbers((30, 20)), "bias": np.asfortranarray(numbers((4, 3), "float16")), "step": numbers(())}
    source = write(tmp_path / "in", {"a.npz": npz(arrays, compressed=compressed)})
    assert anywhere(source, tmp_path / "out", "--chunk-bytes", 100).code == DONE
    expected = {}
    for name, array in arrays.items():
        one = write(tmp_path / "one", {f"{name}.npy": npy(array)}) / f"{name}.npy"
        expected[f"{name}.npy"] = quantized(one, tmp_path, "round")
    data = outputs(tmp_path / "out")["a.npz"]
    assert members(data) == expected
    assert list(members(data)) == list(expected)
    assert (len(data) < sum(map(len, expected.values()))) is compressed
    with np.load(tmp_path / "out/a.npz") as loaded:
        np.testing.assert_array_equal(loaded["weight"], np.rint(arrays["weight"]))
    assert anywhere(source, tmp_path / "again", "--chunk-bytes", 1000).code == DONE
    assert outputs(tmp_path / "again")["a.npz"] == data


def test_tensors_of_a_safetensors_file_are_quantized_and_all_else_stays(tmp_path: Path, anywhere: Batch) -> None:
    arrays = {name: numbers((9, 5), name, seed=3) for name in DTYPES} | {
        "empty": numbers((0, 3)),
        "scalar": numbers(()),
        "other": numbers(1001, seed=4),
    }
    data = safetensors(arrays, {"format": "pt", "step": "7"})
    source = write(tmp_path / "in", {"model.safetensors": data})
    assert anywhere(source, tmp_path / "out", "--chunk-bytes", 256).code == DONE
    out = outputs(tmp_path / "out")["model.safetensors"]
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    assert out[:header_bytes] == data[:header_bytes]
    results = dict(deserialize(out))
    assert set(results) == set(arrays)
    for name, array in arrays.items():
        one = write(tmp_path / "one", {"one.npy": npy(array)}) / "one.npy"
        elements = array.nbytes
        expected = quantized(one, tmp_path, "round")
        assert bytes(results[name]["data"]) == expected[len(expected) - elements :], name


def test_gradients_in_archives_are_paired_by_name(tmp_path: Path, anywhere: Batch) -> None:
    xs = {"a": numbers((3, 4)), "b": numbers((3, 4), seed=1)}
    gs = {"b": numbers((3, 4), seed=2), "a": numbers((3, 4), seed=3)}
    source = write(tmp_path / "in", {"x.npz": npz(xs), "x.safetensors": safetensors(xs)})
    grads = write(tmp_path / "grads", {"x.npz": npz(gs), "x.safetensors": safetensors(gs)})
    assert anywhere(source, tmp_path / "out", "--grad", grads, "--chunk-bytes", 16, op="clamp(0, 1)").code == DONE
    out = outputs(tmp_path / "out")
    results = dict(deserialize(out["x.safetensors"]))
    for name, x in xs.items():
        one = write(tmp_path / "one", {"x.npy": npy(x), "g.npy": npy(gs[name])})
        expected = carried(one / "x.npy", one / "g.npy", tmp_path, "clamp(0, 1)")
        assert members(out["x.npz"])[f"{name}.npy"] == expected
        assert bytes(results[name]["data"]) == expected[-48:]
