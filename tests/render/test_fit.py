"""Truncation: the oldest turns first, then the prompt's left, the response last and without its end."""

from dpo_core.data.preference import Message, Preference
from dpo_core.pair import Pair
from dpo_core.render.fit import fit, render_pair
from dpo_core.render.registry import get_renderer
from tests.render.test_renderers import byte_tokenizer

RENDERER = get_renderer("qwen3_instruct", byte_tokenizer())
END = RENDERER.marker_id("<|im_end|>")


def turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


LONG = Preference(
    [turn("system", "S"), turn("user", "first " * 10), turn("assistant", "reply"), turn("user", "second")],
    Pair([turn("assistant", "good answer")], [turn("assistant", "bad")]),
)


def test_what_fits_is_left_alone() -> None:
    fitted = fit(RENDERER, LONG, 1000)
    assert not fitted.truncated
    assert fitted.pair.prompt.tolist() == RENDERER.build_generation_prompt(LONG.prompt)


def test_whole_oldest_turns_go_first_and_the_system_message_stays() -> None:
    fitted = fit(RENDERER, LONG, 80)
    shorter = [LONG.prompt[0], LONG.prompt[3]]
    assert fitted.truncated
    assert fitted.pair.prompt.tolist() == RENDERER.build_generation_prompt(shorter)
    assert fitted.pair.sides.chosen.ids.tolist() == render_pair(RENDERER, shorter, LONG.sides).sides.chosen.ids.tolist()


def test_then_the_prompts_left_tokens_go() -> None:
    fitted = fit(RENDERER, LONG, 30)
    whole = RENDERER.build_generation_prompt([LONG.prompt[0], LONG.prompt[3]])
    assert fitted.pair.longest == 30
    assert fitted.pair.prompt.tolist() == whole[-len(fitted.pair.prompt) :]
    assert fitted.pair.sides.chosen.ids[-1] == END


def test_a_response_beyond_the_budget_loses_its_end_and_its_end_marker() -> None:
    fitted = fit(RENDERER, LONG, 8)
    assert fitted.pair.longest == 8
    assert len(fitted.pair.prompt) == 1
    assert RENDERER.decode(fitted.pair.sides.chosen.ids.tolist()) == "good an"
    assert END not in fitted.pair.sides.chosen.ids
    assert fitted.pair.sides.rejected.ids[-1] == END


def test_a_completion_of_several_messages_trains_the_last_only() -> None:
    side = [turn("assistant", "one"), turn("user", "two"), turn("assistant", "three")]
    pair = render_pair(RENDERER, [turn("user", "hi")], Pair(side, [turn("assistant", "no")]))
    chosen = pair.sides.chosen
    assert RENDERER.decode(chosen.ids[chosen.mask].tolist()) == "three"
    assert not chosen.mask[:5].any()
