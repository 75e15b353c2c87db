"""What a server's /metrics really holds, and whether queries ask for that; promtool evaluates them where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from service.errors import BY_CODE

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")

# Prometheus adds these to every series, and makes `up` for every target.
TARGET = {"job": "stequant", "instance": "10.0.0.2:8000"}
UP = Sample("up", {}, 1.0)
STATUSES = sorted({"200", "499", *(str(error.status) for error in BY_CODE.values())})


@dataclass(frozen=True)
class Exposed:
    """The samples of one scrape."""

    samples: Sequence[Sample]

    @classmethod
    def of(cls, text: str) -> Exposed:
        """A scrape, and `up`."""
        return cls([UP, *(sample for family in text_string_to_metric_families(text) for sample in family.samples)])

    def labels(self) -> Mapping[str, Collection[str]]:
        """For each metric the labels that its series have in Prometheus."""
        found: dict[str, set[str]] = defaultdict(lambda: set(TARGET))
        for sample in self.samples:
            found[sample.name] |= sample.labels.keys()
        return found

    def values(self, label: str) -> Collection[str]:
        """The values that a label can have: those of the code where it has a list of them, else those that were seen."""
        if label == "code":
            return BY_CODE.keys()
        if label == "status":
            return STATUSES
        return {TARGET[label]} if label in TARGET else {one.labels[label] for one in self.samples if label in one.labels}

    def check(self, query: str) -> None:
        """Fail where a query names a metric, a label or a label's value that is not there."""
        parsed = promql.parse(query)
        known = self.labels()
        assert parsed.selectors, f"nothing is asked for by {query}"
        for metric, matchers in parsed.selectors:
            assert metric in known, f"/metrics has no {metric}, which is asked for by {query}"
            for label, op, value in matchers:
                assert label in known[metric], f"{metric} has no label {label}, in {query}"
                for one in value.split("|") if "~" in op else [value] * bool(value):
                    assert any(re.fullmatch(one, had) for had in self.values(label)), f"{label} is never {one}, in {query}"
        reached = set().union(*(known[selector.metric] for selector in parsed.selectors))
        assert parsed.labels <= reached, f"{parsed.labels - reached} are labels of nothing in {query}"

    def series(self) -> list[dict[str, str]]:
        """Every sample as an input of promtool's: growing by one with every scrape, but for gauges."""
        gauges = ("up", "stequant_in_flight_bytes")
        return [
            {"series": series(one.name, one.labels), "values": "1+0x80" if one.name in gauges else f"{one.value}+1x80"}
            for one in self.samples
        ]


def series(metric: str, labels: Mapping[str, str]) -> str:
    """A series of the target as it is written in PromQL."""
    return metric + "{" + ",".join(f'{name}="{value}"' for name, value in {**TARGET, **labels}.items()) + "}"


def promtool(*arguments: str | Path) -> str:
    """What promtool prints, which must be content."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evaluate(folder: Path, rules: Iterable[Path], tests: Sequence[Mapping[str, object]]) -> None:
    """Run unit tests with promtool, a scrape every 5 s."""
    document = {
        "rule_files": [str(one) for one in rules],
        "evaluation_interval": "5s",
        "tests": [{"interval": "5s", **one} for one in tests],
    }
    file = folder / "unit_tests.yml"
    file.write_text(yaml.safe_dump(document))
    promtool("test", "rules", file)
