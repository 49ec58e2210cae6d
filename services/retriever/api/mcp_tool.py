"""The index as tools for agent hosts: Model Context Protocol over streamable HTTP, at `/mcp`."""

# No `from __future__ import annotations` here: the limits of this server stand in the signatures of the tools.

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, TypeVar

from fastapi import Request
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from research.errors import ResearchError, ServiceBusyError
from research.schemas import MOST_VALUES
from services.retriever.api.answers import UnreadAnswers
from services.retriever.api.limits import InvalidFieldError, require_within_limits
from services.retriever.api.pages import PageSource, fields_of, text_of, url_of
from services.retriever.serving import Serving
from services.web.disconnect import cancel_on_disconnect
from services.web.errors import HttpError
from services.web.json_bounds import fault_of
from services.web.telemetry.refusals import count_refusal

T = TypeVar("T")

_PATH = "/mcp"
_OF_A_CORPUS = (
    "Passages of an encyclopedia or of your documents, by meaning.",
    "Read what the corpus has of a search result; nothing comes from the network.",
)
_OF_THE_WEB = ("Pages of the web, as a search engine shows them.", "Read the text of a page of the web.")


class Found(BaseModel):
    """A passage. `url` is empty if the corpus names none; a higher score is nearer."""

    id: str
    title: str
    url: str
    text: str
    score: float


class Results(BaseModel):
    """What `search` answers: the form that ChatGPT's connectors read."""

    results: list[Found]


class Page(BaseModel):
    """What `fetch` answers, in that form; `metadata` is what else the row of the corpus says."""

    id: str
    title: str
    text: str
    url: str
    metadata: dict[str, Any]


def mcp_routes(
    retriever: Serving[Any], unread: UnreadAnswers, pages: PageSource, *, is_web: bool
) -> tuple[list[BaseRoute], Callable[[], AbstractAsyncContextManager[None]]]:
    """`/mcp` with the tools `search` and `fetch`, and the context manager that must be open while the app runs."""
    limits = retriever.settings.retriever
    instructions, told_of_fetch = _OF_THE_WEB if is_web else _OF_A_CORPUS
    reads = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=is_web)
    server = MCPServer("retriever", instructions=instructions)
    # Told to the model, but checked by us: pydantic's words for it would send the model to a web page.
    bounds: dict[str, Any] = {"minimum": 1, "maximum": limits.max_top_k}

    async def answered(call: Context[None, Request], work: Coroutine[Any, Any, T]) -> T:
        """The result. Raises ToolError, with words for the model."""
        request = call.request_context.request
        assert request is not None, "every call comes over HTTP"
        try:
            if (result := await cancel_on_disconnect(request, work)) is None:
                raise ToolError("the client has left")
            return result
        except ResearchError as error:
            if isinstance(error, ServiceBusyError) or (isinstance(error, HttpError) and error.error == "busy"):
                retriever.metrics.count_rejected()
                count_refusal(error.reason, 200)
            raise ToolError(str(error)) from error

    @server.tool(annotations=reads)
    async def search(
        query: Annotated[str, Field(description="what to look for, in a few words or as a question")],
        call: Context[None, Request],
        top_k: Annotated[int, Field(json_schema_extra=bounds, description="passages wanted")] = 5,
    ) -> Results:
        """Search for passages; the best come first, a higher score is nearer."""

        async def work() -> Results:
            text = query.strip()
            if not text:
                raise InvalidFieldError("query: it is blank")
            if top_k < 1:
                raise InvalidFieldError(f"top_k: {top_k} is below 1")
            require_within_limits(limits, field="query", texts=[text], top_k=("top_k", top_k))
            [answer] = await retriever.search(retriever.index(None), [text], top_k)
            unread.encode([answer.hits], lambda hits: hits)
            return Results(
                results=[Found.model_validate({**hit, "url": url_of(fields_of(hit))}) for hit in answer.hits]
            )

        return await answered(call, work())

    @server.tool(annotations=reads, description=told_of_fetch)
    async def fetch(
        id: Annotated[str, Field(description="the id of a search result, or its url for all of that page")],
        call: Context[None, Request],
    ) -> Page:
        async def work() -> Page:
            found = await pages.page(id)
            if not found:
                raise InvalidFieldError("id: no passage has this id, and no page this url")
            more = fields_of(found[0])
            others = {name: value for name, value in more.items() if name not in ("url", "contents")}
            page = Page(
                id=found[0]["id"], title=found[0]["title"], text=text_of(found), url=url_of(more), metadata=others
            )
            unread.encode([page], lambda page: page.model_dump())
            return page

        return await answered(call, work())

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
