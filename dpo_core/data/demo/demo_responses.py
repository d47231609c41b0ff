"""Responses of the demo: :func:`write_response` writes a text about a topic in a given style."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from dpo_core.data.demo.demo_vocabulary import FILLS, Subject

Layout = Literal["plain", "bullets", "starred", "json"]

COMMA_PROBABILITY = 0.5


@dataclass(frozen=True, slots=True)
class Style:
    """The form of a response.

    ``commas``: with commas (True), without (False), or drawn at random (None).
    ``objects`` are mentioned, one sentence each. ``uses`` and ``avoids`` are words of the subject that
    must and must not appear. ``highlights``: number of sentences with the last word in asterisks. ``fills``: names of
    the closing sentences, of which the first ``blanks`` contain a placeholder.
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
    """A noun of a subject, to write about."""

    subject: Subject
    noun: str

    def put_into(self, text: str) -> str:
        """The text with ``{noun}`` replaced."""
        return text.replace("{noun}", self.noun)


def write_response(style: Style, topic: Topic, rng: Random) -> str:
    """A response about ``topic`` in this style."""
    clauses = [topic.put_into(clause) for clause in choose_clauses(style, topic.subject, rng)]
    commas = rng.random() < COMMA_PROBABILITY if style.commas is None else style.commas
    plain_sentences = to_sentences(clauses, topic.subject, commas, rng)
    sentences = [highlighted(text) if index < style.highlights else text for index, text in enumerate(plain_sentences)]
    title = style.title and style.title.format(rng.choice(topic.subject.titles))
    closing = [closing_sentence(name, index < style.blanks, rng) for index, name in enumerate(style.fills)]
    closing += [style.ending] if style.ending else []
    gap = " " if style.layout == "plain" else "\n"
    body = gap.join([lay_out_sentences(sentences, style), *closing])
    return wrap_response("\n".join(line for line in (title, body, style.postscript) if line), style)


def choose_clauses(style: Style, subject: Subject, rng: Random) -> list[str]:
    """Distinct clauses in the subject's order, then one for each object."""
    allowed = [clause for clause in subject.clauses if not contains(clause, style.avoids)]
    chosen = rng.sample(allowed, style.sentences - len(style.objects))
    if style.uses and not any(contains(clause, style.uses) for clause in chosen):
        matching = [clause for clause in allowed if contains(clause, style.uses)]
        chosen[rng.randrange(len(chosen))] = rng.choice(matching)
    mentions = in_order(rng.sample(subject.mentions, len(style.objects)), subject.mentions)
    objects = zip(mentions, style.objects, strict=True)
    return in_order(chosen, subject.clauses) + [
        mention.replace("{object}", object_name) for mention, object_name in objects
    ]


def in_order(chosen: Iterable[str], order: Sequence[str]) -> list[str]:
    """The chosen elements, sorted by their index in ``order``."""
    return sorted(chosen, key=order.index)


def contains(text: str, word: str) -> bool:
    """Whether the text contains the word; False for an empty word."""
    return bool(word) and re.search(rf"\b{word}\b", text) is not None


def to_sentences(clauses: list[str], subject: Subject, commas: bool, rng: Random) -> list[str]:
    """Turn clauses into sentences, some with an opener; with ``commas``, at least one has an opener."""
    max_openers = min(len(clauses), len(subject.openers))
    indices = sorted(rng.sample(range(len(clauses)), rng.randint(int(commas), max_openers)))
    openers = in_order(rng.sample(subject.openers, len(indices)), subject.openers)
    prefixes = {index: f"{opener}{',' * commas} " for index, opener in zip(indices, openers, strict=True)}
    texts = [prefixes.get(index, "") + clause for index, clause in enumerate(clauses)]
    return [f"{text[0].upper()}{text[1:]}." for text in (with_traits(text, subject, commas, rng) for text in texts)]


def with_traits(text: str, subject: Subject, commas: bool, rng: Random) -> str:
    """The text with ``{traits}`` replaced by two traits or, with ``commas``, three."""
    first, second, third = rng.sample(subject.traits, 3)
    return text.replace("{traits}", f"{first}, {second} and {third}" if commas else f"{first} and {second}")


def highlighted(sentence: str) -> str:
    """The sentence with its last word in asterisks."""
    rest, _, last = sentence.removesuffix(".").rpartition(" ")
    return f"{rest} *{last}*."


def closing_sentence(name: str, blank: bool, rng: Random) -> str:
    """A closing sentence with its placeholder, or with a value instead."""
    sentence, values = FILLS[name]
    return sentence.format(f"[{name}]" if blank else rng.choice(values))


def lay_out_sentences(sentences: list[str], style: Style) -> str:
    """Join the sentences in the style's layout."""
    match style.layout:
        case "plain" | "json":
            return " ".join(sentences)
        case "bullets":
            return "\n".join(f"* {sentence}" for sentence in sentences)
        case "starred":
            return "\n***\n".join(sentences)


def wrap_response(text: str, style: Style) -> str:
    """Apply the style's case, JSON and quotation marks to the whole response."""
    if style.layout == "json":
        text = json.dumps({"answer": text})
    text = text.lower() if style.lowercase else text
    return f'"{text}"' if style.quoted else text
