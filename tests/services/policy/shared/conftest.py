"""One policy for the tests of adapters, broadcasts and faults: each module begins with the built-in weights."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from research.clients import PolicyAdmin
from research.schemas import WeightsRequest
from tests.conftest import REPOSITORY, Server, launching

ADMIN = "admin-for-tests"
HOOKS = REPOSITORY / "tests" / "support" / "policy_hooks"


def hooked() -> dict[str, str]:
    """The environment of a server with every hook; it must not be forked, since Python looks for hooks as it starts."""
    path = os.pathsep.join(filter(None, [str(HOOKS), str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {"RESEARCH_ADMIN_TOKEN": ADMIN, "PYTHONPATH": path}


@dataclass(frozen=True)
class SharedPolicy:
    """A policy server with every hook, and the only folder that it accepts weights from."""

    server: Server
    weights: Path
    original: Path


@pytest.fixture(scope="package")
def shared_policy(
    shared_retriever: Server,
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
    data_dir: Path,
    service_environment: dict[str, str],
) -> Iterator[SharedPolicy]:
    weights = tmp_path_factory.mktemp("runs") / "weights"
    original = Path(shutil.copytree(data_dir / "models" / "smollm2-135m-instruct", weights / "built-in"))
    with launching(tmp_path_factory, free_port, data_dir, service_environment) as launch:
        server = launch(
            "policy",
            f"policy.weights_dir={weights}",
            f"endpoints.retriever_url={shared_retriever.url}",
            "policy.max_lora_rank=8",
            timeout=300,
            environment=hooked(),
            forked=False,
        )
        yield SharedPolicy(server, weights, original)


@pytest.fixture(scope="module")
def runs(shared_policy: SharedPolicy) -> Path:
    return shared_policy.weights


@pytest.fixture(scope="module")
def policy(shared_policy: SharedPolicy) -> Server:
    """The shared server, serving the built-in weights."""

    async def serve_original() -> None:
        async with PolicyAdmin(shared_policy.server.url, token=ADMIN) as admin:
            await admin.update_weights(WeightsRequest(path=str(shared_policy.original), version="built-in"))

    asyncio.run(serve_original())
    return shared_policy.server
