import pytest

from dpo_core.train.schedule import learning_rate_factor


def test_linear_reaches_down_in_equal_steps() -> None:
    assert [1e-5 * learning_rate_factor("linear", step, 4) for step in range(4)] == pytest.approx(
        [1e-5, 7.5e-6, 5e-6, 2.5e-6]
    )


def test_cosine_is_half_way_in_the_middle() -> None:
    assert [learning_rate_factor("cosine", step, 4) for step in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])


def test_constant_stays() -> None:
    assert {learning_rate_factor("constant", step, 4) for step in range(4)} == {1.0}
