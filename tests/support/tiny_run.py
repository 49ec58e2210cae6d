"""A whole training run in one process: the real loop, learner, rollouts, journal and publisher on a tiny Llama.

Only the network is left out. The policy loads the checkpoints that the publisher writes, as a server would, and the
retriever knows six passages. A token stands for a whole phrase, so that a short supervised phase teaches the format.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM

from research.clients import PolicyAdmin, PolicyClient, RetrieverClient
from research.episode.agent import Finish, Generation, Retriever, Sampling, SearchAgent
from research.errors import ConfigurationError, ProtocolError
from research.passages import Passage
from research.prompts import Prompt
from research.questions import Hop, Question
from research.schemas import WeightsRequest, WeightsResponse
from research.settings import Settings
from research.weights.run_weights import weights_dir
from services.trainer.learner.learner import Learner
from services.trainer.learner.team import Team
from services.trainer.loop import TrainingLoop
from services.trainer.parallel.ranks import Ranks
from services.trainer.rollout.gate import ServiceGate
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.versions import Versions
from services.trainer.run import Run
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.status import RunStatus
from services.trainer.weights.publisher import Publisher
from services.trainer.weights.replicas import Replica, Replicas
from services.trainer.weights.weight_sync import DiskSync
from tests.support.tiny_model import tiny_settings

Control = Callable[[TrainingLoop, RunStatus], Coroutine[Any, Any, None]]
STEPS = 6
_SLOW_SECONDS = 0.5
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Peru": "Lima",
}
BOS, EOS = 0, 1
PHRASES = [
    "",
    "",
    "Capital of ",
    "?",
    "<think>I need to find the capital of ",
    ".</think>\n<search>capital ",
    "</search>",
    '\n<result>\n"',
    '"\nThe capital of ',
    " is ",
    ".\n</result>\n",
    "\n<result>\nNo passage was found.\n</result>\n",
    "<think>I found ",
    ".</think>\n<answer>\\boxed{",
    "}</answer>",
    "The capital of ",
    ".",
    *CAPITALS,
    *CAPITALS.values(),
]
SETTINGS = [
    "model.max_model_len=96",
    "episode.max_tokens=48",
    "episode.top_k=1",
    "questions.mix={}",
    f"grpo.steps={STEPS}",
    "grpo.questions_per_step=3",
    "grpo.group_size=4",
    "grpo.kl_coefficient=0.01",
    "optimizer.warmup_steps=4",
    "sft.enabled=true",
    "sft.traces={ one_hop = 6 }",
    "sft.steps=30",
    "sft.batch_size=6",
    "sft.learning_rate=1e-2",
    "sft.retry_fraction=0.0",
    "evaluation.per_kind=2",
    "evaluation.pass_at_k_per_kind=0",
    "checkpoints.interval=2",
    "checkpoints.keep=9",
]


class PhraseTokenizer:
    """One id a phrase, the longest that fits first; ids beyond the phrases are there to be sampled by mistake."""

    eos_id = EOS
    special_tokens: tuple[str, ...] = ()

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            fitting = [i for i, phrase in enumerate(PHRASES) if phrase and text.startswith(phrase)]
            if not fitting:
                raise ProtocolError(f"no phrase for {text!r}")
            ids.append(max(fitting, key=lambda i: len(PHRASES[i])))
            text = text.removeprefix(PHRASES[ids[-1]])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(PHRASES[i] if i < len(PHRASES) else "~" for i in ids)

    def prompt_ids(self, prompt: Prompt, question: str) -> list[int]:
        return [BOS, *self.encode(question)]

    def reply_ids(self, text: str, *, empty: str, ended: bool) -> list[int]:
        raise ConfigurationError("no chat template")


class Atlas:
    """Finds the passage on a country by its name."""

    async def search(self, query: str, top_k: int) -> list[Passage]:
        found = [Passage(c, c, f"The capital of {c} is {city}.") for c, city in CAPITALS.items() if c in query]
        return found[:top_k]


class InProcessPolicy:
    """A policy server without the server: it loads what is published and samples from it, token by token."""

    url = "in this process"

    def __init__(self, told: Connection, *, seeded: bool, may_sample: bool, slow: bool) -> None:
        self._told, self._seeded, self._may_sample, self._slow = told, seeded, may_sample, slow
        self._loaded, self._asked = asyncio.Event(), 0
        self._version = "0"
        self._model: Any = None

    async def update_weights(self, request: WeightsRequest) -> WeightsResponse:
        self._model = AutoModelForCausalLM.from_pretrained(request.path, dtype=torch.float32).eval()
        self._version = request.version
        self._loaded.set()
        return WeightsResponse(version=request.version, seconds={"load": 0.0})

    async def close(self) -> None:
        pass

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        assert self._may_sample or sampling.temperature == 0
        self._told.send(self._version)
        await asyncio.sleep(0)  # other episodes take their turn, as they do over a network
        self._asked += 1
        if self._slow and sampling.temperature and self._asked % 3 == 0:
            self._loaded.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._loaded.wait(), _SLOW_SECONDS)
        seed = sampling.seed if self._seeded and sampling.seed is not None else secrets.randbits(31)
        generator = torch.Generator().manual_seed(seed)
        ids, finish = list(prompt_ids), Finish.LENGTH
        logprobs: list[float] = []
        while len(logprobs) < max_tokens and finish is Finish.LENGTH:
            token, logprob = self._next_token(ids, sampling.temperature, generator)
            ids.append(token)
            logprobs.append(logprob)
            finish = {EOS: Finish.EOS, PHRASES.index("</search>"): Finish.SEARCH}.get(token, Finish.LENGTH)
        return Generation(ids[len(prompt_ids) :], logprobs, [self._version] * len(logprobs), finish)

    @torch.no_grad()
    def _next_token(self, ids: list[int], temperature: float, generator: torch.Generator) -> tuple[int, float]:
        logits = self._model(torch.tensor([ids])).logits[0, -1]
        distribution = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
        if temperature == 0:
            token = int(distribution.argmax())
        else:
            token = int(torch.multinomial(distribution.exp(), 1, generator=generator))
        return token, float(distribution[token])


def questions() -> list[Question]:
    return [
        Question(
            id=country,
            text=f"Capital of {country}?",
            answers=(city,),
            kind="one_hop",
            hops=(Hop(f"capital {country}", f"the capital of {country}", country, city),),
        )
        for country, city in CAPITALS.items()
    ]


def train(
    model: Path,
    runs: Path,
    told: Connection,
    *,
    overrides: Sequence[str] = (),
    seeded: bool = True,
    may_sample: bool = True,
    slow: bool = False,
    ranks: Ranks | None = None,
    retriever_url: str | None = None,
    control: Control | None = None,
) -> None:
    """Start or resume the run `demo` below `runs` and follow it to its end.

    Each generation is told to `told` before it begins. Unless `seeded`, the sampler never says the same twice. If it is
    `slow`, every third turn takes until new weights come, or half a second. With `retriever_url`, a real retriever is
    asked instead of the atlas. `control` runs beside the loop and gives it orders.
    """
    torch.set_num_threads(1)
    policy = InProcessPolicy(told, seeded=seeded, may_sample=may_sample, slow=slow)
    settings = tiny_settings(runs, *SETTINGS, *overrides)

    async def run() -> None:
        async with AsyncExitStack() as opened:
            client = RetrieverClient(retriever_url) if retriever_url is not None else None
            retriever = await opened.enter_async_context(client) if client is not None else Atlas()
            await _train(settings, model, policy, ranks or Ranks(), retriever, control)

    asyncio.run(run())


async def _train(
    settings: Settings,
    model: Path,
    policy: InProcessPolicy,
    ranks: Ranks,
    retriever: Retriever,
    control: Control | None,
) -> None:
    run_dir, status = RunDirectory(settings.run_dir), RunStatus(settings.run, settings.grpo.steps)
    run_dir.open(settings)
    replicas = Replicas([Replica(cast(PolicyClient, policy), cast(PolicyAdmin, policy))], DiskSync(), status.log)
    publisher = Publisher(model, weights_dir(settings), replicas, "none")

    async def all_ready() -> None:
        return None

    agent = SearchAgent(policy, retriever, PhraseTokenizer(), Prompt("none", ""), settings.episode, 96)
    rollouts = Rollouts(
        agent,
        Sampling(settings.episode.temperature, settings.episode.top_p),
        ServiceGate(all_ready, 1.0, status),
        service_retries=0,
        versions=Versions(lambda: publisher.version, settings.trainer.max_staleness, first=1),
        journal=EpisodeJournal(run_dir.episodes_dir),
        seed=settings.seed,
        branches=settings.grpo.branches,
    )
    run = Run(
        settings,
        learner=Team(Learner(settings, model, ranks), ranks),
        agent=agent,
        rollouts=rollouts,
        publisher=publisher,
        run_dir=run_dir,
        status=status,
        train=questions(),
        held_out=questions(),
    )
    loop = TrainingLoop(run)
    if control is None:
        await loop.run()
        return
    async with asyncio.TaskGroup() as together:
        together.create_task(loop.run())
        together.create_task(control(loop, status))
