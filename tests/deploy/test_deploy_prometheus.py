"""Prometheus' configuration: what it asks for is there, promtool accepts it, and every alert fires when it should and only then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import promql
import pytest
import yaml
from exposed import TARGET, Exposed, evaluate, needs_promtool, promtool, series
from promql import Matcher, Selector
from server_process import ROOT

from service.settings import Settings

SHIPPED = ROOT / "docs" / "compose" / "prometheus"
CONFIGURATION: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"] for rule in group["rules"]
}


# What is asked for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_asks_for_what_the_server_exposes(alert: str, exposed: Exposed) -> None:
    exposed.check(ALERTS[alert]["expr"])


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description"}


def test_every_replica_of_the_compose_files_servers_is_scraped_on_the_servers_port() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    (job,) = CONFIGURATION["scrape_configs"]
    assert job["job_name"] == TARGET["job"]
    assert job["metrics_path"] == "/metrics"
    (names,) = job["dns_sd_configs"]
    assert (names["names"], names["type"], names["port"]) == (
        [name for name in services if name.startswith("server")],
        "A",
        Settings.model_fields["port"].default,
    )
    assert CONFIGURATION["rule_files"] == ["alerts.yml"]


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", SHIPPED / "prometheus.yml")
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", SHIPPED / "alerts.yml")


# When an alert fires --------------------------------------------------------------------------------------


def requests(route: str, status: int) -> str:
    return series("stequant_requests_total", {"route": route, "operator": "round", "format": "npy", "status": str(status)})


def errors(code: str) -> str:
    return series("stequant_errors_total", {"code": code})


def bucket(le: str) -> str:
    return series("stequant_request_seconds_bucket", {"route": "/quantize", "le": le})


UP, READY = series("up", {}), series("stequant_ready", {})
IN_FLIGHT, LIMIT = series("stequant_in_flight_bytes", {}), series("stequant_in_flight_limit_bytes", {})
GIB = 2**30

# Twenty minutes of scrapes every 5 s, just below what each alert takes for too much.
BUSY: Mapping[str, str] = {
    UP: "1x240",
    requests("/quantize", 200): "0+920x240",
    requests("/quantize", 429): "0+75x240",
    requests("/quantize", 503): "0+5x240",
    requests("/readyz", 200): "0+1x240",
    errors("device_lost"): "3x240",
    errors("out_of_memory"): "3x240",
    READY: "1x240",
    IN_FLIGHT: f"{0.85 * GIB}x240",
    LIMIT: f"{GIB}x240",
    bucket("0.1"): "0+500x240",
    bucket("10"): "0+995x240",
    bucket("30"): "0+1000x240",
    bucket("+Inf"): "0+1000x240",
}
IDLE: Mapping[str, str] = {UP: "1x240", READY: "1x240", IN_FLIGHT: "0x240", LIMIT: f"{GIB}x240"}
SICK: Mapping[str, Mapping[str, str]] = {
    "StequantAbsent": {},
    "StequantDown": {UP: "0x240"},
    "StequantNotReady": BUSY | {READY: "0x240"},
    "StequantDeviceLost": BUSY | {errors("device_lost"): "0+1x240"},
    "StequantOutOfMemory": BUSY | {errors("out_of_memory"): "0+1x240"},
    "StequantErrors": BUSY | {requests("/quantize", 503): "0+15x240"},
    "StequantNoAnswers": BUSY | {name: "5000x240" for name in BUSY if name.startswith("stequant_requests")},
    "StequantOverloaded": BUSY | {requests("/quantize", 429): "0+130x240"},
    "StequantBudgetNearlyFull": BUSY | {IN_FLIGHT: f"{0.95 * GIB}x240"},
    "StequantSlow": BUSY | {bucket("10"): "0+985x240"},
}


def firing_after_20_minutes(given: Mapping[str, str], expected: list[str]) -> dict[str, object]:
    """A unit test of promtool's: these alerts fire, and no other."""
    return {
        "input_series": [{"series": name, "values": values} for name, values in given.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "20m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in expected],
            }
        ],
    }


def test_every_alert_has_its_sickness() -> None:
    assert SICK.keys() == ALERTS.keys()


@needs_promtool
@pytest.mark.parametrize("alert", SICK)
def test_an_alert_fires_in_its_sickness_alone(alert: str, tmp_path: Path) -> None:
    evaluate(tmp_path, [SHIPPED / "alerts.yml"], [firing_after_20_minutes(SICK[alert], [alert])])


@needs_promtool
@pytest.mark.parametrize("given", [BUSY, IDLE], ids=["busy", "idle"])
def test_no_alert_fires_while_all_is_well(given: Mapping[str, str], tmp_path: Path) -> None:
    evaluate(tmp_path, [SHIPPED / "alerts.yml"], [firing_after_20_minutes(given, [])])


# The reader of queries, which the tests above rest on -----------------------------------------------------


def test_a_query_is_read_as_its_selectors_and_labels() -> None:
    found = promql.parse('sum by (a, b) (rate(x_total{c="d|}",e=~"f"}[5m])) / on (g) y > 1e3 unless z offset 2m or vector(0)')
    assert found.selectors == (
        Selector("x_total", (Matcher("c", "=", "d|}"), Matcher("e", "=~", "f"))),
        Selector("y", ()),
        Selector("z", ()),
    )
    assert found.labels == {"a", "b", "g"}


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("sum(stequant_requests)", "no stequant_requests"),
        ('stequant_errors_total{status="500"}', "no label status"),
        ('stequant_errors_total{code=~"overloaded|overlorded"}', "never overlorded"),
        ('stequant_requests_total{route="/quantise"}', "never /quantise"),
        ("sum by (format) (stequant_errors_total)", "format"),
        ("vector(1)", "nothing is asked for"),
    ],
)
def test_a_query_for_what_is_not_there_is_found(query: str, complaint: str, exposed: Exposed) -> None:
    with pytest.raises(AssertionError, match=complaint):
        exposed.check(query)
