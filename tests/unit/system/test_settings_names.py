"""Settings by their former names, in words, and in docs/settings.md; an error names the one that was meant."""

from __future__ import annotations

import json
import logging
import tomllib
from pathlib import Path

import pytest

import research.config
from research.config import PRESET_DIR, load_settings, recorded_settings
from research.errors import AssetError, ConfigurationError
from research.settings import Settings
from research.settings.describe import as_markdown, describe, setting_names
from research.settings.former_names import _SETTINGS, present_name, with_present_names

REPOSITORY = Path(__file__).resolve().parents[3]
OLD_RUN = REPOSITORY / "tests" / "fixtures" / "before_renames" / "run"


def test_the_page_on_settings_is_current() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == as_markdown(), "write it again: python -m research.settings.describe > docs/settings.md"


def test_every_setting_is_described() -> None:
    assert not [setting.name for setting in describe() if not setting.description]


def test_a_description_says_what_is_allowed_and_the_default() -> None:
    [setting] = describe(["grpo.group_size"])
    assert (setting.allowed, setting.default) == ("a whole number, at least 2", "5")
    [choice] = describe(["trainer.weight_sync"])
    assert (choice.allowed, choice.default) == ("`file`, `nccl`", '"file"')
    with pytest.raises(ConfigurationError, match="nope is neither a setting nor a section; sections: paths, model"):
        describe(["nope"])


def test_defaults_are_written_as_toml_reads_them() -> None:
    for setting in describe():
        if setting.default not in ("", "None"):
            tomllib.loads(f"value = {setting.default}")


@pytest.mark.parametrize("old", sorted(_SETTINGS))
def test_a_former_name_names_a_setting_of_today_and_is_none_itself(old: str) -> None:
    assert present_name(old) in setting_names()
    assert old not in setting_names()


def test_former_names_are_read_with_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    preset = tmp_path / "old.toml"
    preset.write_text(
        '[model]\nname = "m"\nmax_length = 512\n[encoder]\nname = "e"\n'
        '[corpus]\nname = "c"\nindex = "i"\nlexical = true\n'
        '[episode]\nmax_tokens = 256\n[warmup]\nenabled = true\nretry_share = 0.2\n[control]\nkind = "supervised"\n'
    )
    monkeypatch.setenv("RESEARCH__TRAINER__RETRIEVER_URL", "http://far:8000")
    monkeypatch.setenv("RESEARCH_SETTINGS", "policy.eager=true")
    with caplog.at_level(logging.WARNING):
        settings = load_settings(preset, ["grpo.optimizer_steps=2", "alarms.on_mismatch=roll_back", "warmup.steps=3"])
    assert (settings.model.max_model_len, settings.corpus.hybrid, settings.policy.enforce_eager) == (512, True, True)
    assert (settings.sft.enabled, settings.sft.retry_fraction, settings.sft.steps) == (True, 0.2, 3)
    assert (settings.ablation.kind, settings.grpo.num_iterations) == ("supervised", 2)
    assert (settings.endpoints.retriever_url, settings.alarms.on_mismatch) == ("http://far:8000", "rollback")
    told = [record.getMessage() for record in caplog.records]
    assert any("old.toml: warmup.retry_share is named sft.retry_fraction now" in line for line in told)
    assert any("override warmup.steps=3: warmup.steps is named sft.steps now" in line for line in told)
    assert any("RESEARCH__TRAINER__RETRIEVER_URL" in line and "endpoints.retriever_url" in line for line in told)


def test_todays_names_are_read_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_settings(overrides=["sft.steps=3", "bench.prices.gpt.input=1", "bench.prices.gpt.output=1"])
    assert not caplog.records


def test_one_setting_by_both_names_is_refused(tmp_path: Path) -> None:
    preset = tmp_path / "both.toml"
    preset.write_text("[grpo]\nseeded = true\nper_episode_seeds = false\n")
    with pytest.raises(ConfigurationError, match=r"grpo\.seeded and grpo\.per_episode_seeds are two names"):
        load_settings(preset)


@pytest.fixture(autouse=True)
def warn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(research.config, "_warned", set())


def test_a_name_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            load_settings(overrides=["warmup.steps=3"])
    assert len(caplog.records) == 1


def test_in_the_environment_the_present_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESEARCH__ENDPOINTS__RETRIEVER_URL", "http://new")
    monkeypatch.setenv("RESEARCH__POLICY__RETRIEVER_URL", "http://old")
    assert load_settings().endpoints.retriever_url == "http://new"


def test_two_former_names_with_two_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESEARCH__POLICY__RETRIEVER_URL", "http://one")
    monkeypatch.setenv("RESEARCH__TRAINER__RETRIEVER_URL", "http://one")
    assert load_settings().endpoints.retriever_url == "http://one"
    monkeypatch.setenv("RESEARCH__TRAINER__RETRIEVER_URL", "http://two")
    with pytest.raises(ConfigurationError, match=r"two names of endpoints\.retriever_url"):
        load_settings()


def test_whole_sections_under_former_names_add_to_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESEARCH__POLICY", '{retriever_url="http://a"}')
    monkeypatch.setenv("RESEARCH__TRAINER", '{policy_urls=["http://b"]}')
    endpoints = load_settings().endpoints
    assert (endpoints.retriever_url, endpoints.policy_urls) == ("http://a", ["http://b"])


def test_a_variable_names_a_model_with_a_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESEARCH__BENCH__PRICES__gpt-4.1", "{input=1, output=2}")
    assert load_settings().bench.prices["gpt-4.1"].output == 2


def test_an_empty_former_address_means_the_default(tmp_path: Path) -> None:
    preset = (PRESET_DIR / "quickstart-cpu.toml").read_text()
    path = tmp_path / "old.toml"
    path.write_text(
        preset.replace("[policy]\n", '[policy]\nretriever_url = ""\n').replace(
            "[trainer]\n", '[trainer]\nretriever_url = "http://x"\n'
        )
    )
    assert load_settings(path).endpoints.retriever_url == "http://x"
    path.write_text('endpoints = "x"\n' + path.read_text())
    with pytest.raises(ConfigurationError, match="endpoints is a section, not a value"):
        load_settings(path)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("grpo.stps=3", "grpo.steps"),
        ("sft.lr=3", "sft.learning_rate"),
        ("grpo.curriculum_candidates=3", "questions.curriculum_candidates"),
        ("max_model_len=3", "model.max_model_len"),
        ("policy.gpu=1", "policy.gpu_memory_utilization"),
    ],
)
def test_an_unknown_setting_names_the_one_that_was_meant(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"there is no such setting .* did you mean {meant}\\?"):
        load_settings(overrides=[wrong])


def test_none_can_be_given() -> None:
    assert load_settings(overrides=["grpo.tis_cap=None"]).grpo.tis_cap is None


def test_the_record_of_an_old_run_is_read_by_todays_names() -> None:
    recorded = recorded_settings(OLD_RUN)
    assert recorded is not None
    settings = Settings.model_validate({k: v for k, v in recorded.items() if k in Settings.model_fields})
    assert (settings.model.max_model_len, settings.sft.retry_fraction, settings.ablation.kind) == (96, 0.0, "none")
    assert settings.endpoints.policy_urls == ["http://127.0.0.1:8001"]
    again, former = with_present_names(json.loads(settings.model_dump_json()))
    assert not former
    assert Settings.model_validate(again) == settings


def test_a_record_that_is_not_json_is_named(tmp_path: Path) -> None:
    assert recorded_settings(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(AssetError, match=r"config\.json is spoilt"):
        recorded_settings(tmp_path)
