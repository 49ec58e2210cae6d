"""`research inspect` as people meet it: in the terminal, and as one HTML file that hostile text cannot break."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from apps.inspect.filters import Filters
from apps.inspect.page import write_page
from apps.inspect.read import RunEpisodes
from apps.inspect.terminal import show_episode, show_tokens
from apps.inspect.tokens import load_token_texts
from cli.main import app
from research.errors import AssetError
from research.passages import Passage
from services.trainer.run_dir.run_dir import RunDirectory
from tests.support.inspected_run import HELPFUL, PARIS, ROME, USELESS, episode, group, write_run, write_step

HOSTILE = "</script><script>alert(1)</script> {{script}} \x1b[31m \u202e <!--"


def in_terminal(run: RunEpisodes, number: int = 0, *, tokens: bool = False) -> str:
    out = StringIO()
    console = Console(file=out, width=100)
    shown = list(Filters(steps=(1,)).select(run))[number]
    show_episode(shown, console)
    if tokens:
        show_tokens(shown, load_token_texts(run, Path("nowhere")), console)
    return out.getvalue()


def test_the_terminal_sets_apart_who_wrote_what(tmp_path: Path) -> None:
    text = in_terminal(write_run(tmp_path), 1)
    assert re.findall(r"^(\w+) +(┊?)", text, re.MULTILINE) == [
        ("step", ""),
        ("question", ""),
        ("gold", ""),
        *[("think", ""), ("search", ""), ("retriever", "┊")] * 2,
        ("think", ""),
        ("answer", ""),
        ("answer", ""),
        ("reward", ""),
        ("advantage", ""),
        ("episode", ""),
    ]
    assert "┊ → found no new answer" in text
    assert "┊ → found Paris; this query corrected the one before" in text
    assert "1.00: exact match   (EM 1, F1 1.00, well formed)" in text
    assert "+0.86, trained on" in text
    assert "answered · 2 searches (1 corrected query) · not all supporting passages found" in text


def test_the_terminal_says_whether_all_supporting_passages_were_found(tmp_path: Path) -> None:
    found, unnamed = (tmp_path / name for name in ("found", "unnamed"))
    served = episode("Rome", HELPFUL)
    served.turns[0].passages = [Passage("1", "France", "…")]
    write_step(RunDirectory(found), 1, [group("1.0", PARIS, served)])
    write_step(RunDirectory(unnamed), 1, [group("1.0", ROME, served)])
    assert "1 search · all supporting passages found" in in_terminal(RunEpisodes(found))
    assert "supporting" not in in_terminal(RunEpisodes(unnamed))


def test_a_result_that_found_no_room_is_told_apart(tmp_path: Path) -> None:
    cut = episode("", USELESS, HELPFUL)
    cut.turns.pop()
    write_step(RunDirectory(tmp_path), 1, [group("1.0", PARIS, cut)])
    text = in_terminal(RunEpisodes(tmp_path))
    assert text.count("never saw it") == 1
    assert "→ found Paris; this query corrected the one before; the model never saw it" in text


def test_hostile_text_cannot_steer_the_terminal(tmp_path: Path) -> None:
    hostile = episode("[red]Paris[/]", (HOSTILE, HOSTILE), thought=HOSTILE)
    write_step(RunDirectory(tmp_path), 1, [group(HOSTILE, PARIS, hostile)])
    text = in_terminal(RunEpisodes(tmp_path))
    assert not set(text) & {"\x1b", "\u202e"}
    assert "[red]Paris[/]" in text


def test_tokens_show_as_ids_without_a_tokenizer(tmp_path: Path) -> None:
    rows = [line.split() for line in in_terminal(write_run(tmp_path), tokens=True).splitlines()]
    assert ["0", "#70", "1", "-0.2500", "1"] in rows
    assert ["51", "#20", "0"] in rows


def write_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer in which `é` takes two tokens."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate([*characters, "Ġa"])}, [("Ġ", "a")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(directory)


def test_tokens_read_as_text_with_the_tokenizer_of_the_published_weights(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert load_token_texts(run, tmp_path) is None
    write_tokenizer(tmp_path / "weights" / "version-000001")
    texts = load_token_texts(run, tmp_path)
    assert texts is not None
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert texts.text(len(alphabet)) == " a"
    assert texts.text(alphabet.index("Ã")) == "\ufffd"


def page(run: RunEpisodes, filters: Filters | None = None, limit: int = 100) -> tuple[str, dict[str, Any], bool]:
    path = run.directory / "pages" / "inspect.html"
    shown, more = write_page(run, filters or Filters(), limit, None, path)
    html = path.read_text(encoding="utf-8")
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[0])
    assert len(data["episodes"]) == shown
    return html, data, more


def test_the_page_holds_the_episodes_in_order(tmp_path: Path) -> None:
    _, data, more = page(write_run(tmp_path))
    assert not more
    assert [e["step"] for e in data["episodes"]] == [1] * 6 + [2] * 2 + [None]
    first, second = data["episodes"][:2]
    assert (first["reward"], first["outcome"], first["stop"], first["trained"]) == (1.0, "exact", "answered", True)
    assert first["training"] == "+0.86, trained on"
    assert [s["kind"] for s in second["steps"]] == ["think", "search", "result"] * 2 + ["think", "answer"]
    assert [(s["found"], s["corrects"]) for s in second["steps"] if s["kind"] == "result"] == [
        ([], False),
        (["Paris"], True),
    ]


def test_the_page_holds_every_token_with_its_author(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    _, data, _ = page(run)
    original = next(Filters(steps=(1,)).select(run)).episode
    told, words = data["episodes"][0]["tokens"], data["vocabulary"]["ids"]
    assert [words[i] for i in told["ids"]] == original.token_ids
    assert told["spans"] == [[len(list(same)), version] for version, same in groupby(original.versions)]
    assert [lp / data["run"]["logprob_scale"] for lp in told["logprobs"]] == [-0.25] * original.sampled_tokens
    assert data["vocabulary"]["texts"] is None


def test_a_limit_keeps_the_newest(tmp_path: Path) -> None:
    _, data, more = page(write_run(tmp_path), limit=3)
    assert [(e["step"], e["position"]) for e in data["episodes"]] == [(1, 0), (2, 0), (2, 1)]
    assert more
    assert data["run"]["more"]


def test_hostile_text_stays_text_in_the_page(tmp_path: Path) -> None:
    hostile = episode(HOSTILE, (HOSTILE, HOSTILE), thought=HOSTILE)
    write_step(RunDirectory(tmp_path), 1, [group("1.0", PARIS, hostile)])
    html, data, _ = page(RunEpisodes(tmp_path))
    assert html.lower().count("<script") == html.lower().count("</script") == 2
    assert "<!--" not in html
    assert HOSTILE in data["episodes"][0]["steps"][2]["text"]


def test_the_page_runs_only_its_own_code_and_fetches_nothing(tmp_path: Path) -> None:
    html, _, _ = page(write_run(tmp_path))
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[0]
    assert policy.startswith("default-src 'none'; ")
    for code in re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", html, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert set(re.findall(r"https?://[^\"' ]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"{{\w+}}|\bon\w+=|<link|@import|innerHTML", html)


def test_the_command_shows_filters_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESEARCH__PATHS__RUNS", str(tmp_path))
    write_run(tmp_path / "first")
    shown = CliRunner().invoke(app, ["inspect", "first", "--step", "1", "--min-reward", "1", "--limit", "1"])
    assert "group 1.0, 1 of 4" in shown.output
    assert "1 shown, more match" in shown.output
    none = CliRunner().invoke(app, ["inspect", "first", "--text", "no such words"])
    assert "no episode matches; the run has steps 1 to 2 and evaluations after" in none.output
    written = CliRunner().invoke(app, ["inspect", "first", "--html", str(tmp_path / "page.html")])
    assert "9 episodes" in written.output
    assert (tmp_path / "page.html").is_file()
    assert isinstance(CliRunner().invoke(app, ["inspect", "frist"]).exception, AssetError)
