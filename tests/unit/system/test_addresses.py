"""Addresses: of IPv6 hosts, without secrets, and not shown to everybody."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient

from research.config import load_settings
from research.errors import ConfigurationError
from research.settings.base import address_of
from services.system.programs import programs_of
from services.trainer.api.app import create_app
from services.trainer.controller import RunController
from services.trainer.run_dir.run_dir import RunDirectory
from tests.support.tiny_model import tiny_settings

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("fd00::7", "http://[fd00::7]:8000"),
        ("retriever", "http://retriever:8000"),
    ],
)
def test_every_host_makes_an_address(host: str, address: str) -> None:
    assert address_of(host, 8000) == address
    assert urlsplit(address).port == 8000
    assert str(httpx.URL(address)) == address


def test_settings_and_launcher_know_ipv6_hosts() -> None:
    settings = load_settings(
        overrides=["retriever.host=::", "policy.host=::1", "trainer.host=fd00::7", "policy.replicas=1"],
        environment=False,
    )
    ends = settings.endpoints
    assert ends.retriever_url == "http://[::1]:8000"
    assert ends.policy_urls == ["http://[::1]:8001"]
    assert ends.trainer_url == "http://[fd00::7]:8002"
    assert [program.url for program in programs_of(["retriever", "trainer"], settings)] == [
        "http://[::1]:8000",
        "http://[fd00::7]:8002",
    ]


@pytest.mark.parametrize(
    ("override", "variable"),
    [
        ("endpoints.retriever_url=http://me:{}@host:8000", "RESEARCH_API_KEY"),
        ('endpoints.retriever_urls=["http://a:1", "http://{}@b:1"]', "RESEARCH_API_KEY"),
        ('endpoints.policy_urls=["http://me:{}@host:8001"]', "RESEARCH_API_KEY"),
        ("endpoints.trainer_url=http://me:{}@host:8002", "RESEARCH_ADMIN_TOKEN"),
        ("corpus.milvus=http://root:{}@milvus:19530", "MILVUS_TOKEN"),
        ("web.address=https://me:{}@search.host", "_API_KEY"),
        ("bench.endpoint=https://me:{}@host/v1", "RESEARCH_ENDPOINT_API_KEY"),
        ("bench.judge_endpoint=https://me:{}@host/v1", "RESEARCH_JUDGE_API_KEY"),
        ("reward.judge_endpoint=https://me:{}@host/v1", "RESEARCH_JUDGE_API_KEY"),
    ],
)
def test_credentials_in_an_address_are_refused_and_not_shown(override: str, variable: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(overrides=[override.format(SECRET)], environment=False)
    told = str(caught.value)
    assert override.partition("=")[0] in told
    assert variable in told
    assert "user name or password" in told
    assert SECRET not in told


def test_a_file_of_milvus_may_have_any_name() -> None:
    assert load_settings(overrides=["corpus.milvus=data/me@home.db"], environment=False).corpus.milvus


def test_the_status_shows_no_address(tmp_path: Path) -> None:
    settings = tiny_settings(
        tmp_path,
        'endpoints.policy_urls=["http://10.1.2.3:8001", "http://policy-2.internal:8001"]',
        "endpoints.retriever_url=http://[fd00::7]:8000",
    )
    controller = RunController(settings)
    status = controller.status
    status.waiting_for = (
        "the policy at http://policy-2.internal:8001 does not answer (Cannot connect to host 10.1.2.3:8001)"
    )
    status.error = "the retriever at http://[fd00::7]:8000/search answered 500: see http://wiki.corp/x?a=b or 10.9.8.7"
    status.log("evaluation 'before': at 12:30:05 policy:8 was asked; version 1.2.3, [::1]:9 http://[bad")
    client = TestClient(create_app(controller, RunDirectory(settings.run_dir)))
    shown = client.get("/status").json()
    assert shown["waiting_for"] == "the policy at <policy 2> does not answer (Cannot connect to host <policy 1>)"
    assert shown["error"] == "the retriever at <retriever 1> answered 500: see <address> or <address>"
    assert shown["lines"] == ["evaluation 'before': at 12:30:05 policy:8 was asked; version 1.2.3, <address> <address>"]
    # Whoever sits at the machine needs them.
    assert "policy-2.internal" in status.waiting_for
    assert {field.name for field in dataclasses.fields(status)} - set(shown) == {
        "listeners",
        "forecast_seconds",
        "forecast_at",
    }
