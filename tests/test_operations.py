"""docs/operations.md says what is there: every metric with its labels, every reason, settings and codes by their names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from service.errors import BY_CODE
from service.metrics import Metrics, Stages
from service.settings import Settings

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "operations.md").read_text()
ROWS = {
    match["name"]: {label for label in match["labels"].strip().split(", ") if label}
    for match in re.finditer(r"^\| `(?P<name>stequant_\w+)` \|(?P<labels>[^|]*)\|", TEXT, re.MULTILINE)
}


def metrics() -> dict[str, set[str]]:
    """Every metric that the service registers, as it is exposed, with its labels."""
    found = {}
    for metric in Metrics().registry._collector_to_names:
        assert isinstance(metric, MetricWrapperBase)
        name = metric._name + ("_total" if metric._type == "counter" else "")
        found[name] = set(metric._labelnames)
    return found


def test_every_metric_is_in_the_table_with_its_labels() -> None:
    assert metrics() == ROWS


def test_every_stage_is_explained() -> None:
    for stage in Stages._fields:
        assert f"`{stage}`" in TEXT


def test_every_reason_to_end_a_connection_is_explained() -> None:
    source = (ROOT / "service" / "transport" / "connection.py").read_text()
    reasons = set(re.findall(r'_cut\(\s*"(\w+)"|else "(\w+)"\)|_cut\("(\w+)" if', source))
    names = {name for groups in reasons for name in groups if name}
    assert len(names) >= 7
    assert names == set(re.findall(r'reason="(\w+)"', TEXT))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:max|min)_\w+|\w+_s)`", TEXT))))
def test_what_is_called_a_setting_is_one(name: str) -> None:
    assert name in Settings.model_fields


@pytest.mark.parametrize("status_and_code", re.findall(r"\b([45]\d\d) `(\w+)`", TEXT), ids=" ".join)
def test_what_is_called_a_code_is_one(status_and_code: tuple[str, str]) -> None:
    status, code = status_and_code
    assert BY_CODE[code].status == int(status)
