r"""Forms of published checkpoints, so that they can be asked beside ours, on one corpus.

Tags, stop texts, the layout of passages and how answers are taken are those of the projects' own inference:

- Search-R1 (Apache-2.0): github.com/PeterGriffinJin/Search-R1 at a14dc3a4ffc6fe88c1e95038d9738e21ba3f7a06,
  `search_r1/llm_agent/generation.py`; prompt `search-r1` from `scripts/data_process/qa_search_test_merge.py`.
- R1-Searcher (MIT): github.com/RUCAIBox/R1-Searcher at 631167cbb3c2464f805730e3e364a690f5b136d4,
  `evaluation/eval_search_loacl.py`; prompt `r1-searcher` is `base_prompt_v0` there, which its script uses.
- AutoRefine: github.com/syr-cn/AutoRefine at 83637883d98801dab1bd2dc36b9186a25efdaa98,
  `search_r1/llm_agent/generation.py`. It names no licence, so its prompt is not here; it is in
  `preprocess/data_process/utils.py`.

What is not as there:

- A passage's own tags are broken here. A turn without an answer or a query ends the episode; Search-R1 and AutoRefine
  tell the model to try again.
- What a model writes is kept as it was sampled. There it is text that is encoded again, so a token that holds more than
  the end of a tag (`>` and a line feed) stays whole here, and R1-Searcher's query loses no white space before its end.
- Of several searches in one turn the last is made; there the first. R1-Searcher's programs also stop at `<|im_end|>`
  and `<|endoftext|>`; here only the model's own end of text does that.
- Limits are settings here: `episode.max_searches`, `max_turn_tokens`, `max_passage_tokens`. In their scripts Search-R1
  and AutoRefine cut what is shown after 500 tokens; R1-Searcher's model writes at most 512 tokens per turn, ten times.
"""

from __future__ import annotations

from research.forms.form import Chat
from research.forms.grammar import Tags
from research.forms.tag_parser import Mark
from research.forms.tags import Layout, TagForm
from research.passages import Passage

_THINK, _SEARCH = Mark("<think>", "</think>", "think"), Mark("<search>", "</search>", "search")
_REFINE, _ANSWER = Mark("<refine>", "</refine>", "think"), Mark("<answer>", "</answer>", "answer")
_QUERY = Mark("<|begin_of_query|>", "<|end_of_query|>", "search")


def _numbered(number: int, passage: Passage) -> str:
    return f'Doc {number}(Title: "{passage.title}") {passage.text}'


def _of_search_r1(name: str, result: str, marks: tuple[Mark, ...], names: tuple[str, ...]) -> TagForm:
    begin, end = f"<{result}>", f"</{result}>"
    return TagForm(
        name=name,
        tags=Tags(result=(begin, end), boxed=False),
        stop=("</search>", "</answer>"),
        names=("think", "search", "answer", result, *names),
        marks=marks,
        layout=Layout(_numbered, lambda shown: "\n".join(shown).strip(), (f"\n\n{begin}", f"{end}\n\n")),
        chat=Chat(filled=True),
        adds_question_mark=True,
    )


SEARCH_R1 = _of_search_r1("search_r1", "information", (_THINK, _SEARCH, _ANSWER), ())
AUTOREFINE = _of_search_r1("autorefine", "documents", (_THINK, _SEARCH, _REFINE, _ANSWER), ("refine",))
R1_SEARCHER = TagForm(
    name="r1_searcher",
    tags=Tags(
        search=(_QUERY.opens, _QUERY.closes),
        result=("<|begin_of_documents|>", "<|end_of_documents|>"),
        boxed=False,
        last_answer=True,
        thought_opened=True,
    ),
    stop=("<|end_of_query|>", "</answer>"),
    names=("think", "answer", *(f"|{end}_of_{what}|" for end in ("begin", "end") for what in ("query", "documents"))),
    marks=(_THINK, _QUERY, _ANSWER),
    layout=Layout(
        lambda number, passage: f"({number})Title: {passage.title} Text:  {passage.text}\n",
        lambda shown: "".join(shown) or "None",
        ("\n\n<|begin_of_documents|>\n", "<|end_of_documents|>\n\n"),
    ),
    dropped=('"', "'", "..."),
)
