"""Our vLLM plugins: the file engine for weights in every process, and our routes in the API server."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.datastructures import State

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
        from services.policy.api.adapters import adapter_routes
        from services.policy.api.admin import admin_routes
        from services.policy.api.answer import answer_routes
        from services.policy.api.ask_page import page_routes
        from services.policy.api.blocked_routes import BlockedRoutes
        from services.policy.api.guards import variable_of
        from services.policy.api.training import training_control_routes, training_routes
        from services.policy.api.version_header import WeightVersionHeader
        from services.policy.bodies.cheap_refusals import CheapRefusals
        from services.policy.bodies.response_input import item_fault
        from services.policy.bodies.sizes import MAX_BODY_BYTES, MAX_HELD_BYTES, body_sizes
        from services.policy.logs import show_our_lines
        from services.policy.openai.errors import install_openai_error_handler
        from services.policy.service import PolicyService
        from services.policy.settings_variable import settings_from_environment
        from services.web.auth import TokenFirst, admin_guard
        from services.web.body_limit import BodyLimit
        from services.web.errors import install_error_handlers
        from services.web.health import health_routes
        from services.web.server import ToldOfTheStop
        from services.web.telemetry.log_limit import limit_warnings_of_strangers

        show_our_lines()
        limit_warnings_of_strangers()
        app.state.research = service = PolicyService(settings_from_environment())
        install_error_handlers(app, whole_app=False)
        install_openai_error_handler(app)
        app.include_router(health_routes(service.health, lambda: service.stuck))
        app.include_router(page_routes(service))
        app.include_router(answer_routes(service))
        app.include_router(training_routes(service.settings))
        if guard := admin_guard():
            for routes in (admin_routes(service), adapter_routes(service), training_control_routes(service.settings)):
                app.include_router(routes, dependencies=guard)
        app.add_middleware(CheapRefusals, max_model_len=service.settings.model.max_model_len, item_fault=item_fault)
        app.add_middleware(
            BodyLimit,
            max_bytes=MAX_BODY_BYTES,
            max_held=MAX_HELD_BYTES,
            of_paths=body_sizes(service.settings.model.max_model_len),
        )
        app.add_middleware(WeightVersionHeader, service=service)
        app.add_middleware(TokenFirst, variable_of=variable_of)
        app.add_middleware(BlockedRoutes)
        app.add_middleware(ToldOfTheStop)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        from services.policy.openai.model import ChatWithAgent, ModelsWithAgent

        service = state.research
        workers = state.vllm_config.parallel_config.world_size
        await service.open(engine_client, state.openai_serving_models, args, workers)
        max_model_len = service.settings.model.max_model_len
        state.openai_serving_chat = ChatWithAgent(state.openai_serving_chat, service.answers)
        state.openai_serving_models = ModelsWithAgent(state.openai_serving_models, max_model_len)
