"""The phrases of every relation."""

from __future__ import annotations

from builtin.questions.extract.facts import Fact
from builtin.questions.wording import Wording, maker_wording, relative_wording

_MAKERS = {
    "author": maker_wording("wrote", "written", "author"),
    "director": maker_wording("directed", "directed", "director"),
    "painter": maker_wording("painted", "painted", "painter"),
    "sculptor": maker_wording("sculpted", "sculpted", "sculptor"),
    "composer": maker_wording("composed", "composed", "composer"),
    "musician": maker_wording("recorded", "recorded", "artist"),
    "creator": maker_wording("created", "created", "creator"),
    "founder": maker_wording("founded", "founded", "founder"),
    "inventor": maker_wording("invented", "invented", "inventor"),
    "discoverer": maker_wording("discovered", "discovered", "discoverer"),
    "developer": maker_wording("developed", "developed", "developer"),
    "publisher": maker_wording("published", "published", "author"),
    "proposer": maker_wording("introduced", "introduced", "originator"),
}

_PHRASES = {
    ("work", "year"): Wording(
        asks=(
            "In what year did {s} first appear?",
            "Which year does {s} date from?",
            "What year is {s} from?",
        ),
        query="{s} year",
        goal="the year of {s}",
    ),
    ("person", "birth_year"): Wording(
        asks=("In what year was {s} born?", "What is the birth year of {s}?", "Which year was {s} born in?"),
        query="{s} birth year",
        goal="the birth year of {s}",
    ),
    ("person", "death_year"): Wording(
        asks=("In what year did {s} die?", "What is the year of death of {s}?", "Which year did {s} die in?"),
        query="{s} death year",
        goal="the year in which {s} died",
    ),
    ("person", "middle_name"): Wording(
        asks=(
            "What is the middle name of {s}?",
            "Which middle name does {s} have?",
            "Tell me the middle name of {s}.",
        ),
        query="{s} full name",
        goal="the middle name of {s}",
    ),
    ("person", "nationality"): Wording(
        asks=(
            "What is the nationality of {s}?",
            "Of what nationality is {s}?",
            "Which nationality does {s} have?",
        ),
        query="{s} nationality",
        goal="the nationality of {s}",
        refers=("the home country of {s}", "the country whose nationality {s} has"),
    ),
    ("person", "reign_start"): Wording(
        asks=("In what year did {s} become {role}?", "From which year on was {s} {role}?"),
        query="{s} {role}",
        goal="when {s} became {role}",
    ),
    ("person", "reign_end"): Wording(
        asks=("Until what year was {s} {role}?", "In what year did {s} stop being {role}?"),
        query="{s} {role}",
        goal="until when {s} was {role}",
    ),
    ("person", "realm"): Wording(
        asks=("{s} was {role} of which country or state?", "Of which country or state was {s} {role}?"),
        query="{s} {role}",
        goal="of which state {s} was {role}",
        refers=("the state of which {s} was {role}", "the state that had {s} as {role}"),
    ),
    ("person", "polity"): Wording(
        asks=(
            "Under which dynasty or empire did {s} live?",
            "Which dynasty or empire is {s} associated with?",
            "{s} lived in the time of which dynasty or empire?",
        ),
        query="{s} dynasty",
        goal="under which dynasty or empire {s} lived",
        refers=(
            "the dynasty or state under which {s} lived",
            "the dynasty or state that {s} is associated with",
        ),
    ),
    ("capital", "country"): Wording(
        asks=(
            "Of which country is {s} the capital?",
            "{s} is the capital of which country?",
            "Which country has {s} as its capital?",
        ),
        query="{s} capital",
        goal="which country has {s} as its capital",
        refers=("the country whose capital is {s}", "the country that has {s} as its capital"),
    ),
    ("capital", "province"): Wording(
        asks=(
            "{s} is the capital of which province, state or region?",
            "Of which province, state or region is {s} the capital?",
        ),
        query="{s} capital",
        goal="which province, state or region has {s} as its capital",
    ),
    ("city", "country"): Wording(
        asks=(
            "Which country does {s} belong to?",
            "In which country is {s}?",
            "In which country does {s} lie?",
        ),
        query="{s} city country",
        goal="the country of {s}",
        refers=("the country that {s} belongs to", "the country in which {s} lies"),
    ),
    ("place", "country"): Wording(
        asks=(
            "In which country would you find {s}?",
            "Which country is home to {s}?",
            "Name the country where one finds {s}.",
        ),
        query="{s} country",
        goal="the country of {s}",
        refers=("the country where one finds {s}", "the country that is home to {s}"),
    ),
    ("country", "neighbour"): Wording(
        asks=(
            "To the {role}, which country borders {s}?",
            "Which country lies to the {role} of {s}, sharing a border with it?",
            "Which country is the {role}ern neighbour of {s}?",
        ),
        query="{s} country borders",
        goal="which country borders {s} to the {role}",
        refers=("the {role}ern neighbour of {s}", "the country that is the {role}ern neighbour of {s}"),
    ),
    ("country", "sea"): Wording(
        asks=(
            "To the {role}, which sea or ocean borders {s}?",
            "Which sea or ocean lies to the {role} of {s}?",
        ),
        query="{s} country borders",
        goal="which sea or ocean borders {s} to the {role}",
    ),
    ("country", "official_name"): Wording(
        asks=("What is the official name of {s}?", "What is the full official name of {s}?"),
        query="{s} country official name",
        goal="the official name of {s}",
    ),
    ("polity", "start_year"): Wording(
        asks=(
            "In what year did {s} begin?",
            "What is the first year of {s}?",
            "Since what year did {s} exist?",
        ),
        query="{s}",
        goal="when {s} began",
    ),
    ("polity", "end_year"): Wording(
        asks=("In what year did {s} end?", "What is the last year of {s}?", "Until what year did {s} exist?"),
        query="{s}",
        goal="when {s} ended",
    ),
    ("event", "start_year"): Wording(
        asks=("In what year did {s} begin?", "When did {s} start?", "What is the first year of {s}?"),
        query="{s} years",
        goal="when {s} began",
    ),
    ("event", "end_year"): Wording(
        asks=("In what year did {s} end?", "Until what year did {s} last?", "What is the last year of {s}?"),
        query="{s} years",
        goal="when {s} ended",
    ),
    ("organisation", "founding_year"): Wording(
        asks=("In what year was {s} founded?", "When was {s} founded?", "What is the founding year of {s}?"),
        query="{s} founded",
        goal="when {s} was founded",
    ),
    ("element", "number"): Wording(
        asks=(
            "What is the atomic number of {s}?",
            "Which atomic number does {s} have?",
            "Name the atomic number of {s}.",
        ),
        query="{s} atomic number",
        goal="the atomic number of {s}",
    ),
    ("element", "symbol"): Wording(
        asks=(
            "What is the chemical symbol of {s}?",
            "Which symbol stands for the element {s}?",
            "Which chemical symbol does {s} have?",
        ),
        query="{s} chemical element symbol",
        goal="the chemical symbol of {s}",
    ),
    ("star", "constellation"): Wording(
        asks=(
            "In which constellation is {s}?",
            "Which constellation contains {s}?",
            "{s} lies in which constellation?",
        ),
        query="{s} constellation",
        goal="the constellation of {s}",
    ),
    ("language", "family"): Wording(
        asks=(
            "To which language family does {s} belong?",
            "What family of languages is {s} part of?",
            "Which language family includes {s}?",
        ),
        query="{s}",
        goal="the language family of {s}",
    ),
    ("taxon", "family"): Wording(
        asks=(
            "What is the biological family of {s}?",
            "Which biological family includes {s}?",
            "Name the biological family of {s}.",
        ),
        query="{s} family",
        goal="the biological family of {s}",
        refers=("the biological family of {s}", "the biological family that includes {s}"),
    ),
    ("taxon", "species_count"): Wording(
        asks=("About how many species are there in {s}?", "Roughly how many species does {s} contain?"),
        query="{s} number of species",
        goal="about how many species {s} contains",
    ),
    ("taxon", "order"): Wording(
        asks=(
            "What is the taxonomic order of {s}?",
            "Which taxonomic order includes {s}?",
            "Name the taxonomic order of {s}.",
        ),
        query="{s}",
        goal="the taxonomic order of {s}",
        refers=("the taxonomic order of {s}", "the taxonomic order that includes {s}"),
    ),
    ("taxon", "genus"): Wording(
        asks=(
            "What is the taxonomic genus of {s}?",
            "Which taxonomic genus includes {s}?",
            "Name the taxonomic genus of {s}.",
        ),
        query="{s}",
        goal="the taxonomic genus of {s}",
        refers=("the taxonomic genus of {s}", "the taxonomic genus that includes {s}"),
    ),
}

