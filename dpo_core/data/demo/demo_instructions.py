"""Instructions of the demo: official IFEval types, their requests, and the style changes that obey or break them."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from dpo_core.data.demo.demo_responses import Style
from dpo_core.data.demo.demo_vocabulary import ENDINGS, FILLS, OBJECTS, POSTSCRIPTS, Subject

NUMBERS = {2: "two", 3: "three"}
SHORT = 15
NEAR_MISS = 0.1

T = TypeVar("T")

Changes = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: ``id`` and ``kwargs`` of its official checker, the ``request`` that asks for it, and the changes
    of :class:`Style` that obey it and that break it."""

    id: str
    kwargs: dict[str, Any]
    request: str
    obeyed: Changes
    broken: Changes


Maker = Callable[[Subject, Random], Instruction]


@dataclass(frozen=True, slots=True)
class InstructionKind:
    """A type of instruction. Two instructions of one prompt share none of the ``parts`` of a response that they set.

    ``weight``: sampling weight in held-out prompts; ``practice``: sampling weight in training prompts.
    """

    make: Maker
    parts: frozenset[str]
    weight: int
    practice: int


def near_miss_or_plain(near_miss: T, plain: T, rng: Random) -> T:
    """``near_miss`` with probability NEAR_MISS, else ``plain``: a broken instruction is mostly ignored."""
    return near_miss if rng.random() < NEAR_MISS else plain


def number_word(number: int, rng: Random) -> str:
    """A number as a digit or as a word."""
    return rng.choice((str(number), NUMBERS[number]))


def no_comma(_: Subject, rng: Random) -> Instruction:
    """punctuation:no_comma."""
    request = rng.choice(("Do not use any commas.", "Refrain from the use of commas.", "Write without commas."))
    return Instruction("punctuation:no_comma", {}, request, {"commas": False}, {"commas": True})


def lowercase(_: Subject, rng: Random) -> Instruction:
    """change_case:english_lowercase."""
    request = rng.choice(("Use only lowercase letters.", "No capital letters are allowed.", "Write all in lowercase."))
    return Instruction("change_case:english_lowercase", {}, request, {"lowercase": True}, {})


def quotation(_: Subject, rng: Random) -> Instruction:
    """startend:quotation."""
    request = rng.choice(
        ("Wrap your whole answer in double quotation marks.", "Put double quotation marks around it all.")
    )
    return Instruction("startend:quotation", {}, request, {"quoted": True}, {})


def title(_: Subject, rng: Random) -> Instruction:
    """detectable_format:title; broken by no title, rarely by one without brackets."""
    request = rng.choice(
        ("Add a title in double angular brackets such as <<title>>.", "Give it a title wrapped in << and >>.")
    )
    return Instruction(
        "detectable_format:title", {}, request, {"title": "<<{}>>"}, {"title": near_miss_or_plain("{}:", "", rng)}
    )


def keywords(_: Subject, rng: Random) -> Instruction:
    """keywords:existence of an object; broken by no object, rarely by another one."""
    keyword, other_keyword = rng.sample(OBJECTS, 2)
    request = rng.choice((f'Include the keyword "{keyword}".', f'Make sure to mention "{keyword}".'))
    broken = {"objects": near_miss_or_plain((other_keyword,), (), rng)}
    return Instruction("keywords:existence", {"keywords": [keyword]}, request, {"objects": (keyword,)}, broken)


def forbidden(subject: Subject, rng: Random) -> Instruction:
    """keywords:forbidden_words of one word that this subject often needs."""
    word = rng.choice(subject.forbiddable)
    request = rng.choice(
        (f'Do not use the word "{word}".', f'The word "{word}" should not appear.', f'Avoid the word "{word}".')
    )
    return Instruction(
        "keywords:forbidden_words", {"forbidden_words": [word]}, request, {"avoids": word}, {"uses": word}
    )


def bullets(_: Subject, rng: Random) -> Instruction:
    """detectable_format:number_bullet_lists of three; broken by no list."""
    count = number_word(3, rng)
    request = rng.choice((f"Use exactly {count} bullet points.", f"Answer in {count} bullet points that begin with *."))
    obeyed = {"layout": "bullets", "sentences": 3}
    return Instruction("detectable_format:number_bullet_lists", {"num_bullets": 3}, request, obeyed, {})


def paragraphs(_: Subject, rng: Random) -> Instruction:
    """length_constraints:number_paragraphs, divided by ***; broken by no divider."""
    count = number_word(2, rng)
    request = rng.choice(
        (f"Write {count} paragraphs separated by ***.", f"Use {count} paragraphs with the divider *** between.")
    )
    obeyed = {"layout": "starred", "sentences": 2}
    return Instruction("length_constraints:number_paragraphs", {"num_paragraphs": 2}, request, obeyed, {})


