"""`research run`: sends orders to the running trainer, and prints the state of its run."""

from __future__ import annotations

from typing import Any, Literal

import httpx
from rich.console import Console

from research.errors import ServiceError
from research.settings import Settings
from services.process.terminal import escape_control_chars
from services.system.admin_token import admin_token

Order = Literal["start", "pause", "stop", "status"]


def give_order(settings: Settings, order: Order, console: Console) -> None:
    """Send an order and print the state of the run; raises ServiceError if no trainer answers or it refuses."""
    url = settings.endpoints.trainer_url
    try:
        if order == "status":
            answer = httpx.get(f"{url}/status", timeout=10, trust_env=False)
        else:
            headers = {"Authorization": f"Bearer {admin_token(settings)}"}
            answer = httpx.post(f"{url}/run/{order}", headers=headers, timeout=10, trust_env=False)
    except httpx.HTTPError as error:
        raise ServiceError(f"no trainer answers at {url} ({error}); start the services with `research up`") from error
    if answer.status_code == 409:
        raise ServiceError(f"the trainer refused: {answer.json()['message']}")
    if answer.status_code != 200:
        raise ServiceError(f"the trainer answered {answer.status_code}: {answer.text[:200]}")
    told = escape_control_chars(_standing(answer.json(), url))
    console.print(told, highlight=False, markup=False, soft_wrap=True)


def _standing(status: dict[str, Any], url: str) -> str:
    left = status.get("seconds_left")
    about = f", about {max(1, round(left / 60))} minutes to go" if left else ""
    part = f", {status['done']} of {status['total']}" if status["total"] else ""
    # A browser cannot open a host name that only containers know.
    page = f"; watch it at {url}/" if "127.0.0.1" in url or "localhost" in url else ""
    error = f"; {status['error']}" if status["error"] else page
    return f"run {status['run']}: {status['phase']}{part}, step {status['step']} of {status['steps']}{about}{error}"
