"""A handful of passages that tests read questions out of, and a question that is sound."""

from __future__ import annotations

from research.passages import Passage
from research.questions import Hop, Question

TEXTS = {
    "The Glass Harbour": "1921 novel by Ada Winterbourne. The Glass Harbour, also known as Porten, is a novel.",
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
    "Sudburg": "Capital of Sudria. Sudburg is the capital of Sudria.",
    "Ines Mar": "President of Sudria from 1950 to 1962. Ines Mar was the first woman in that office.",
    "Tide Museum": "Museum in Brynn, Estmark. The Tide Museum is a museum about the sea.",
    "Acme": "Toy company. Acme is a company headquartered in Brynn.",
    "Brynn": "City in Upper Vale, Estmark. Brynn is a city on the river Skell with a population of 1,200.",
    "Fenwick": "Capital of Lower Vale, Estmark. Fenwick is a city known for its bridges.",
    "Zephyrium": "Chemical element with atomic number 119 (Zy). Zephyrium is a chemical element.",
    "Marsh owl": "Species of bird. The marsh owl is a bird in the family Owlidae that lives near water.",
    "Owlidae": "Family of birds. Owlidae is a family of birds in the order Noctiformes, with some 130 species.",
    "Dune moth": "Species of moth. It is placed in the family Mothidae by some and in the family Sandidae by others.",
    "Sarn dynasty": "Dynasty in Sudria (801–1122). The Sarn dynasty ruled Sudria.",
    "Liu the Poet": "Poet of the Sarn dynasty (940–998). Liu the Poet lived at court.",
    "Rudolf II": "King of Norland from 1650 to 1688. Rudolf II was King of Norland from 3 May 1650 until his death.",
    "Reed War": "1702–1711 war in Northern Europe. The Reed War was fought over the marshes.",
    "Plato of Brynn": "Philosopher (c. 120–75 BC). Plato of Brynn was a philosopher.",
}
PASSAGES = [Passage(id=str(number), title=title, text=text) for number, (title, text) in enumerate(TEXTS.items())]
BY_TITLE = {passage.title: passage for passage in PASSAGES}
SERVED_WORDS = 34


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
