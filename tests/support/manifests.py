"""Overlays of deploy/kubernetes as kustomize renders them, and what a cluster makes of them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.house import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = tuple(sorted(path.name for path in (KUBERNETES / "overlays").iterdir()))
WORKLOADS = {"retriever": "Deployment", "policy": "StatefulSet", "trainer": "Job"}

Object = dict[str, Any]


@dataclass(frozen=True)
class Manifests:
    """What `kubectl apply -k` would send."""

    objects: list[Object]

    def get(self, kind: str, name: str) -> Object:
        (found,) = [each for each in self.of(kind) if each["metadata"]["name"] == name]
        return found

    def of(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def workload(self, service: str) -> Object:
        spec: Object = self.get(WORKLOADS[service], service)["spec"]
        return spec

    def pod(self, service: str) -> Object:
        spec: Object = self.workload(service)["template"]["spec"]
        return spec

    def container(self, service: str) -> Object:
        (found,) = self.pod(service)["containers"]
        assert isinstance(found, dict)
        return found

    def environment(self, service: str) -> dict[str, str]:
        """The variables of a service's container, but for the secrets."""
        container = self.container(service)
        variables: dict[str, str] = {}
        for source in container["envFrom"]:
            variables |= self.get("ConfigMap", source["configMapRef"]["name"])["data"]
        return variables | {each["name"]: each["value"] for each in container["env"] if "value" in each}

    def arguments(self, service: str) -> list[str]:
        """The container's `args`, with $(VARIABLE) as Kubernetes replaces it."""
        variables = self.environment(service)
        return [
            re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], word) for word in self.container(service)["args"]
        ]

    def labels(self, service: str, index: int) -> dict[str, str]:
        """The labels of a pod, with those that a Job adds to its pods."""
        labels: dict[str, str] = self.workload(service)["template"]["metadata"]["labels"]
        if WORKLOADS[service] == "Job":
            return labels | {"batch.kubernetes.io/job-completion-index": str(index)}
        return labels


def render(directory: Path) -> Manifests:
    """By the kustomize that is in kubectl."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # where it warns of fields that will go
    return Manifests(list(yaml.safe_load_all(done.stdout)))
