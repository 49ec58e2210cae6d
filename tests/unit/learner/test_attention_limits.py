"""What attention must not do in mid-run: keep masks that grow with the square, or meet an episode that is too long."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import MistralConfig, MistralForCausalLM

from research.errors import ConfigurationError
from services.trainer.learner.learner import Learner
from services.trainer.model.attention import Layout, require_whole_context
from services.trainer.model.batching import TrainingSequence
from tests.support.tiny_model import VOCABULARY, tiny_settings, write_tiny_model

SLIDING = ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({}, False),
        ({"sliding_window": None}, False),
        ({"sliding_window": 64}, False),
        ({"sliding_window": 63}, True),
        ({"sliding_window": 8, "layer_types": ["full_attention"] * 2}, False),
        ({"sliding_window": 8, "layer_types": SLIDING}, True),
    ],
)
def test_a_window_below_the_context_is_refused_by_name(config: dict[str, object], refused: bool) -> None:
    if not refused:
        require_whole_context(SimpleNamespace(**config), 64)
        return
    with pytest.raises(ConfigurationError, match=r"episode\.max_tokens: 64 tokens are more than the sliding window"):
        require_whole_context(SimpleNamespace(**config), 64)


def test_a_learner_refuses_it_before_it_trains(tmp_path: Path) -> None:
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=64,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    with pytest.raises(ConfigurationError, match=r"has to be shorter than 64"):
        Learner(tiny_settings(tmp_path, "episode.max_tokens=65"), tmp_path / "mistral")
    Learner(tiny_settings(tmp_path, "episode.max_tokens=48"), tmp_path / "mistral")


def test_masks_last_as_long_as_their_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most: list[int] = []
    forget = Layout.forget_masks

    def counting(layout: Layout) -> None:
        most.append(len(layout.masks))
        forget(layout)

    monkeypatch.setattr(Layout, "forget_masks", counting)
    own = Learner(tiny_settings(tmp_path), write_tiny_model(tmp_path / "model"))
    prompt = [5, 6, 7, 8]
    answers = [[9, 10, 11], [12, 13], [14]]
    sequences = [
        TrainingSequence(
            prompt + answer, [*range(4, 4 + len(answer))], [-1.0] * len(answer), [1.0] * len(answer), prompt_length=4
        )
        for answer in answers
    ]
    (batch,) = own._compute.micro_batches(sequences, [1.0] * 3)
    assert batch.layout.masks == {}, "none before the row is computed"
    own._compute.logprobs(batch)
    assert most == [2]
    assert batch.layout.masks == {}
    assert own.grpo_update(sequences) is not None
    assert set(most) == {2}
