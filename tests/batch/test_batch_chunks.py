"""Chunks cover what is missing, each byte once, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.batch.checksums import Sum
from service.batch.chunks import Chunk, Extent, Run, missing, runs
from service.batch.layout import Layout, Slot, Target
from service.dtypes import DTYPES

FLOAT32, FLOAT64 = DTYPES["float32"], DTYPES["float64"]


def extent(start: int, nbytes: int) -> Extent:
    return Extent(start, Sum(0, nbytes), Sum(0, nbytes))


def bytes_of(chunks: list[Chunk]) -> list[int]:
    """Every byte of the output that the chunks compute, as often as they do."""
    return [at for chunk in chunks for at in range(chunk.y_start, chunk.y_start + chunk.nbytes)]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    chunk_bytes=st.integers(1, 100),
    cuts=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=5),
)
def test_what_is_done_and_what_is_missing_are_everything_once(
    lengths: list[int], chunk_bytes: int, cuts: list[tuple[int, int]]
) -> None:
    all_runs, at = [], 128
    for length in lengths:
        all_runs.append(Run(FLOAT32, 4 * length, at, at))
        at += 4 * length + 64
    everything = [byte for run in all_runs for byte in range(run.y_start, run.y_start + run.nbytes)]
    done: list[Extent] = []
    for start, length in cuts:
        piece = Extent(128 + 4 * start, Sum(0, 4 * length), Sum(0, 4 * length))
        wanted = set(range(piece.y_start, piece.stop))
        taken = {byte for one in done for byte in range(one.y_start, one.stop)}
        if any(wanted <= set(range(run.y_start, run.y_start + run.nbytes)) for run in all_runs) and not wanted & taken:
            done.append(piece)
    chunks = list(missing(all_runs, done, chunk_bytes))
    covered = bytes_of(chunks) + [byte for one in done for byte in range(one.y_start, one.stop)]
    assert sorted(covered) == everything
    assert all(chunk.nbytes <= max(4, chunk_bytes) and chunk.nbytes % 4 == 0 for chunk in chunks)
    assert [chunk.y_start for chunk in chunks] == sorted(chunk.y_start for chunk in chunks)


def test_a_chunk_has_at_least_one_element() -> None:
    chunks = list(missing([Run(FLOAT64, 24, 0, 0)], [], 1))
    assert [(chunk.start, chunk.nbytes) for chunk in chunks] == [(0, 8), (8, 8), (16, 8)]


def test_a_whole_tensor_is_one_chunk() -> None:
    slot = Slot(FLOAT32, (10,), 0)
    (run,) = runs(Layout((slot,), 40), None, Target((), (0,), 40), cuttable=False)
    assert [(chunk.start, chunk.nbytes) for chunk in missing([run], [], 8)] == [(0, 40)]


def test_neighbours_without_a_gap_are_one_run_and_those_with_one_are_not() -> None:
    slots = (Slot(FLOAT32, (2,), 100), Slot(FLOAT32, (3,), 108), Slot(FLOAT64, (1,), 120), Slot(FLOAT64, (1,), 136))
    found = runs(Layout(slots, 144), None, Target((), tuple(slot.start for slot in slots), 144), cuttable=True)
    assert [(run.dtype, run.x_start, run.nbytes) for run in found] == [(FLOAT32, 100, 20), (FLOAT64, 120, 8), (FLOAT64, 136, 8)]


def test_neighbours_whose_gradients_lie_elsewhere_stay_apart() -> None:
    x = Layout((Slot(FLOAT32, (2,), 0), Slot(FLOAT32, (2,), 8)), 16, ("a", "b"))
    grad = Layout((Slot(FLOAT32, (2,), 0), Slot(FLOAT32, (2,), 8)), 16, ("b", "a"))
    found = runs(x, grad, Target((), (0, 8), 16), cuttable=True)
    assert [(run.x_start, run.grad_start) for run in found] == [(0, 8), (8, 0)]


def test_tensors_without_elements_have_no_run() -> None:
    assert runs(Layout((Slot(FLOAT32, (0, 3), 128),), 128), None, Target((), (128,), 128), cuttable=True) == ()


def test_a_gradient_in_another_order_makes_its_tensor_whole() -> None:
    x = Layout((Slot(FLOAT32, (2, 3), 0),), 24)
    for fortran, shape, is_whole in ((True, (2, 3), True), (False, (2, 3), False), (True, (6, 1), False)):
        grad = Layout((Slot(FLOAT32, shape, 0, fortran=fortran),), 24)
        of_shape = Layout((Slot(FLOAT32, shape, 0),), 24)
        (run,) = runs(of_shape if shape != (2, 3) else x, grad, Target((), (0,), 24), cuttable=True)
        assert (run.whole is not None) is is_whole
