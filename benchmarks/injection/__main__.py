"""Hostile passages against the real services: what they turn, and that they break nothing.

Run: python -m benchmarks.injection policy.serve=PATH [--work runs/injection] [section.key=value …]; needs `research
prepare`, and a model that searches, such as runs/demo/weights/version-… after `make demo`.
200 held-out questions are asked four times, greedily: of the built-in corpus, of the same once more (what changes then
is chance: numerics follow the batch), of the corpus with a passage more for each question that says nothing (what
changes is that it stands before the right one), and with the hostile one in its place. Each episode is checked against
what was sampled. Ends with 1 if a promise is broken. Writes tables in Markdown. Episodes are kept below --work, which
belongs to one model, and not asked for again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from transformers import AutoTokenizer

from benchmarks.injection.corpora import CLEAN, DECOYS, HOSTILE, build_corpora
from benchmarks.injection.figures import Asked, difference, of_corpora, of_kinds, stop_reasons
from benchmarks.injection.passages import Attack, attacks_on, questions_to_attack
from benchmarks.injection.promises import Recorder, broken_promises
from benchmarks.injection.reach import ranks, table
from benchmarks.injection.record import ROUNDS, Place, Record
from benchmarks.injection.scripted import run_scripted
from benchmarks.retriever.load import SERVE, free_port, serving
from research.clients import PolicyClient, RetrieverClient
from research.config import load_settings
from research.episode.agent import GREEDY, StopReason
from research.episode.build import build_agent
from research.episode.tokenizer import HuggingFaceTokenizer
from research.errors import ServiceError
from research.model_paths import local_checkpoint
from research.questions.sources import load_questions
from research.scoring.ask import ask_each
from research.settings import Settings

# Seconds: how loaded the machine is must not end an episode.
PATIENCE = 3600.0


def main() -> None:
    """Build, serve, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/injection"))
    parser.add_argument(
        "--without-model", action="store_true", help="only what is found, with turns written beforehand"
    )
    parser.add_argument("overrides", nargs="*", help="settings, such as policy.serve=PATH")
    arguments = parser.parse_args()
    settings = load_settings(overrides=arguments.overrides)
    held_out = load_questions(settings.questions.held_out, "held_out", settings.paths.data)
    attacks = attacks_on(questions_to_attack(held_out))
    if arguments.without_model:
        without_model(settings, arguments.overrides, attacks, arguments.work)
        return
    record = Record(arguments.work / "episodes.jsonl", attacks)
    if record.missing():
        corpora = build_corpora(arguments.overrides, attacks, arguments.work)
        with ExitStack() as services:
            ports, policy = start(services, arguments.overrides, corpora)
            asyncio.run(ask(settings, record, {name: ports[corpus] for name, corpus in ROUNDS.items()}, policy))
    asked = {name: [record.asked[name, number] for number in range(len(attacks))] for name in ROUNDS}
    broken = [
        f"{name}: {each.attack.hostile.id}: {why}" for name in asked for each in asked[name] for why in each.broken
    ]
    print(of_corpora(asked, CLEAN), stop_reasons(asked), difference(asked, HOSTILE, DECOYS, CLEAN), sep="\n\n")
    print("", of_kinds(asked, HOSTILE, CLEAN), "", sep="\n")
    print(f"promises broken: {len(broken)} in {sum(map(len, asked.values()))} episodes", *broken, sep="\n")
    sys.exit(bool(broken))


def without_model(settings: Settings, overrides: Sequence[str], attacks: Sequence[Attack], work: Path) -> None:
    """What the retriever finds, and episodes whose turns are written beforehand."""
    own, port = build_corpora(overrides, attacks, work)[HOSTILE], free_port()
    with serving([*SERVE, *overrides, *own, f"retriever.port={port}"], port, seconds=300):
        print(table(attacks, asyncio.run(ranks(attacks, port))))
        asked = asyncio.run(run_scripted(settings, attacks, port))
    broken = [f"{each.attack.hostile.id}: {why}" for each in asked for why in each.broken]
    served = sum(each.served for each in asked)
    print(f"\nscripted: {served} of {len(asked)} were served; promises broken: {len(broken)}", *broken, sep="\n")
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


async def ask(settings: Settings, record: Record, retrievers: Mapping[str, int], policy_port: int) -> None:
    """Ask what is missing; `retrievers` has a port for each round."""
    loaded = AutoTokenizer.from_pretrained(local_checkpoint(settings.model.name, settings.paths.data))
    tokenizer = HuggingFaceTokenizer(loaded)
    control = frozenset(loaded.added_tokens_decoder)
    async with AsyncExitStack() as clients:
        policy = await clients.enter_async_context(PolicyClient(f"http://127.0.0.1:{policy_port}", timeout=PATIENCE))
        of_round = {
            name: await clients.enter_async_context(
                RetrieverClient(f"http://127.0.0.1:{port}", timeout=settings.episode.search_timeout)
            )
            for name, port in retrievers.items()
        }

        async def one(place: Place, _: int) -> None:
            name, number = place
            attack = record.attacks[number]
            recorder = Recorder(policy)
            agent = build_agent(settings, recorder, of_round[name], tokenizer)
            episode = await agent.run(attack.question.text, GREEDY)
            if episode.stop_reason is StopReason.TIME_LIMIT:
                raise ServiceError(
                    f"a turn took more than {PATIENCE:.0f} s: that says something about the machine only"
                )
            record.keep(place, Asked(attack, episode, broken_promises(episode, recorder.turns, tokenizer, control)))

        for outcome in await ask_each(record.missing(), one, concurrency=settings.policy.max_num_seqs):
            if isinstance(outcome, ServiceError):
                raise outcome


if __name__ == "__main__":
    main()
