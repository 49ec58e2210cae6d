"""One policy and the retriever that it searches, for all tests of the agent.

The model is the built-in one, untrained; a prompt with two worked examples makes it search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.conftest import launching
from tests.support.agent_services import ADMIN_TOKEN, KEY, Services

FEW_SHOT = Path(__file__).parents[2] / "support" / "few_shot.txt"


@pytest.fixture(scope="package")
def services(
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
    data_dir: Path,
    service_environment: dict[str, str],
) -> Iterator[Services]:
    with launching(tmp_path_factory, free_port, data_dir, service_environment) as launch:
        retriever = launch("retriever", "retriever.max_top_k=50")
        trainer_port = free_port()
        policy = launch(
            "policy",
            f"endpoints.trainer_url=http://127.0.0.1:{trainer_port}",
            f"endpoints.retriever_url={retriever.url}",
            f"episode.prompt={FEW_SHOT}",
            "episode.search_timeout=5",
            "episode.retries=1",
            "policy.answer_concurrency=4",
            timeout=300,
            environment={"RESEARCH_API_KEY": KEY, "RESEARCH_ADMIN_TOKEN": ADMIN_TOKEN},
        )
        yield Services(policy, retriever, trainer_port)


@pytest.fixture
def client(services: Services) -> Iterator[openai.OpenAI]:
    with services.openai(max_retries=0) as client:
        yield client
