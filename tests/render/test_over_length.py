"""Whatever max_length is: a prompt that is cut stays a whole rendering, headers and all, of a shorter conversation."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpo_core.data.lengths import LAST_TEXT, NO_ROOM
from dpo_core.data.preference import Message, Preference
from dpo_core.errors import DataError, RecipeError
from dpo_core.pair import Pair
from dpo_core.render.registry import get_renderer
from dpo_core.render.renderer import Renderer
from dpo_core.render.tokenize_pairs import PairTokenizer, TokenizedPair, TooLong
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.render.truncation import cut_message, last_words, without_oldest_turn
from tests.render.conversations import talks, texts
from tests.render.test_properties import EVERY, TEMPLATES, renderer_of
from tests.render.tokenizers import KINDS, NAMES

REAL = Path.home() / ".cache" / "dpo-flows" / "tokenizers"
FAMILIES = {
    "llama3": ("llama3",),
    "qwen3": ("qwen3", "qwen3_disable_thinking", "qwen3_instruct"),
    "gemma3": ("gemma",),
    "deepseek_v3": ("deepseekv3",),
    "gptoss": ("gpt_oss_no_sysprompt",),
}
SAID = "He said: a naïve café, 漢字 and 👩‍👩‍👧. Then the last question: why?"
Sides = Pair[list[Message]]


def talk() -> list[Message]:
    """A prompt of two turns whose last text is long."""
    roles, contents = ("system", "user", "assistant", "user"), ("Be kind.", "first question", "first reply", SAID)
    return [Message(role=role, content=content) for role, content in zip(roles, contents, strict=True)]


SIDES: Sides = Pair(
    [Message(role="assistant", content="an answer that goes on and on, then ends here")],
    [Message(role="assistant", content="no")],
)


def shorter(prompt: list[Message]) -> Iterator[list[Message]]:
    """Every conversation that a prompt may be cut to: with fewer turns, and of the last with an end of the text."""
    while prompt:
        yield prompt
        last = prompt
        prompt = without_oldest_turn(prompt)
    index = cut_message(last)
    text = last[index]["content"].strip()
    for start in range(len(text) + 1):
        yield [*last[:index], Message(role=last[index]["role"], content=text[start:]), *last[index + 1 :]]


def check(renderer: Renderer, fitted: TokenizedPair, renderings: set[tuple[int, ...]], max_length: int) -> None:
    """A cut pair is within the length, its prompt is one of the renderings, and its sides have the room left."""
    pair = fitted.pair
    assert pair.longest <= max_length
    assert tuple(pair.prompt.tolist()) in renderings
    longest = max(len(pair.sides.chosen.ids), len(pair.sides.rejected.ids))
    before = fitted.longest - len(pair.prompt if fitted.whole_prompt is None else fitted.whole_prompt)
    assert longest >= min(max_length // 2, before)


def sweep(renderer: Renderer, prompt: list[Message]) -> None:
    """A max_length from one token to what fits whole."""
    renderings = {tuple(renderer.build_generation_prompt(item)) for item in shorter(prompt)}
    preference, outcomes = Preference(prompt, SIDES), []
    whole = PairTokenizer(renderer, 10**6).tokenize_all([preference])[0]
    assert isinstance(whole, TokenizedPair)
    for max_length in [*range(1, whole.longest, 3), whole.longest]:
        (fitted,) = PairTokenizer(renderer, max_length).tokenize_all([preference])
        if isinstance(fitted, TokenizedPair):
            check(renderer, fitted, renderings, max_length)
        else:
            assert fitted == TooLong(NO_ROOM, whole.longest)
        outcomes.append(fitted)
    kept = [isinstance(item, TokenizedPair) for item in outcomes]
    assert kept == sorted(kept)  # what has room has room in any larger max_length
    assert any(isinstance(item, TokenizedPair) and LAST_TEXT in item.cuts for item in outcomes)


@pytest.mark.parametrize(("name", "kind"), [*product(NAMES, KINDS), *product(TEMPLATES, ["bytes", "tiny bpe"])])
def test_headers_survive_any_max_length(name: str, kind: str) -> None:
    sweep(renderer_of(name, kind), talk())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_headers_survive_any_max_length_with_a_real_tokenizer(family: str) -> None:
    if not (REAL / family).is_dir():
        pytest.skip("needs the tokenizers that ../shared/tools/real-tokenizers brings")
    tokenizer = load_tokenizer(REAL / family)
    for name in (*FAMILIES[family], "role_colon"):
        sweep(get_renderer(name, tokenizer), talk())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_headers_survive_with_a_real_template(family: str) -> None:
    if not (REAL / family).is_dir():
        pytest.skip("needs the tokenizers that ../shared/tools/real-tokenizers brings")
    try:
        renderer = get_renderer("chat_template", load_tokenizer(REAL / family))
        PairTokenizer(renderer, 10).tokenize_all([Preference(talk(), SIDES)])
    except RecipeError as error:
        pytest.skip(str(error))
    sweep(renderer, talk())


@pytest.mark.parametrize("name", EVERY)
@given(data=st.data())
def test_whatever_is_said_a_cut_prompt_is_a_rendering(name: str, data: st.DataObject) -> None:
    renderer = renderer_of(name, data.draw(st.sampled_from(["bytes", "sentencepiece bpe"])))
    messages = data.draw(talks(texts(forged=False), turns=2))
    preference = Preference(messages[:-1], Pair(messages[-1:], [Message(role="assistant", content="no " * 9)]))
    max_length = data.draw(st.integers(2, 120))
    (fitted,) = PairTokenizer(renderer, max_length).tokenize_all([preference])
    assume(not isinstance(fitted, DataError))
    if isinstance(fitted, TokenizedPair):
        renderings = {tuple(renderer.build_generation_prompt(item)) for item in shorter(messages[:-1])}
        check(renderer, fitted, renderings, max_length)


@given(st.text(max_size=60), st.integers(0, 80))
def test_last_words_are_an_end_of_the_text_that_begins_with_a_word(text: str, size: int) -> None:
    text = text.strip()
    end = last_words(text, size)
    assert text.endswith(end)
    assert len(end) <= max(size, 0)
    assert end == "" or not end[0].isspace()


def test_last_words_begin_inside_a_word_only_where_half_would_go() -> None:
    assert last_words("some more words", 9) == "words"
    assert last_words("some more words", 10) == "more words"
    assert last_words("a averyveryverylongword", 6) == "ngword"
