"""The Helm chart: rendered, valid by the schemas of Kubernetes, with real settings and no more rights than needed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from gadfly.cli.options import variable_of
from gadfly.service.metrics import Metrics
from gadfly.settings import Settings

CHART = Path(__file__).resolve().parent.parent / "deploy" / "helm" / "gadfly"
# What the chart sets by itself, and what only the command line reads.
OWN = {"home", "cache", "adapters", "host", "port", "database_url", "engine_urls"} | {
    "engine_key", "actor_key", "grader_key", "url", "key",
}  # fmt: skip
OWN_ENGINES = {"enabled": False, "urls": ["https://gpu1:8000", "https://gpu2:8000"]}

VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "three engines": {"engine": {"replicas": 3}},
    "engines by name": {"engine": {"replicas": 3, "byName": True}},
    "engines of others": {
        "engine": OWN_ENGINES,
        "secrets": {"engineKey": {"name": "engines", "key": "key"}, "actorKey": {"name": "actor", "key": "key"}},
    },
    "everything": {
        "service": {
            "autoscaling": {"enabled": True},
            "type": "LoadBalancer",
            "annotations": {"a": "b"},
            "podAnnotations": {"prometheus.io/scrape": "true"},
            "nodeSelector": {"kind": "cpu"},
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        },
        "engine": {
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
        },
        "settings": {"model": "Qwen/Qwen2.5-7B-Instruct", "max_tokens": 400, "tasks": ["math", "towns"]},
        "secrets": {"huggingFaceToken": {"name": "hub", "key": "token"}},
        "images": {"pullSecrets": ["registry"]},
        "adapters": {"existingClaim": "critics"},
        "networkPolicy": {"serviceFrom": [{"podSelector": {"matchLabels": {"app": "proxy"}}}]},
        "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        "extraVolumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "serviceAccountName": "gadfly",
    },
    "the service alone": {"engine": OWN_ENGINES, "trainer": {"enabled": False}, "networkPolicy": {"enabled": False}},
}

_RENDER = """
import json, sys
from helm_python import Chart, lint
values = json.loads(sys.argv[2])
with Chart.load(sys.argv[1]) as chart:
    chart.validate_schema(values)
    made = chart.render(values, name=sys.argv[3], namespace="ml")
