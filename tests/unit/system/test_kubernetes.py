"""deploy/kubernetes, rendered by kustomize and held against Kubernetes' schemas, our settings and our services."""

from __future__ import annotations

import copy
import os
import re
import shutil
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
from fastapi import FastAPI
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _NodeDesc
from torch.distributed.run import get_args_parser

from cli.main import app as program
from research.config import ENV_PREFIX, load_settings
from research.schemas import ServiceStatus
from research.settings import Settings
from services.policy.plugin import ResearchPlugin
from services.policy.settings_variable import SETTINGS_VARIABLE
from services.process.stopping import GRACE_SECONDS
from services.web.auth import ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE
from services.web.health import health_routes
from tests.support.house import ROOT
from tests.support.manifests import KUBERNETES, OVERLAYS, WORKLOADS, Manifests, Object, render

# The oldest version that README.md promises, and the newest of the package.
VERSIONS = ("1.31", "1.37")
README = (KUBERNETES / "README.md").read_text(encoding="utf-8")
GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    return render(KUBERNETES / "overlays" / request.param)


@pytest.fixture(scope="module")
def with_nccl(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """`gpu-many-nodes` with its line on NCCL taken in, as README.md says."""
    copied = tmp_path_factory.mktemp("nccl") / "kubernetes"
    shutil.copytree(KUBERNETES, copied)
    file = copied / "overlays" / "gpu-many-nodes" / "kustomization.yaml"
    text = file.read_text()
    assert "\n# components:" in text
    file.write_text(text.replace("# components:", "components:"))
    return render(file.parent)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without the settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("RESEARCH")]:
        monkeypatch.delenv(name)
    return monkeypatch


def settings_of(manifests: Manifests, service: str, patch: pytest.MonkeyPatch) -> Settings:
    """What the service loads in its container; an unknown setting raises."""
    variables = manifests.environment(service)
    assert any(name.startswith(ENV_PREFIX) for name in variables)
    for name, value in variables.items():
        if name.startswith("RESEARCH"):
            patch.setenv(name, value)
    return load_settings(variables["RESEARCH_PRESET"])


def validate(objects: list[Object]) -> None:
    for each in objects:
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)


def test_every_object_is_of_its_schema(manifests: Manifests, with_nccl: Manifests) -> None:
    assert len(manifests.objects) == 9
    validate(manifests.objects)
    validate(with_nccl.objects)


def test_the_schemas_refuse_what_is_not_in_them(manifests: Manifests) -> None:
    wrong = copy.deepcopy(manifests.get("Job", "trainer"))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        validate([wrong])


@pytest.mark.parametrize("service", WORKLOADS)
def test_settings_load_and_ports_are_those_of_the_container(
    manifests: Manifests, service: str, clean: pytest.MonkeyPatch
) -> None:
    settings = settings_of(manifests, service, clean)
    section = getattr(settings, service)
    ports = {each["name"]: each["containerPort"] for each in manifests.container(service)["ports"]}
    assert section.host == "0.0.0.0"
    assert section.port == ports["http"]


def test_addresses_are_those_of_services_and_pods(manifests: Manifests, clean: pytest.MonkeyPatch) -> None:
    endpoints = settings_of(manifests, "trainer", clean).endpoints
    policy = manifests.workload("policy")
    headless = manifests.get("Service", policy["serviceName"])
    assert headless["spec"]["clusterIP"] == "None"
    (port,) = headless["spec"]["ports"]
    assert endpoints.policy_urls == [
        f"http://policy-{number}.{policy['serviceName']}:{port['port']}" for number in range(policy["replicas"])
    ]
    for url in (endpoints.retriever_url, endpoints.trainer_url):
        address = urlsplit(url)
        ports = manifests.get("Service", str(address.hostname))["spec"]["ports"]
        assert address.port in {each["port"] for each in ports}


def test_each_service_selects_its_pods(manifests: Manifests) -> None:
    services = {"retriever": "retriever", "policy": "policy", "trainer-0": "trainer"}
    assert {each["metadata"]["name"] for each in manifests.of("Service")} == set(services)
    for name, service in services.items():
        spec = manifests.get("Service", name)["spec"]
        selected = [
            (other, index)
            for other in WORKLOADS
            for index in (0, 1)
            if spec["selector"].items() <= manifests.labels(other, index).items()
        ]
        assert selected == ([(service, 0)] if name == "trainer-0" else [(service, 0), (service, 1)])
        ports = {each["name"]: each["containerPort"] for each in manifests.container(service)["ports"]}
        # A headless Service is only a name: its clients reach the port of the container.
        assert all(each["port"] == ports[each["targetPort"]] for each in spec["ports"])
    for service in ("retriever", "policy"):
        wanted = manifests.workload(service)["selector"]["matchLabels"]
        assert wanted.items() <= manifests.labels(service, 0).items()
    (policy,) = manifests.of("NetworkPolicy")
    for service in WORKLOADS:
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= manifests.labels(service, 0).items()