def json_format(_: Subject, rng: Random) -> Instruction:
    """detectable_format:json_format."""
    request = rng.choice(("Wrap the entire output in JSON format.", "Answer in JSON only."))
    return Instruction("detectable_format:json_format", {}, request, {"layout": "json"}, {})


def ending(_: Subject, rng: Random) -> Instruction:
    """startend:end_checker; broken by no ending, rarely by another one."""
    phrase, other = rng.sample(ENDINGS, 2)
    request = rng.choice((f'Finish with this exact phrase: "{phrase}"', f'The last words must be "{phrase}"'))
    return Instruction(
        "startend:end_checker",
        {"end_phrase": phrase},
        request,
        {"ending": phrase},
        {"ending": near_miss_or_plain(other, "", rng)},
    )


def postscript(_: Subject, rng: Random) -> Instruction:
    """detectable_content:postscript."""
    request = rng.choice(
        ("At the end add a postscript starting with P.S.", "Close with a postscript that begins with P.S.")
    )
    text = f"P.S. {rng.choice(POSTSCRIPTS)}"
    kwargs = {"postscript_marker": "P.S."}
    return Instruction("detectable_content:postscript", kwargs, request, {"postscript": text}, {})


def highlights(_: Subject, rng: Random) -> Instruction:
    """detectable_format:number_highlighted_sections, at least one; broken by none."""
    request = rng.choice(("Highlight at least one part with *asterisks*.", "Highlight at least one part like *this*."))
    kwargs = {"num_highlights": 1}
    return Instruction("detectable_format:number_highlighted_sections", kwargs, request, {"highlights": 1}, {})


def placeholders(_: Subject, rng: Random) -> Instruction:
    """detectable_content:number_placeholders, one or two; broken by filling in all of them, rarely but one."""
    number = rng.choice((1, 2))
    amount = "one placeholder" if number == 1 else f"{number_word(number, rng)} placeholders"
    request = rng.choice(
        (f"Use at least {amount} in square brackets such as [address].", f"Leave at least {amount} like [address].")
    )
    changes: Changes = {"fills": tuple(sorted(rng.sample(sorted(FILLS), number))), "sentences": 1, "objects": ()}
    return Instruction(
        "detectable_content:number_placeholders",
        {"num_placeholders": number},
        request,
        changes | {"blanks": number},
        changes | {"blanks": near_miss_or_plain(number - 1, 0, rng)},
    )


def brevity(_: Subject, rng: Random) -> Instruction:
    """length_constraints:number_words, fewer than SHORT; broken by three sentences."""
    request = rng.choice((f"Answer with less than {SHORT} words.", f"Keep it under {SHORT} words."))
    kwargs = {"relation": "less than", "num_words": SHORT}
    return Instruction(
        "length_constraints:number_words", kwargs, request, {"sentences": 1, "objects": ()}, {"sentences": 3}
    )


def instruction_kind(make: Maker, *parts: str, weight: int = 1, practice: int | None = None) -> InstructionKind:
    """An InstructionKind; ``practice`` None means the same as ``weight``."""
    return InstructionKind(make, frozenset(parts), weight, weight if practice is None else practice)


KINDS = (
    instruction_kind(no_comma, "commas", weight=3),
    instruction_kind(lowercase, "case", weight=2),
    instruction_kind(quotation, "edges", practice=2),
    instruction_kind(title, "head"),
    instruction_kind(keywords, "objects", weight=3),
    instruction_kind(forbidden, "words", practice=3),
    instruction_kind(bullets, "body", "edges"),
    instruction_kind(paragraphs, "body", "edges"),
    instruction_kind(json_format, "body", "edges", "head", "tail"),
    instruction_kind(ending, "tail"),
    instruction_kind(postscript, "tail", "case"),
    instruction_kind(highlights, "body", "objects"),
    instruction_kind(placeholders, "body", "tail", "objects"),
    instruction_kind(brevity, "body", "case", "head", "tail", "objects"),
)


def draw_instructions(subject: Subject, count: int, rng: Random, held_out: bool) -> list[Instruction]:
    """Draw ``count`` instructions that one response can obey together, with the weights of this split."""
    kinds: list[InstructionKind] = []
    while len(kinds) < count:
        compatible = [kind for kind in KINDS if not any(kind.parts & drawn.parts for drawn in kinds)]
        kinds += rng.choices(compatible, [kind.weight if held_out else kind.practice for kind in compatible])
    return [kind.make(subject, rng) for kind in kinds]


def draw_styles(instructions: list[Instruction], rng: Random) -> tuple[Style, Style]:
    """Draw a style that obeys every instruction, and a style that breaks at least one of them."""
    broken = rng.randrange(len(instructions))
    both = rng.random() < 1 / 4
    obeying: Changes = {}
    breaking: Changes = {}
    for index, instruction in enumerate(instructions):
        obeying |= instruction.obeyed
        breaking |= instruction.broken if both or index == broken else instruction.obeyed
    return Style(**obeying), Style(**breaking)
