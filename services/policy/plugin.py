"""What vLLM loads of ours: the file engine for weights in every process, and our routes in the API server."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.datastructures import State

# A whole context of token ids or a picture fits; what would fill the memory does not.
MAX_BODY_BYTES = 16_000_000
PLUGIN_NAMES = "research_weights,research_routes"


def register_weight_engine() -> None:
    """Entry point of `vllm.general_plugins`; vLLM may call it more than once in a process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "file" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            "file", "services.policy.weights.vllm_engine", "FileWeightTransferEngine"
        )


class ResearchPlugin:
    """Entry point of `vllm.endpoint_plugins`: `/answer`, the admin routes and the health routes."""

    name = "research_routes"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        from services.policy.answer import routes as answer_routes
        from services.policy.api import ask_page, health
        from services.policy.api import training as training_routes
        from services.policy.api.admin import attach_admin_routes
        from services.policy.api.blocked_routes import BlockedRoutes
        from services.policy.api.version_header import WeightVersionHeader
        from services.policy.openai.errors import install_openai_http_error_handler
        from services.web.body_limit import BodyLimit
        from services.web.problems import install_http_error_handler

        install_http_error_handler(app)
        install_openai_http_error_handler(app)
        app.include_router(health.router)
        app.include_router(ask_page.router)
        app.include_router(answer_routes.router)
        app.include_router(training_routes.router)
        app.state.research_admin = attach_admin_routes(app)
        app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
        app.add_middleware(WeightVersionHeader)
        app.add_middleware(BlockedRoutes)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        from transformers import AutoTokenizer

        from research.clients import RetrieverClient
        from research.episode.agent import SearchAgent
        from research.episode.tokenizer import HuggingFaceTokenizer
        from research.prompts import load_prompt
        from services.policy.adapters.adapters import Adapters
        from services.policy.answer.engine_policy import EnginePolicy
        from services.policy.answer.service import AnswerService
        from services.policy.openai.model import ChatWithAgent, ModelsWithAgent
        from services.policy.settings_variable import settings_from_environment
        from services.policy.weights.start_weights import start_version
        from services.policy.weights.updates import WeightUpdates

        settings = settings_from_environment()
        policy, limits = settings.policy, settings.episode
        updates = WeightUpdates(engine_client, Path(args.model), policy.weights_dir, start_version())
        await updates.announce_initial_version()
        state.research_updates = updates
        state.research_settings = settings
        state.research_retriever = retriever = RetrieverClient(
            settings.endpoints.retriever_url, timeout=limits.search_timeout, retries=limits.retries
        )
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        words = HuggingFaceTokenizer(tokenizer)
        engine_policy = EnginePolicy(engine_client, version=lambda: updates.version, end=str(tokenizer.eos_token))
        state.research_adapters = adapters = Adapters(
            engine_client, state.openai_serving_models, updates.tensors, policy.weights_dir, policy.max_lora_rank
        )
        agent = SearchAgent(
            policy=engine_policy,
            retriever=retriever,
            tokenizer=words,
            prompt=load_prompt(limits.prompt),
            limits=limits,
            context_length=settings.model.max_model_len,
        )
        state.research_answering = answering = AnswerService(
            agent,
            lambda name: engine_policy if name is None else engine_policy.adapted(adapters.named(name)),
            words,
            retriever,
            concurrency=policy.answer_concurrency,
            timeout=policy.answer_timeout,
            max_question_chars=policy.max_question_chars,
        )
        state.openai_serving_chat = ChatWithAgent(state.openai_serving_chat, answering)
        state.openai_serving_models = ModelsWithAgent(state.openai_serving_models, settings.model.max_model_len)