def test_torchrun_is_told_what_the_job_has(manifests: Manifests, clean: pytest.MonkeyPatch) -> None:
    settings, job, container = (
        settings_of(manifests, "trainer", clean),
        manifests.workload("trainer"),
        manifests.container("trainer"),
    )
    assert container["command"] == ["torchrun"]
    said = get_args_parser().parse_args(manifests.arguments("trainer"))
    assert job["parallelism"] == job["completions"] == int(said.nnodes)
    gpus = container["resources"]["limits"].get(GPU)
    assert settings.trainer.processes == int(said.nproc_per_node) == (gpus or 1)
    assert settings.trainer.device == ("cuda" if gpus else "cpu")
    host, port = said.rdzv_endpoint.split(":")
    assert host == "trainer-0"  # as an indexed Job names its first pod
    assert int(port) in {each["containerPort"] for each in container["ports"]}
    assert int(port) in {each["port"] for each in manifests.get("Service", host)["spec"]["ports"]}
    # torch's order of hosts, from which ranks follow.
    assert min(_NodeDesc(f"trainer-{number}", 20 - number, 0) for number in range(12)).addr == host
    assert (said.module, said.training_script, said.training_script_args) == (True, "cli.main", ["train"])


def test_each_policy_has_the_gpus_that_share_its_model(manifests: Manifests, clean: pytest.MonkeyPatch) -> None:
    settings = settings_of(manifests, "policy", clean)
    gpus = manifests.container("policy")["resources"]["limits"].get(GPU)
    assert gpus == (settings.policy.tensor_parallel_size if settings.trainer.device == "cuda" else None)


def test_images_know_the_command_and_the_user(manifests: Manifests, clean: pytest.MonkeyPatch) -> None:
    gpu = settings_of(manifests, "trainer", clean).trainer.device == "cuda"
    dockerfile = (ROOT / ("Dockerfile.gpu" if gpu else "Dockerfile")).read_text()
    assert 'ENTRYPOINT ["research"]' in dockerfile
    assert "--uid 1000" in dockerfile
    commands = {
        command.name or command.callback.__name__ for command in program.registered_commands if command.callback
    }
    for service in WORKLOADS:
        pod = manifests.pod(service)
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["terminationGracePeriodSeconds"] > GRACE_SECONDS
        for container in (*pod["initContainers"], *pod["containers"]):
            assert container["image"] == ("research:gpu" if gpu else "research:cpu")
            assert "command" in container or container["args"][0] in commands


def test_what_the_settings_call_a_directory_is_on_the_volume(manifests: Manifests, clean: pytest.MonkeyPatch) -> None:
    for service in WORKLOADS:
        settings, container = settings_of(manifests, service, clean), manifests.container(service)
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        volumes = {each["name"]: each for each in manifests.pod(service)["volumes"]}
        claim = volumes[mounts[container["workingDir"]]]["persistentVolumeClaim"]["claimName"]
        assert manifests.get("PersistentVolumeClaim", claim)
        assert not settings.paths.data.is_absolute()
        assert not settings.paths.runs.is_absolute()
        # Where the root is read-only, caches need a place of their own.
        assert manifests.environment(service)["HOME"] in mounts


def test_secrets_are_what_the_services_read(manifests: Manifests) -> None:
    read = {ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE, "HF_TOKEN", "WANDB_API_KEY"}
    for service in WORKLOADS:
        variables = [each for each in manifests.container(service)["env"] if "valueFrom" in each]
        for each in variables:
            reference = each["valueFrom"]["secretKeyRef"]
            assert reference["key"] == each["name"] in read
            # The one that is needed is the one that README.md has the user make.
            assert reference.get("optional", False) == (each["name"] != ADMIN_TOKEN_VARIABLE)
            assert reference["name"] == "research"
        assert ADMIN_TOKEN_VARIABLE in {each["name"] for each in variables}
    for service in ("policy", "trainer"):
        assert API_KEY_VARIABLE in {each["name"] for each in manifests.container(service)["env"]}
    assert f"kubectl create secret generic research --from-literal={ADMIN_TOKEN_VARIABLE}=" in README


def test_probes_ask_routes_that_the_apps_have(manifests: Manifests, clean: pytest.MonkeyPatch) -> None:
    async def status() -> ServiceStatus:
        return ServiceStatus(status="ready", detail="")

    retriever, policy = FastAPI(), FastAPI()
    retriever.include_router(health_routes(status))
    clean.setenv(SETTINGS_VARIABLE, load_settings(environment=False).model_dump_json())
    ResearchPlugin().attach_router(policy)
    for service, app in (("retriever", retriever), ("policy", policy)):
        container = manifests.container(service)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["path"] in app.openapi()["paths"]
            assert container[probe]["httpGet"]["port"] in {each["name"] for each in container["ports"]}


def test_nccl_is_a_setting_and_another_probe(with_nccl: Manifests, clean: pytest.MonkeyPatch) -> None:
    for service in WORKLOADS:
        assert settings_of(with_nccl, service, clean).trainer.weight_sync == "nccl"
    probe = with_nccl.container("policy")["livenessProbe"]
    assert probe["httpGet"] == with_nccl.container("policy")["readinessProbe"]["httpGet"]


def test_the_readme_names_the_overlays_and_kubeconform() -> None:
    assert set(re.findall(r"overlays/([\w-]+)", README)) == set(OVERLAYS)
    assert f"Kubernetes {VERSIONS[0]} or newer" in README
    assert "kubeconform" in README
