"""Whether imported vectors are those of the configured encoder: sampled passages are embedded, and compared."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from research.passages import contents_of
from research.settings import Settings
from services.machine.division import usable_cores
from services.retriever.build.imported_vectors import NOT_UNIT, ImportedVectors, RefusedImportError, lengths_of
from services.retriever.encoder.checkpoint import Checkpoint, Pooling
from services.retriever.encoder.encoder import Encoder, load_encoders
from services.retriever.index.passage_store import PassageStore
from services.retriever.types import Vectors

_SAMPLED = 64
_LEAST = 0.99
# Of codes, which give vectors back coarsely; the configured encoder must then be the closest of all that are tried.
_LEAST_OF_CODES = 0.6
_LENGTHS_OF_CODES = (0.5, 1.2)
_LEAST_OF_LENGTHS = 0.95
# Of sampled passages whose vector is nearest to their own.
_LEAST_OWN = 0.9
_EQUAL = 0.002

_PREFIXES = ("passage: ", "query: ", "")
_POOLINGS: tuple[Pooling, ...] = ("mean", "cls")


def _contents(record: dict[str, str]) -> str:
    given = orjson.loads(record.get("fields", "{}")).get("contents")
    return given if isinstance(given, str) else contents_of(record["title"], record["text"])


# How people write a passage to embed it. Search-R1 and FlashRAG embed `contents`.
_FORMS: dict[str, Callable[[dict[str, str]], str]] = {
    "title text": lambda record: f"{record['title']} {record['text']}",
    "contents": _contents,
    "text": lambda record: record["text"],
}


@dataclass(frozen=True, slots=True)
class Match:
    """How near the imported vectors come to passages that are embedded in one way.

    `cosine` is the median over the sample; `own` the share of passages that are nearest to their own vector;
    `unrelated` the mean cosine of a passage with the vectors of others.
    """

    prefix: str
    pooling: Pooling
    form: str
    cosine: float
    own: float
    unrelated: float


def check_encoder(
    settings: Settings, checkpoint: Checkpoint, store: PassageStore, vectors: ImportedVectors, encoder: Encoder
) -> Match:
    """Embed sampled passages with `encoder`, a `bare_encoder`, and compare; returns the form of text that fits best.

    Raises:
        RefusedImportError: the vectors are not those of this encoder, prefix and pooling; the message says which of
            those that were tried comes closest.
    """
    # 1. The sample: passages and their vectors.
    rng = np.random.default_rng(0)
    chosen = sorted(rng.choice(len(store), min(_SAMPLED, len(store)), replace=False).tolist())
    imported = np.concatenate([vectors[place : place + 1] for place in chosen])
    imported = _unit(imported, vectors)
    records = [store.record(place) for place in chosen]

    # 2. The way that is configured.
    configured = (settings.encoder.passage_prefix, checkpoint.pooling)
    best = _best(_matches(encoder, records, imported, [configured[0]], checkpoint.pooling))
    if vectors.whole and _fits(best, _LEAST):
        return best

    # 3. Every other way, to compare with codes or to name what fits.
    others = [
        match
        for pooling in _POOLINGS
        for match in _matches(
            bare_encoder(settings, dataclasses.replace(checkpoint, pooling=pooling)),
            records,
            imported,
            [prefix for prefix in _PREFIXES if (prefix, pooling) != configured],
            pooling,
        )
    ]
    closest = _best(others)
    least = _LEAST if vectors.whole else _LEAST_OF_CODES
    if not vectors.whole and _fits(best, least) and best.cosine >= closest.cosine - _EQUAL:
        return best
    raise RefusedImportError(
        f"{vectors.path}: its vectors are not those of {checkpoint.name} with encoder.passage_prefix={configured[0]!r} "
        f"and {checkpoint.pooling} pooling: the median cosine of {len(records)} sampled passages is {best.cosine:.3f} "
        f"({least} is needed), and {best.own:.0%} are nearest to their own vector ({_LEAST_OWN:.0%} are needed); "
        + _advice(settings, checkpoint, best, closest, least, _cosine_of_unrelated(encoder, records, best))
    )


def _unit(sample: Vectors, vectors: ImportedVectors) -> Vectors:
    lengths = lengths_of(sample)
    # Nobody can look at the lengths that codes stand for one by one; inner products rank well with any.
    if not vectors.whole and not vectors.inner_product:
        near = float(np.mean((lengths > _LENGTHS_OF_CODES[0]) & (lengths < _LENGTHS_OF_CODES[1])))
        if near < _LEAST_OF_LENGTHS:
            raise RefusedImportError(
                f"{vectors.path}: of {len(lengths)} sampled vectors only {near:.0%} have a length near 1; {NOT_UNIT}"
            )
    if not (lengths > 0).all():
        raise RefusedImportError(
            f"{vectors.path}: it has vectors without a length, all zero or not a number: it is spoilt"
        )
    unit: Vectors = sample / lengths[:, None]
    return unit


def bare_encoder(settings: Settings, checkpoint: Checkpoint) -> Encoder:
    """The configured encoder, without the prefix of passages."""
    # By torch, which other runtimes approximate; graphs of those are also cached whatever the pooling.
    bare = settings.encoder.model_copy(update={"passage_prefix": ""})
    return load_encoders(checkpoint, bare, "torch", usable_cores(), settings.paths.data)[0]


def _matches(
    encoder: Encoder, records: Sequence[dict[str, str]], imported: Vectors, prefixes: Sequence[str], pooling: Pooling
) -> list[Match]:
    found = []
    for prefix, (form, write) in itertools.product(prefixes, _FORMS.items()):
        cosines = encoder.encode_texts([prefix + write(record) for record in records]) @ imported.T
        paired = np.diagonal(cosines)
        own = float(np.mean(paired >= cosines.max(axis=1) - _EQUAL))
        found.append(Match(prefix, pooling, form, float(np.median(paired)), own, _off_diagonal(cosines)))
    return found


def _best(matches: Sequence[Match]) -> Match:
    return max(matches, key=lambda match: match.cosine)


def _fits(match: Match, least: float) -> bool:
    return match.cosine >= least and match.own >= _LEAST_OWN


def _off_diagonal(cosines: Vectors) -> float:
    apart = ~np.eye(len(cosines), dtype=bool)
    return float(cosines[apart].mean()) if apart.any() else 0.0


def _cosine_of_unrelated(encoder: Encoder, records: Sequence[dict[str, str]], match: Match) -> float:
    embedded = encoder.encode_texts([match.prefix + _FORMS[match.form](record) for record in records])
    return _off_diagonal(embedded @ embedded.T)


def _advice(
    settings: Settings, checkpoint: Checkpoint, best: Match, closest: Match, least: float, unrelated: float
) -> str:
    if _fits(closest, least):
        changes = []
        if closest.prefix != best.prefix:
            changes.append(f"set encoder.passage_prefix={closest.prefix!r}")
        if closest.pooling != best.pooling:
            changes.append(f"set {closest.pooling} pooling in {checkpoint.directory / '1_Pooling' / 'config.json'}")
        return f"with prefix {closest.prefix!r} and {closest.pooling} pooling it is {closest.cosine:.3f}: " + ", ".join(
            changes
        )
    # Another encoder has another space; in the same one, passages that have nothing in common are about as far apart.
    if abs(best.unrelated - unrelated) < 0.05:
        return (
            "the encoder seems to be the right one, for passages that have nothing to do with each other are as far "
            "apart: set encoder.max_passage_tokens (passages are cut there before they are embedded; now "
            f"{settings.encoder.max_passage_tokens}) to what the index was made with, or name the file of passages "
            "that it was made from, in the order of its vectors"
        )
    return (
        f"no other prefix or pooling comes closer than {closest.cosine:.3f}: set encoder.name to the encoder that made "
        "the index"
    )
