"""The warm start's data order, gradients and failures, on tiny models made here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpo_core.config.recipe import WarmStartSettings
from dpo_core.errors import TrainingError
from dpo_core.train import warm_start
from dpo_core.train.warm_start import SupervisedPhase, accumulate, batches, draw_pairs, fit_phase, set_learning_rate
from tests import tiny

SETTINGS = WarmStartSettings(sft_steps=6, sft_batch_size=4, sft_learning_rate=1e-2, sft_chosen_fraction=0.5)


@pytest.fixture
def phase(tmp_path: Path) -> SupervisedPhase:
    return SupervisedPhase(tiny.llama(), tiny.rows(tmp_path, tiny.token_pairs(12)), SETTINGS, seed=0)


def order(phase: SupervisedPhase) -> list[list[tuple[list[int], list[int]]]]:
    return [[(one.prompt.tolist(), one.completions[0].ids.tolist()) for one in batch] for batch in batches(phase)]


def test_the_order_is_a_function_of_the_seed(phase: SupervisedPhase) -> None:
    assert order(phase) == order(phase)
    assert order(phase) != order(replace(phase, seed=1))


def test_there_are_as_many_full_batches_as_steps(phase: SupervisedPhase) -> None:
    assert [len(batch) for batch in batches(phase)] == [SETTINGS.sft_batch_size] * SETTINGS.sft_steps


def test_every_pair_comes_once_an_epoch() -> None:
    drawn = draw_pairs(12, SETTINGS, seed=0)
    assert sorted(drawn[:12].tolist()) == sorted(drawn[12:].tolist()) == list(range(12))


@pytest.mark.parametrize(("fraction", "side"), [(1.0, "chosen"), (0.0, "rejected")])
def test_the_fraction_decides_the_side(phase: SupervisedPhase, fraction: float, side: str) -> None:
    one_sided = replace(phase, settings=SETTINGS.model_copy(update={"sft_chosen_fraction": fraction}))
    wanted = {tuple(getattr(phase.rows[index].sides, side).ids.tolist()) for index in range(len(phase.rows))}
    assert {tuple(ids) for batch in order(one_sided) for _, ids in batch} <= wanted


def test_gradients_do_not_depend_on_the_split(phase: SupervisedPhase) -> None:
    batch = next(batches(phase))
    gradients = []
    for budget in (16384, 32):
        model = tiny.llama(dtype=torch.float64)
        accumulate(replace(phase, model=model, token_budget=budget), batch)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-9)


def test_the_rate_rises_and_then_falls_to_zero() -> None:
    settings = WarmStartSettings(sft_steps=100, sft_learning_rate=1.0)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    rates = []
    for step in (0, 19, 50, 99):
        set_learning_rate(optimizer, step, settings)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.81, 0.5, 0.01])


def test_a_few_completions_are_learned_by_heart(tmp_path: Path) -> None:
    rows = tiny.rows(tmp_path, tiny.token_pairs(4))
    settings = WarmStartSettings(sft_steps=200, sft_batch_size=4, sft_learning_rate=1e-2)
    losses = list(fit_phase(SupervisedPhase(tiny.llama(), rows, settings, seed=0)))
    assert losses[0] == pytest.approx(np.log(tiny.VOCABULARY), rel=0.1)
    assert losses[-1] < 0.1


def test_a_step_that_is_not_finite_is_not_applied(phase: SupervisedPhase, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [parameter.detach().clone() for parameter in phase.model.parameters()]
    monkeypatch.setattr(warm_start, "accumulate", lambda *_: float("nan"))
    with pytest.raises(TrainingError, match="step 1"):
        next(fit_phase(phase))
    assert all(torch.equal(old, new) for old, new in zip(before, phase.model.parameters(), strict=True))
