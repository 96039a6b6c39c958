"""The chart renders what a cluster takes, refuses what was misspelt, and drops no value because it is zero."""

import copy
from secrets import token_hex
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from mastery_grpc.settings import PREFIX, Settings
from tests.deploy import chart_documents
from tests.deploy.chart import SECRET, VALUE_SETS, Rendered, helm, refusal, render, rendered
from tests.deploy.custom_resources import SCHEMAS

MINIMAL = VALUE_SETS["default"]
VARIABLES = {PREFIX + name.upper() for name in Settings.model_fields}


def minimal(**given: Any) -> dict[str, Any]:
    return copy.deepcopy(MINIMAL) | given


# --- what is rendered -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUE_SETS)
def test_helm_finds_nothing_to_complain_of(name: str) -> None:
    done = helm("lint", "--strict", values=VALUE_SETS[name])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kubernetes", ["1.30", "1.37"])
@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_object_is_valid(name: str, kubernetes: str) -> None:
    manifests = rendered(name).manifests
    assert len(manifests) >= 6
    for manifest in manifests:
        if schema := SCHEMAS.get(manifest["kind"]):
            jsonschema.validate(manifest, schema)
        else:
            kubernetes_validate.validate(manifest, kubernetes, strict=True)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_no_two_objects_have_the_same_name(name: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in rendered(name).manifests]
    assert len(names) == len(set(names))


def test_each_value_set_renders_what_it_asks_for() -> None:
    everything = {kind for name in VALUE_SETS for kind in kinds(rendered(name))}
    assert everything == {
        *("ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Job", "NetworkPolicy", "Pod"),
        *("PodDisruptionBudget", "ScaledObject", "Secret", "Service", "ServiceAccount", "ServiceMonitor"),
    }
    assert kinds(rendered("everything off")) == {"ConfigMap", "Deployment", "Pod", "Secret", "Service"}
    assert rendered("everything off").of("Deployment").keys() == {""}
    assert "Secret" not in kinds(rendered("existing secret"))


