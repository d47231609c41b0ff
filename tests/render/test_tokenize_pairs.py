"""Truncation: the oldest turns first, then the last text's beginning, the response last and without its end."""

from functools import partial

import pytest

from dpo_core.data.lengths import CHOSEN, LAST_TEXT, NO_ROOM, OLDER_TURNS, OVER_LENGTH, REJECTED
from dpo_core.data.preference import Message, Preference
from dpo_core.pair import Pair
from dpo_core.render.registry import get_renderer
from dpo_core.render.token_dataset import Ids
from dpo_core.render.tokenize_pairs import PairTokenizer, TokenizedPair, TooLong, render_pair, tokenize_pair
from dpo_core.render.truncation import LEAST_TEXT, without_oldest_turn
from tests.render.test_renderers import byte_tokenizer

RENDERER = get_renderer("qwen3_instruct", byte_tokenizer())
FITTER = partial(PairTokenizer, RENDERER)
END = RENDERER.marker_id("<|im_end|>")


def turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def cut(preference: Preference, max_length: int) -> TokenizedPair:
    """The preference within a length that leaves it room."""
    fitted = tokenize_pair(RENDERER, preference, max_length)
    assert isinstance(fitted, TokenizedPair)
    return fitted


def renderer_text(ids: Ids) -> str:
    """Ids as text, special tokens shown."""
    return str(RENDERER.tokenizer.decode(ids.tolist()))


LONG = Preference(
    [turn("system", "S"), turn("user", "first " * 10), turn("assistant", "reply"), turn("user", "second")],
    Pair([turn("assistant", "good answer")], [turn("assistant", "bad")]),
)


def test_what_fits_is_left_alone() -> None:
    fitted = cut(LONG, 1000)
    assert not fitted.truncated
    assert fitted.pair.prompt.tolist() == RENDERER.build_generation_prompt(LONG.prompt)


def test_whole_oldest_turns_go_first_and_the_system_message_stays() -> None:
    fitted = cut(LONG, 80)
    shorter = [LONG.prompt[0], LONG.prompt[3]]
    assert fitted.truncated
    assert fitted.pair.prompt.tolist() == RENDERER.build_generation_prompt(shorter)
    assert fitted.pair.sides.chosen.ids.tolist() == render_pair(RENDERER, shorter, LONG.sides).sides.chosen.ids.tolist()


def test_then_the_beginning_of_the_last_users_text_goes_at_a_word() -> None:
    words = " ".join(f"word{index}" for index in range(40))
    pair = Preference([*LONG.prompt[:3], turn("user", words)], LONG.sides)
    fitted = cut(pair, 80)
    shorter = renderer_text(fitted.pair.prompt)
    assert shorter == (
        "<|im_start|>system\nS<|im_end|>\n"
        "<|im_start|>user\nword35 word36 word37 word38 word39<|im_end|>\n<|im_start|>assistant\n"
    )
    assert fitted.cuts == (OLDER_TURNS, LAST_TEXT)
    assert fitted.pair.sides.chosen.ids[-1] == END
    assert fitted.whole_prompt is not None
    assert fitted.whole_prompt.tolist() == RENDERER.build_generation_prompt(pair.prompt)


def test_a_text_without_white_space_is_cut_where_it_must() -> None:
    pair = Preference([turn("user", "漢字" * 40)], LONG.sides)
    fitted = cut(pair, 90)
    assert 80 < fitted.pair.longest <= 90
    assert renderer_text(fitted.pair.prompt).startswith("<|im_start|>user\n漢字") or "\n字" in renderer_text(
        fitted.pair.prompt
    )


def test_a_response_is_whole_as_long_as_the_smallest_prompt_fits_beside_it() -> None:
    question, answer = "w" * 200, "so " * 30
    pair = Preference([turn("user", question)], Pair([turn("assistant", answer)], [turn("assistant", "no")]))
    smallest = len(RENDERER.build_generation_prompt([turn("user", "")])) + LEAST_TEXT
    fitted = cut(pair, smallest + len(answer) + 1)
    assert fitted.cuts == (LAST_TEXT,)
    assert fitted.pair.sides.chosen.ids[-1] == END
    fitted = cut(pair, smallest + len(answer))
    assert fitted.cuts == (LAST_TEXT, CHOSEN)
    assert END not in fitted.pair.sides.chosen.ids
    assert fitted.pair.sides.rejected.ids[-1] == END


def test_beside_responses_that_are_cut_the_prompt_keeps_a_quarter() -> None:
    long = [turn("assistant", "so " * 1000)]
    pair = Preference([turn("user", "why " * 500)], Pair(long, [turn("assistant", "also " * 1000)]))
    fitted = cut(pair, 1000)
    assert 240 < len(fitted.pair.prompt) <= 250
    assert fitted.pair.longest == 1000
    assert fitted.cuts == (LAST_TEXT, CHOSEN, REJECTED)


def test_a_prompt_whose_smallest_version_leaves_responses_less_than_half_has_no_room() -> None:
    question = [turn("system", "s" * 100), turn("user", "why?")]
    pair = Preference(question, Pair([turn("assistant", "so " * 99)], [turn("assistant", "no")]))
    smallest = len(RENDERER.build_generation_prompt(question))
    assert FITTER(2 * smallest - 1).tokenize_all([pair]) == [TooLong(NO_ROOM, smallest + 298)]
    assert cut(pair, 2 * smallest).cuts == (CHOSEN,)


def test_over_length_drop_drops_what_is_too_long_and_nothing_else() -> None:
    whole = render_pair(RENDERER, LONG.prompt, LONG.sides).longest
    assert FITTER(whole - 1, over_length="drop").tokenize_all([LONG]) == [TooLong(OVER_LENGTH, whole)]
    kept = FITTER(whole, over_length="drop").tokenize_all([LONG])[0]
    assert isinstance(kept, TokenizedPair)
    assert kept.cuts == ()


@pytest.mark.parametrize(
    "prompt",
    [
        [turn("system", "be brief " * 20)],
        [turn("assistant", "what then? " * 20)],
        [turn("user", "why? " * 20), turn("assistant", "because"), turn("tool", "42")],
        [turn("user", "why? " * 20), turn("assistant", "because")],
    ],
    ids=["system", "assistant", "tool", "assistant after user"],
)
def test_prompts_that_end_with_other_roles_keep_their_headers(prompt: list[Message]) -> None:
    fitted = cut(Preference(prompt, LONG.sides), 110)
    text = renderer_text(fitted.pair.prompt)
    assert fitted.pair.longest <= 110
    assert [part.split("\n")[0] for part in text.split("<|im_start|>")[1:]] == [
        *(message["role"] for message in prompt),
        "assistant",
    ]
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_of_several_system_messages_all_stay() -> None:
    systems = [turn("system", "A"), turn("system", "B")]
    prompt = [*systems, turn("user", "old " * 9), turn("assistant", "yes"), turn("user", "new")]
    assert without_oldest_turn(prompt) == [*systems, prompt[-1]]
    assert without_oldest_turn([*systems, prompt[-1]]) == []


def test_a_completion_of_several_messages_trains_the_last_only() -> None:
    side = [turn("assistant", "one"), turn("user", "two"), turn("assistant", "three")]
    pair = render_pair(RENDERER, [turn("user", "hi")], Pair(side, [turn("assistant", "no")]))
    chosen = pair.sides.chosen
    assert RENDERER.decode(chosen.ids[chosen.mask].tolist()) == "three"
    assert not chosen.mask[:5].any()
