"""The built-in question set on a handful of passages: what is read out, how chains are made, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from research.passages import Passage
from research.questions import Hop, Question
from research.questions.builtin import QuestionSplit, build_questions, verify
from research.reward import best, token_f1

TEXTS = {
    "The Glass Harbour": "1921 novel by Ada Winterbourne. The Glass Harbour is a novel about a port in the north.",
    "The Tin Moon": "1930 novel by Ada Winterbourne. The Tin Moon is her last novel. She was born in 1875.",
    "Ada Winterbourne": "Scottish novelist (1875–1941). Ada Rosalind Winterbourne was a Scottish novelist and a nurse.",
    "Echoes (film)": "1964 film directed by Otto Lindqvist. Echoes is a drama film about two sisters.",
    "Otto Lindqvist": "Swedish film director (born 1922). Otto Emil Lindqvist is a Swedish film director.",
    "Twin Songs": "1970 album by Ida Berg and Tom Krone. Twin Songs is an album of duets.",
    "Steam harp": "Musical instrument. The steam harp was invented in 1860 by the Welsh engineer Huw Pritchard.",
    "Fog bell": "Signal. The fog bell was invented by Huw Pritchard and Tom Krone for ships.",
    "Huw Pritchard": "Welsh engineer (1820–1899). Huw Pritchard was a Welsh engineer.",
    "Norland": "Country in Northern Europe. Norland, officially the Kingdom of Norland, is a country in Northern "
    "Europe. It is bordered by Estmark to the east and Sudria to the south.",
    "Estmark": "Country in Northern Europe. Estmark is a country. It borders Norland to the west, and Sudria and "
    "Vestland to the south.",
    "Sudria": "Country in Central Europe. Sudria, officially the Republic of Sudria, is a country in Central Europe.",
    "Vestland": "Country in Central Europe. Vestland is a country in Central Europe.",
    "Holmstad": "Capital and largest city of Norland. Holmstad is the capital of Norland and lies on a fjord.",
    "Norland City": "Capital of Norland. Norland City was the capital until the fire.",
    "Brynn": "City in Upper Vale, Estmark. Brynn is a city on the river Skell.",
    "Fenwick": "Capital of Lower Vale, Estmark. Fenwick is a city known for its bridges.",
    "Zephyrium": "Chemical element with atomic number 119 (Zy). Zephyrium is a chemical element.",
    "Marsh owl": "Species of bird. The marsh owl is a bird in the family Owlidae that lives near water.",
    "Owlidae": "Family of birds. Owlidae is a family of birds in the order Noctiformes, with some 130 species.",
    "Dune moth": "Species of moth. It is placed in the family Mothidae by some and in the family Sandidae by others.",
    "Sarn dynasty": "Dynasty in Sudria (801–1122). The Sarn dynasty ruled Sudria.",
    "Liu the Poet": "Poet of the Sarn dynasty (940–998). Liu the Poet lived at court.",
    "Rudolf II": "King of Norland from 1650 to 1688. Rudolf II was King of Norland.",
    "Reed War": "1702–1711 war in Northern Europe. The Reed War was fought over the marshes.",
    "Plato of Brynn": "Philosopher (c. 120–75 BC). Plato of Brynn was a philosopher.",
}
PASSAGES = [Passage(id=str(number), title=title, text=text) for number, (title, text) in enumerate(TEXTS.items())]
BY_TITLE = {passage.title: passage for passage in PASSAGES}
SERVED_WORDS = 34


def everything(split: QuestionSplit) -> dict[str, Question]:
    return {question.id: question for question in (*split.train, *split.held_out)}


@pytest.fixture(scope="module")
def questions() -> dict[str, Question]:
    return everything(build_questions(PASSAGES))


@pytest.mark.parametrize(
    ("identity", "answers"),
    [
        ("work-creator/the-glass-harbour", ("Ada Winterbourne",)),
        ("work-year/the-glass-harbour", ("1921",)),
        ("work-creator/echoes-film", ("Otto Lindqvist",)),
        ("person-birth_year/ada-winterbourne", ("1875",)),
        ("person-death_year/ada-winterbourne", ("1941",)),
        ("person-middle_name/ada-winterbourne", ("Rosalind",)),
        ("person-nationality/ada-winterbourne", ("Scottish",)),
        ("person-birth_year/otto-lindqvist", ("1922",)),
        ("person-death_year/plato-of-brynn", ("75 BC", "75 BCE")),
        ("idea-originator/steam-harp", ("Huw Pritchard",)),
        ("person-reign_start/rudolf-ii", ("1650",)),
        ("person-reign_end/rudolf-ii", ("1688",)),
        ("person-realm/rudolf-ii", ("Norland",)),
        ("capital-country/holmstad", ("Norland",)),
        ("city-country/brynn", ("Estmark",)),
        ("capital-province/fenwick", ("Lower Vale",)),
        ("country-neighbour/norland-east", ("Estmark",)),
        ("element-number/zephyrium", ("119",)),
        ("element-symbol/zephyrium", ("Zy",)),
        ("taxon-family/marsh-owl", ("Owlidae",)),
        ("taxon-order/owlidae", ("Noctiformes",)),
        ("polity-start_year/sarn-dynasty", ("801",)),
        ("person-polity/liu-the-poet", ("Sarn dynasty",)),
        ("person-polity-end_year/liu-the-poet", ("1122",)),
        ("event-start_year/reed-war", ("1702",)),
        ("event-end_year/reed-war", ("1711",)),
    ],
)
def test_reads_facts_out_of_passages(questions: dict[str, Question], identity: str, answers: tuple[str, ...]) -> None:
    assert questions[identity].answers == answers


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param("work-creator/twin-songs", id="two makers"),
        pytest.param("idea-originator/fog-bell", id="two inventors"),
        pytest.param("taxon-family/dune-moth", id="two families"),
        pytest.param("country-neighbour/estmark-south", id="two neighbours on one side"),
        pytest.param("country-official_name/norland", id="the subject is half of the answer"),
        pytest.param("country-official_name/sudria", id="an official name that anybody would guess"),
        pytest.param("capital-country/norland-city", id="the answer stands in the question"),
        pytest.param("person-birth_year/plato-of-brynn", id="a year whose era does not follow it"),
        pytest.param("person-nationality/plato-of-brynn", id="no nationality given"),
    ],
)
def test_leaves_out_what_is_ambiguous_or_given_away(questions: dict[str, Question], identity: str) -> None:
    assert identity not in questions


def test_two_hops_lead_from_work_to_person(questions: dict[str, Question]) -> None:
    question = questions["work-creator-death_year/the-glass-harbour"]
    assert question.answers == ("1941",)
    assert [(hop.title, hop.answer) for hop in question.hops] == [
        ("The Glass Harbour", "Ada Winterbourne"),
        ("Ada Winterbourne", "1941"),
    ]
    assert "The Glass Harbour" in question.text
    assert "Winterbourne" not in question.text
    assert question.hops[0].query == "The Glass Harbour novel author"
    assert question.hops[1].query == "Ada Winterbourne death year"
    assert question.hops[1].goal == "the year in which Ada Winterbourne died"


def test_two_hops_lead_from_capital_and_animal(questions: dict[str, Question]) -> None:
    assert questions["capital-country-neighbour/holmstad-east"].answers == ("Estmark",)
    assert questions["taxon-family-order/marsh-owl"].answers == ("Noctiformes",)


def test_stopping_half_way_earns_nothing(questions: dict[str, Question]) -> None:
    # "Norland", the answer of the first hop, would be worth F1 0.5 for "Kingdom of Norland".
    assert "capital-country-official_name/holmstad" not in questions
    for question in questions.values():
        if question.kind == "two_hop":
            assert best(token_f1, question.hops[0].answer, question.answers) == 0


def test_no_second_hop_where_the_first_passage_holds_the_answer(questions: dict[str, Question]) -> None:
    assert "work-creator-birth_year/the-glass-harbour" in questions
    assert "work-creator-birth_year/the-tin-moon" not in questions


def test_a_ruler_of_long_ago_does_not_lead_to_the_borders_of_today(questions: dict[str, Question]) -> None:
    assert not [identity for identity in questions if identity.startswith("person-realm-neighbour")]


def test_disambiguation_is_spoken_not_quoted(questions: dict[str, Question]) -> None:
    text = questions["work-creator/echoes-film"].text
    assert "the film Echoes" in text
    assert "(" not in text


def test_answers_stand_within_the_words_that_are_served() -> None:
    few = everything(build_questions(PASSAGES, served_words=6))
    assert "work-creator/the-glass-harbour" in few
    assert "person-middle_name/ada-winterbourne" not in few
    assert all(verify(question, BY_TITLE, 6) == [] for question in few.values())


def test_every_question_is_sound_and_asked_once(questions: dict[str, Question]) -> None:
    assert len({question.text for question in questions.values()}) == len(questions)
    for question in questions.values():
        assert verify(question, BY_TITLE, SERVED_WORDS) == []


def test_the_result_is_the_same_each_time() -> None:
    assert build_questions(PASSAGES) == build_questions(PASSAGES)
    assert everything(build_questions(PASSAGES)) == everything(build_questions(PASSAGES[::-1]))


def many_works(count: int) -> list[Passage]:
    letters = ["".join(chr(97 + (number // 26**place) % 26) for place in (1, 0)) for number in range(count)]
    passages = []
    for pair in letters:
        writer = f"Wilma Q{pair}son"
        passages.append(
            Passage(f"w-{pair}", f"The Z{pair} Tale", f"1950 novel by {writer}. The Z{pair} Tale is a novel.")
        )
        passages.append(Passage(f"s-{pair}", f"A Y{pair} Song", f"1960 song by {writer}. A Y{pair} Song is a song."))
        passages.append(
            Passage(f"p-{pair}", writer, f"Welsh novelist (1{ord(pair[1])}–1990). {writer} was a novelist.")
        )
    return passages


def test_split_shares_no_subject_or_bridge() -> None:
    split = build_questions(many_works(120))
    asked = [{hop.title for question in part for hop in question.hops} for part in (split.train, split.held_out)]
    assert asked[0]
    assert asked[1]
    assert asked[0].isdisjoint(asked[1])
    share = len(split.held_out) / (len(split.train) + len(split.held_out))
    assert 0.15 < share < 0.45


def test_works_of_one_author_stay_together() -> None:
    split = build_questions(many_works(40))
    for part in (split.train, split.held_out):
        titles = {question.hops[0].title for question in part}
        for title in titles:
            if title.startswith("The Z"):
                assert f"A Y{title[5:7]} Song" in titles


def test_no_template_and_no_answer_takes_over() -> None:
    split = build_questions(many_works(300))
    asked = [*split.train, *split.held_out]
    years_of_death = [question for question in asked if question.template == "person-death_year"]
    assert len([question for question in asked if question.template == "work-creator"]) == 200
    assert len(years_of_death) == 8


GOOD = Question(
    id="work-creator-death_year/the-glass-harbour",
    text="In what year did the author of the novel The Glass Harbour die?",
    answers=("1941",),
    kind="two_hop",
    template="work-creator-death_year",
    entity="Ada Winterbourne",
    hops=(
        Hop("The Glass Harbour author", "who wrote it", "The Glass Harbour", "Ada Winterbourne"),
        Hop("Ada Winterbourne death year", "when she died", "Ada Winterbourne", "1941"),
    ),
)


def test_verify_accepts_a_sound_question() -> None:
    assert verify(GOOD, BY_TITLE, SERVED_WORDS) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "one_hop"}, "hops"),
        ({"hops": GOOD.hops[:1]}, "hops"),
        ({"answers": ("1942",)}, "first gold answer"),
        ({"answers": ("1941", " ")}, "1 to 6 words"),
        ({"text": "When did Ada Winterbourne, author of The Glass Harbour, die?"}, "gives away"),
        ({"text": "In which year did the Winterbourne who wrote The Glass Harbour die?"}, "gives away"),
        ({"text": "Did the author of the novel The Glass Harbour die in 1941?"}, "gives away"),
        ({"text": ""}, "must be given"),
    ],
)
def test_verify_reports_a_broken_question(change: dict[str, object], problem: str) -> None:
    broken = replace(GOOD, **change)  # type: ignore[arg-type]
    assert any(problem in found for found in verify(broken, BY_TITLE, SERVED_WORDS))


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        (Hop("q", "g", "Ada Winterbourne", "194"), "does not stand"),
        (Hop("q", "g", "Nowhere", "1941"), "no passage"),
        (Hop("q", "g", "The Glass Harbour", "1921"), "same passage"),
    ],
)
def test_verify_reports_a_broken_hop(last: Hop, problem: str) -> None:
    broken = replace(GOOD, hops=(GOOD.hops[0], last), answers=(last.answer,))
    assert any(problem in found for found in verify(broken, BY_TITLE, SERVED_WORDS))


def test_verify_reports_a_first_passage_that_holds_the_answer() -> None:
    leaking = replace(BY_TITLE["The Glass Harbour"], text="1921 novel by Ada Winterbourne (1875–1941).")
    problems = verify(GOOD, {**BY_TITLE, leaking.title: leaking}, SERVED_WORDS)
    assert any("already holds" in problem for problem in problems)


def test_verify_looks_only_at_what_is_served() -> None:
    assert any("as served" in problem for problem in verify(GOOD, BY_TITLE, 2))
