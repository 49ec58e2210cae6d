"""The corpora that are compared: as it is, with decoys, with hostile passages; the indexes are from our own build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.injection.passages import Attack
from builtin.prepare import passages_path
from research.config import load_settings
from research.passages import write_passages
from services.retriever.build.build import build_index

CLEAN, DECOYS, HOSTILE = "clean", "decoys", "hostile"
CORPORA = (CLEAN, DECOYS, HOSTILE)


def build_corpora(overrides: Sequence[str], attacks: Sequence[Attack], work: Path) -> dict[str, list[str]]:
    """Write the corpora below `work` and index what is not indexed yet; returns the settings that serve each."""
    settings = load_settings(overrides=list(overrides))
    data = work / "data"
    data.mkdir(parents=True, exist_ok=True)
    _link(data / "models", settings.paths.data / "models")
    served: dict[str, list[str]] = {CLEAN: []}
    for name, added in (
        (DECOYS, [attack.decoy for attack in attacks]),
        (HOSTILE, [attack.hostile for attack in attacks]),
    ):
        corpus = work / "corpora" / name
        write_passages(corpus / "added.jsonl", added)
        _link(corpus / "corpus.jsonl", passages_path(settings))
        served[name] = [f"paths.data={data}", f"corpus.index=injection-{name}"]
        build_index(load_settings(overrides=[*overrides, *served[name]]), corpus)
    return served


def _link(place: Path, target: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(target.resolve())
