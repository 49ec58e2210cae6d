"""The index as a tool for agent hosts: Model Context Protocol over streamable HTTP, at `/mcp`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

from fastapi import Request
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from research.errors import ResearchError, ServiceBusyError
from research.schemas import MOST_VALUES, Hit
from services.retriever.api.answers import UnreadAnswers
from services.retriever.api.limits import InvalidFieldError, require_within_limits
from services.retriever.serving import Serving
from services.retriever.types import served
from services.web.disconnect import cancel_on_disconnect
from services.web.errors import HttpError
from services.web.json_bounds import fault_of
from services.web.telemetry.refusals import count_refusal

_PATH = "/mcp"


def mcp_routes(
    retriever: Serving[Any], unread: UnreadAnswers
) -> tuple[list[BaseRoute], Callable[[], AbstractAsyncContextManager[None]]]:
    """`/mcp` with one tool, `search`, and the context manager that must be open while the app runs."""
    server = MCPServer("retriever", instructions="Passages of an encyclopedia or of your documents, by meaning.")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True))
    async def search(
        query: Annotated[str, Field(description="what to look for, in a few words or as a question")],
        call: Context[None, Request],
        top_k: Annotated[int, Field(ge=1, description="passages wanted")] = 5,
    ) -> list[Hit]:
        """Search for passages; the best come first, a higher score is nearer."""
        text = query.strip()
        try:
            if not text:
                raise InvalidFieldError("query: it is blank")
            require_within_limits(retriever.settings.retriever, field="query", texts=[text], top_k=("top_k", top_k))
            request = call.request_context.request
            assert request is not None, "every call comes over HTTP"
            found = await cancel_on_disconnect(request, retriever.search(retriever.index(None), [text], top_k))
            unread.encode([answer.hits for answer in found or ()], lambda hits: hits)
        except ServiceBusyError as error:
            retriever.metrics.count_rejected()
            count_refusal(error.reason, 200)
            raise ToolError(str(error)) from error
        except (InvalidFieldError, ResearchError) as error:
            raise ToolError(str(error)) from error
        return [Hit.model_validate(served(hit)) for answer in found or () for hit in answer.hits]

    # Stateless: a search needs no session, and any replica may answer. Nothing is sent unasked, so there is no stream
    # to GET, which would stay open for ever. Every route checks the names of hosts and origins (`KnownHosts`).
    [route] = server.streamable_http_app(
        streamable_http_path=_PATH,
        stateless_http=True,
        json_response=True,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    ).routes
    assert isinstance(route, Route)
    return [Route(_PATH, _FewValues(route.app), methods=["POST"])], server.session_manager.run


class _FewValues:
    """Refuses a body of very many values before it is parsed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await request.body()
        except ClientDisconnect:
            return
        if fault := fault_of(body, MOST_VALUES):
            raise HttpError(422, "invalid_request", fault)
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, again, send)
