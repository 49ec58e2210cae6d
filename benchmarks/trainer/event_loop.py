"""How long a step of the paper's size holds the trainer's event loop: in all, at once, and by part.

Run: python -m benchmarks.trainer.event_loop [--questions 256] [--http]; needs `research prepare`.

The loop's own step (`GrpoStep`) takes 256 questions × 5 made-up episodes from questions to the record, with the
built-in tokenizer and passages of the built-in corpus. An episode has 5 searches of 5 passages and about 3,600 tokens.
Policy, retriever, update and publishing only wait. *Held* is the time inside callbacks of the loop; a *stall* is the
longest that something due on the loop was late. On a machine with other work, read the CPU of the loop's thread.

With --http, the same requests go through the real clients to a server that runs in a process of its own; that is what
the clients cost on top.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import multiprocessing
import random
import socket
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import uvicorn
from transformers import AutoTokenizer

from research.clients import PolicyClient, RetrieverClient
from research.config import load_settings
from research.episode.agent import Finish, Generation, Sampling
from research.episode.build import build_agent
from research.episode.tokenizer import HuggingFaceTokenizer
from research.model_paths import local_checkpoint
from research.passages import Passage
from research.questions import Question
from research.questions.sampler import QuestionSampler
from research.settings import Settings
from services.trainer import grpo_step
from services.trainer.clock import PhaseClock
from services.trainer.garbage import collected_between_steps
from services.trainer.model.memory import keep_freed_memory
from services.trainer.rollout import rewards as trainer_rewards
from services.trainer.rollout import versions as trainer_versions
from services.trainer.rollout.gate import ServiceGate
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.versions import Versions
from services.trainer.run import Run
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.status import RunStatus
from services.trainer.weights.disk_copy import DiskCopy

TRAINING_QUESTIONS = 19_938  # of MuSiQue
SEARCHES, TOP_K, PASSAGE_TOKENS, TURN_TOKENS = 5, 5, 112, 72
# Seconds: the shortest and the longest that a turn and a search take, and what the rest of a step takes.
TURN, SEARCH, REST = (1.0, 4.0), (0.05, 0.5), 1.0
TICK = 0.001
DRAWN = 256


class Meter:
    """Times every callback of the event loop, and functions within them."""

    def __init__(self) -> None:
        self.held = self.computed = self.longest = self.most_computed = self.late = 0.0
        self.parts: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def watch(self) -> Iterator[None]:
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            if handle._callback == self._tick:  # type: ignore[attr-defined]
                run(handle)
                return
            started, busy = time.perf_counter(), time.thread_time()
            run(handle)
            took, computed = time.perf_counter() - started, time.thread_time() - busy
            self.held, self.computed = self.held + took, self.computed + computed
            self.longest, self.most_computed = max(self.longest, took), max(self.most_computed, computed)

        asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]
        due = asyncio.get_running_loop().call_later(TICK, self._tick, time.perf_counter() + TICK)
        try:
            yield
        finally:
            due.cancel()
            asyncio.Handle._run = run  # type: ignore[method-assign]

    def _tick(self, expected: float) -> None:
        self.late = max(self.late, time.perf_counter() - expected)
        asyncio.get_running_loop().call_later(TICK, self._tick, time.perf_counter() + TICK)

    def time(self, owner: Any, name: str, part: str) -> None:
        """Time a function wherever it runs on the loop's thread."""
        function, loop_thread = getattr(owner, name), threading.get_ident()

        def timed(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != loop_thread:
                return function(*args, **kwargs)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.parts[part].append(time.perf_counter() - started)

        setattr(owner, name, timed)


class MadeUp:
    """Policy and retriever of episodes that search five times and answer."""

    def __init__(self, tokenizer: HuggingFaceTokenizer, corpus: Path) -> None:
        lines = corpus.read_text(encoding="utf-8").splitlines()[:2000]
        text = " ".join(json.loads(line)["text"] for line in lines)
        ids = tokenizer.encode(text)
        cuts = range(0, len(ids) - PASSAGE_TOKENS, PASSAGE_TOKENS)
        self._passages = [
            Passage(str(cut), "A title", tokenizer.decode(ids[cut : cut + PASSAGE_TOKENS])) for cut in cuts
        ]
        thought = tokenizer.decode(ids[: TURN_TOKENS - 20])
        self._search = tokenizer.encode(f"<think>{thought}</think>\n<search>who painted it</search>")
        self._answers = [
            tokenizer.encode(f"<think>{thought}</think>\n<answer>\\boxed{{{final}}}</answer>") for final in "xy"
        ]
        self._random = random.Random(1)
        self.version = "0"
        # Drawn before, so that drawing does not count.
        self._logprobs = [[-self._random.random() for _ in range(2 * TURN_TOKENS)] for _ in range(DRAWN)]
        self._found = [self._random.sample(self._passages, TOP_K) for _ in range(DRAWN)]

    def generation(self, prompt_tokens: int) -> Generation:
        """A search as long as there is room for another, then the answer."""
        ends = prompt_tokens > SEARCHES * TOP_K * PASSAGE_TOKENS
        ids = self._random.choice(self._answers) if ends else self._search
        logprobs = self._random.choice(self._logprobs)[: len(ids)]
        return Generation(list(ids), logprobs, [self.version] * len(ids), Finish.EOS if ends else Finish.SEARCH)

    def found(self) -> list[Passage]:
        return self._random.choice(self._found)

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        await asyncio.sleep(self._random.uniform(*TURN))
        return self.generation(len(prompt_ids))

    async def search(self, query: str, top_k: int) -> list[Passage]:
        await asyncio.sleep(self._random.uniform(*SEARCH))
        return self.found()


def answering(made_up: MadeUp) -> Callable[..., Any]:
    """The two services as one ASGI application."""

    async def answer(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        body = b""
        more = True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == "/search":
            hits = [{"id": p.id, "title": p.title, "text": p.text, "score": 0.5} for p in made_up.found()]
            content: dict[str, Any] = {"revision": "1", "index": "x", "results": [hits]}
        else:
            drawn = made_up.generation(len(json.loads(body)["token_ids"]))
            choice = {
                "token_ids": drawn.token_ids,
                "logprobs": {"content": [{"token": "token", "logprob": each} for each in drawn.logprobs]},
                "weight_versions": [{"start": 0, "end": len(drawn.token_ids), "version": "0"}],
                "finish_reason": "stop",
                "stop_reason": "</search>" if drawn.finish is Finish.SEARCH else None,
            }
            content = {"choices": [choice]}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(content).encode()})

    return answer


