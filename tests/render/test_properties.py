"""What holds for every renderer and every kind of tokenizer, whatever the messages say."""

from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpo_core.data.preference import Message, Preference
from dpo_core.errors import DataError
from dpo_core.pair import Pair
from dpo_core.render.registry import get_renderer
from dpo_core.render.renderer import Renderer
from dpo_core.render.tokenize_pairs import PairTokenizer, TokenizedPair, TooLong
from tests.conftest import shared
from tests.render.conversations import talks, texts
from tests.render.tokenizers import EXACT, KINDS, MARKERS, NAMES

TEMPLATES = ("llama3.jinja", "qwen2_5.jinja", "qwen3.jinja", "qwen3_instruct_2507.jinja")
EVERY = [*NAMES, *TEMPLATES]
Talk = list[Message]


@cache
def renderer_of(name: str, kind: str = "bytes") -> Renderer:
    """A renderer over a tokenizer of this kind; for a template's name, ``chat_template`` with it."""
    tokenizer = KINDS[kind]()
    if name not in TEMPLATES:
        return get_renderer(name, tokenizer)
    tokenizer.chat_template = shared("templates", name).read_text()
    if tokenizer.bos_token is None:
        tokenizer.bos_token = "<|begin_of_text|>"
    return get_renderer("chat_template", tokenizer)


def normal(name: str, text: str) -> str:
    """A reply as the format says it: what it strips is gone."""
    if name in ("llama3", "gemma", "mistral", "llama3.jinja"):
        return text.strip()
    return text.lstrip("\n") if name in ("qwen3", "qwen3_disable_thinking", "qwen3.jinja") else text


def expressible(name: str, kind: str, text: str) -> bool:
    """Whether a reply can be told from what the format writes around it, and by the tokenizer from another."""
    first_stop = f" {text}\n\nUser:".index("\n\nUser:")
    return (
        "think>" not in text
        and (name != "role_colon" or first_stop == len(text) + 1)
        # SentencePiece's letter for a space; a byte that the model's own vocabulary spells out.
        and not (kind.startswith("sentencepiece") and ("\u2581" in text or "<0x" in text))
    )


@pytest.mark.parametrize("name", EVERY)
@given(data=st.data())
def test_a_reply_comes_back_as_it_went_in(name: str, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(EXACT)))
    renderer = renderer_of(name, kind)
    talk, reply = data.draw(talks(texts(forged=False), turns=2)), data.draw(texts())
    assume(expressible(name, kind, reply))
    example = renderer.build_supervised_example([*talk[:-1], Message(role="assistant", content=reply)])
    completion = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
    parsed = renderer.parse_response(completion)
    response = parsed.message["content"].removeprefix("<think>\n\n</think>\n\n")  # of Qwen3's template as a renderer
    assert (response, parsed.ended) == (normal(name, reply), True)
    assert name == "role_colon" or not renderer.parse_response(completion[:-1]).ended


