"""Facts about people: years of life, nationality, middle name, office."""

from __future__ import annotations

import re
from collections.abc import Iterator

from builtin.questions.extract.aliases import DATE
from builtin.questions.extract.article import Article, search_name, spoken_name
from builtin.questions.extract.facts import Fact
from builtin.questions.extract.names import known_name_after

_YEAR = r"(?P<{0}_about>c\. ?)?(?P<{0}>\d{{2,4}})"
_LIFE = re.compile(
    rf"\((?:{_YEAR.format('born')} ?[–-] ?{_YEAR.format('died')}(?P<era> BCE?)?"
    rf"|born {_YEAR.format('born_alone')})\)$"
)
_NO_PERSON = re.compile(
    r"\b(?:dynasty|empire|kingdom|caliphate|sultanate|khanate|republic|states?|commonwealth|confederation|confederacy"
    r"|wars?|conflicts?|rebellion|revolution|revolt|uprising|conquests?|expansion|crisis|genocide|treaty|treaties"
    r"|band|duo|company|organi[sz]ation|alliance|station|satellite|program|project|movement|period|series|print"
    r"|group|pact|league|duchy|union|school|ship|aircraft|spacecraft|probe|mission|plague|pandemic"
    r"|colony|policy|bloc|principality|dispute|campaigns?|accelerator|conglomerate|depression|team|parts|territories)\b",
    re.IGNORECASE,
)
_PEOPLE_OF = re.compile(
    r"\b(?:poet|emperor|king|queen|general|ruler|politician|philosopher|leader|official|founder|master|scholar"
    r"|consort|writer|artist|painter|statesman|vizier|prophet|wife|caliph|sultan|head)\b",
    re.IGNORECASE,
)
_DEMONYMS = (
    r"Algerian|American|Argentine|Armenian|Assyrian|Australian|Austrian|Azerbaijani|Belgian|Brazilian"
    r"|British|Bulgarian|Burmese|Canadian|Chilean|Chinese|Colombian|Croatian|Cuban|Czech|Danish|Dutch"
    r"|Egyptian|English|Ethiopian|Finnish|Flemish|French|Genoese|German|Ghanaian|Greek|Hungarian|Icelandic"
    r"|Indian|Indonesian|Iranian|Iraqi|Irish|Israeli|Italian|Jamaican|Japanese|Kenyan|Korean|Lebanese"
    r"|Lithuanian|Malaysian|Mexican|Moroccan|Nigerian|Norwegian|Pakistani|Persian|Peruvian|Polish"
    r"|Portuguese|Romanian|Russian|Scottish|Senegalese|Serbian|Soviet|Spanish|Swedish|Swiss|Syrian|Turkish"
    r"|Ukrainian|Venetian|Venezuelan|Vietnamese|Welsh"
)
_HOMELANDS = {
    "American": "United States",
    "Argentine": "Argentina",
    "Australian": "Australia",
    "Belgian": "Belgium",
    "Brazilian": "Brazil",
    "Canadian": "Canada",
    "Chilean": "Chile",
    "Colombian": "Colombia",
    "Cuban": "Cuba",
    "Danish": "Denmark",
    "Dutch": "Netherlands",
    "Egyptian": "Egypt",
    "Ethiopian": "Ethiopia",
    "Finnish": "Finland",
    "French": "France",
    "Ghanaian": "Ghana",
    "Icelandic": "Iceland",
    "Indian": "India",
    "Indonesian": "Indonesia",
    "Italian": "Italy",
    "Jamaican": "Jamaica",
    "Japanese": "Japan",
    "Kenyan": "Kenya",
    "Mexican": "Mexico",
    "Moroccan": "Morocco",
    "Nigerian": "Nigeria",
    "Norwegian": "Norway",
    "Pakistani": "Pakistan",
    "Peruvian": "Peru",
    "Polish": "Poland",
    "Portuguese": "Portugal",
    "Romanian": "Romania",
    "Senegalese": "Senegal",
    "Spanish": "Spain",
    "Swedish": "Sweden",
    "Swiss": "Switzerland",
    "Turkish": "Turkey",
    "Venezuelan": "Venezuela",
    "Vietnamese": "Vietnam",
}
_BRITONS = dict.fromkeys(("English", "Scottish", "Welsh"), ("British",))
_NATIONS_OF_TODAY_SINCE = 1850
_NATIONALITY = re.compile(rf"^(?P<demonym>{_DEMONYMS}) (?!and\b|Empire\b)[a-z]")
# There the word before the last is a surname, too: Pablo Ruiz Picasso.
_TWO_SURNAMES = re.compile(
    r"(?:Argentine|Brazilian|Chilean|Colombian|Cuban|Mexican|Peruvian|Portuguese|Spanish|Venezuelan)\b"
)
_OFFICE = re.compile(
    r"^(?P<office>[^;,()]*?(?P<title>President|King|Queen|Emperor|Empress|Tsar|Prime Minister|Chancellor|Leader"
    r"|Dictator|Shah|Shahanshah|Ruler|Sultan|Khan|Head|emperor|caliph|Caliph|monarch)"
    r"(?: of (?P<the>the )?(?P<realm>[A-Z][\w’'–-]*(?: (?:of |the )?[A-Z][\w’'–-]*)*))?)"
    r" from (?:AD |c\. )?(?P<start>\d{3,4}) to (?P<end>\d{2,4})(?! BC|\d|,? (?:and|to) (?:again|from|\d))"
)
_REIGN_DATE = re.compile(
    r"\b(?:King|Queen|Emperor|Empress|Tsar|Pope|Sultan|monarch|Pharaoh|pope|emperor|Church|ruler)\b"
    rf"(?:(?! consort\b)[^.])*? from (?P<date>{DATE})\b"
)
_BORDERS_OF_TODAY_SINCE = 1945
_DYNASTY_OF_PERSON = re.compile(
    r"\b(?:of|during|under|from|by) the (?:early |late |later |middle )?"
    r"(?P<polity>[A-Z][\w’'-]+(?: [A-Z][\w’'-]+)* (?:dynasty|Empire|Caliphate|Kingdom|Republic))\b"
)
_RELATIVES = {
    "husband": re.compile(r"\b(?:wife|consort) of "),
    "parent": re.compile(r"\b(?:[Ss]on|[Dd]aughter|child) of "),
    "predecessor": re.compile(r"\b(?:succeeded(?: (?:his|her) [a-z-]+,?)?|successor of) "),
    "teacher": re.compile(r"\b(?:student|pupil|disciple|follower) of "),
    "commander": re.compile(r"\bgeneral (?:under|of) "),
}

