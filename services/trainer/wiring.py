"""Assembles a training run from settings: clients, learner, question sets and the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import torch
from transformers import AutoTokenizer

from research.clients import PolicyAdmin, PolicyClient
from research.descriptors import connections_each
from research.episode.agent import Sampling, SearchAgent
from research.episode.build import build_agent
from research.episode.fitting import fitting, summary
from research.episode.tokenizer import HuggingFaceTokenizer
from research.errors import ConfigurationError, ServiceError
from research.model_paths import local_checkpoint
from research.prompts import load_prompt
from research.questions import Question
from research.questions.model import digest_of
from research.questions.sources import BUILTIN, BUILTIN_CORPUS, OF_BUILTIN_CORPUS, builtin_path, load_questions
from research.retrievers import Retrievers
from research.scoring.rewards import reward_functions
from research.settings import Settings
from research.weights.run_weights import Origin, is_trained, weights_dir
from services.machine.number_formats import NumberFormat, resolved
from services.trainer.learner.team import Team, load_together
from services.trainer.loop import TrainingLoop
from services.trainer.parallel.ranks import Ranks
from services.trainer.rollout.gate import ServiceGate
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.rollout.rewards import open_rewards
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.stragglers import Stragglers
from services.trainer.rollout.versions import Versions
from services.trainer.run import Run
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.sft.writing import writing_of
from services.trainer.status import RunStatus
from services.trainer.telemetry.forecast import Speeds, forecast
from services.trainer.weights.nccl_sync import NcclSync
from services.trainer.weights.publisher import Publisher
from services.trainer.weights.replicas import Replica, Replicas
from services.trainer.weights.weight_sync import DiskSync, WeightSync
from services.web.auth import ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE, environment_secret


@asynccontextmanager
async def training_loop(settings: Settings, status: RunStatus, ranks: Ranks) -> AsyncIterator[TrainingLoop]:
    """Open everything that a run needs, check that it fits together, and close it again.

    `ranks`: the processes that train together; this is rank 0.

    Raises:
        ConfigurationError, AssetError: settings or files are invalid; nothing has been started.
    """
    settings, numbers, admin_token = await asyncio.to_thread(_checked, settings)
    status.number_format = numbers.line
    status.log(numbers.line)
    if numbers.warning:
        status.log(f"WARNING: {numbers.warning}")
    foresee(settings, numbers, status)
    # 1. Read the questions, open the run directory, load the tokenizer: not on the loop, which a slow disk would hold.
    run_dir = RunDirectory(settings.run_dir)
    train, held_out = await asyncio.to_thread(_questions, settings, status)
    await asyncio.to_thread(run_dir.open, settings, digest_of([*train, *held_out]), numbers.as_dict())
    base = await asyncio.to_thread(local_checkpoint, settings.model.name, settings.paths.data)
    tokenizer = await asyncio.to_thread(AutoTokenizer.from_pretrained, base)
    # 2. Create the clients of the retriever and the policy servers.
    limits, trainer = settings.episode, settings.trainer
    retriever = _retriever(settings)
    policy = Replicas(_replicas(settings, admin_token), _weight_sync(settings, status), status.log)
    # 3. Assemble the agent, the publisher and the service gate.
    agent = build_agent(settings, policy, retriever, HuggingFaceTokenizer(tokenizer))
    train = await asyncio.to_thread(_askable, agent, train, "questions.train", run_dir, status)
    held_out = await asyncio.to_thread(_askable, agent, held_out, "questions.held_out", run_dir, status)
    origin = Origin(settings.run, str(run_dir.directory.resolve()), settings.model.name, 0, is_trained(base))
    publisher = Publisher(base, weights_dir(settings), policy, agent.prompt.source, origin)

    async def check_services() -> str | None:
        try:
            await retriever.check_ready()
        except ServiceError as error:
            return str(error)
        return await publisher.reconcile()

    gate = ServiceGate(check_services, trainer.outage_timeout, status)
    # 4. Load the learner, in every process, and hand out the loop.
    opened = AsyncExitStack()
    try:
        judging = open_rewards(settings, run_dir.directory / "verdicts.jsonl", gate.wait_until_ready)
        rewards = await opened.enter_async_context(judging)
        rollouts = Rollouts(
            agent,
            Sampling(limits.temperature, limits.top_p),
            gate,
            settings.grpo.service_retries,
            versions=Versions(lambda: publisher.version, trainer.max_staleness, first=int(settings.sft.enabled)),
            journal=EpisodeJournal(run_dir.episodes_dir),
            run=settings.run,
            seed=settings.seed if settings.grpo.per_episode_seeds else None,
            branches=settings.grpo.branches,
            rewards=rewards,
            stragglers=Stragglers(share, policy.cut) if (share := settings.grpo.straggler_share) else None,
        )
        team = await asyncio.to_thread(_team, settings, ranks)
        try:
            run = Run(
                settings,
                learner=team,
                agent=agent,
                rollouts=rollouts,
                publisher=publisher,
                run_dir=run_dir,
                status=status,
                train=train,
                held_out=held_out,
            )
        except BaseException:
            await asyncio.to_thread(team.close)  # the others wait for orders
            raise
        try:
            yield TrainingLoop(run)
        finally:
            # Whoever leads other processes leaves their group only after it has told them.
            if run.ended is not None and not ranks.is_alone:
                await asyncio.wrap_future(run.ended)
    finally:
        await asyncio.gather(opened.aclose(), retriever.close(), policy.close(), publisher.close())


def _questions(settings: Settings, status: RunStatus) -> tuple[list[Question], list[Question]]:
    """The questions to train on and those held out."""
    builtin = BUILTIN in (settings.questions.train, settings.questions.held_out)
    if builtin and settings.corpus.name != BUILTIN_CORPUS:
        told = f"questions: name your own for {settings.corpus.name} ({OF_BUILTIN_CORPUS})"
        if not builtin_path(settings.paths.data, "train").is_file():
            raise ConfigurationError(told)
        status.log(f"WARNING: {told}, unless its passages hold those")  # as a larger corpus may
    train = load_questions(settings.questions.train, "train", settings.paths.data)
    held_out = load_questions(settings.questions.held_out, "held_out", settings.paths.data)
    if settings.turns.search_gain and not any(question.supporting_titles for question in train):
        raise ConfigurationError(
            f"turns.search_gain: no question of {settings.questions.train} names the passages that support its answer, "
            "so no search could gain; set it to 0, or use questions with `hops` or `supporting`"
        )
    return train, held_out


def _checked(settings: Settings) -> tuple[Settings, NumberFormat, str]:
    """The settings with a number format of this machine, and the policy's admin token; nothing is opened."""
    admin_token = environment_secret(ADMIN_TOKEN_VARIABLE)
    if admin_token is None:
        raise ConfigurationError(
            f"{ADMIN_TOKEN_VARIABLE} is not set; set it to the policy server's admin token, which sending weights "
            "needs: `export` the same here and where `research serve policy` runs (beside `research up`, use "
            "`research run start` instead)"
        )
    if settings.episode.temperature == 0:
        raise ConfigurationError("episode.temperature: 0 makes all episodes of a group the same; set it above 0")
    if settings.episode.top_p < 1:
        raise ConfigurationError(
            "episode.top_p: the sampler would report log-probabilities of the nucleus, and the learner computes those "
            "of all tokens; set it to 1 to train"
        )
    reward_functions(settings.reward)  # refuses what cannot be imported
    if settings.sft.enabled or settings.ablation.kind == "supervised":
        writing_of(load_prompt(settings.episode.prompt).form)  # refuses what traces are not written in
        if not any(settings.sft.traces.values()):
            raise ConfigurationError("sft.traces: no kind has a trace to learn from; set a count above 0")
    settings, numbers = resolved(settings, settings.trainer.device)
    return settings, numbers, admin_token


