"""Every file belongs to one shard, whatever else there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batch.errors import BadUsage
from service.batch.shards import Shard, parse_shard, shard_from


@given(st.text(max_size=30), st.integers(1, 20))
def test_exactly_one_shard_owns_a_file(path: str, count: int) -> None:
    if "\ud800" <= max(path, default="") <= "\udfff":
        return
    assert sum(Shard(index, count).owns(path) for index in range(count)) == 1


def test_shards_are_of_about_the_same_size() -> None:
    shard = Shard(3, 8)
    assert 400 < sum(shard.owns(f"layer.{number}/weight.npy") for number in range(4000)) < 600


@pytest.mark.parametrize(("text", "shard"), [("0/1", Shard(0, 1)), (" 3/4 ", Shard(3, 4))])
def test_a_shard_is_written_as_index_and_count(text: str, shard: Shard) -> None:
    assert parse_shard(text) == shard
    assert str(shard) == text.strip()


@pytest.mark.parametrize("text", ["", "1", "1/1", "4/4", "-1/4", "1/0", "0/0", "1/2/3", "a/b", "1.0/2", "٣/٤", "1/9999999999"])
def test_what_is_no_shard_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(BadUsage, match="0 <= I < N"):
        parse_shard(text)


def test_an_indexed_job_of_kubernetes_says_which_shard_it_is() -> None:
    assert shard_from({"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETION_COUNT": "5"}) == Shard(2, 5)
    assert shard_from({}) is None
    assert shard_from({"JOB_COMPLETION_INDEX": "", "JOB_COMPLETION_COUNT": ""}) is None


@pytest.mark.parametrize("variable", ["JOB_COMPLETION_INDEX", "JOB_COMPLETION_COUNT"])
def test_one_variable_without_the_other_is_refused_since_every_pod_would_do_everything(variable: str) -> None:
    with pytest.raises(BadUsage, match=variable):
        shard_from({variable: "1"})
