"""The rules that a checkpoint was trained with, and what other rules are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.errors import ConfigurationError
from research.prompts import check_prompt, load_prompt, trained_prompt

SMALL = load_prompt("research-small")


def test_a_checkpoint_says_which_rules_it_was_trained_with(tmp_path: Path) -> None:
    assert trained_prompt(tmp_path) is None
    (tmp_path / "prompt.txt").write_text(f"\n{SMALL.text}  \n")
    assert trained_prompt(tmp_path) == SMALL.sha256, "space around it is no difference"
    assert load_prompt(str(tmp_path / "prompt.txt")).sha256 == SMALL.sha256


def test_other_rules_are_refused_unless_told() -> None:
    other = load_prompt("research-instruct").sha256
    check_prompt(SMALL, None, "base", allow_mismatch=False)
    check_prompt(SMALL, SMALL.sha256, "mine", allow_mismatch=False)
    check_prompt(SMALL, other, "mine", allow_mismatch=True)
    with pytest.raises(ConfigurationError, match=r"mine was trained with another prompt .*allow_prompt_mismatch"):
        check_prompt(SMALL, other, "mine", allow_mismatch=False)
