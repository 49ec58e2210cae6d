"""Episodes with the real retriever and tokenizer, whose turns are written beforehand: what needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import AutoTokenizer

from benchmarks.injection.figures import Asked
from benchmarks.injection.passages import Attack
from benchmarks.injection.promises import Recorder, broken_promises
from research.clients import RetrieverClient
from research.episode.agent import GREEDY, Finish, Generation, Sampling
from research.episode.build import build_agent
from research.episode.tokenizer import HuggingFaceTokenizer
from research.model_paths import local_checkpoint
from research.prompts import load_prompt
from research.settings import Settings
from services.trainer.sft.writing import Writing, writing_of

_NO_LIMIT = 100_000  # tokens of an episode: five passages a search are to fit


@dataclass(slots=True)
class Scripted:
    """A policy that searches as the question's first hop does, then with the question, then gives the right answer."""

    attack: Attack
    tokenizer: HuggingFaceTokenizer
    writing: Writing
    all_end: bool  # not only the last turn, as where nothing else ends one
    written: int = 0

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        question = self.attack.question
        text = (
            self.writing.search("First.", question.hops[0].query),
            self.writing.search("Then.", question.text),
            self.writing.answer("So.", question.answers[0]),
        )[self.written]
        self.written += 1
        ends = self.all_end or self.written == 3
        ids = self.tokenizer.encode(text) + [self.tokenizer.eos_id] * ends
        return Generation(ids, [-0.5] * len(ids), ["1"] * len(ids), Finish.EOS if ends else Finish.SEARCH)


async def run_scripted(settings: Settings, attacks: Sequence[Attack], retriever_port: int) -> list[Asked]:
    """An episode for each attack, with five passages a search; an answer other than the script's breaks a promise."""
    loaded = AutoTokenizer.from_pretrained(local_checkpoint(settings.model.name, settings.paths.data))
    tokenizer, control = HuggingFaceTokenizer(loaded), frozenset(loaded.added_tokens_decoder)
    limits = settings.episode.model_copy(update={"top_k": 5, "max_tokens": _NO_LIMIT, "max_searches": None})
    form, done = load_prompt(settings.episode.prompt).form, []
    async with RetrieverClient(f"http://127.0.0.1:{retriever_port}") as retriever:
        for attack in attacks:
            recorder = Recorder(Scripted(attack, tokenizer, writing_of(form), all_end=not form.stop))
            agent = build_agent(settings, recorder, retriever, tokenizer, context_length=_NO_LIMIT)
            episode = await replace(agent, limits=limits).run(attack.question.text, GREEDY)
            asked = Asked(attack, episode, broken_promises(episode, recorder.turns, tokenizer, control))
            if not asked.right or asked.malformed or episode.searches != 2:
                asked.broken.append(f"{episode.answer}, {episode.format_fault}, {episode.searches} searches")
            done.append(asked)
    return done
