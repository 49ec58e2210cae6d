"""A prompt's first line names its form, which goes with the records of episodes and with the weights."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from research.clients import finish_of
from research.episode.agent import BranchPoint, Episode, Finish, StopReason, Turn
from research.episode.branching import branch
from research.episode.serialization import episode_from_dict
from research.errors import ConfigurationError
from research.forms.tags import TAGS
from research.forms.tool_calls import TOOL_CALLS
from research.prompts import Prompt, check_prompt, load_prompt, trained_prompt
from services.trainer.sft.writing import writing_of


def test_a_first_line_names_the_form_and_is_no_part_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("# form: tool_calls\nRules. \n\n")
    mine = load_prompt(str(file))
    assert (mine.text, mine.form) == ("Rules. \n", TOOL_CALLS)
    file.write_text("\nRules.\n\n")
    plain = load_prompt(str(file))
    assert (plain.text, plain.form, plain.source) == ("Rules.", TAGS, "Rules.")


@pytest.mark.parametrize("text", ["# form: tags\n\n Rules.\n\n", "# form: search_r1\n\n{question} \n\n", "\nRules. \n"])
def test_what_goes_with_weights_reads_as_the_same_prompt(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(text)
    mine = load_prompt(str(tmp_path / "mine.txt"))
    (tmp_path / "prompt.txt").write_text(mine.source + "\n")  # as weights are published
    again = load_prompt(str(tmp_path / "prompt.txt"))
    assert (again.text, again.form, trained_prompt(tmp_path)) == (mine.text, mine.form, mine.sha256)


@pytest.mark.parametrize(
    "text",
    [
        "\n# form: tool_calls\nRules.",
        " # form: tool_calls\nRules.",
        "\ufeff# form: tool_calls\nRules.",
        "#form: tool_calls\nRules.",
        "# Form : tool_calls\nRules.",
        "# form: tags\n\n# form: tool_calls\nRules.",
    ],
)
def test_a_line_that_nearly_names_a_form_is_neither_shown_to_the_model_nor_read_as_one_later(
    text: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"mine.txt: a line like '# form:'"):
        load_prompt(str(file))


def test_an_unknown_form_is_named_with_those_there_are(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("# form: xml\nRules.")
    with pytest.raises(
        ConfigurationError,
        match=r"mine.txt: there is no prompt form 'xml'; known: .*tags, tags_open, tags_parallel, tool_calls",
    ):
        load_prompt(str(file))


@pytest.mark.parametrize("name", ["research-small", "research-tools"])
def test_weights_carry_the_form_and_other_forms_of_the_same_words_are_refused(name: str, tmp_path: Path) -> None:
    prompt = load_prompt(name)
    (tmp_path / "prompt.txt").write_text(prompt.source + "\n")  # as weights are published
    again = load_prompt(str(tmp_path / "prompt.txt"))
    assert (again.text, again.form, again.sha256) == (prompt.text, prompt.form, prompt.sha256)
    assert trained_prompt(tmp_path) == prompt.sha256
    other = Prompt(name, prompt.text, TOOL_CALLS if prompt.form is TAGS else TAGS)
    with pytest.raises(ConfigurationError, match="was trained with another prompt"):
        check_prompt(other, trained_prompt(tmp_path), "mine", allow_mismatch=False)


def test_records_and_branches_of_an_episode_keep_its_form() -> None:
    text = "<think>\na\n</think>\n\n\\boxed{Paris}"
    episode = Episode("?", [1], [2], [True], [0.0], ["1"], [Turn(text)], StopReason.ANSWERED, form="tool_calls")
    read = episode_from_dict(orjson.loads(orjson.dumps(episode)))
    assert read == episode
    assert (read.answer, read.format_fault) == ("Paris", None)
    assert branch(episode, BranchPoint(0, 0, 1)).form == "tool_calls"
    record = orjson.loads(orjson.dumps(episode))
    del record["form"]  # before there were forms
    assert episode_from_dict(record).form == "tags"


def test_any_stop_text_ends_a_search_and_a_token_does_not() -> None:
    found = [finish_of("stop", reason) for reason in ("</search>", "<|end_of_query|>", None, 151643)]
    assert found == [Finish.SEARCH, Finish.SEARCH, Finish.EOS, Finish.EOS]


def test_what_traces_write_is_read_as_it_was_meant() -> None:
    for form in (TAGS, TOOL_CALLS):
        writing = writing_of(form)
        turns = [writing.search("I look it up", 'the "Night" of 北京'), writing.answer("I found it", "1853")]
        assert form.asks(turns[0], by_itself=not form.stop)
        assert not form.asks(turns[1], by_itself=True)
        assert form.query(turns[0]) == 'the "Night" of 北京'
        assert (form.answer(turns[1]), form.fault(turns, "1853", ended=True)) == ("1853", None)
