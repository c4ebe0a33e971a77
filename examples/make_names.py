"""Sentences with names, companies, places and dates, as CoNLL files: what `make demo-ner` learns from.

    python examples/make_names.py DIRECTORY

The sentences are made of patterns, the entities by Faker. All three parts follow the same patterns with other entities
drawn for them (common ones, such as first names and countries, recur): a stand-in for your own data, and easy. Of
sentences whose patterns it never saw, a model that learned from these twenty would find no more than half of the
entities.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

from faker import Faker

PATTERNS = (
    "{PER} from {ORG} will be in {LOC} on {DATE} .",
    "Please send the invoice of {ORG} to {PER} before {DATE} .",
    "{ORG} opens an office in {LOC} .",
    "On {DATE} {PER} joined {ORG} as head of sales .",
    "I met {PER} and {PER} in {LOC} last week .",
    "The contract between {ORG} and {ORG} ends on {DATE} .",
    "{PER} , who lives in {LOC} , called about the order .",
    "Flights from {LOC} to {LOC} are late today .",
    "Dear {PER} , your parcel has left {LOC} .",
    "{ORG} said that {PER} will leave on {DATE} .",
    "Is {PER} still with {ORG} ?",
    "The meeting in {LOC} was moved to {DATE} .",
    "{PER} asked {ORG} for a refund .",
    "We could not reach {PER} in {LOC} on {DATE} .",
    "Nobody at {ORG} has heard of it .",
    "The weather is fine and nothing else happened .",
    "{ORG} of {LOC} was bought by {ORG} .",
    "My name is {PER} and I would like to close my account .",
    "As of {DATE} , {ORG} no longer ships to {LOC} .",
    "According to {PER} the price will rise .",
)
SIZES = {"train": 1500, "dev": 300, "test": 300}


def main() -> None:
    """Write the three parts into the directory that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("say where to: python examples/make_names.py DIRECTORY")
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    for number, (part, count) in enumerate(SIZES.items()):
        faker, dice = Faker(["en_GB", "en_US", "de_DE", "fr_FR"]), random.Random(number)
        Faker.seed(number)
        sentences = [sentence(dice.choice(PATTERNS), faker, dice) for _ in range(count)]
        (place / f"{part}.conll").write_text("\n".join(sentences), encoding="utf-8")
        print(f"{place / part}.conll: {count:,} sentences")


def sentence(pattern: str, faker: Faker, dice: random.Random) -> str:
    """One sentence, a word and its tag a line."""
    make = {
        "PER": lambda: faker.name() if dice.random() < 0.6 else faker.first_name(),
        "ORG": faker.company,
        "LOC": lambda: faker.city() if dice.random() < 0.7 else faker.country(),
        "DATE": lambda: faker.date(dice.choice(("%d %B %Y", "%B %d", "%d.%m.%Y", "%A"))),
    }
    lines = []
    for word in pattern.split():
        kind = word.strip("{}")
        if kind not in make:
            lines.append(f"{word}\tO")
            continue
        words = re.findall(r"\w+|[^\w\s]", make[kind]())
        lines += [f"{part}\t{'I' if at else 'B'}-{kind}" for at, part in enumerate(words)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
