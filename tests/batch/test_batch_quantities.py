"""Sizes and times, read and written."""

from __future__ import annotations

import pytest

from service.batch.quantities import duration, parse_size, size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("1", 1), ("4096", 4096), ("16MiB", 16 * 2**20), ("16 mib", 16 * 2**20), ("3KiB", 3072), ("2GIB", 2**31)],
)
def test_sizes_are_numbers_with_or_without_a_unit(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "0", "0KiB", "-1", "1.5MiB", "16MB", "16M", "MiB", "1TiB", "1" * 16, "１"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="16MiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (10 * 1024, "10.0 KiB"),
        (100 * 1024, "100 KiB"),
        (999 * 2**20, "999 MiB"),
        (2**30, "1.00 GiB"),
        (2**70, "1048576 PiB"),
    ],
)
def test_sizes_are_written_with_three_digits(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3725, "1:02:05"), (90000, "25:00:00")])
def test_times_are_written_as_clocks_show_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
