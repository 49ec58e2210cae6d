"""The route that changes what is served. It exists only if an admin token is set, and requires it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from research.errors import ResearchError
from research.schemas import ErrorBody, IndexInfo
from research.settings.base import NAME
from services.retriever.api.info import describe_index
from services.retriever.retriever import RELOAD_SECONDS, Retriever
from services.retriever.serving import UnknownIndexError
from services.web.errors import HttpError


def admin_routes(retriever: Retriever) -> APIRouter:
    """The reload route."""
    router = APIRouter(prefix="/admin", tags=["admin"])

    @router.post(
        "/indexes/{name}/reload",
        responses={status: {"model": ErrorBody} for status in (401, 404, 409, 422, 504)},
    )
    async def reload(name: Annotated[str, Path(pattern=NAME)]) -> IndexInfo:
        """Serve the revision now published under this name; no request is lost, and a corrupt index is refused."""
        try:
            return describe_index(await retriever.reload(name))
        except UnknownIndexError as error:
            raise HttpError(404, "not_found", str(error)) from error
        except TimeoutError as error:
            told = f"{name} was not opened within {RELOAD_SECONDS:.0f} s; does its disk answer?"
            raise HttpError(504, "reload_timed_out", f"{told} (the former revision is still served)") from error
        except ResearchError as error:
            raise HttpError(409, "not_servable", f"{error} (the former revision is still served)") from error

    return router