def _askable(
    agent: SearchAgent, questions: list[Question], setting: str, run_dir: RunDirectory, status: RunStatus
) -> list[Question]:
    """Those that fit the context; the others are named in the log and in the record."""
    kept, left_out = fitting(agent, questions, setting)
    if left_out:
        status.log(f"WARNING: {summary(left_out, len(questions), setting)}")
    run_dir.write_left_out(setting, left_out)
    return kept


def _team(settings: Settings, ranks: Ranks) -> Team:
    if not ranks.is_alone:
        ranks.tell(settings.model_dump_json().encode())  # the others load theirs, too
    return Team(load_together(settings, ranks), ranks)


def _replicas(settings: Settings, admin_token: str) -> list[Replica]:
    limits, api_key = settings.episode, environment_secret(API_KEY_VARIABLE)
    # No worker joins an NCCL group twice.
    tries = {"retries": 0} if settings.trainer.weight_sync == "nccl" else {}
    return [
        Replica(
            PolicyClient(
                url,
                timeout=limits.request_timeout,
                retries=limits.retries,
                api_key=api_key,
                at_once=_requests_at_once(settings),
                busy_timeout=settings.trainer.outage_timeout,
            ),
            PolicyAdmin(url, token=admin_token, **tries),
        )
        for url in settings.endpoints.policy_urls
    ]


def _retriever(settings: Settings) -> Retrievers:
    """What episodes search, also at one address: it keeps to one index, and another is an outage."""
    limits = settings.episode
    return Retrievers(
        settings.endpoints.retriever_urls,
        timeout=limits.search_timeout,
        retries=limits.retries,
        at_once=_requests_at_once(settings),
        busy_timeout=settings.trainer.outage_timeout,
    )


def _requests_at_once(settings: Settings) -> int:
    """To the retriever and to each policy server."""
    return connections_each(1 + len(settings.endpoints.policy_urls))


def foresee(settings: Settings, numbers: NumberFormat, status: RunStatus) -> None:
    """Forecast how long a run that has not begun will take, if the speed of this machine is known."""
    if speeds := Speeds.guessed(numbers):
        status.forecast(forecast(settings, speeds))


def _weight_sync(settings: Settings, status: RunStatus) -> WeightSync:
    if settings.trainer.weight_sync == "file":
        return DiskSync(settings.episode.request_timeout)
    if settings.trainer.device == "cpu" or not torch.cuda.is_available():
        raise ConfigurationError("trainer.weight_sync: nccl sends from GPU to GPU, but this trainer has none; use file")
    return NcclSync(torch.device("cuda", torch.cuda.current_device()), status.log)
