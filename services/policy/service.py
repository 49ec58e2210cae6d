"""The state behind the policy's routes. vLLM asks for the routes first, and opens the service once its engine is up."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from research.clients import RetrieverClient
from research.episode.build import build_agent
from research.episode.tokenizer import HuggingFaceTokenizer
from research.retrievers import Retrievers, retriever_of
from research.schemas import ServiceStatus
from research.settings import Settings
from services.policy.adapters.adapters import Adapters
from services.policy.answer.engine_policy import EnginePolicy
from services.policy.answer.service import AnswerService
from services.policy.engine_watch import EngineWatch
from services.policy.fair_priority import nobody_first
from services.policy.weights.prefix_salt import salt_by_version
from services.policy.weights.start_weights import start_version
from services.policy.weights.updates import WeightUpdates
from services.policy.weights.worker_rpc import within

DIGEST_SECONDS = 300


class PolicyService:
    """The parts of a policy server, between `open` and the end of the process.

    Attributes:
        settings: set from the start; everything else once the service is open, before vLLM opens its port.
        updates: which weights are served.
        adapters: which LoRA adapters are served.
        answers: runs the agent.
        retriever: where the agent searches.
        workers: processes that hold the model.
    """

    updates: WeightUpdates
    adapters: Adapters
    answers: AnswerService
    retriever: RetrieverClient | Retrievers
    workers: int

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.is_open = False
        self._engine: Any = None

    async def open(self, engine: Any, models: Any, args: Namespace, workers: int) -> None:
        """Begin to serve: `engine` is vLLM's engine client, `models` its list of served models."""
        settings = self.settings
        policy, limits = settings.policy, settings.episode
        self._engine, self.workers = engine, workers
        self._watch = EngineWatch(engine)
        nobody_first(engine)
        self.updates = updates = WeightUpdates(
            engine, Path(args.model), policy.weights_dir, start_version(), keep_kv_cache=policy.keep_kv_cache
        )
        if policy.keep_kv_cache:
            salt_by_version(engine, lambda: updates.version)
        await updates.announce_initial_version()
        self.adapters = adapters = Adapters(engine, models, updates.tensors, policy.weights_dir, policy.max_lora_rank)
        self.retriever = retriever_of(
            settings.endpoints.retriever_urls, timeout=limits.search_timeout, retries=limits.retries, follows=True
        )
        words = HuggingFaceTokenizer(AutoTokenizer.from_pretrained(args.model))
        engine_policy = EnginePolicy(engine, version=lambda: updates.version, special_tokens=words.special_tokens)
        self.answers = AnswerService(
            build_agent(settings, engine_policy, self.retriever, words),
            lambda name: engine_policy if name is None else engine_policy.adapted(adapters.named(name)),
            words,
            self.retriever,
            concurrency=policy.answer_concurrency,
            timeout=policy.answer_timeout,
            list_timeout=policy.answer_list_timeout,
            max_question_chars=policy.max_question_chars,
        )
        self.is_open = True

    async def health(self) -> ServiceStatus:
        """Whether the engine is up, answers, and its weights are complete."""
        if fault := self.updates.fault:
            return ServiceStatus(status="failed", detail=fault)
        try:
            await self._engine.check_health()
            # An update has limits of its own, and says itself what is wrong.
            silence = None if self.updates.busy else await self._watch.fault()
        except Exception as error:
            return ServiceStatus(status="failed", detail=str(error))
        if silence is not None:
            return ServiceStatus(status="failed", detail=silence)
        return ServiceStatus(status="ready", detail=f"weight version {self.updates.version}")

    @property
    def stuck(self) -> str | None:
        """What hangs for so long that only a restart helps, or None."""
        return self._watch.stuck() if self.is_open else None

    async def weight_digests(self) -> dict[str, str]:
        """SHA-256 of each weight in the form used for computing, over all workers.

        Raises EngineHangsError if they take too long.
        """
        async with within(DIGEST_SECONDS):
            workers: list[dict[str, str]] = await self._engine.collective_rpc("research_weight_digests")
        return {name: digest for worker in workers for name, digest in worker.items()}
