"""Metrics over IFEval results, and the definition of a loop."""

import pytest

from dpo_core.evaluate.sample_results import PromptResult, has_loop, response_metrics


def outcome(
    key: int, strict: dict[str, bool], response: str = "A fine response.", error: str | None = None
) -> PromptResult:
    return PromptResult(
        key=key,
        prompt="Do.",
        instruction_id_list=[*strict],
        response=response,
        strict=[*strict.values()],
        loose=[*strict.values()],
        stop_reason="stop" if key % 2 else "max_tokens",
        tokens=10 * key,
        error=error,
    )


def test_shares_are_hand_counted() -> None:
    """Three prompts were scored; the fourth failed and is not counted."""
    full = outcome(2, {"punctuation:no_comma": False}, response="and so on " * 8)
    outcomes = [
        outcome(1, {"punctuation:no_comma": True, "detectable_format:title": False}),
        full.model_copy(update={"stop_reason": "model_length", "tokens": 0}),
        outcome(3, {"punctuation:no_comma": True}),
        outcome(5, {"punctuation:no_comma": False}, error="out of memory"),
    ]
    assert response_metrics(outcomes) == {
        "ended_share": pytest.approx(2 / 3),
        "loop_share": pytest.approx(1 / 3),
        "no_room_share": pytest.approx(1 / 3),
        "answer_tokens": pytest.approx(40 / 3),
        "ifeval/no_comma": pytest.approx(2 / 3),
        "ifeval/title": 0,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the cat sat. the cat sat. the cat sat.", True),
        ("no " * 8, True),
        ("It began well. " + "We went on. " * 3, True),
        (" ".join(f"w{index}" for index in range(32)) + " ", False),
        ("very, very, very good, and a great pleasure to all of us", False),
        ("no " * 7, False),
        ("the cat sat. the cat sat. the dog sat.", False),
        ("* one point\n* two points\n* three points", False),
        ("", False),
    ],
)
def test_a_loop_is_three_rounds_of_eight_words_or_more(text: str, expected: bool) -> None:
    assert has_loop(text) is expected


def test_a_loop_may_be_32_words_long() -> None:
    def rounds(length: int) -> str:
        return " ".join(f"w{index}" for index in range(length)) + " "

    assert has_loop(rounds(32) * 3)
    assert not has_loop(rounds(33) * 3)