def kinds(of: Rendered) -> set[str]:
    return {manifest["kind"] for manifest in of.manifests}


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_pod_meets_the_restricted_profile(name: str) -> None:
    pods = rendered(name).pods
    assert {"server", "test"} <= pods.keys()
    for component, pod in pods.items():
        spec, container = pod["spec"], rendered(name).container(component)
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_variable_is_a_setting_with_a_value_that_is_taken(name: str) -> None:
    for component in rendered(name).pods.keys() - {"test"}:
        told = rendered(name).environment(component)
        ours = {variable: value for variable, value in told.items() if not variable.startswith("OTEL_")}
        assert ours.keys() <= VARIABLES
        assert "MASTERY_KAFKA_BOOTSTRAP_SERVERS" in ours or name == "everything off"


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_settings_of_the_pods_are_those_that_the_values_gave(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in rendered(name).environment("server").items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    ports = {each["name"]: each["containerPort"] for each in rendered(name).container("server")["ports"]}
    assert settings.grpc_port == ports["grpc"]
    assert settings.metrics_port == ports["metrics"]
    assert settings.grpc_workers == 1
    assert bool(settings.tls_cert) == ("tls" in name)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_pods_are_given_more_time_than_they_take_to_stop(name: str) -> None:
    for component in rendered(name).pods.keys() & {"server", "worker"}:
        spec = rendered(name).pods[component]["spec"]
        drain = float(rendered(name).environment(component)["MASTERY_GRPC_DRAIN_TIMEOUT"])
        slept = rendered(name).container(component).get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        assert spec["terminationGracePeriodSeconds"] >= drain + slept.get("seconds", 0) + 5


def test_new_settings_or_secrets_mean_new_pods() -> None:
    def checksum(**given: Any) -> str:
        pod = render(minimal(**given)).pods["server"]
        return str(pod["metadata"]["annotations"]["checksum/settings"])

    other_secret = {"values": {"MASTERY_JWT_SECRET": token_hex(32)}}
    told = [checksum(), checksum(settings={"MASTERY_RATE_LIMIT_PEOPLE": 1}), checksum(secret=other_secret)]
    assert len(set(told)) == 3
    assert checksum(image={"tag": "2"}) == told[0]


# --- services and scaling ---------------------------------------------------------------------------------


def test_clients_find_all_servers_behind_one_name_or_one_address() -> None:
    services = rendered("default").of("Service")
    assert services.keys() == {"", "headless", "worker"}
    assert services["headless"]["spec"]["clusterIP"] == "None"
    assert "clusterIP" not in services[""]["spec"]
    for name in ("", "headless"):
        [grpc_port, *_] = services[name]["spec"]["ports"]
        assert (grpc_port["port"], grpc_port["targetPort"], grpc_port["appProtocol"]) == (50051, "grpc", "grpc")


@pytest.mark.parametrize("name", VALUE_SETS)
def test_selectors_find_the_pods_that_they_are_for_and_their_ports(name: str) -> None:
    pods = {
        component: (pod["metadata"]["labels"].items(), {each["name"] for each in ports_of(name, component)})
        for component, pod in rendered(name).pods.items()
    }
    for service in rendered(name).of("Service").values():
        [(_, ports)] = [each for each in pods.values() if service["spec"]["selector"].items() <= each[0]]
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= ports
    for kind in ("Deployment", "PodDisruptionBudget"):
        for owner in rendered(name).of(kind).values():
            wanted = owner["spec"]["selector"]["matchLabels"].items()
            assert len([labels for labels, _ in pods.values() if wanted <= labels]) == 1


def ports_of(name: str, component: str) -> list[dict[str, Any]]:
    return list(rendered(name).container(component).get("ports", ()))


def test_the_number_of_pods_is_left_to_whoever_scales_them() -> None:
    default, scaled = rendered("default").of("Deployment"), rendered("autoscaled and watched").of("Deployment")
    assert "replicas" not in default[""]["spec"]
    assert default["worker"]["spec"]["replicas"] == 2
    assert "replicas" not in scaled["worker"]["spec"]
    assert rendered("everything off").of("Deployment")[""]["spec"]["replicas"] == 2


def test_workers_are_scaled_by_their_own_lag_and_never_beyond_the_partitions() -> None:
    spec = rendered("autoscaled and watched").of("ScaledObject")["worker"]["spec"]
    assert spec["maxReplicaCount"] == 6
    [trigger] = spec["triggers"]
    assert trigger["metadata"]["consumerGroup"] == "another-group"
    assert trigger["metadata"]["topic"] == "another.topic"
    assert trigger["authenticationRef"] == {"name": "kafka"}


def test_the_topics_job_has_all_it_needs_before_the_release_is_there() -> None:
    told = rendered("tls").environment("topics")
    assert told["MASTERY_KAFKA_PROPERTIES"] == '{"security.protocol":"SASL_SSL"}'
    assert told["MASTERY_KAFKA_PARTITIONS"] == "6"
    assert "MASTERY_JWT_SECRET" not in told
    hooks = [each for each in rendered("tls").manifests if is_before_install(each)]
    assert sorted(each["kind"] for each in hooks) == ["Job", "Secret"]
    weight = {each["kind"]: int(each["metadata"]["annotations"]["helm.sh/hook-weight"]) for each in hooks}
    assert weight["Secret"] < weight["Job"]
    assert "serviceAccountName" not in rendered("tls").pods["topics"]["spec"]


def is_before_install(manifest: dict[str, Any]) -> bool:
    hook = manifest["metadata"].get("annotations", {}).get("helm.sh/hook", "")
    return "pre-install" in hook and "pre-upgrade" in hook


def test_network_policies_let_in_only_who_was_named() -> None:
    policies = rendered("autoscaled and watched").of("NetworkPolicy")
    [clients, _, metrics] = policies[""]["spec"]["ingress"]
    assert clients["from"] == [{"namespaceSelector": {"matchLabels": {"name": "lms"}}}]
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]
    assert [each["ports"] for each in policies["worker"]["spec"]["ingress"]] == [[{"port": "metrics"}]]


# --- zero is a value --------------------------------------------------------------------------------------


