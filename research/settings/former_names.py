"""Settings that had another name until 2026-11: the old names are still read, from presets, commands and old runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research.errors import ConfigurationError

_SECTIONS = {"warmup": "sft", "control": "ablation"}
_SETTINGS = {
    "alarms.roll_backs": "alarms.max_rollbacks",
    "checkpoints.every": "checkpoints.interval",
    "corpus.lexical": "corpus.hybrid",
    "corpus.structure": "corpus.index_type",
    "encoder.index_backend": "encoder.passage_backend",
    "episode.any_prompt": "episode.allow_prompt_mismatch",
    "evaluation.every": "evaluation.interval",
    "evaluation.per_kind_between": "evaluation.interim_per_kind",
    "evaluation.sampled_per_kind": "evaluation.pass_at_k_per_kind",
    "grpo.infra_retries": "grpo.service_retries",
    "grpo.keep_per_group": "grpo.train_per_group",
    "grpo.normalization": "grpo.loss_aggregation",
    "grpo.optimizer_steps": "grpo.num_iterations",
    "grpo.seeded": "grpo.per_episode_seeds",
    "model.max_length": "model.max_model_len",
    "policy.eager": "policy.enforce_eager",
    "policy.gpu_memory": "policy.gpu_memory_utilization",
    "policy.lora_rank": "policy.max_lora_rank",
    "policy.max_sequences": "policy.max_num_seqs",
    "policy.retriever_url": "endpoints.retriever_url",
    "policy.tensor_parallel": "policy.tensor_parallel_size",
    "policy.trainer_url": "endpoints.trainer_url",
    "questions.candidates": "questions.curriculum_candidates",
    "retriever.max_batch": "retriever.max_batch_queries",
    "retriever.max_queue": "retriever.max_queue_queries",
    "retriever.merge": "retriever.coalesce",
    "trainer.handover": "trainer.weight_sync",
    "trainer.outage_patience": "trainer.outage_timeout",
    "trainer.policy_urls": "endpoints.policy_urls",
    "trainer.retriever_url": "endpoints.retriever_url",
    "warmup.retry_share": "sft.retry_fraction",
}


def present_name(name: str) -> str:
    """The name that a setting has today, given as `section.key` or `section`."""
    if name in _SETTINGS:
        return _SETTINGS[name]
    section, dot, key = name.partition(".")
    return _SECTIONS.get(section, section) + dot + key


def with_present_names(tree: Mapping[str, Any], *, strict: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """A tree of settings by today's names; of two values of one setting the first counts, unless `strict`.

    Returns:
        The tree, and for each old name that it had the new one.

    Raises:
        ConfigurationError: `strict`, and a setting is given by two names with two values.
    """
    renamed: dict[str, Any] = {}
    old_names: dict[str, str] = {}
    given_as: dict[str, str] = {}
    for section, values in tree.items():
        if not isinstance(values, Mapping):
            renamed[section] = values
            continue
        renamed.setdefault(present_name(section), {})
        for key, value in values.items():
            old = f"{section}.{key}"
            new = present_name(old)
            new_section, _, new_key = new.partition(".")
            target = renamed.setdefault(new_section, {})
            if not isinstance(target, dict):
                raise ConfigurationError(f"{new_section} is a section, not a value; {new} is set in it (once {old})")
            if new != old:
                old_names[old] = new
                if new_section == "endpoints" and value in ("", []):
                    continue  # it meant: at the port of the service
            if target.setdefault(new_key, value) != value and strict:
                raise ConfigurationError(f"{given_as[new]} and {old} are two names of {new}; give it once")
            given_as[new] = old
    return renamed, old_names
