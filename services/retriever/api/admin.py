"""The route that changes what is served. It exists only where an admin token is set, and asks for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Path

from research.errors import ResearchError
from research.schemas import ErrorBody
from research.settings.base import NAME
from services.retriever.api.info import IndexInfo, describe_index
from services.retriever.retriever import Retriever, UnknownIndexError
from services.web.auth import ADMIN_TOKEN_VARIABLE, environment_secret, require_bearer
from services.web.problems import HttpError


def attach_admin_routes(app: FastAPI, retriever: Retriever) -> None:
    """Add the reload route behind the admin token; without a token, add nothing."""
    token = environment_secret(ADMIN_TOKEN_VARIABLE)
    if token is None:
        return

    @app.post(
        "/admin/indexes/{name}/reload",
        dependencies=[Depends(require_bearer(token, ADMIN_TOKEN_VARIABLE))],
        responses={status: {"model": ErrorBody} for status in (401, 404, 409, 422)},
        tags=["admin"],
    )
    async def reload(name: Annotated[str, Path(pattern=NAME)]) -> IndexInfo:
        """Serve what is published under this name now; no request is lost, and what is broken is refused."""
        try:
            return describe_index(await retriever.reload(name))
        except UnknownIndexError as error:
            raise HttpError(404, "not_found", str(error)) from error
        except ResearchError as error:
            raise HttpError(409, "not_servable", f"{error} (the former revision is still served)") from error
