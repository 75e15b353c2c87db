"""Grafana's dashboard: its queries ask for what the server exposes and show something, and its panels say what they show."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from exposed import TARGET, Exposed, evaluate, needs_promtool
from server_process import ROOT

SHIPPED = ROOT / "docs" / "compose" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((SHIPPED / "dashboards" / "stequant.json").read_text())
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]}
COLUMNS = 24


def filled_in(query: str) -> str:
    """A query as Grafana sends it, for all replicas."""
    text = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert "$" not in text, f"{query} uses a variable that is not known here"
    return text


# Queries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_query_asks_for_what_the_server_exposes(query: str, exposed: Exposed) -> None:
    exposed.check(filled_in(query).replace('".*"', f'"{TARGET["instance"]}"'))


@needs_promtool
def test_every_query_shows_something_for_a_server_that_has_met_every_kind_of_call(exposed: Exposed, tmp_path: Path) -> None:
    evaluate(
        tmp_path,
        [],
        [
            {
                "input_series": exposed.series(),
                "promql_expr_test": [
                    {
                        "expr": f"count({filled_in(query)}) > bool 0",
                        "eval_time": "5m",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                    for query in QUERIES.values()
                ],
            }
        ],
    )


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_query_looks_at_the_chosen_replicas_of_the_job_and_at_rates_that_fit_the_window(query: str) -> None:
    selectors = query.count("{")
    assert query.count(f'{{job="{TARGET["job"]}",instance=~"$instance"') == selectors
    assert query.count("rate(") == query.count("[$__rate_interval]") == query.count("[")


# Panels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in {"short", "reqps", "percentunit", "bytes", "binBps", "s"}
    assert panel["datasource"] == {"type": "prometheus", "uid": "$datasource"}
    assert panel["targets"]
    names = [target["legendFormat"] for target in panel["targets"]]
    assert panel["type"] == "stat" or (all(names) and len(set(names)) == len(names))


def test_titles_and_numbers_of_panels_are_each_there_once() -> None:
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    assert [panel["id"] for panel in DASHBOARD["panels"]] == list(range(1, len(DASHBOARD["panels"]) + 1))


def test_panels_fill_the_width_and_never_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = set(itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])))
        assert len(own) == place["w"] * place["h"] > 0
        assert not own & cells, f"{panel['title']!r} lies over another panel"
        cells |= own
    height = 1 + max(y for _, y in cells)
    assert cells == set(itertools.product(range(COLUMNS), range(height)))


def test_panels_stand_in_the_order_in_which_they_are_read() -> None:
    places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in DASHBOARD["panels"]]
    assert places == sorted(places)
    assert {row["title"] for row in ROWS} == {"Calls", "Time", "Bytes", "Errors"}


# Provisioning ---------------------------------------------------------------------------------------------


def test_the_variables_are_the_data_source_and_the_replicas(exposed: Exposed) -> None:
    datasource, instance = DASHBOARD["templating"]["list"]
    assert (datasource["name"], datasource["type"], datasource["query"]) == ("datasource", "datasource", "prometheus")
    assert (instance["name"], instance["multi"], instance["includeAll"]) == ("instance", True, True)
    query = instance["query"]["query"]
    assert query.startswith("label_values(")
    assert query.endswith(", instance)")
    exposed.check(query.removeprefix("label_values(").removesuffix(", instance)"))


def test_the_dashboard_begins_with_the_data_source_that_is_provisioned_and_which_scrapes_as_often_as_it_thinks() -> None:
    (source,) = yaml.safe_load((SHIPPED / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert DASHBOARD["templating"]["list"][0]["current"] == {"text": source["name"], "value": source["uid"]}
    prometheus = yaml.safe_load((ROOT / "docs" / "compose" / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def test_dashboards_are_read_from_files_and_cannot_drift_from_them() -> None:
    (provider,) = yaml.safe_load((SHIPPED / "provisioning" / "dashboards" / "stequant.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["allowUiUpdates"] is False
    assert DASHBOARD["editable"] is False
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    assert f"./docs/compose/grafana/dashboards:{provider['options']['path']}:ro" in mounts
