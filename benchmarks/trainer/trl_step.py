"""TRL's own GRPO step on our episodes: its `_compute_loss`, backward, clipping and optimizer, without its trainer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from research.config import load_settings
from research.model_paths import local_checkpoint
from services.trainer.model.batching import TrainingSequence

# Episodes per forward pass: about the tokens of one of our micro-batches (1,024).
_BATCH = 4


class TrlStep:
    """The model and optimizer that TRL's loss is computed with, as its trainer would set them up."""

    def __init__(self, dtype: str) -> None:
        settings = load_settings()
        torch.set_num_threads(settings.trainer.threads)
        checkpoint = local_checkpoint(settings.model.name, settings.paths.data)
        self.model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).train()
        add_fused_lm_head(self.model, temperature=1.0, outputs=("log_probs", "entropy"))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=4e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self._half = dtype == "bfloat16"

    def update(self, sequences: Sequence[TrainingSequence]) -> None:
        """One optimizer step over all sequences, in batches of four, longest first, so that little is padding."""
        ordered = sorted(sequences, key=lambda sequence: -len(sequence.token_ids))
        total = torch.tensor(sum(sequence.sampled_tokens for sequence in sequences))
        for start in range(0, len(ordered), _BATCH):
            loss = GRPOTrainer._compute_loss(
                self._trainer(), self.model, _inputs(ordered[start : start + _BATCH], total)
            )
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _trainer(self) -> Any:
        autocast = torch.autocast("cpu", dtype=torch.bfloat16) if self._half else nullcontext()
        accelerator = SimpleNamespace(
            num_processes=1,
            is_main_process=False,
            gather=lambda value: value.reshape(-1),
            reduce=lambda value, reduction: value,
            sync_gradients=True,
            autocast=lambda: autocast,
        )
        trainer = SimpleNamespace(
            accelerator=accelerator,
            aux_loss_enabled=False,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            importance_sampling_level="token",
            beta=0.0,
            loss_type="dapo",
            epsilon_low=0.2,
            epsilon_high=0.25,
            use_vllm=True,
            vllm_importance_sampling_correction=True,
            max_completion_length=448,
            current_gradient_accumulation_steps=1,
            _entropy_bonus_enabled=False,
            use_adaptive_entropy=False,
            entropy_coef=0.0,
            model=SimpleNamespace(training=True),
            args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
            _metrics=defaultdict(lambda: defaultdict(list)),
        )
        trainer._get_per_token_logps_and_entropies = MethodType(GRPOTrainer._get_per_token_logps_and_entropies, trainer)
        return trainer


def _inputs(sequences: Sequence[TrainingSequence], total: Tensor) -> dict[str, Tensor]:
    """Prompts padded on the left and completions on the right, as TRL's data collator does."""
    longest_prompt = max(s.prompt_length for s in sequences)
    longest = max(len(s.token_ids) - s.prompt_length for s in sequences)
    rows = len(sequences)
    prompt_ids, prompt_mask = torch.zeros(2, rows, longest_prompt, dtype=torch.long)
    completion_ids, completion_mask = torch.zeros(2, rows, longest, dtype=torch.long)
    tool_mask, sampler = torch.zeros(2, rows, longest)
    for row, s in enumerate(sequences):
        prompt, completion = s.token_ids[: s.prompt_length], s.token_ids[s.prompt_length :]
        prompt_ids[row, longest_prompt - len(prompt) :] = torch.tensor(prompt)
        prompt_mask[row, longest_prompt - len(prompt) :] = 1
        completion_ids[row, : len(completion)] = torch.tensor(completion)
        completion_mask[row, : len(completion)] = 1
        at = torch.tensor(s.sampled_positions) - s.prompt_length
        tool_mask[row, at] = 1
        sampler[row, at] = torch.tensor(s.sampler_logprobs)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": torch.tensor([s.advantages[0] for s in sequences]),
        "importance_sampling_ratio": torch.ones(rows, longest),
        "num_items_in_batch": total,
    }
