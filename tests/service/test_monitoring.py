"""The board and the alert rules of `deploy/` name metrics and labels that a running service exports."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from docs import reference
from gadfly.service.metrics import Metrics
from gadfly.settings import Settings
from tests.service.conftest import serving_without_engine

DEPLOY = Path(__file__).parents[2] / "deploy"
BOARD = json.loads((DEPLOY / "grafana" / "gadfly.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
OF_PROMETHEUS = {"job", "instance", "le"}

_METRIC = re.compile(r"\bgadfly_\w+")
_SELECTOR = re.compile(r"\b(gadfly_\w+)\{([^}]*)\}")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|ignoring|on)\s*\(([^)]*)\)")
_ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


def expressions() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in BOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def labels_of() -> dict[str, set[str]]:
    """The labels of each exported name."""
    found: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            [family] = metric.describe()
            for ending in _ENDINGS[family.type]:
                found[family.name + ending] = set(metric._labelnames)
    return found


async def test_the_board_and_the_rules_name_what_a_running_service_exports(engineless: Settings) -> None:
    async with serving_without_engine(engineless) as client:
        scraped = (await client.get("/metrics")).text
    exported = {
        family.name + ending
        for family in text_string_to_metric_families(scraped)
        for ending in _ENDINGS[family.type]
        if family.name.startswith("gadfly_") and not family.name.endswith("_created")
    }
    assert exported == set(labels_of())
    for where, expression in expressions():
        named = set(_METRIC.findall(expression))
        assert named or "up{" in expression, where
        assert named <= exported, where


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_labels_are_those_of_the_metrics(where: str, expression: str) -> None:
    labels = labels_of()
    for name, matchers in _SELECTOR.findall(expression):
        assert set(_MATCHER.findall(matchers)) <= labels[name] | OF_PROMETHEUS, where
    of_all = set().union(*(labels[name] for name in _METRIC.findall(expression)))
    for names in _GROUPING.findall(expression):
        assert {name.strip() for name in names.split(",")} <= of_all | OF_PROMETHEUS, where


def test_every_metric_has_a_place_on_the_board_and_in_the_documentation() -> None:
    shown = set().union(*(_METRIC.findall(target["expr"]) for panel in PANELS for target in panel["targets"]))
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in labels_of()}
    assert families - {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown} == {"gadfly_run_followers"}
    documented = set(_METRIC.findall(reference.metrics()))
    assert families == documented


def test_the_board_is_one_that_grafana_can_draw() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    for one, other in combinations((panel["gridPos"] for panel in BOARD["panels"]), 2):
        assert not _overlap(one, other)
    assert all(panel["gridPos"]["x"] >= 0 and panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)
    sources = [target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]]
    assert set(sources) == {"${source}"}, "no panel depends on the name of one installation's data source"


def test_every_alert_says_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in (("x", "w"), ("y", "h"))
    )
