"""The built-in question set on a handful of passages: what is read out, how chains are made, what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from builtin.questions import QuestionSplit, build_questions, verify
from builtin.questions.build import chains_and_facts
from builtin.questions.extract.aliases import with_aliases
from builtin.questions.reach import LEAST_MARGIN, Found, reached
from builtin.questions.split import entity_groups, is_new_template
from research.passages import Passage
from research.questions import Hop, Question
from research.questions.sampling import first_of_each_kind
from research.scoring.reward import best, token_f1
from tests.support.small_corpus import BY_TITLE, GOOD, PASSAGES, SERVED_WORDS


def everything(split: QuestionSplit) -> dict[str, Question]:
    return {question.id: question for question in (*split.train, *split.held_out)}


@pytest.fixture(scope="module")
def questions() -> dict[str, Question]:
    return {question.id: question for question in chains_and_facts(PASSAGES, SERVED_WORDS)[0]}


@pytest.mark.parametrize(
    ("identity", "answers"),
    [
        ("work-creator/the-glass-harbour", ("Ada Winterbourne",)),
        ("work-year/the-glass-harbour", ("1921",)),
        ("work-creator/echoes-film", ("Otto Lindqvist",)),
        ("person-birth_year/ada-winterbourne", ("1875",)),
        ("person-death_year/ada-winterbourne", ("1941",)),
        ("person-middle_name/ada-winterbourne", ("Rosalind",)),
        ("person-nationality/ada-winterbourne", ("Scottish", "British")),
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
        ("country-region/norland", ("Northern Europe",)),
        ("country-capital/sudria", ("Sudburg",)),
        ("country-leader/sudria-from-1950-to-1962-was-president", ("Ines Mar",)),
        ("person-reign_date/rudolf-ii", ("3 May 1650", "May 3, 1650")),
        ("place-city/tide-museum", ("Brynn",)),
        ("organisation-city/acme", ("Brynn",)),
        ("city-population/brynn", ("1,200", "1200")),
        ("article-other_name/the-glass-harbour", ("Porten",)),
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


def test_three_hops_lead_over_the_border_to_the_capital(questions: dict[str, Question]) -> None:
    question = questions["capital-country-neighbour-capital/holmstad-south"]
    assert question.kind == "three_hop"
    assert question.answers == ("Sudburg",)
    assert [(hop.title, hop.answer) for hop in question.hops] == [
        ("Holmstad", "Norland"),
        ("Norland", "Sudria"),
        ("Sudburg", "Sudburg"),
    ]
    assert [hop.goal for hop in question.hops] == [
        "which country has Holmstad as its capital",
        "which country borders Norland to the south",
        "the capital of Sudria",
    ]
    assert "southern neighbour of the country" in question.text


def test_a_nationality_leads_to_the_country_of_today_only_for_people_of_today() -> None:
    people = [
        Passage("a", "Ewa Nowak", "Polish chemist (1901–1980). Ewa Nowak was a Polish chemist."),
        Passage("b", "Jan Maly", "Polish poet (1501–1580). Jan Maly was a Polish poet."),
        Passage("c", "Poland", "Country in Central Europe. Poland is a country in Central Europe."),
    ]
    ids = {question.id for question in chains_and_facts(people, SERVED_WORDS)[0]}
    assert "person-nationality-region/ewa-nowak" in ids
    assert "person-nationality-region/jan-maly" not in ids


def test_a_ruler_who_came_back_has_no_last_year() -> None:
    twice = Passage("a", "Hum Khan", "King of Norland from 1530 to 1540 and again from 1555 to 1556. He was a king.")
    assert "person-reign_end/hum-khan" not in {q.id for q in chains_and_facts([twice], SERVED_WORDS)[0]}


def test_stopping_half_way_earns_nothing(questions: dict[str, Question]) -> None:
    # "Norland", the answer of the first hop, would be worth F1 0.5 for "Kingdom of Norland".
    assert "capital-country-official_name/holmstad" not in questions
    for question in questions.values():
        for hop in question.hops[:-1]:
            assert best(token_f1, hop.answer, question.answers) == 0


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
    few = {question.id: question for question in chains_and_facts(PASSAGES, 6)[0]}
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


def test_no_title_of_training_comes_up_in_either_held_out_set() -> None:
    split = build_questions(many_works(120))
    asked = [{hop.title for question in part for hop in question.hops} for part in (split.train, split.held_out)]
    assert asked[0]
    assert asked[1]
    assert asked[0].isdisjoint(asked[1])
    share = len(split.held_out) / (len(split.train) + len(split.held_out))
    assert 0.4 < share < 0.7


def test_works_of_one_author_stay_together() -> None:
    split = build_questions(many_works(40))
    for part in (split.train, split.held_out):
        titles = {question.hops[0].title for question in part}
        for title in titles:
            if title.startswith("The Z"):
                assert f"A Y{title[5:7]} Song" in titles


def test_no_template_and_no_answer_takes_over() -> None:
    split = build_questions(many_works(300))
    for part in (split.train, split.held_out):
        templates = Counter(question.template for question in part)
        answers = Counter((question.kind, question.answers[0]) for question in part if question.template != "work-year")
        assert max(templates.values()) == templates["work-creator"] == 100
        assert answers["one_hop", "1990"] == 8


def lives(count: int) -> list[Passage]:
    """People and cities enough to compare; nobody's name or year is another's."""
    people = [
        Passage(f"p{n}", f"Xa{n}a Yo{n}o", f"{'Welsh' if n % 2 else 'French'} poet ({1500 + n}–{1560 + n}). A poet.")
        for n in range(count)
    ]
    lands = [Passage(f"l{n}", f"Land{n}ia", "Country in Europe. It is a country.") for n in range(count // 8)]
    cities = [
        Passage(f"c{n}", f"Town{n}ham", f"City in Land{n // 8}ia. It is a city of some size.") for n in range(count)
    ]
    return [*people, *lands, *cities]


def test_comparisons_are_true_and_balanced() -> None:
    split = build_questions(lives(240))
    for part in (split.train, split.held_out):
        comparisons = [question for question in part if question.kind == "comparison"]
        assert {question.template for question in comparisons} >= {"comparison-born_first", "comparison-same_country"}
        assert (
            Counter(map(place_of_answer, comparisons))["first"] == Counter(map(place_of_answer, comparisons))["second"]
        )
        assert Counter(map(place_of_answer, comparisons))["yes"] == Counter(map(place_of_answer, comparisons))["no"]
        for question in comparisons:
            first, second = (hop.answer for hop in question.hops)
            if question.answers[0] in ("yes", "no"):
                assert (first == second) == (question.answers[0] == "yes")
            else:
                winner = min if question.template == "comparison-born_first" else max
                title = winner(question.hops, key=lambda hop: int(hop.answer)).title
                assert question.answers[0] == title


def place_of_answer(question: Question) -> str:
    answer = question.answers[0]
    return answer if answer in ("yes", "no") else "first" if question.hops[0].title == answer else "second"


def test_in_ordered_comparisons_most_subjects_win_once_and_lose_once() -> None:
    everyone = build_questions(lives(80)).held_out
    asked = [question for question in everyone if question.template == "comparison-born_first"]
    won = Counter(question.answers[0] for question in asked)
    lost = Counter(hop.title for question in asked for hop in question.hops if hop.title != question.answers[0])
    assert max(won.values()) == max(lost.values()) == 1
    assert len(won.keys() & lost.keys()) > 0.7 * len(won)


def test_new_templates_are_marked_and_never_trained_on() -> None:
    split = build_questions([*many_works(120), *lives(60)])
    assert not [question for question in split.train if is_new_template(question.template) or question.new_template]
    assert {question.new_template for question in split.held_out} == {True, False}
    for question in split.held_out:
        assert question.new_template == is_new_template(question.template)
        assert question.entity


def test_groups_join_titles_that_share_a_chain_but_stay_small() -> None:
    assert entity_groups([["b", "a"], ["c", "b"], ["d"]]) == {"a": "a", "b": "a", "c": "a", "d": "d"}
    groups = entity_groups([[f"t{n:03}", f"t{n + 1:03}"] for n in range(100)])
    assert max(Counter(groups.values()).values()) <= 30
    assert len(set(groups.values())) > 3


HOP = Hop("who wrote Dune", "who wrote Dune", "Dune", "Frank Herbert")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Found("Dune", "1965 novel by Frank Herbert.", LEAST_MARGIN), True),
        (Found("Dune", "1965 novel by Frank Herbert.", LEAST_MARGIN - 0.001), False),
        (Found("Dune", "1965 novel by Frank", 0.1), False),
        (Found("Frank Herbert", "American writer of Dune.", 0.1), False),
    ],
    ids=["found", "too close to the next", "cut before the answer", "another passage"],
)
def test_a_hop_must_find_its_passage_clearly_and_show_the_answer(found: Found, *, expected: bool) -> None:
    assert reached([HOP], lambda queries: [found for _ in queries]) == [expected]


def test_each_query_is_searched_once() -> None:
    searched: list[str] = []

    def search(queries: Sequence[str]) -> list[Found]:
        searched.extend(queries)
        return [Found("Dune", "by Frank Herbert", 1.0) for _ in queries]

    assert reached([HOP, replace(HOP, answer="Nobody"), HOP], search) == [True, False, True]
    assert searched == [HOP.query]


def test_what_is_not_found_is_not_asked() -> None:
    lost = "Ada Winterbourne"
    split = build_questions(PASSAGES, reached=lambda hops: [hop.title != lost for hop in hops])
    assert everything(split)
    assert not [question.id for question in everything(split).values() if lost in [hop.title for hop in question.hops]]


@pytest.mark.parametrize(
    ("answer", "aliases"),
    [
        ("25 May 1921", ["May 25, 1921"]),
        ("May 25, 1921", ["25 May 1921"]),
        ("1,200", ["1200"]),
        ("2.8 million", ["2,800,000", "2800000"]),
        ("12", ["twelve"]),
        ("1921", []),
        ("Gabriel García Márquez", ["Gabriel Garcia Marquez"]),
    ],
)
def test_other_spellings_count(answer: str, aliases: list[str]) -> None:
    assert with_aliases([answer]) == (answer, *aliases)


def test_known_and_new_templates_are_sampled_apart() -> None:
    asked = [replace(GOOD, id=f"{n}", new_template=new) for n in range(5) for new in (False, True)]
    chosen = first_of_each_kind(asked, 2)
    assert [(question.id, question.new_template) for question in chosen] == [
        ("0", False),
        ("0", True),
        ("1", False),
        ("1", True),
    ]
