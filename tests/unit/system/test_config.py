"""Presets, overrides and the errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.config import PRESET_DIR, load_settings
from research.errors import ConfigurationError
from research.prompts import load_prompt
from research.questions import Question
from research.questions.sampling import first_of_each_kind
from research.settings import Settings


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESET_DIR.glob("*.toml")))
def test_every_preset_is_valid_and_its_prompt_exists(preset: str) -> None:
    load_prompt(load_settings(preset).episode.prompt)


MUSIQUE_KINDS = ("2hop", "3hop1", "3hop2", "4hop1", "4hop2", "4hop3")
PAPER = sorted(path.stem for path in PRESET_DIR.glob("qwen2.5-*.toml"))


@pytest.mark.parametrize("preset", PAPER)
def test_presets_of_the_paper_sample_without_seeds_and_evaluate_on_a_hundred_questions(preset: str) -> None:
    settings = load_settings(preset)
    held_out = [Question(f"{kind}-{i}", "?", ("x",), kind) for kind in MUSIQUE_KINDS for i in range(500)]
    for count in (settings.evaluation.per_kind, settings.evaluation.interim_per_kind):
        assert 90 <= len(first_of_each_kind(held_out, count)) <= 110
    assert not settings.grpo.per_episode_seeds
    longest_turn = settings.episode.max_turn_tokens or settings.episode.max_tokens
    assert longest_turn / settings.episode.request_timeout < 20  # tokens a second: a slow server is still waited for


def test_command_line_beats_environment_beats_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = load_settings().grpo.steps
    monkeypatch.setenv("RESEARCH__GRPO__STEPS", str(preset + 1))
    assert load_settings().grpo.steps == preset + 1
    assert load_settings(overrides=[f"grpo.steps={preset + 2}"]).grpo.steps == preset + 2


def test_values_are_toml_or_else_text() -> None:
    settings = load_settings(
        overrides=["questions.mix={ one_hop = 1.0 }", "model.name=./mine", "optimizer.betas=[0.8, 0.9]"]
    )
    assert settings.questions.mix == {"one_hop": 1.0}
    assert settings.model.name == "./mine"
    assert settings.optimizer.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["grpo.stps=3"], r"grpo\.stps: there is no such setting"),
        (["nonsense=3"], "nonsense: there is no such setting"),
        (["grpo.steps=-1"], r"grpo\.steps: .*greater than or equal to 0"),
        (["grpo.steps=many"], r"grpo\.steps: .*integer"),
        (["grpo.steps"], "not of the form"),
        (["run.x=1"], "is a value, not a section"),
        (["retriever.port=70000"], r"retriever\.port"),
        (["episode.max_tokens=5000"], r"episode\.max_tokens .* must be below model\.max_model_len"),
        (["run=../elsewhere"], "run: "),
    ],
)
def test_wrong_settings_name_the_field(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_settings(overrides=overrides)


def test_an_unknown_environment_setting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESEARCH__GRPO__STPS", "3")
    with pytest.raises(ConfigurationError, match=r"grpo\.stps"):
        load_settings()


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match="quickstart-cpu"):
        load_settings("no-such-preset")


def test_broken_toml_is_said(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("run = ")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        load_settings(path)


def test_an_unknown_prompt_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match="research-instruct"):
        load_prompt("nope")


def test_addresses_follow_the_ports_unless_given() -> None:
    settings = load_settings(overrides=["retriever.port=9000", "policy.port=9001", "policy.host=0.0.0.0"])
    assert settings.endpoints.retriever_url == "http://127.0.0.1:9000"
    assert settings.endpoints.policy_urls == ["http://127.0.0.1:9001"]
    given = load_settings(
        overrides=["endpoints.retriever_url=http://far:1", 'endpoints.policy_urls=["http://a", "http://b"]']
    )
    assert given.endpoints.retriever_url == "http://far:1"
    assert given.endpoints.policy_urls == ["http://a", "http://b"]


def test_one_retriever_or_several() -> None:
    one = load_settings(overrides=["endpoints.retriever_url=http://a"]).endpoints
    assert one.retriever_urls == ["http://a"]
    several = load_settings(overrides=['endpoints.retriever_urls=["http://a", "http://b"]'])
    assert (several.endpoints.retriever_url, several.endpoints.retriever_urls) == ("http://a", ["http://a", "http://b"])
    assert Settings.model_validate_json(several.model_dump_json()) == several
    with pytest.raises(ConfigurationError, match="retriever_url is not among"):
        load_settings(overrides=["endpoints.retriever_url=http://c", 'endpoints.retriever_urls=["http://a"]'])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["bench.endpoint=http://far/v1"], "endpoint and model are given together"),
        (["bench.judge_model=gpt"], "judge_endpoint and judge_model are given together"),
        (
            ["bench.endpoint=http://me:secret@far/v1", "bench.model=m"],
            "as RESEARCH_ENDPOINT_API_KEY",
        ),
        (['bench.prices={"m"={input=-1,output=1}}'], "greater than or equal to 0"),
    ],
)
def test_an_endpoint_that_cannot_be_asked_is_explained(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load_settings(overrides=overrides)


def test_settings_of_the_environment_are_written_as_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESEARCH_SETTINGS", "grpo.steps=20 model.dtype=float32 'evaluation.per_kind={ one_hop = 3 }'")
    settings = load_settings()
    assert (settings.grpo.steps, settings.model.dtype) == (20, "float32")
    assert settings.evaluation.per_kind == {"one_hop": 3}
    monkeypatch.setenv("RESEARCH__GRPO__STEPS", "21")
    assert load_settings().grpo.steps == 21
    assert load_settings(overrides=["grpo.steps=22"]).grpo.steps == 22


@pytest.mark.parametrize(
    ("value", "message"),
    [("grpo.steps", "not of the form"), ("grpo.steps='", "RESEARCH_SETTINGS: "), ("grpo.stps=1", "no such setting")],
)
def test_wrong_settings_of_the_environment_are_named(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    monkeypatch.setenv("RESEARCH_SETTINGS", value)
    with pytest.raises(ConfigurationError, match=message):
        load_settings()


def test_weights_are_accepted_from_the_runs_unless_another_place_is_named() -> None:
    assert load_settings(overrides=["paths.runs=/elsewhere"]).policy.weights_dir == Path("/elsewhere")
    named = load_settings(overrides=["paths.runs=/elsewhere", "policy.weights_dir=/shm"])
    assert named.policy.weights_dir == Path("/shm")
    assert Settings.model_validate_json(named.model_dump_json()) == named


@pytest.mark.parametrize("mix", ["{ one_hop = 0 }", "{ one_hop = -1, two_hop = 3 }", "{ one_hop = nan }"])
def test_a_mix_that_asks_nothing_is_refused(mix: str) -> None:
    with pytest.raises(ConfigurationError, match=r"questions\.mix"):
        load_settings(overrides=[f"questions.mix={mix}"])
