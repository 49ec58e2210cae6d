"""The tokenizer of an episode, over a real Hugging Face one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from research.episode.tokenizer import HuggingFaceTokenizer


def test_many_threads_encode_at_a_time_and_nothing_is_cut() -> None:
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(100)} | {"</s>": 100}, "</s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.enable_truncation(4)
    tokenizer = HuggingFaceTokenizer(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>"))
    texts = [[(7 * each + start) % 100 for each in range(300)] for start in range(200)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(tokenizer.encode, (" ".join(f"w{number}" for number in text) for text in texts)))
    assert found == texts
