"""Which secret a path of the policy asks for, our own routes and vLLM's alike.

vLLM's middleware asks for the API key below `INFERENCE`; these are the others. A test compares this with the routes
that the server has.
"""

from __future__ import annotations

from services.policy.api.admin import VLLM_ADMIN_PATHS
from services.web.auth import ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE

# Where vLLM asks for the API key, and where bodies hold tokens and pictures.
INFERENCE = ("/v1", "/v2", "/inference", "/cohere")
_KEY_PATHS = frozenset({"/answer", "/tokenize", "/detokenize"})


def variable_of(path: str) -> str | None:
    """The variable of the secret, or None where everybody may call."""
    path = path.rstrip("/")
    if path.startswith("/admin/") or path in VLLM_ADMIN_PATHS:
        return ADMIN_TOKEN_VARIABLE
    return API_KEY_VARIABLE if path in _KEY_PATHS else None
