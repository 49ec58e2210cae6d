"""The card of an exported model, written from the files of its run alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from research.prompts import TRAINED_PROMPT, Prompt
from services.policy.weights.checkpoint_checks import tensor_specs
from services.trainer.evaluation.report import evaluation_table
from services.trainer.run_dir.run_dir import RunDirectory

# Limits with which the model must be served, because it was trained with them.
_LIMITS = ("prompt", "top_k", "max_searches", "max_tokens", "max_turn_tokens", "max_passage_tokens")
_SHOWN = ("episode", "grpo", "optimizer", "sft")


def model_card(run: Path, weights: Path, settings: dict[str, Any], prompt: Prompt, name: str) -> str:
    """What the model is, what it learned from, how well it does, and how to use it; `prompt` is what it has learned."""
    episode, grpo, model = settings["episode"], settings["grpo"], settings["model"]
    steps = sum(1 for _ in (run / "metrics.jsonl").open(encoding="utf-8")) if (run / "metrics.jsonl").is_file() else 0
    finished = RunDirectory(run).is_finished(grpo["steps"], grpo.get("minutes"))
    facts = {
        "base model": model["name"],
        "weights": f"{weights.name}, {', '.join(sorted({spec.dtype for spec in tensor_specs(weights).values()}))}",
        "method": "GRPO on the outcome of multi-turn search episodes (ReSearch, NeurIPS 2025)",
        "steps": f"{steps} of {grpo['steps']}" + ("" if finished else " (the run is not finished)"),
        "questions per step": f"{grpo['questions_per_step']}, {grpo['group_size']} episodes each",
        "learning rate": f"{settings['optimizer']['learning_rate']:g}",
        "questions": f"{settings['questions']['train']} (training), {settings['questions']['held_out']} (held out)",
        "passages": settings["corpus"]["name"],
        "encoder": settings["encoder"]["name"],
        "seed": settings["seed"],
    }
    limits = " ".join(f"episode.{key}={episode[key]}" for key in _LIMITS if episode.get(key) is not None)
    if prompt.form.can_open:  # of the limits only this one has a default
        limits += f" episode.max_page_tokens={episode['max_page_tokens']}"
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [search-agent, grpo, research]
---
# {name}

A language model that has learned by reinforcement learning when and what to search.

| | |
|---|---|
{table}

## Results

{_results(run) if finished else "The run has no final evaluation yet."}

## Use

{prompt.form.summary}
(passages: {episode["top_k"]}) and continues. The rules that it was trained with are {_rules(prompt)}

```bash
# With search, as /answer and as a model of the OpenAI API:
research serve policy model.name={name} model.max_model_len={model["max_model_len"]} {limits}
# The bare model; or with transformers: AutoModelForCausalLM.from_pretrained("{name}")
vllm serve {name}
```

How it was trained, from the run's `config.json`:

```json
{json.dumps({name: settings[name] for name in _SHOWN}, indent=1)}
```
"""


def _rules(prompt: Prompt) -> str:
    """Where the rules are, and how another program is to show them to the model."""
    what = "a raw text with a place for the question" if prompt.is_raw else "the system message"
    if prompt.is_raw and prompt.form.chat.filled:
        what = "a user message with a place for the question (a raw text for a model without a chat template)"
    told = f"{what} in `{TRAINED_PROMPT}`"
    if prompt.source != prompt.text:
        told += ", without its first line, which names this form"
    if tools := prompt.form.chat.tools_text:
        told += (
            ". The chat\ntemplate told it of its tool (`tools` of `apply_chat_template`) or, if that knows no tools or "
            f"writes calls in another\nway, this text after the rules did:\n\n```text\n{tools}\n```"
        )
        return told
    return f"{told}."


def _results(run: Path) -> str:
    return (
        "Held-out questions, greedy. `before` is the untouched model, `sft` the model after the supervised "
        "phase, `after` this one.\n\n" + evaluation_table(_read(run / "summary.json")["eval"])
    )


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
