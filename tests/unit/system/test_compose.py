"""What the compose files promise of confinement: held for each service, also one that is added."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from services.web.auth import ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE
from tests.support.house import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
MILVUS: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.milvus.yml").read_text(encoding="utf-8"))
OURS = COMPOSE["services"]
SERVING = {name: each for name, each in OURS.items() if name != "prepare"}
CONTAINERS = {**OURS, "milvus": MILVUS["services"]["milvus"]}


@pytest.mark.parametrize("name", CONTAINERS)
def test_each_container_is_confined(name: str) -> None:
    container = CONTAINERS[name]
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert set(container["deploy"]["resources"]["limits"]) == {"memory", "pids"}
    assert set(container["logging"]["options"]) == {"max-size", "max-file"}
    assert not any(port for port in container.get("ports", ()) if not port.startswith("127.0.0.1:"))
    assert container["networks"]


@pytest.mark.parametrize("name", OURS)
def test_each_of_ours_writes_where_it_must(name: str) -> None:
    container = OURS[name]
    assert container["read_only"]
    assert container["environment"]["HOME"] == "/tmp"
    written = {volume for volume in container["volumes"] if not volume.endswith(":ro")}
    expected = {"prepare": {"${RESEARCH_DATA:-data}:/app/data"}, "trainer": {"${RESEARCH_RUNS:-runs}:/app/runs"}}
    assert written == expected.get(name, set())


@pytest.mark.parametrize("name", OURS)
def test_each_of_ours_is_the_same_user_who_is_root_for_nobody_by_default(name: str) -> None:
    assert OURS[name]["user"] == "${RESEARCH_USER:-1000:1000}"


@pytest.mark.parametrize("name", OURS)
def test_what_a_hub_has_is_fetched_by_prepare_to_where_all_read_it(name: str) -> None:
    environment = OURS[name]["environment"]
    assert environment["HF_HOME"].startswith("/app/data/")
    assert environment["HF_HUB_OFFLINE"] == ("0" if name == "prepare" else "1")


@pytest.mark.parametrize("name", SERVING)
def test_each_service_is_restarted_also_when_it_hangs(name: str) -> None:
    assert OURS[name]["restart"] == "unless-stopped"
    assert OURS[name]["command"] == ["serve", "--watch", name]


def test_secrets_are_files_and_each_service_has_those_it_needs() -> None:
    everywhere = {**OURS, **{f"{name} of milvus": each for name, each in MILVUS["services"].items()}}
    for name, container in everywhere.items():
        for variable, value in container.get("environment", {}).items():
            if "TOKEN" in variable or "KEY" in variable:
                assert variable.endswith("_FILE"), f"{name} shows {variable} to `docker inspect`"
                assert "/run/secrets/" in value
    guards = {f"{ADMIN_TOKEN_VARIABLE}_FILE", f"{API_KEY_VARIABLE}_FILE"}
    needing = {name for name, container in OURS.items() if guards & set(container["environment"])}
    assert needing == {name for name, container in OURS.items() if container.get("secrets")} == {"policy", "trainer"}
    assert set(COMPOSE["secrets"]) == {each for name in needing for each in OURS[name]["secrets"]}


def test_milvus_talks_to_none_but_those_that_need_it() -> None:
    assert MILVUS["services"]["milvus"]["networks"] == ["vectors"]
    assert "ports" not in MILVUS["services"]["milvus"]
    assert MILVUS["networks"]["vectors"]["internal"]
    assert {name for name, each in MILVUS["services"].items() if "vectors" in each["networks"]} == {
        "milvus",
        "prepare",
        "retriever",
    }