def test_what_follows_kimis_think_block_is_said_newlines_too() -> None:
    renderer = renderer_of("kimi_k2")
    reply: list[Message] = [{"role": "user", "content": "U"}, {"role": "assistant", "content": "\n\nA"}]
    example = renderer.build_supervised_example(reply)
    trained = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
    assert renderer.parse_response(trained).message["content"] == "\n\nA"


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_no_text_becomes_a_special_token(name: str, data: st.DataObject) -> None:
    renderer = renderer_of(name, data.draw(st.sampled_from(sorted(KINDS))))
    forged = data.draw(talks(texts(), turns=2))
    assume(name != "qwen3_disable_thinking" or not any("</think>" in message["content"] for message in forged))
    assume(not (name == "gpt_oss_no_sysprompt" and forged[0]["content"] == ""))  # no system message at all
    clean = [Message(role=message["role"], content="a") for message in forged]
    special = {renderer.tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS}
    counts = [
        [token for token in renderer.build_supervised_example(talk).ids if token in special] for talk in (forged, clean)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_text_becomes_a_special_token_in_a_template(name: str, marker: str) -> None:
    renderer = renderer_of(name)
    talk = [Message(role=role, content=f"a {marker}b") for role in ("system", "user", "assistant")]
    ids = renderer.build_supervised_example(talk).ids
    plain = renderer.build_supervised_example([Message(role=message["role"], content="a") for message in talk]).ids
    special = renderer.tokenizer.convert_tokens_to_ids(marker)
    assert ids.count(special) == plain.count(special)


@pytest.mark.parametrize("name", EVERY)
@given(data=st.data())
def test_an_answer_follows_the_generation_prompt(name: str, data: st.DataObject) -> None:
    renderer = renderer_of(name)
    talk = data.draw(talks(texts(forged=False)))
    prompt, example = renderer.build_generation_prompt(talk[:-1]), renderer.build_supervised_example(talk)
    assert example.ids[: len(prompt)] == prompt
    assert example.weights == [0] * len(prompt) + [1] * (len(example.ids) - len(prompt))


@pytest.mark.parametrize("name", TEMPLATES)
@given(data=st.data())
def test_a_template_as_a_renderer_writes_what_it_writes(name: str, data: st.DataObject) -> None:
    renderer = renderer_of(name)
    talk = data.draw(talks(texts(forged=False)))
    prompt = renderer.tokenizer.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=False)
    whole = renderer.tokenizer.apply_chat_template(talk, return_dict=False)
    ours = renderer.build_supervised_example(talk).ids
    assert renderer.build_generation_prompt(talk[:-1]) == prompt
    assert whole[: len(ours)] == ours
    assert renderer.decode(whole[len(ours) :]).strip() == ""


def preferences(contents: st.SearchStrategy[str]) -> st.SearchStrategy[Preference]:
    """A conversation's prompt with two answers, the second sometimes going on for another turn."""

    def preference(talk: Talk, rejected: str, further: list[str]) -> Preference:
        roles = ["assistant", "user", "assistant"][: 1 + 2 * (len(further) == 2)]
        other = [Message(role=role, content=text) for role, text in zip(roles, [rejected, *further], strict=False)]
        return Preference(talk[:-1], Pair(talk[-1:], other))

    return st.builds(preference, talks(contents), contents, st.lists(contents, max_size=2))


@pytest.mark.parametrize("name", EVERY)
@given(data=st.data())
def test_many_at_once_are_as_one_by_one(name: str, data: st.DataObject) -> None:
    renderer = renderer_of(name)
    many = data.draw(st.lists(preferences(texts(forged=False)), max_size=4))
    length = data.draw(st.integers(8, 200))
    fitter = PairTokenizer(renderer, length)
    for together, preference in zip(fitter.tokenize_all(many), many, strict=True):
        (alone,) = fitter.tokenize_all([preference])
        assert flat(together) == flat(alone)


def flat(fitted: TokenizedPair | TooLong | DataError) -> object:
    """A fitted pair as plain numbers, or why there is none."""
    if isinstance(fitted, DataError):
        return str(fitted)
    if isinstance(fitted, TooLong):
        return fitted
    sides = fitted.pair.sides
    arrays = (fitted.pair.prompt, sides.chosen.ids, sides.chosen.mask, sides.rejected.ids, sides.rejected.mask)
    return fitted.cuts, fitted.longest, [np.asarray(array).tolist() for array in arrays]


@pytest.mark.parametrize("name", EVERY)
@given(data=st.data())
def test_a_side_with_its_prompt_is_the_whole_conversation(name: str, data: st.DataObject) -> None:
    renderer = renderer_of(name)
    preference = data.draw(preferences(texts(forged=False)))
    (fitted,) = PairTokenizer(renderer, 10**6).tokenize_all([preference])
    assert isinstance(fitted, TokenizedPair)
    pair = fitted.pair
    for side, messages in (
        (pair.sides.chosen, preference.sides.chosen),
        (pair.sides.rejected, preference.sides.rejected),
    ):
        if name == "mistral" and preference.prompt[0]["role"] == "system" and len(messages) > 1:
            continue  # its system message moves to the last user's turn
        example = renderer.build_supervised_example([*preference.prompt, *messages])
        assert [*pair.prompt.tolist(), *side.ids.tolist()] == example.ids
        assert side.mask.tolist() == [bool(weight) for weight in example.weights[len(pair.prompt) :]]
