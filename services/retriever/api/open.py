"""`POST /open`: all of what a search has found, of the corpus or of the web."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from research.schemas import ErrorBody, OpenRequest, OpenResponse
from services.retriever.api.answers import UnreadAnswers
from services.retriever.api.errors import ERROR_RESPONSES
from services.retriever.api.pages import PageSource, fields_of, text_of, url_of
from services.web.disconnect import CLIENT_CLOSED_REQUEST, cancel_on_disconnect
from services.web.errors import HttpError, ValidationRoute

_RESPONSES: dict[int | str, dict[str, Any]] = ERROR_RESPONSES | {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        403: "The host does not let it be read, or its address is not public",
        404: "No passage has this id, and no page this url",
        415: "What is there is no text: a PDF, an image, too much, or nothing",
        502: "The host of the page does not answer, or with nonsense",
        503: "The retriever is still loading, or nothing can read pages: see its log",
        504: "The host of the page took too long",
    }.items()
}


def open_routes(pages: PageSource, unread: UnreadAnswers) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=ValidationRoute)

    @router.post("/open", response_model=OpenResponse, responses=_RESPONSES)
    async def open_page(body: OpenRequest, request: Request) -> Response:
        """Read the passage with that id, or the whole page with that url."""
        found = await cancel_on_disconnect(request, pages.page(body.id))
        if found is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if not found:
            raise HttpError(404, "page_not_found", "id: no passage has this id, and no page this url")
        fields = fields_of(found[0])
        page = {
            "id": found[0]["id"],
            "title": found[0]["title"],
            "text": text_of(found),
            "url": url_of(fields),
            "fields": {name: value for name, value in fields.items() if name not in ("url", "contents")},
        }
        return unread.respond([page], lambda page: page, lambda parts: parts[0])

    return router
