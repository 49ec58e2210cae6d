"""`research plan`: the arithmetic against numbers worked out by hand, and what it says of runs that do not fit."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from apps.plan.estimate import GPUS, Assumptions, Fleet, groups_of_step, host_memory, plan, trainer_memory
from apps.plan.fleets import fleet
from apps.plan.report import report
from apps.plan.shapes import KNOWN, from_config
from cli.main import app
from research.config import load_settings
from research.errors import ConfigurationError

SEVEN = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
PRESETS = {
    "qwen2.5-7b-musique": ("4xH100", "4xH100"),
    "qwen2.5-3b-musique": ("4xH100", "4xH100"),
    "qwen2.5-32b-musique": ("32xH100", "32xH100"),
    "qwen2.5-1.5b-lora": ("1xA10", "1xA10"),
    "qwen2.5-7b-lora": ("1xA10", "1xA10"),
}


def test_the_shape_of_a_model_is_that_of_its_configuration() -> None:
    """Qwen2.5-7B: 7.62 G parameters, 57 kB of keys and values per token (trainer notes, section 2)."""
    assert SEVEN.parameters == pytest.approx(7.62e9, rel=2e-3)
    assert SEVEN.kv_bytes_per_token == 57_344
    config = {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "intermediate_size": 18_944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    }
    assert from_config(config) == SEVEN


def test_states_are_sixteen_bytes_per_parameter_and_divided() -> None:
    settings = load_settings("qwen2.5-7b-musique")
    alone, four = (trainer_memory(settings, SEVEN, ranks) for ranks in (1, 4))
    assert alone["weights, gradients, Adam"] == pytest.approx(121.9, abs=0.3)
    assert four["weights, gradients, Adam"] == pytest.approx(30.5, abs=0.1)
    assert alone["reference"] == pytest.approx(30.5, abs=0.1)
    assert four["reference"] == pytest.approx(3.8, abs=0.1)
    assert sum(alone.values()) > max(gpu.memory for gpu in GPUS.values())  # on no GPU that exists


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_fits_its_machines(preset: str) -> None:
    trainer, policy = (fleet(text, "") for text in PRESETS[preset])
    settings = load_settings(preset)
    made = plan(settings, KNOWN[settings.model.name], trainer, policy, Assumptions())
    assert made.trainer_fits, made
    assert made.policy_fits, made
    assert 0 < made.hours < 400
    assert made.searches_per_second > 1
    text = report(settings, trainer, policy, price=2.5)
    assert "does not fit" not in text
    assert "for the run" in text


def test_the_papers_run_on_eight_cards_takes_what_the_notes_worked_out() -> None:
    """200 to 270 s per step on 4 + 4 H100, 9 to 12 hours (trainer notes, section 2), with all groups trained on."""
    settings = load_settings("qwen2.5-7b-musique")
    made = plan(settings, SEVEN, Fleet(4, "H100"), Fleet(4, "H100"), Assumptions(trained=1.0))
    assert made.tokens == pytest.approx(4.6e6, rel=0.02)
    assert 180 < made.step_seconds < 280
    assert 8 < made.hours < 12


def test_a_checkpoint_is_twelve_bytes_per_parameter_and_the_reference_is_written_once() -> None:
    settings = load_settings("qwen2.5-7b-musique")
    assert settings.grpo.kl_coefficient > 0
    disk = plan(settings, SEVEN, Fleet(4, "H100"), Fleet(4, "H100"), Assumptions()).disk
    assert disk["checkpoints"] / (settings.checkpoints.keep + 1) == pytest.approx(91.4, abs=0.3)
    assert disk["reference"] == pytest.approx(30.5, abs=0.1)


def test_trainer_and_policy_of_the_small_lora_preset_share_one_card() -> None:
    settings = load_settings("qwen2.5-1.5b-lora")
    trainer = sum(trainer_memory(settings, KNOWN[settings.model.name], 1).values())
    assert trainer + settings.policy.gpu_memory_utilization * GPUS["A10"].memory < 0.92 * GPUS["A10"].memory


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    full = load_settings("qwen2.5-7b-musique")
    factors = full.model_copy(update={"lora": full.lora.model_copy(update={"rank": 32})})
    made = [plan(each, SEVEN, Fleet(1, "H100"), Fleet(1, "H100"), Assumptions()) for each in (full, factors)]
    # Forward 2, backward 4 or 2, once more forward 2, reference 2.
    assert made[1].seconds["update"] / made[0].seconds["update"] == pytest.approx(8 / 10)


def test_twice_the_cards_halve_the_update_and_the_states() -> None:
    settings = load_settings("qwen2.5-7b-musique")
    four, eight = (plan(settings, SEVEN, Fleet(n, "H100"), Fleet(4, "H100"), Assumptions()) for n in (4, 8))
    assert eight.seconds["update"] == pytest.approx(four.seconds["update"] / 2)
    assert eight.seconds["rollout"] == four.seconds["rollout"]


def test_what_does_not_fit_is_said_with_what_would() -> None:
    result = CliRunner().invoke(
        app, ["plan", "--preset", "qwen2.5-32b-musique", "--trainer", "2xL40S", "--policy", "4xA10"]
    )
    assert result.exit_code == 0, result.output
    assert "The trainer does not fit" in result.output
    assert "x L40S for the trainer" in result.output
    assert "The policy does not fit" in result.output


@pytest.mark.parametrize("text", ["4", "xH100", "4xT1000", "0xH100", ""])
def test_a_fleet_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--trainer.*such as 4xH100"):
        fleet(text, "--trainer")


def test_a_refill_samples_what_the_rounds_before_left_silent() -> None:
    """With half of the groups silent: 1 + 1/2 + 1/4 as many sampled, 7/8 of the questions with a signal."""
    base = load_settings("qwen2.5-7b-musique", overrides=["grpo.questions_per_step=64"])
    refilled = load_settings("qwen2.5-7b-musique", overrides=["grpo.questions_per_step=64", "grpo.refill_rounds=2"])
    assert groups_of_step(base, 0.5) == (64, 32)
    assert groups_of_step(refilled, 0.5) == (112, 56)
    plans = [
        plan(each, SEVEN, Fleet(4, "H100"), Fleet(4, "H100"), Assumptions(trained=0.5)) for each in (base, refilled)
    ]
    assert plans[1].tokens / plans[0].tokens == pytest.approx(1.75)
    assert plans[1].seconds["update"] / plans[0].seconds["update"] == pytest.approx(1.75)


def test_a_step_that_overlaps_takes_as_long_as_its_longer_half() -> None:
    settings = load_settings("qwen2.5-7b-musique", overrides=["trainer.max_staleness=1"])
    made = plan(settings, SEVEN, Fleet(4, "H100"), Fleet(4, "H100"), Assumptions())
    rollout, update, publish = made.seconds.values()
    assert made.step_seconds == max(rollout, update + publish) < rollout + update + publish


def test_branches_sample_less_than_episodes_that_begin_with_the_prompt() -> None:
    """Two of five members copy .35 of their tokens: .86 as many are decoded."""
    base = load_settings("qwen2.5-7b-musique")
    branched = load_settings("qwen2.5-7b-musique", overrides=["grpo.branches=2"])
    plain, less = (plan(each, SEVEN, Fleet(4, "H100"), Fleet(4, "H100"), Assumptions()) for each in (base, branched))
    assert 0.86 < less.seconds["rollout"] / plain.seconds["rollout"] < 1
    assert less.tokens == plain.tokens


def test_what_travels_by_nccl_is_whole_on_the_host() -> None:
    file, nccl = (
        load_settings("qwen2.5-7b-musique", overrides=[f"trainer.weight_sync={way}"]) for way in ("file", "nccl")
    )
    assert sum(host_memory(file, SEVEN).values()) == pytest.approx(5)
    assert sum(host_memory(nccl, SEVEN).values()) == pytest.approx(15.2, abs=0.1)
    assert "Rank 0 needs 15 GB" in report(nccl, Fleet(4, "H100"), Fleet(4, "H100"))
