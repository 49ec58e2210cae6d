"""Peak memory of an update against the length of an episode and the size of the vocabulary.

Run: python -m benchmarks.trainer.memory_shapes (about ten minutes on two cores).

The model is made up: four layers of the built-in model's size (hidden 576, MLP 1,536, 9 heads, 3 of them for keys and
values), float32, with a vocabulary of 49,152 (the built-in model's) or 152,064 (Qwen2.5's). One episode is one
micro-batch, and the second half of its tokens is sampled. Memory is the peak above weights, gradients and Adam's
moments; beside it stands what the logits of the sampled tokens alone would take in float32, of which a plain loss keeps
at least two copies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.trainer.peak import RETURNING, peak_above_states
from research.config import load_settings
from services.trainer.learner.learner import Learner
from services.trainer.model.batching import TrainingSequence

VOCABULARIES = (49_152, 152_064)
LENGTHS = (1024, 2048, 4096, 8192)


def write_model(directory: Path, vocabulary: int) -> None:
    """The made-up model, with random weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=max(LENGTHS),
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def measure(model: Path, length: int, checkpointing: str) -> int:
    """Peak bytes of an update of one episode."""
    settings = load_settings(
        overrides=[
            "model.dtype=float32",
            "optimizer.frozen_layers=0",
            f"optimizer.micro_batch_tokens={length}",
            f"optimizer.gradient_checkpointing={checkpointing}",
        ]
    )
    learner = Learner(settings, model)
    learner.set_torch_threads()
    ids, sampled = [7 + 31 * place % 40_000 for place in range(length)], range(length // 2, length)
    episode = TrainingSequence(ids, [*sampled], [-10.8] * len(sampled), [1.0] * len(sampled))
    trained = sum(parameter.numel() for parameter in learner.model.parameters() if parameter.requires_grad)
    return peak_above_states(lambda: learner.grpo_update([episode]), trained)


def main() -> None:
    if len(sys.argv) == 4:
        print(measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
        return
    print("| vocabulary | tokens | peak, GB | with gradient checkpointing | logits alone, GB |\n|---|---|---|---|---|")
    for vocabulary in VOCABULARIES:
        with tempfile.TemporaryDirectory() as made:
            write_model(Path(made), vocabulary)
            for length in LENGTHS:
                peaks = [_ask(made, length, checkpointing) / 1e9 for checkpointing in ("off", "on")]
                cells = [f"{vocabulary:,}", f"{length:,}", *(f"{peak:.2f}" for peak in peaks)]
                print("| " + " | ".join([*cells, f"{length / 2 * vocabulary * 4 / 1e9:.2f}"]) + " |", flush=True)


def _ask(model: str, length: int, checkpointing: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainer.memory_shapes", model, str(length), checkpointing],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **RETURNING},
    )
    return int(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
