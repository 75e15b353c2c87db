"""The Kubernetes examples: they fit the schemas of every version they name, and what they say of the server and the job is so."""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions
from server_process import ROOT

from service.app import create_app
from service.batch import report
from service.cli.main import build_parser
from service.ops import parse
from service.settings import MIB, Settings

Manifest = dict[str, Any]

SHIPPED = ROOT / "docs" / "kubernetes"
FILES = sorted(SHIPPED.glob("*.yaml"))
MANIFESTS: dict[str, Manifest] = {
    manifest["kind"]: manifest for file in FILES for manifest in yaml.safe_load_all(file.read_text(encoding="utf-8"))
}
DEPLOYMENT, JOB = MANIFESTS["Deployment"]["spec"], MANIFESTS["Job"]["spec"]
PODS: dict[str, Manifest] = {kind: MANIFESTS[kind]["spec"]["template"]["spec"] for kind in ("Deployment", "Job")}
# Kubernetes' own things to do, after a container has been told to stop and before it is killed.
MARGIN_S = 5


def versions() -> list[str]:
    """Kubernetes' versions from the one that the files name to the newest that the schemas know."""
    (oldest,) = {match for file in FILES for match in re.findall(r"For Kubernetes (1\.[0-9]+) or newer", file.read_text())}
    known = sorted(
        {kubernetes_validate.utils.major_minor(one) for one in all_versions()}, key=lambda one: int(one.partition(".")[2])
    )
    return known[known.index(oldest) :]


def container(kind: str) -> Manifest:
    """The one container of a pod."""
    (found,) = PODS[kind]["containers"]
    return dict(found)


def variables(kind: str) -> dict[str, str]:
    """The variables that a manifest sets."""
    return {one["name"]: one["value"] for one in container(kind)["env"]}


def server_settings() -> Settings:
    """The server's settings, read as the server reads them."""
    return Settings(**{name.removeprefix("STEQUANT_").lower(): value for name, value in variables("Deployment").items()})


def batch_options() -> argparse.Namespace:
    """The job's command line, read by the command itself."""
    return build_parser().parse_args(container("Job")["args"])


# What holds for both --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", versions())
@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_fits_the_schema(kind: str, version: str) -> None:
    assert kubernetes_validate.validate(MANIFESTS[kind], version, strict=True) == version


def test_a_misspelt_field_does_not_fit_the_schema() -> None:
    pod = MANIFESTS["Deployment"] | {"spec": DEPLOYMENT | {"tempalte": {}}}
    with pytest.raises(kubernetes_validate.ValidationError, match="tempalte"):
        kubernetes_validate.validate(pod, versions()[-1], strict=True)


