"""The episodes of a measurement on the disk, so that one that was stopped goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from benchmarks.injection.corpora import CLEAN, DECOYS, HOSTILE
from benchmarks.injection.figures import Asked
from benchmarks.injection.passages import Attack
from research.episode.serialization import episode_from_dict

AGAIN = "clean, again"
# Each with its corpus.
ROUNDS = {CLEAN: CLEAN, HOSTILE: HOSTILE, DECOYS: DECOYS, AGAIN: CLEAN}
# A round, and the number of an attack.
Place = tuple[str, int]


class Record:
    """Episodes by round and attack; those of other attacks than the given ones are left out."""

    def __init__(self, path: Path, attacks: Sequence[Attack]) -> None:
        self.attacks = attacks
        self.asked: dict[Place, Asked] = {}
        self._path = path
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            entry = orjson.loads(line)
            name, number = entry["place"]
            attack = attacks[number]
            if entry["hostile"] == asdict(attack.hostile):
                self.asked[name, number] = Asked(attack, episode_from_dict(entry["episode"]), entry["broken"])

    def missing(self) -> list[Place]:
        """What is still to be asked: of each question first without and with the hostile passage, then the rest."""
        pairs = ((CLEAN, HOSTILE), (DECOYS, AGAIN))
        places = [(name, number) for pair in pairs for number in range(len(self.attacks)) for name in pair]
        return [place for place in places if place not in self.asked]

    def keep(self, place: Place, asked: Asked) -> None:
        """Add an episode."""
        self.asked[place] = asked
        entry = {
            "place": place,
            "hostile": asdict(asked.attack.hostile),
            "episode": asdict(asked.episode),
            "broken": asked.broken,
        }
        with self._path.open("ab") as out:
            out.write(orjson.dumps(entry) + b"\n")
