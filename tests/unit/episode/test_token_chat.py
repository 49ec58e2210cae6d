"""A message ends without the token that ended it, whichever of a model's that is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from research.episode.agent import GREEDY, Finish, Generation, Sampling
from research.strategies.chat import Message
from research.strategies.token_chat import TokenChat
from tests.support.characters import SPECIALS, CharacterTokenizer


class Writes:
    """Writes text and then one more token."""

    def __init__(self, last: int, finish: Finish) -> None:
        self.last, self.finish = last, finish

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        ids = [*CharacterTokenizer().encode("Paris"), self.last]
        return Generation(ids, [-0.5] * len(ids), ["1"] * len(ids), self.finish)


@pytest.mark.parametrize("last", SPECIALS.values(), ids=list(SPECIALS))
def test_the_token_that_ended_a_message_is_no_part_of_it(last: int) -> None:
    """Phi's `<|end|>` and Gemma's `<end_of_turn>` are not their tokenizers' end of text."""
    chat = TokenChat(Writes(last, Finish.EOS), CharacterTokenizer(), 1000)
    said = asyncio.run(chat.complete([Message("user", "Where?")], 50, GREEDY))
    assert said.text == "Paris"
    assert said.sampled_tokens == 6


def test_what_a_message_ran_out_of_tokens_at_is_part_of_it() -> None:
    chat = TokenChat(Writes(CharacterTokenizer().encode("!")[0], Finish.LENGTH), CharacterTokenizer(), 1000)
    assert asyncio.run(chat.complete([Message("user", "Where?")], 50, GREEDY)).text == "Paris!"