def test_zero_is_a_value() -> None:
    zeros = minimal(
        settings={
            "MASTERY_RATE_LIMIT_PEOPLE": 0,
            "MASTERY_INTERVENTION_THRESHOLD": 0,
            "MASTERY_GRPC_REFLECTION": False,
            "MASTERY_JWT_ISSUER": "",
        },
        kafka={"replicationFactor": 0},
        server={
            "replicas": 0,
            "drainSeconds": 0,
            "preStopSeconds": 0,
            "autoscaling": {"enabled": False},
            "podDisruptionBudget": {"maxUnavailable": 0},
        },
        worker={"autoscaling": {"enabled": True, "minReplicas": 0}},
    )
    told = render(zeros)
    environment = told.environment("server")
    assert environment["MASTERY_RATE_LIMIT_PEOPLE"] == "0"
    assert environment["MASTERY_INTERVENTION_THRESHOLD"] == "0"
    assert environment["MASTERY_GRPC_REFLECTION"] == "false"
    assert environment["MASTERY_JWT_ISSUER"] == ""
    assert environment["MASTERY_KAFKA_REPLICATION_FACTOR"] == "0"
    assert environment["MASTERY_GRPC_DRAIN_TIMEOUT"] == "0"
    assert told.of("Deployment")[""]["spec"]["replicas"] == 0
    assert told.of("PodDisruptionBudget")[""]["spec"]["maxUnavailable"] == 0
    assert told.of("ScaledObject")["worker"]["spec"]["minReplicaCount"] == 0
    assert told.pods["server"]["spec"]["terminationGracePeriodSeconds"] == 10


def test_large_numbers_are_written_out() -> None:
    settings = {"MASTERY_GRPC_MAX_RECEIVE_MESSAGE_SIZE": 16777216, "MASTERY_RATE_LIMIT_SERVICES": 12345678}
    environment = render(minimal(settings=settings)).environment("server")
    assert {name: environment[name] for name in settings} == {name: str(value) for name, value in settings.items()}


# --- what is refused --------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt value": ({"server": {"replica": 3}}, "replica"),
    "a misspelt block": ({"sever": {"replicas": 3}}, "sever"),
    "a misspelt setting": ({"settings": {"MASTERY_RATE_LIMIT_PERSONS": 1}}, "MASTERY_RATE_LIMIT_PERSONS"),
    "a setting out of its bounds": ({"settings": {"MASTERY_WEIGHT_QUIZ": 2}}, "MASTERY_WEIGHT_QUIZ"),
    "a setting of another type": ({"settings": {"MASTERY_GRPC_REFLECTION": "off"}}, "MASTERY_GRPC_REFLECTION"),
    "a secret among the settings": ({"settings": {"MASTERY_AUDIT_KEY": "x" * 32}}, "MASTERY_AUDIT_KEY"),
    "a port that the chart decides": ({"settings": {"MASTERY_GRPC_PORT": 1}}, "MASTERY_GRPC_PORT"),
    "a number that is a string": ({"server": {"replicas": "3"}}, "replicas"),
    "no secret": ({"secret": {"values": {}}}, "nobody could sign in: set secret.existing"),
    "two secrets": ({"secret": {"existing": "one", "values": SECRET}}, "exclude each other"),
    "no redis": ({"redis": {"url": ""}}, "redis.url is empty"),
    "tls without a certificate": ({"tls": {"enabled": True}}, "tls.enabled needs tls.secretName"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_stops_the_install_and_is_named(mistake: str) -> None:
    values, expected = MISTAKES[mistake]
    assert expected in refusal(minimal(**values))


# --- what is written down ---------------------------------------------------------------------------------


def test_the_schema_knows_the_settings_as_they_are() -> None:
    written = chart_documents.SCHEMA.read_text()
    assert chart_documents.schema_with_settings(written) == written, "make chart"
    assert VARIABLES >= chart_documents.OWN | chart_documents.SECRETS


def test_the_readme_lists_the_values_as_they_are() -> None:
    written = chart_documents.README.read_text()
    assert chart_documents.readme_with_table(written) == written, "make chart"


def test_every_value_has_a_place_in_the_schema() -> None:
    def check(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        for name, value in values.items():
            assert name in schema["properties"], f"{path}.{name}"
            inner = schema["properties"][name]
            if isinstance(value, dict) and "properties" in inner:
                check(value, inner, f"{path}.{name}")

    check(chart_documents.values(), chart_documents.schema(), "")
