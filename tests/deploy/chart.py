"""The chart as helm renders it, and the value sets that every check goes through."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from secrets import token_hex
from typing import Any

import yaml

from tests.deploy.chart_documents import CHART

RELEASE = "mastery"
KUBERNETES = "1.34.0"
"""Stands in for the cluster that would otherwise tell helm its version."""

CERTIFICATE = "mastery-tls"
SECRET = {"MASTERY_JWT_SECRET": token_hex(32)}
VALUE_SETS: dict[str, dict[str, Any]] = {
    "default": {"secret": {"values": SECRET}},
    "tls": {
        "secret": {"values": SECRET | {"MASTERY_KAFKA_PROPERTIES": {"security.protocol": "SASL_SSL"}}},
        "tls": {"enabled": True, "secretName": CERTIFICATE, "clientCertificates": True},
    },
    "existing secret": {
        "secret": {"existing": "mastery-secret"},
        "redis": {"url": ""},
        "image": {"pullSecrets": ["registry"], "tag": "1.2.3"},
        "nodeSelector": {"pool": "general"},
        "tolerations": [{"key": "pool", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "important",
        "podLabels": {"team": "learning"},
        "podAnnotations": {"note": "1"},
    },
    "autoscaled and watched": {
        "secret": {"values": SECRET},
        "worker": {"autoscaling": {"enabled": True, "maxReplicas": 40, "authentication": "kafka"}},
        "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "settings": {"MASTERY_INGEST_GROUP": "another-group", "MASTERY_KAFKA_REQUESTS_TOPIC": "another.topic"},
        "extraEnv": [{"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "deployment.environment.name=test"}],
        "networkPolicy": {
            "clients": [{"namespaceSelector": {"matchLabels": {"name": "lms"}}}],
            "monitoring": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        },
    },
    "everything off": {
        "secret": {"values": SECRET},
        "kafka": {"bootstrapServers": ""},
        "worker": {"enabled": False},
        "server": {"autoscaling": {"enabled": False}, "podDisruptionBudget": {"enabled": False}},
        "networkPolicy": {"enabled": False},
        "serviceAccount": {"create": False},
    },
}


@dataclass(frozen=True)
class Rendered:
    """What helm would send to the cluster."""

    manifests: tuple[dict[str, Any], ...]

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Returns the objects of a kind by what follows the full name in theirs: "" is the server's."""
        full = f"{RELEASE}-mastery-engine"
        found = [manifest for manifest in self.manifests if manifest["kind"] == kind]
        return {each["metadata"]["name"].removeprefix(full).removeprefix("-"): each for each in found}

    @property
    def pods(self) -> dict[str, dict[str, Any]]:
        """Returns the templates of all pods, and the pods, by their component."""
        owners = [manifest for manifest in self.manifests if manifest["kind"] in ("Deployment", "Job", "Pod")]
        pods = [owner if owner["kind"] == "Pod" else owner["spec"]["template"] for owner in owners]
        return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in pods}

    def container(self, component: str) -> dict[str, Any]:
        [container] = self.pods[component]["spec"]["containers"]
        assert isinstance(container, dict)
        return container

    def environment(self, component: str) -> dict[str, str]:
        """Returns the variables of a container, with those of the ConfigMap and of the chart's own Secrets."""
        container, told = self.container(component), dict[str, str]()
        for source in container.get("envFrom", ()):
            kind = "ConfigMap" if "configMapRef" in source else "Secret"
            [reference] = source.values()
            for each in self.manifests:
                if (each["kind"], each["metadata"]["name"]) == (kind, reference["name"]):
                    told |= each.get("data") or each.get("stringData") or {}
        return told | {each["name"]: each["value"] for each in container.get("env") or ()}


def helm(*arguments: str, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Runs helm on the chart with these values."""
    command = [tool("helm"), *arguments, str(CHART), "--kube-version", KUBERNETES, "--values", "-"]
    return subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)


def render(values: dict[str, Any]) -> Rendered:
    """Renders the chart; these values must be good."""
    done = helm("template", RELEASE, values=values)
    assert done.returncode == 0, done.stderr
    return Rendered(tuple(each for each in yaml.safe_load_all(done.stdout) if each is not None))


@cache
def rendered(name: str) -> Rendered:
    """Returns the chart with one of the value sets."""
    return render(VALUE_SETS[name])


def refusal(values: dict[str, Any]) -> str:
    """Returns why helm does not render the chart with these values."""
    done = helm("template", RELEASE, values=values)
    assert done.returncode != 0, "these values should have been refused"
    return done.stderr


def tool(name: str) -> str:
    """Returns where a program is; these tests do not pass without it."""
    found = shutil.which(name)
    assert found is not None, f"{name} is needed for this; .ci/run installs it"
    return found
