"""vLLM's HTTP server with our bounds: what its own `main` does, but with the protocol class of our other services."""

from __future__ import annotations

from collections.abc import Sequence

import uvloop
from vllm.entrypoints.launchers.api_server.entry import run_server
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from services.web.bounded_http import HttpBounds, bounded_protocol

# vLLM has ended its engine by then, and who still waits will have nothing: they are told by `ToldOfTheStop`.
_GRACE_SECONDS = 1


def run(arguments: Sequence[str]) -> None:
    """Serve until a signal or until the engine ends.

    vLLM has options for heads, but they are for h11, and httptools is what is installed; it has none for connections
    and time. What it does not use itself, it passes on to uvicorn.
    """
    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(description="The policy: vLLM's server with our routes."))
    parsed = parser.parse_args(list(arguments))
    configure_logging_from_args(parsed)
    validate_parsed_serve_args(parsed)
    bounds = bounded_protocol(HttpBounds())
    uvloop.run(run_server(parsed, http=bounds, ws="none", timeout_graceful_shutdown=_GRACE_SECONDS))