# "Vasilyevna" is in the middle but is not a middle name.
_PATRONYMIC = re.compile(r"(?:vich|vna|ich)$")


def is_person(article: Article) -> bool:
    """Whether the description gives a person's years of life or of office."""
    description = article.description
    if _OFFICE.match(description):
        return True
    if not _LIFE.search(description) or _NO_PERSON.search(article.title):
        return False
    head = description.partition("(")[0]
    return not _NO_PERSON.search(head) or bool(_PEOPLE_OF.search(head))


def person_facts(article: Article) -> Iterator[Fact]:
    """What the description and the first words of the lead tell about one person."""
    if not is_person(article):
        return
    yield from _life(article)
    yield from _offices(article)
    reign = _REIGN_DATE.search(article.served)
    if reign:
        yield _fact(article, "reign_date", reign["date"])
    nationality = _NATIONALITY.match(article.description)
    if nationality:
        yield _fact(
            article,
            "nationality",
            nationality["demonym"],
            aliases=_BRITONS.get(nationality["demonym"], ()),
            leads_to=_homeland(article, nationality["demonym"]),
        )
    first, *others = article.name.split()
    if len(others) == 1 and not _TWO_SURNAMES.match(article.description):
        full_name = re.match(
            rf"{re.escape(first)} (?P<middle>[A-Z][\w’'-]{{2,}}) {re.escape(others[0])}(?: Jr\.| Sr\.)? (?:was|is)\b",
            article.lead,
        )
        if full_name and not _PATRONYMIC.search(full_name["middle"]):
            yield _fact(article, "middle_name", full_name["middle"])


def polity_facts(article: Article, polities: set[str]) -> Iterator[Fact]:
    """The one dynasty or empire that a person lived under; it must be one of `polities`."""
    if not is_person(article) or _OFFICE.match(article.description):
        return
    for match in _DYNASTY_OF_PERSON.finditer(article.served):
        if match["polity"] in polities:
            yield _fact(article, "polity", match["polity"])


def relative_facts(article: Article, people: set[str]) -> Iterator[Fact]:
    """Husband, parent, predecessor or teacher of a person; the relative must be one of `people`."""
    if not is_person(article):
        return
    for role, pattern in _RELATIVES.items():
        for match in pattern.finditer(article.served):
            relative = known_name_after(article.served, match.end(), people)
            if relative:
                yield _fact(article, "relative", relative, role=role)


def _life(article: Article) -> Iterator[Fact]:
    life = _LIFE.search(article.description)
    if life is None:
        return
    for relation, group in (("birth_year", "born"), ("birth_year", "born_alone"), ("death_year", "died")):
        year, about = life[group], life[f"{group}_about"]
        if not year or (life["era"] and group == "born"):
            continue
        answer = f"{year}{life['era'] or ''}"
        aliases = [f"c. {answer}"] if about else []
        if life["era"]:
            aliases.append(f"{year} {'BC' if life['era'] == ' BCE' else 'BCE'}")
        yield _fact(article, relation, answer, aliases=tuple(aliases))


def _offices(article: Article) -> Iterator[Fact]:
    office = _OFFICE.match(article.description)
    if office is None:
        return
    role = re.sub("^Head", "head", office["office"])
    yield _fact(article, "reign_start", office["start"], role)
    if len(office["end"]) == len(office["start"]):
        yield _fact(article, "reign_end", office["end"], role)
    realm = office["realm"]
    # "King of the Visigoths" names a people; "Sultan of the Ottoman Empire" a state.
    if realm and (" " in realm or not office["the"]):
        relation = "country" if int(office["start"]) >= _BORDERS_OF_TODAY_SINCE else "realm"
        yield _fact(article, relation, realm, office["title"].lower())


def _homeland(article: Article, demonym: str) -> str:
    """Today's country that a nationality means, for a person born when it already meant that."""
    life = _LIFE.search(article.description)
    born = (life["born"] or life["born_alone"]) if life and not life["era"] else None
    return _HOMELANDS.get(demonym, "") if born and int(born) >= _NATIONS_OF_TODAY_SINCE else ""


def _fact(
    article: Article,
    relation: str,
    answer: str,
    role: str = "",
    aliases: tuple[str, ...] = (),
    leads_to: str = "",
) -> Fact:
    phrase = spoken_name(article)
    return Fact(
        "person", relation, article.title, phrase, search_name(article), answer, role, aliases, leads_to=leads_to
    )
