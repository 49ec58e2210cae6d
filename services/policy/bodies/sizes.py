"""How many bytes a body may have, by the beginning of its path."""

from __future__ import annotations

from services.policy.api.guards import INFERENCE

# Of what is text: 512 questions of any usual length, or prompts of 8 kB.
MAX_BODY_BYTES = 4_000_000
# Of one text, which the tokenizer makes 250 times as large; more than any context.
MAX_TEXT_BYTES = 1_000_000
# Large enough for the list of a model's weights, or a context of a million tokens; too small to fill the memory.
MAX_LARGE_BODY_BYTES = 16_000_000
# Of all requests that are not answered yet; the episodes of a step, all sampled at once, are a tenth of it.
MAX_HELD_BYTES = 1_000_000_000
# A token's text or its id in JSON: usually four and eight, and the longest escapes are twelve for one or two tokens.
_TOKEN_BYTES = 16
# Tools, schemas and whatever else a request has beside its text.
_BESIDE_TEXT = 250_000


def prompt_bytes(max_model_len: int) -> int:
    """The largest body with one prompt: larger text does not fit the context, and vLLM took seconds to find that."""
    return min(MAX_LARGE_BODY_BYTES, _BESIDE_TEXT + _TOKEN_BYTES * max_model_len)


def body_sizes(max_model_len: int) -> dict[str, int]:
    """Largest bodies where they are not `MAX_BODY_BYTES`; of several beginnings of a path the last one counts."""
    one = prompt_bytes(max_model_len)
    return {
        **dict.fromkeys(INFERENCE, one),
        **dict.fromkeys(("/v1/completions", "/v1/chat/completions/batch"), max(one, MAX_BODY_BYTES)),
        **dict.fromkeys(("/v1/completions/derender", "/v1/chat/completions/derender"), one),
        "/admin/weights": MAX_LARGE_BODY_BYTES,
        "/inference/v1/abort_requests": MAX_BODY_BYTES,
        **dict.fromkeys(("/tokenize", "/detokenize"), MAX_TEXT_BYTES),
    }