_PHRASES["place", "city"] = Wording(
    asks=("In which city is {s}?", "Which city is home to {s}?", "Name the city where one finds {s}."),
    query="{s} city",
    goal="the city of {s}",
    refers=("the city where one finds {s}", "the city that is home to {s}"),
)
_PHRASES["organisation", "city"] = Wording(
    asks=("Which city is the {role} of {s}?", "Name the city that is the {role} of {s}."),
    query="{s} city",
    goal="the city that is the {role} of {s}",
    refers=("the city that is the {role} of {s}",),
)
_PHRASES["city", "province"] = Wording(
    asks=(
        "In which province, state or region is {s}?",
        "Which province, state or region does {s} belong to?",
    ),
    query="{s} city",
    goal="the province, state or region of {s}",
)
_PHRASES["city", "river"] = Wording(
    asks=("On which river does {s} lie?", "Which river flows past {s}?", "Name the river on which {s} lies."),
    query="{s} city river",
    goal="the river on which {s} lies",
)
_PHRASES["city", "population"] = Wording(
    asks=("About how many people live in {s}?", "What is the population of {s}?"),
    query="{s} city population",
    goal="the population of {s}",
)
_PHRASES["country", "region"] = Wording(
    asks=("In which part of the world is {s}?", "Which region of the world does {s} belong to?"),
    query="{s} country location",
    goal="in which part of the world {s} is",
)
_PHRASES["country", "capital"] = Wording(
    asks=("What is the capital of {s}?", "Which city is the capital of {s}?", "Name the capital of {s}."),
    query="{s} capital city",
    goal="the capital of {s}",
)
_PHRASES["country", "leader"] = Wording(
    asks=("Who {role} of {s}?", "Which person {role} of {s}?", "Name the person who {role} of {s}."),
    query="who {role} of {s}",
    goal="who {role} of {s}",
)
_PHRASES["person", "reign_date"] = Wording(
    asks=("On what date did the reign of {s} begin?", "From which date on did {s} reign?"),
    query="{s} reign from",
    goal="the date on which the reign of {s} began",
)
_PHRASES["article", "other_name"] = Wording(
    asks=("By what other name is {s} known?", "What is another name of {s}?", "What is {s} also called?"),
    query="{s} also known as",
    goal="another name of {s}",
)
_PHRASES["person", "country"] = _PHRASES["person", "realm"]


def wording_of(fact: Fact) -> Wording:
    """The wording of a fact: by its role for makers and relatives, by kind and relation for everything else."""
    if fact.relation in {"creator", "originator"}:
        return _MAKERS[fact.role]
    if fact.relation == "relative":
        return relative_wording(fact.role)
    return _PHRASES[fact.kind, fact.relation]