report = lint(sys.argv[1], values, strict=True)
manifests = [text for name, text in made.items() if name.endswith(".yaml")]
print(json.dumps({"made": manifests, "findings": [each for each in report["messages"] if each["severity"] > 1]}))
"""

needs_helm = pytest.mark.skipif(
    shutil.which("helm") is None and find_spec("helm_python") is None,
    reason="neither helm nor the package helm-python-sdk is installed",
)


class RenderError(Exception):
    """Helm refuses the values or the templates."""


def render(values: dict[str, Any], *, release: str = "gadfly") -> list[dict[str, Any]]:
    """The resources of a release, by `helm` or, without it, by Helm's library from PyPI."""
    if shutil.which("helm"):
        command = ["helm", "template", release, str(CHART), "--namespace", "ml", "--values", "-"]
    else:  # in a process of its own: it brings Go's runtime
        command = [sys.executable, "-c", _RENDER, str(CHART), json.dumps(values), release]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")}
    done = subprocess.run(
        command, input=json.dumps(values), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RenderError(done.stderr)
    texts = [done.stdout]
    if not shutil.which("helm"):
        answer = json.loads(done.stdout)
        assert answer["findings"] == []
        texts = answer["made"]
    documents = [document for text in texts for document in yaml.safe_load_all(text) if isinstance(document, dict)]
    return [document for document in documents if "kind" in document]


def pods(resources: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pod templates, by part."""
    kinds = ("StatefulSet", "Job")
    found = [each["spec"]["template"] for each in resources if each["kind"] in kinds]
    return {each["metadata"]["labels"]["app.kubernetes.io/component"]: each["spec"] for each in found}


def containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from [*pod.get("initContainers", []), *pod["containers"]]


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in pod["containers"][0]["env"]}


@needs_helm
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_resource_is_valid(values: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for version in ("1.27.0", validator.latest_version()):
        for resource in render(values):
            validator.validate(resource, version, strict=True)


@needs_helm
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_pods_have_no_rights_that_they_do_not_need(values: dict[str, Any]) -> None:
    for part, pod in pods(render(values)).items():
        assert pod["enableServiceLinks"] is False, "a Service called gadfly would set GADFLY_PORT"
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001, "the user of the images"
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, part
            assert {"limits"} <= set(container["resources"])
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            claims = {"data"} if part != "migrate" else set()
            assert mounted <= {volume["name"] for volume in pod["volumes"]} | claims, part


@needs_helm
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_variable_is_a_setting_and_no_password_is_in_a_value(values: dict[str, Any]) -> None:
    known = {variable_of(name) for name in Settings.model_fields}
    for part, pod in pods(render(values)).items():
        found = environment(pod)
        assert {name for name in found if name.startswith("GADFLY_")} <= known
        assert len(found) == len(pod["containers"][0]["env"]), "no variable is set twice"
        for secret in ("GADFLY_DATABASE_URL", "GADFLY_ENGINE_KEY", "GADFLY_ACTOR_KEY", "HF_TOKEN"):
            assert secret not in found or "secretKeyRef" in found[secret]
        # More engines must not restart the others, and adapters are sent to them.
        for variable in ("GADFLY_DATABASE_URL", "GADFLY_ENGINE_URLS", "GADFLY_ADAPTERS"):
            assert (variable in found) is (part != "engine")


def test_the_values_name_settings_images_and_a_metric_of_this_release() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    listed = schema["properties"]["settings"]["propertyNames"]["enum"]
    assert listed == sorted(set(Settings.model_fields) - OWN), "list every setting in values.schema.json"
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (CHART.parents[2] / "pyproject.toml").read_text()
    assert f'version = "{chart["appVersion"]}"' in project
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    images = (values["images"][part] for part in ("service", "engine", "trainer"))
    assert {image.partition(":")[2] for image in images} == {chart["appVersion"]}
    exported = {metric.name for metric in Metrics().registry.collect()}
    assert values["service"]["autoscaling"]["metric"] in exported


@needs_helm
def test_what_is_rendered_can_be_loaded_as_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    big = {"settings": {"engine_kv_cache_bytes": 4 * 2**30, "temperature": 0.35, "auto_promote": False, "task": "math"}}
    made = environment(pods(render(big | {"engine": {"replicas": 2}}, release="critic"))["service"])
    for name, value in made.items():
        monkeypatch.setenv(name, value if isinstance(value, str) else "postgresql://me@host/gadfly")
    settings = Settings.load()
    assert (settings.engine_kv_cache_bytes, settings.temperature, settings.auto_promote) == (4 * 2**30, 0.35, False)
    assert (settings.host, settings.port, settings.log_format.value) == ("0.0.0.0", 8400, "json")
    assert settings.engine_urls == tuple(
        f"http://critic-gadfly-engine-{number}.critic-gadfly-engine.ml.svc:8000" for number in range(2)
    )


@needs_helm
def test_each_engine_has_the_name_that_the_service_asks() -> None:
    resources = render({"engine": {"replicas": 2}})
    [engine] = [each for each in resources if each["kind"] == "StatefulSet" and "engine" in each["metadata"]["name"]]
    urls = environment(pods(resources)["service"])["GADFLY_ENGINE_URLS"].split(",")
    name, headless = engine["metadata"]["name"], engine["spec"]["serviceName"]
    assert urls == [f"http://{name}-{number}.{headless}.ml.svc:8000" for number in range(2)]
    [service] = [each for each in resources if each["kind"] == "Service" and each["metadata"]["name"] == headless]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= engine["spec"]["template"]["metadata"]["labels"].items()
    by_name = render({"engine": {"replicas": 2, "byName": True}})
    assert environment(pods(by_name)["service"])["GADFLY_ENGINE_URLS"] == f"dns+http://{headless}.ml.svc:8000"
    assert pods(by_name) == pods(render({"engine": {"replicas": 5, "byName": True}})), "more engines restart nothing"
    assert environment(pods(render({"engine": OWN_ENGINES}))["trainer"])["GADFLY_ENGINE_URLS"] == (
        "https://gpu1:8000,https://gpu2:8000"
    )
    assert not [each for each in render({"engine": OWN_ENGINES}) if "engine" in each["metadata"]["name"]]


@needs_helm
def test_the_schema_is_changed_before_anything_else_starts() -> None:
    [job] = [each for each in render({}) if each["kind"] == "Job"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    [migrate, key] = containers(pods([job])["migrate"])
    assert migrate["command"] == ["gadfly", "migrate"]
    assert key["command"][:3] == ["gadfly", "keys", "create"]
    volumes = {volume["name"]: volume for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert not any("persistentVolumeClaim" in volume for volume in volumes.values()), "no claim exists yet"
    assert volumes["admin-key"]["secret"]["secretName"] == "gadfly-admin-key"


@needs_helm
@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"settings": {"max_token": 3}}, "max_token"),
        ({"settings": {"database_url": "postgresql://me:secret@host/db"}}, "database_url"),
        ({"secrets": {"databaseUrl": {"name": ""}}}, "databaseUrl"),
        ({"engine": {"enabled": False}}, "name the engines"),
        ({"engine": {"urls": ["unix:///run/engine"]}}, "urls"),
        ({"sevice": {}}, "sevice"),
        ({"extraEnv": [{"name": "GADFLY_MODEL", "value": "x"}]}, "extraEnv"),
    ],
)
def test_faults_are_named_before_anything_is_installed(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(RenderError, match=fault):
        render(values)