@contextmanager
def served(made_up: MadeUp) -> Iterator[str]:
    """The URL of a process that answers as both services."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        config = uvicorn.Config(answering(made_up), log_level="error", lifespan="off", timeout_keep_alive=60)
        process = multiprocessing.get_context("fork").Process(
            target=uvicorn.Server(config).run, kwargs={"sockets": [listener]}, daemon=True
        )
        process.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.terminate()


def settings_of(questions: int, *more: str) -> Settings:
    """The paper's episode and step, with the built-in model's tokenizer."""
    overrides = [
        f"grpo.questions_per_step={questions}",
        "model.name=builtin:smollm2-135m-instruct",
        "grpo.steps=1",
        *more,
    ]
    return load_settings("qwen2.5-7b-musique", overrides, environment=False)


async def step(settings: Settings, made_up: MadeUp, clients: tuple[Any, Any], directory: Path, meter: Meter) -> None:
    """Take one step."""
    tokenizer = HuggingFaceTokenizer(
        AutoTokenizer.from_pretrained(local_checkpoint(settings.model.name, settings.paths.data))
    )
    agent = build_agent(settings, *clients, tokenizer)
    rules = agent.prompt.text
    agent = replace(agent, prompt=replace(agent.prompt, text=rules * max(1, 200 // len(tokenizer.encode(rules)))))

    async def all_ready() -> None:
        return None

    async def wait(_: object) -> Any:
        await asyncio.sleep(REST)
        return SimpleNamespace(as_entry=dict)

    status, run_dir = RunStatus("x", 1), RunDirectory(directory)
    journal = EpisodeJournal(run_dir.episodes_dir)
    rollouts = Rollouts(
        agent,
        Sampling(),
        ServiceGate(all_ready, 1.0, status),
        0,
        Versions(lambda: int(made_up.version)),
        journal,
        seed=1,
    )
    train = [Question(str(i), f"Who painted picture {i}?", ("x",)) for i in range(TRAINING_QUESTIONS)]
    run = SimpleNamespace(
        settings=settings,
        sampler=QuestionSampler(train, {}, 1),
        rollouts=rollouts,
        clock=PhaseClock(status),
        status=status,
        run_dir=run_dir,
        learner=SimpleNamespace(grpo_update=lambda sequences, step: None),
        in_learner_thread=wait,
        publish=wait,
        publisher=SimpleNamespace(version=0),
        _record=DiskCopy(),
        drawn={},
    )
    run.record_episodes = partial(Run.record_episodes, cast(Run, run))
    for owner, name, part in (
        (run.sampler, "draw", "draw questions"),
        (tokenizer, "prompt_ids", "tokenize prompts"),
        (tokenizer, "encode", "tokenize results"),
        (tokenizer, "decode", "decode turns"),
        (trainer_rewards, "score", "score"),
        (trainer_versions, "require_version", "check versions"),
        (journal, "recorded", "read the journal"),
        (journal, "add", "journal"),
        (grpo_step, "compute_advantages", "advantages"),
        (run_dir, "write_episodes", "record"),
        (grpo_step, "step_metrics", "metrics"),
        (clients[0], "generate", "made-up policy (not ours)"),
    ):
        meter.time(owner, name, part)
    with collected_between_steps(), meter.watch():
        await grpo_step.GrpoStep(cast(Run, run)).take(1)
        await run._record.written()


def report(meter: Meter, directory: Path) -> None:
    """Print what was timed; the episodes are those of the record."""
    with gzip.open(directory / "episodes" / "step-000001.jsonl.gz", "rt", encoding="utf-8") as lines:
        tokens = [len(e["prompt_ids"]) + len(e["token_ids"]) for e in (json.loads(line)["episode"] for line in lines)]
    print(f"{len(tokens)} episodes of {sum(tokens) / len(tokens):.0f} tokens\n")
    print("| part | s | longest, ms |\n|---|---|---|")
    known = 0.0
    for part, times in sorted(meter.parts.items(), key=lambda item: -sum(item[1])):
        known += sum(times)
        print(f"| {part} | {sum(times):.2f} | {max(times) * 1000:.1f} |")
    print(f"| the rest: tasks, turns, waits for threads | {meter.held - known:.2f} | |")
    print(f"| **held in all** | **{meter.held:.2f}** | {meter.longest * 1000:.1f} |")
    print(f"| of it, CPU of the loop's thread | **{meter.computed:.2f}** | {meter.most_computed * 1000:.1f} |")
    print(f"| longest stall | | **{max(meter.late, meter.longest) * 1000:.1f}** |", flush=True)


def main() -> None:
    """Take a step and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--http", action="store_true", help="through the real clients")
    arguments = parser.parse_args()
    settings, meter = settings_of(arguments.questions), Meter()
    keep_freed_memory()
    tokenizer = HuggingFaceTokenizer(
        AutoTokenizer.from_pretrained(local_checkpoint(settings.model.name, settings.paths.data))
    )
    made_up = MadeUp(tokenizer, settings.paths.data / "corpus" / "wikipedia-leads.jsonl")

    async def through_http(directory: Path, url: str) -> None:
        async with PolicyClient(url) as policy, RetrieverClient(url) as retriever:
            await step(settings, made_up, (policy, retriever), directory, meter)

    with tempfile.TemporaryDirectory() as directory:
        started = time.process_time()
        if arguments.http:
            with served(made_up) as url:
                asyncio.run(through_http(Path(directory), url))
        else:
            asyncio.run(step(settings, made_up, (made_up, made_up), Path(directory), meter))
        report(meter, Path(directory))
        print(f"\nCPU of the whole process, loading included: {time.process_time() - started:.1f} s")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
