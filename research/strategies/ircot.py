"""IRCoT: a sentence of thought and a search with it, in turns (Trivedi et al. 2023, https://arxiv.org/abs/2212.10509).

As in FlashRAG's pipeline, the documents of all searches add up, the best by score last. It ends when a thought says
"So the answer is:", or after five rounds: then all thoughts together are the answer. The worked example is ours.
"""

from __future__ import annotations

from collections.abc import Iterable

from research.passages import Passage, ScoredPassage
from research.strategies.chat import Message, Session
from research.strategies.sentences import first_sentence

ROUNDS = 5
ANSWER_PHRASE = "So the answer is:"

_RULES = f"""\
You answer questions by reasoning over several documents, one thought at a time. Each demonstration has documents, a \
question and the thoughts that lead to its answer. Write only the next thought, one sentence, never all of them at \
once. When you reach the final step, begin it with "{ANSWER_PHRASE}"."""

_EXAMPLE = f"""\
Wikipedia Title: Adelaide River
The Adelaide River is a river in the Northern Territory of Australia.

Wikipedia Title: Lake Bled
Lake Bled is a lake in the Julian Alps of the Upper Carniolan region of northwestern Slovenia.

Wikipedia Title: Iskar (river)
The Iskar is a right tributary of the Danube. No river that runs only in Bulgaria is longer.

Question: Are the Adelaide River and Lake Bled in the same country?
Thought: The Adelaide River is in the Northern Territory of Australia. Lake Bled is in northwestern Slovenia. \
{ANSWER_PHRASE} no."""


async def ircot(work: Session, question: str) -> str:
    """Think one sentence, search with it, and repeat, until there is an answer."""
    found = {each.passage.id: each for each in await work.search(question)}
    thoughts: list[str] = []
    for _ in range(ROUNDS):
        written = await work.write(_messages(question, _best_last(found.values()), thoughts), "think", stop=["\n"])
        if ANSWER_PHRASE in written:
            return _answer_in(written)
        thought = first_sentence(written)
        if not thought:
            break
        thoughts.append(thought)
        for each in await work.search(thought):
            known = found.get(each.passage.id)
            if known is None or known.score < each.score:
                found[each.passage.id] = each
    return " ".join(thoughts)


def _best_last(found: Iterable[ScoredPassage]) -> list[Passage]:
    return [each.passage for each in sorted(found, key=lambda each: each.score)]


def _messages(question: str, passages: list[Passage], thoughts: list[str]) -> list[Message]:
    listed = "".join(f"Wikipedia Title: {passage.title}\n{passage.text}\n\n" for passage in passages)
    so_far = " ".join(thoughts)
    return [
        Message("system", f"{_RULES}\n\n{_EXAMPLE}"),
        Message("user", f"{listed}Question: {question}\nThought: {so_far}".rstrip()),
    ]


def _answer_in(thought: str) -> str:
    answer = thought.rpartition(ANSWER_PHRASE)[2].strip()
    return answer.removesuffix(".").strip()
