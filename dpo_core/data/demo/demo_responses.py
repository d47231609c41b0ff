"""How an answer of the demo is written: a style says what it must look like, and :func:`write` writes it."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from dpo_core.data.demo.demo_vocabulary import FILLS, Subject

Layout = Literal["plain", "bullets", "starred", "json"]

COMMAS = 0.5


@dataclass(frozen=True, slots=True)
class Style:
    """What an answer looks like.

    ``commas``: there are some, there are none, or (None) as it falls.
    ``objects`` are mentioned, each in a sentence of its own. ``uses`` and ``avoids`` are words of the subject that
    must and must not appear. ``highlights`` counts the sentences whose last word stands in asterisks, ``fills`` names
    the closing sentences, of which the first ``blanks`` hold a placeholder.
    """

    sentences: int = 2
    commas: bool | None = None
    objects: tuple[str, ...] = ()
    uses: str = ""
    avoids: str = ""
    layout: Layout = "plain"
    title: str = ""
    ending: str = ""
    postscript: str = ""
    highlights: int = 0
    fills: tuple[str, ...] = ()
    blanks: int = 0
    lowercase: bool = False
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Topic:
    """What a text is about."""

    subject: Subject
    noun: str

    def put_into(self, text: str) -> str:
        """The text with the topic in its places."""
        return text.replace("{noun}", self.noun)


def write(style: Style, topic: Topic, rng: Random) -> str:
    """An answer about ``topic`` in this style."""
    clauses = [topic.put_into(clause) for clause in choose_clauses(style, topic.subject, rng)]
    commas = rng.random() < COMMAS if style.commas is None else style.commas
    spoken = speak(clauses, topic.subject, commas, rng)
    sentences = [highlighted(text) if index < style.highlights else text for index, text in enumerate(spoken)]
    title = style.title and style.title.format(rng.choice(topic.subject.titles))
    closing = [fill(name, index < style.blanks, rng) for index, name in enumerate(style.fills)]
    closing += [style.ending] if style.ending else []
    gap = " " if style.layout == "plain" else "\n"
    body = gap.join([arrange(sentences, style), *closing])
    return dress("\n".join(line for line in (title, body, style.postscript) if line), style)


def choose_clauses(style: Style, subject: Subject, rng: Random) -> list[str]:
    """Distinct clauses in the subject's order, then one for each object."""
    allowed = [clause for clause in subject.clauses if not contains(clause, style.avoids)]
    chosen = rng.sample(allowed, style.sentences - len(style.objects))
    if style.uses and not any(contains(clause, style.uses) for clause in chosen):
        wanted = [clause for clause in allowed if contains(clause, style.uses)]
        chosen[rng.randrange(len(chosen))] = rng.choice(wanted)
    mentions = in_order(rng.sample(subject.mentions, len(style.objects)), subject.mentions)
    objects = zip(mentions, style.objects, strict=True)
    return in_order(chosen, subject.clauses) + [mention.replace("{object}", thing) for mention, thing in objects]


def in_order(chosen: Iterable[str], order: Sequence[str]) -> list[str]:
    """The chosen ones as they follow each other in ``order``."""
    return sorted(chosen, key=order.index)


def contains(text: str, word: str) -> bool:
    """Whether a word (not an empty one) stands in the text."""
    return bool(word) and re.search(rf"\b{word}\b", text) is not None


def speak(clauses: list[str], subject: Subject, commas: bool, rng: Random) -> list[str]:
    """Clauses as sentences, some of them after an opener; with commas, at least one is."""
    most = min(len(clauses), len(subject.openers))
    opened = sorted(rng.sample(range(len(clauses)), rng.randint(int(commas), most)))
    openers = in_order(rng.sample(subject.openers, len(opened)), subject.openers)
    before = {place: f"{opener}{',' * commas} " for place, opener in zip(opened, openers, strict=True)}
    texts = [before.get(place, "") + clause for place, clause in enumerate(clauses)]
    return [f"{text[0].upper()}{text[1:]}." for text in (with_traits(text, subject, commas, rng) for text in texts)]


def with_traits(text: str, subject: Subject, commas: bool, rng: Random) -> str:
    """The text with two traits in their place or, with commas, three."""
    first, second, third = rng.sample(subject.traits, 3)
    return text.replace("{traits}", f"{first}, {second} and {third}" if commas else f"{first} and {second}")


def highlighted(sentence: str) -> str:
    """The sentence with its last word in asterisks."""
    rest, _, last = sentence.removesuffix(".").rpartition(" ")
    return f"{rest} *{last}*."


def fill(name: str, blank: bool, rng: Random) -> str:
    """A closing sentence, with its placeholder or with something in its place."""
    sentence, values = FILLS[name]
    return sentence.format(f"[{name}]" if blank else rng.choice(values))


def arrange(sentences: list[str], style: Style) -> str:
    """Sentences in the style's layout."""
    match style.layout:
        case "plain" | "json":
            return " ".join(sentences)
        case "bullets":
            return "\n".join(f"* {sentence}" for sentence in sentences)
        case "starred":
            return "\n***\n".join(sentences)


def dress(text: str, style: Style) -> str:
    """Letters' case and what wraps the whole answer."""
    if style.layout == "json":
        text = json.dumps({"answer": text})
    text = text.lower() if style.lowercase else text
    return f'"{text}"' if style.quoted else text
