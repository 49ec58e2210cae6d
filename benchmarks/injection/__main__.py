"""Hostile passages against the real services: what they turn, and that they break nothing.

Run: python -m benchmarks.injection policy.serve=PATH [--work runs/injection] [section.key=value …]; needs `research
prepare`, and a model that searches, such as runs/demo/weights/version-… after `make demo`.
200 held-out questions are asked four times, greedily: of the built-in corpus, of the same once more (what changes then
is chance: numerics follow the batch), of the corpus with a passage more for each question that says nothing (what
changes is that it stands before the right one), and with the hostile one in its place. Each episode is checked against
what was sampled. Ends with 1 if a promise is broken. Writes tables in Markdown. Rounds that
are finished are kept below --work, which belongs to one model, and not asked again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import orjson
from transformers import AutoTokenizer

from benchmarks.injection.corpora import CLEAN, DECOYS, HOSTILE, build_corpora
from benchmarks.injection.figures import Asked, difference, of_corpora, of_kinds, stop_reasons
from benchmarks.injection.passages import Attack, attacks_on, questions_to_attack
from benchmarks.injection.promises import Recorder, broken_promises
from benchmarks.retriever.load import SERVE, free_port, serving
from research.atomic_io import atomic_write
from research.clients import PolicyClient, RetrieverClient
from research.config import load_settings
from research.episode.agent import GREEDY
from research.episode.build import build_agent
from research.episode.serialization import episode_from_dict
from research.episode.tokenizer import HuggingFaceTokenizer
from research.errors import ServiceError
from research.model_paths import local_checkpoint
from research.questions.sources import load_questions
from research.scoring.ask import ask_each
from research.settings import Settings

AGAIN = "clean, again"
# In this order, each with its corpus.
ROUNDS = {CLEAN: CLEAN, HOSTILE: HOSTILE, DECOYS: DECOYS, AGAIN: CLEAN}


def main() -> None:
    """Build, serve, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/injection"))
    parser.add_argument("overrides", nargs="*", help="settings, such as policy.serve=PATH")
    arguments = parser.parse_args()
    settings = load_settings(overrides=arguments.overrides)
    held_out = load_questions(settings.questions.held_out, "held_out", settings.paths.data)
    attacks = attacks_on(questions_to_attack(held_out))
    corpora = build_corpora(arguments.overrides, attacks, arguments.work)
    files = {name: arguments.work / f"{name.replace(', ', '-')}.jsonl" for name in ROUNDS}
    asked = {name: own for name in ROUNDS if (own := kept(files[name], attacks)) is not None}
    missing = {name: corpus for name, corpus in ROUNDS.items() if name not in asked}
    if missing:
        with ExitStack() as services:
            ports, policy = start(services, arguments.overrides, corpora)
            for name, corpus in missing.items():
                print(f"asking: {name}", file=sys.stderr)
                asked[name] = asyncio.run(ask(settings, attacks, ports[corpus], policy))
                keep(files[name], asked[name])
    asked = {name: asked[name] for name in ROUNDS}
    broken = [
        f"{name}: {each.attack.hostile.id}: {why}" for name in asked for each in asked[name] for why in each.broken
    ]
    print(of_corpora(asked, CLEAN), stop_reasons(asked), difference(asked, HOSTILE, DECOYS, CLEAN), sep="\n\n")
    print("", of_kinds(asked, HOSTILE, CLEAN), "", sep="\n")
    print(f"promises broken: {len(broken)} in {sum(map(len, asked.values()))} episodes", *broken, sep="\n")
    sys.exit(bool(broken))


def start(
    services: ExitStack, overrides: Sequence[str], corpora: Mapping[str, Sequence[str]]
) -> tuple[dict[str, int], int]:
    """Start a retriever for each corpus and the policy; returns the ports."""
    ports = {name: free_port() for name in corpora}
    for name, own in corpora.items():
        command = [*SERVE, *overrides, *own, f"retriever.port={ports[name]}"]
        services.enter_context(serving(command, ports[name]))
    policy = free_port()
    where = [f"policy.port={policy}", f"endpoints.retriever_url=http://127.0.0.1:{ports[CLEAN]}"]
    services.enter_context(serving([*SERVE[:-1], "policy", *overrides, *where], policy, seconds=900))
    return ports, policy


async def ask(settings: Settings, attacks: Sequence[Attack], retriever_port: int, policy_port: int) -> list[Asked]:
    """Ask the question of each attack once."""
    loaded = AutoTokenizer.from_pretrained(local_checkpoint(settings.model.name, settings.paths.data))
    tokenizer = HuggingFaceTokenizer(loaded)
    control = frozenset(loaded.added_tokens_decoder)
    async with (
        RetrieverClient(f"http://127.0.0.1:{retriever_port}", timeout=settings.episode.search_timeout) as retriever,
        PolicyClient(f"http://127.0.0.1:{policy_port}", timeout=settings.episode.request_timeout) as policy,
    ):

        async def one(attack: Attack, _: int) -> Asked:
            recorder = Recorder(policy)
            agent = build_agent(settings, recorder, retriever, tokenizer)
            episode = await agent.run(attack.question.text, GREEDY)
            return Asked(attack, episode, broken_promises(episode, recorder.turns, tokenizer, control))

        answered = await ask_each(attacks, one, concurrency=settings.policy.max_num_seqs)
    if failed := [each for each in answered if isinstance(each, ServiceError)]:
        raise failed[0]
    return [each for each in answered if isinstance(each, Asked)]


def keep(path: Path, asked: Sequence[Asked]) -> None:
    """One line of JSON per episode, with its attack."""
    with atomic_write(path) as out:
        for each in asked:
            out.write(orjson.dumps(asdict(each)) + b"\n")


def kept(path: Path, attacks: Sequence[Attack]) -> list[Asked] | None:
    """The episodes of a file, if they are those of the attacks."""
    if not path.is_file():
        return None
    records = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    if [record["attack"]["hostile"] for record in records] != [asdict(attack.hostile) for attack in attacks]:
        return None
    return [
        Asked(attack, episode_from_dict(record["episode"]), record["broken"])
        for attack, record in zip(attacks, records, strict=True)
    ]


if __name__ == "__main__":
    main()
