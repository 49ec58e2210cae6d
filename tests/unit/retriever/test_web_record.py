"""What is answered once is on the disk: asked never again, repeatable without the web, and whole after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from research.errors import AssetError, ConfigurationError
from services.retriever.web.engines.engine import Found
from services.retriever.web.lines import SealedLines
from services.retriever.web.record import Record
from tests.support.search_engines import KEYS, VARIABLES, SearchEngine
from tests.support.web_search import found, searching, web_retriever

PAGE = Found("https://site.example/", "Title", "Text “with” quotes\n")


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variable in VARIABLES.items():
        monkeypatch.setenv(variable, KEYS[name])


def record(path: Path, *, engine: str = "brave", address: str = "https://a.example", writable: bool = True) -> Record:
    return Record(path / "record.jsonl", engine, address, writable=writable)


def kept(path: Path, *queries: str) -> Path:
    opened = record(path)
    for query in queries:
        opened.add(query, 5, [PAGE])
    opened.close()
    return path / "record.jsonl"


def test_a_record_gives_back_what_was_added_to_whoever_asks_the_same(tmp_path: Path) -> None:
    kept(tmp_path, "a", "b")
    opened = record(tmp_path)
    assert opened.get("a", 5) == opened.get("b", 5) == [PAGE]
    assert [opened.get("a", 4), opened.get("A", 5)] == [None, None]
    opened.close()
    assert record(tmp_path, address="https://b.example", writable=False).get("a", 5) is None
    assert record(tmp_path, engine="tavily", writable=False).get("a", 5) is None


def test_each_line_is_json_that_anybody_reads(tmp_path: Path) -> None:
    [line] = kept(tmp_path, "a").read_text().splitlines()
    entry = json.loads(line)["entry"]
    assert (entry["engine"], entry["query"], entry["top_k"]) == ("brave", "a", 5)
    assert entry["found"] == [{"url": PAGE.url, "title": PAGE.title, "text": PAGE.text}]


@pytest.mark.parametrize("left", [0, 1, 30, -1])
def test_a_torn_last_line_is_named_left_out_and_cut_off(
    tmp_path: Path, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept(tmp_path, "a", "b")
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole[0] + whole[1][: left if left >= 0 else len(whole[1]) - 1])
    reading = record(tmp_path, writable=False)
    assert (reading.get("a", 5), reading.get("b", 5)) == ([PAGE], None)
    assert ("record.jsonl:2 is torn and left out" in caplog.text) == (left != 0)
    opened = record(tmp_path)
    opened.add("c", 5, [PAGE])
    opened.close()
    assert [json.loads(line)["entry"]["query"] for line in path.read_text().splitlines()] == ["a", "c"]
    again = record(tmp_path)
    assert (again.get("a", 5), again.get("c", 5)) == ([PAGE], [PAGE])


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "another letter": lambda line: line.replace(b"Title", b"Tutle"),
    "no seal": lambda line: b'{"query": "b"}\n',
    "nothing": lambda line: b"\n",
    "no text": lambda line: b"\xff\x00" * 50 + b"\n",
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_line_is_named_and_left_out_and_the_others_stay(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept(tmp_path, "a", "b", "c")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + SPOILT[how](lines[1]) + lines[2])
    opened = record(tmp_path)
    assert [opened.get(query, 5) for query in "abc"] == [[PAGE], None, [PAGE]]
    assert "record.jsonl:2 is spoilt and left out" in caplog.text
    opened.add("d", 5, [PAGE])
    assert opened.get("d", 5) == [PAGE]


def test_what_is_spoilt_while_it_is_open_is_no_answer(tmp_path: Path) -> None:
    path = kept(tmp_path, "a")
    opened = record(tmp_path, writable=False)
    path.write_bytes(path.read_bytes().replace(b"Title", b"Tutle"))
    with pytest.raises(AssetError, match="has been spoilt"):
        opened.get("a", 5)


def test_one_process_writes_and_others_may_read(tmp_path: Path) -> None:
    kept(tmp_path, "a")
    writing = record(tmp_path)
    with pytest.raises(ConfigurationError, match="being written by another process"):
        record(tmp_path)
    assert record(tmp_path, writable=False).get("a", 5) == [PAGE]
    writing.close()


def test_a_disk_that_is_full_leaves_no_half_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept(tmp_path, "a")
    before = path.read_bytes()
    lines = SealedLines(path, writable=True)
    assert len(list(lines.entries())) == 1

    class Full:
        """A file on a disk that takes 20 bytes more."""

        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, line: bytes) -> int:
            written: int = self.file.write(line[:20])  # type: ignore[attr-defined]
            return written

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    monkeypatch.setattr(lines, "_file", Full(lines._file))
    with pytest.raises(OSError, match="no room"):
        lines.add({"query": "b"})
    assert path.read_bytes() == before
    monkeypatch.setattr(lines, "_file", lines._file.file)  # type: ignore[attr-defined]
    lines.add({"query": "c"})
    lines.close()
    assert len(path.read_text().splitlines()) == 2


def test_what_is_recorded_is_not_asked_again_after_a_restart(tmp_path: Path) -> None:
    engine = SearchEngine("brave")
    with engine.serving() as address:
        first = _answer(tmp_path, address, "who?")
        second = _answer(tmp_path, address, "who?")
        assert first == second
        assert len(engine.asked) == 1
        assert _answer(tmp_path, address, "who?", top_k=2) == first[:2]
        assert len(engine.asked) == 2


def test_a_replay_sends_nothing_and_refuses_what_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SearchEngine("brave")
    with searching(tmp_path, engine, "web.address=https://api.search.brave.com", "web.replay=true") as client:
        unready = client.get("/readyz").json()
        assert unready["status"] == "failed"
        assert "cannot be opened" in unready["detail"]  # no record, no answers
    with engine.serving() as address:
        before = _answer(tmp_path, address, "who?")
        revision = _retriever_revision(tmp_path, address)
    monkeypatch.delenv("BRAVE_API_KEY")
    # Nobody listens at that address any more.
    with searching(tmp_path, f"{address}", "retriever.backend=brave", "web.replay=true") as client:
        assert found(client, "who?") == before
        response = client.post("/search", json={"queries": ["who?", "and where?"], "top_k": 3})
        assert (response.status_code, response.json()["error"]) == (409, "not_recorded")
        assert "'and where?' is not in the record" in response.json()["message"]
        assert "Retry-After" not in response.headers
        info = client.get("/info").json()
        assert info["indexes"][0]["revision"] == revision  # so a run goes on with it
        assert info["web"]["replay"] is True
    assert len(engine.asked) == 1


def _answer(data: Path, address: str, query: str, top_k: int = 3) -> list[dict[str, object]]:
    with searching(data, address, "retriever.backend=brave") as client:
        return found(client, query, top_k)


def _retriever_revision(data: Path, address: str) -> str:
    return web_retriever(data, "brave", address).info().indexes[0].revision