@pytest.mark.parametrize("kind", PODS)
def test_a_pod_has_no_more_rights_than_it_needs(kind: str) -> None:
    pod, inside = PODS[kind], container(kind)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inside["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert inside["resources"].keys() == {"requests", "limits"}
    assert all(inside["resources"][bound].keys() == {"cpu", "memory"} for bound in ("requests", "limits"))


@pytest.mark.parametrize("kind", PODS)
def test_a_pod_runs_a_target_of_the_dockerfile_as_its_user(kind: str) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    name, _, tag = container(kind)["image"].partition(":")
    stage = re.search(rf"^FROM \S+ AS {tag}$(.*?)(?=^FROM|\Z)", dockerfile, re.MULTILINE | re.DOTALL)
    assert name == "stequant"
    assert stage is not None
    user = PODS[kind]["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in stage[1]
    assert 'ENTRYPOINT ["stequant"]' in stage[1]


@pytest.mark.parametrize("kind", PODS)
def test_a_pod_can_write_to_tmp(kind: str) -> None:
    (volume,) = [one["name"] for one in container(kind)["volumeMounts"] if one["mountPath"] == "/tmp"]
    assert {"name": volume, "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}} in PODS[kind]["volumes"]


@pytest.mark.parametrize("kind", PODS)
def test_no_variable_of_kubernetes_is_taken_for_a_setting(kind: str) -> None:
    """For a Service named stequant, pods get STEQUANT_PORT=tcp://…, unless they say that they want no such links."""
    name = MANIFESTS["Service"]["metadata"]["name"]
    assert f"{name.upper()}_PORT" in {f"STEQUANT_{setting.upper()}" for setting in Settings.model_fields}
    assert PODS[kind]["enableServiceLinks"] is False


# The server -----------------------------------------------------------------------------------------------


def test_the_server_accepts_its_settings_and_listens_for_others() -> None:
    named = {f"STEQUANT_{setting.upper()}" for setting in Settings.model_fields}
    assert variables("Deployment").keys() <= named
    assert server_settings().host == "0.0.0.0"
    assert container("Deployment")["args"] == ["serve"]


def test_all_parts_mean_the_same_pods_and_the_same_port() -> None:
    labels = DEPLOYMENT["template"]["metadata"]["labels"]
    assert DEPLOYMENT["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (spread,) = PODS["Deployment"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", MANIFESTS["Deployment"]["metadata"]["name"])
    assert JOB["template"]["metadata"]["labels"] != labels
    (port,) = container("Deployment")["ports"]
    (service_port,) = MANIFESTS["Service"]["spec"]["ports"]
    annotations = DEPLOYMENT["template"]["metadata"]["annotations"]
    assert port["containerPort"] == server_settings().port == int(annotations["prometheus.io/port"])
    assert service_port["targetPort"] == port["name"]


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_probe_asks_a_path_that_is_there(probe: str) -> None:
    asked = container("Deployment")[probe]["httpGet"]
    assert asked["path"] in create_app(Settings(device="cpu")).openapi()["paths"]
    assert asked["port"] == container("Deployment")["ports"][0]["name"]
    # A server that drains is not ready, and alive.
    assert asked["path"] == ("/healthz" if probe == "livenessProbe" else "/readyz")


def test_a_server_is_not_killed_before_its_calls_have_ended() -> None:
    before_s = container("Deployment")["lifecycle"]["preStop"]["sleep"]["seconds"]
    settings = server_settings()
    needed_s = before_s + settings.drain_delay_s + settings.grace_s + MARGIN_S
    assert PODS["Deployment"]["terminationGracePeriodSeconds"] >= needed_s
    readiness = container("Deployment")["readinessProbe"]
    assert before_s + settings.drain_delay_s > readiness["periodSeconds"] * readiness["failureThreshold"]


def test_the_bodies_in_flight_and_their_answers_fit_the_memory() -> None:
    limit_bytes = int(re.fullmatch("([0-9]+)Gi", container("Deployment")["resources"]["limits"]["memory"])[1]) * 2**30  # type: ignore[index]
    torch_bytes = 512 * MIB
    assert 2 * server_settings().in_flight_limit_bytes + torch_bytes <= limit_bytes


def test_there_is_always_a_replica_left() -> None:
    scale = MANIFESTS["HorizontalPodAutoscaler"]["spec"]
    assert "replicas" not in DEPLOYMENT, "kubectl apply would set back what the autoscaler has set"
    assert scale["maxReplicas"] > scale["minReplicas"] > MANIFESTS["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert DEPLOYMENT["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


# The job --------------------------------------------------------------------------------------------------


def rules(action: str) -> Iterator[int]:
    """The exit codes for which the pod failure policy takes an action."""
    for rule in JOB["podFailurePolicy"]["rules"]:
        if rule["action"] == action and "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container("Job")["name"]
            assert rule["onExitCodes"]["operator"] == "In"
            yield from rule["onExitCodes"]["values"]


def test_an_exit_code_decides_whether_a_shard_is_tried_again() -> None:
    assert list(rules("FailJob")) == [report.USAGE]
    assert list(rules("FailIndex")) == [report.BAD_INPUTS]
    assert list(rules("Ignore")) == [128 + signal.SIGINT, 128 + signal.SIGTERM]
    named = {code for action in ("FailJob", "FailIndex", "Ignore", "Count") for code in rules(action)}
    assert report.GAVE_UP not in named, "what no rule names counts as one of the tries"
    assert JOB["backoffLimitPerIndex"] > 0


def test_the_readme_says_of_every_exit_code_what_the_policy_does() -> None:
    table = re.findall(r"^\| ([0-9, ]+) \| [^|]+ \| (.+) \|$", (SHIPPED / "README.md").read_text(), re.MULTILINE)
    told = {int(code): what for codes, what in table for code in codes.split(",")}
    stopped = (128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
    assert told.keys() == {report.DONE, report.BAD_INPUTS, report.USAGE, report.GAVE_UP, *stopped}
    for action in ("FailJob", "FailIndex", "Ignore"):
        assert {code for code, what in told.items() if f"`{action}`" in what} == set(rules(action))


def test_a_pod_that_had_to_go_costs_no_try_unless_it_has_said_that_another_is_useless() -> None:
    actions = [(rule["action"], *(rule.keys() - {"action"})) for rule in JOB["podFailurePolicy"]["rules"]]
    assert [action for action, condition in actions if condition == "onPodConditions"] == ["Ignore"]
    assert actions.index(("Ignore", "onPodConditions")) > actions.index(("FailIndex", "onExitCodes"))


def test_every_shard_is_run_and_knows_how_many_there_are() -> None:
    assert JOB["completionMode"] == "Indexed"
    assert variables("Job")["JOB_COMPLETION_COUNT"] == str(JOB["completions"])
    assert 1 <= JOB["parallelism"] <= JOB["completions"]
    assert batch_options().shard is None, "it is taken from the variables"


def test_two_pods_never_work_on_one_shard() -> None:
    assert JOB["podReplacementPolicy"] == "Failed"
    assert PODS["Job"]["restartPolicy"] == "Never"


def test_the_command_line_is_one_that_the_command_takes() -> None:
    options = batch_options()
    assert parse(options.op).elementwise
    mounts = {one["mountPath"]: one.get("readOnly", False) for one in container("Job")["volumeMounts"]}
    assert [mounts[source] for source in options.sources] == [True]
    assert mounts[options.dest] is False
    (url,) = map(urlsplit, options.url)
    service = MANIFESTS["Service"]
    assert (url.hostname, url.port) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])


def test_a_job_is_not_killed_before_it_has_written_its_journal() -> None:
    assert PODS["Job"]["terminationGracePeriodSeconds"] >= batch_options().grace + MARGIN_S
