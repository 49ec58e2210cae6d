"""Naive generation, naive RAG and Iter-RetGen with FlashRAG's prompts: baselines of the paper.

https://github.com/RUC-NLPIR/FlashRAG (flashrag/prompt/base_prompt.py, flashrag/pipeline)
"""

from __future__ import annotations

from research.passages import ScoredPassage
from research.strategies.chat import Message, Session, documents

ITERATIONS = 3

_ANSWER_ONLY = "Only give me the answer and do not output any other words."
_FROM_MEMORY = f"Answer the question based on your own knowledge. {_ANSWER_ONLY}"
_FROM_DOCUMENTS = f"Answer the question based on the given document. {_ANSWER_ONLY}\nThe following are given documents."


def _messages(question: str, found: list[ScoredPassage] | None = None) -> list[Message]:
    listed = documents([each.passage for each in found or []])
    system = _FROM_MEMORY if found is None else f"{_FROM_DOCUMENTS}\n\n{listed}"
    return [Message("system", system), Message("user", f"Question: {question}")]


async def naive_generation(work: Session, question: str) -> str:
    """The question alone."""
    return await work.write(_messages(question), "answer")


async def naive_rag(work: Session, question: str) -> str:
    """One search with the question, then the answer."""
    return await work.write(_messages(question, await work.search(question)), "answer")


async def iter_retgen(work: Session, question: str) -> str:
    """Three rounds: the query is the question, then the question with the previous answer; the last answer counts.

    Shao et al. 2023 (https://arxiv.org/abs/2305.15294), with short answers, as in FlashRAG.
    """
    answer = ""
    for _ in range(ITERATIONS):
        passages = await work.search(f"{question} {answer}".strip())
        answer = await work.write(_messages(question, passages), "answer")
    return answer
