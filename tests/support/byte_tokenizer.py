"""A Hugging Face tokenizer of single bytes, with the added tokens of Qwen's: special ones, and such as are not."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CALLS = "{% for call in m.tool_calls or [] %}{% set f = call.function %}"
_END = "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_TOLD = (
    "{% if tools and loop.first %}{{ '\n\n# The template\\'s own words' }}"
    "{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}{% endif %}"
)
# As Qwen3's: tools are told in the system message, and what they answer is a user's message.
CHAT_WITH_TOOLS = (
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endif %}"
    + _TOLD
    + _CALLS
    + """{{ '<tool_call>\n{"name": "' + f.name + '", "arguments": ' + f.arguments | tojson + '}\n</tool_call>' }}"""
    "{% endfor %}" + _END
)
# As Llama 3's and Qwen3-Coder's: they know tools, but write calls in ways of their own.
_OTHERS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}" + _TOLD + _CALLS
OTHER_CALLS = {
    "bare": _OTHERS + """{{ '{"name": "' + f.name + '", "parameters": ' + f.arguments | tojson + '}' }}"""
    "{% endfor %}" + _END,
    "xml": _OTHERS + "{{ '<tool_call>\n<function=' + f.name + '>\n' }}"
    "{% for key, text in f.arguments | items %}{{ '<parameter=' + key + '>\n' + text + '\n</parameter>\n' }}"
    "{% endfor %}"
    "{{ '</function>\n</tool_call>' }}{% endfor %}" + _END,
    "refused": CHAT_WITH_TOOLS.replace(
        _CALLS, "{% if m.tool_calls %}{{ raise_exception('no calls') }}{% endif %}" + _CALLS
    ),
}


def template_of(model: str) -> str:
    """The chat template of a published model, as trl has it."""
    (trl,) = find_spec("trl").submodule_search_locations  # type: ignore[union-attr, misc]
    return (Path(trl) / "chat_templates" / f"{model}.jinja").read_text()


NOT_SPECIAL = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<|fim_prefix|>", "<|repo_name|>"]
NOT_SPECIAL += ["<think>", "</think>", "Zürich", "    "]


def byte_tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    of_bytes = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    of_bytes.decoder = decoders.ByteLevel()
    of_bytes.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    of_bytes.add_tokens([AddedToken(text, special=False, normalized=False) for text in NOT_SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=of_bytes, eos_token="<|im_end|>", chat_template=CHAT)
