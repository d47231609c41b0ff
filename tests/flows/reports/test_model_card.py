"""What a version's page says: origin, results, what they rest on, and how to repeat it."""

from dataclasses import replace

from dpo_core.config.recipe import EvaluateSettings, ModelSettings, Recipe, TrainSettings
from flows.registry.versions import Candidate
from flows.reports import run_report
from flows.reports.model_card import card
from tests.flows import fake

RECIPE = Recipe(model=ModelSettings(lora_rank=8), train=TrainSettings(learning_rate=3e-5, batch_size=32))


def test_it_says_where_the_model_comes_from_and_how_to_repeat_it(candidate: Candidate) -> None:
    told = card(RECIPE, candidate)
    assert "- base: **tiny**, LoRA of rank 8, merged" in told
    assert "- data: 100 pairs of hhh (Anthropic/hh-rlhf@c0ffee); left out: 10 equal sides" in told
    assert "- 20 steps of 32 pairs, sigmoid, beta 0.1, learning rate 3e-05, renderer role_colon" in told
    assert f"    {run_report.command(RECIPE)}" in told
    assert "|" not in told  # MLflow renders no tables


def test_it_says_what_was_measured_and_on_how_much(candidate: Candidate) -> None:
    told = card(RECIPE, candidate)
    assert "- prompts followed strictly (IFEval): **0.900**, base 0.400" in told
    assert "- accuracy is of 300 held-out pairs of the same source, 95 % interval 0.870 to 0.930" in told
    assert "not measured: truthfulness, safety" in told


def test_what_was_not_asked_is_said_to_be_unknown(candidate: Candidate) -> None:
    metrics = {name: value for name, value in candidate.after.metrics.items() if name != "prompt_strict_acc"}
    bare = replace(candidate, after=candidate.after.model_copy(update={"metrics": metrics | {"loop_share": 0.25}}))
    told = card(RECIPE.model_copy(update={"evaluate": EvaluateSettings(tasks=())}), bare)
    assert "whether it follows instructions was not measured" in told
    assert "- 25.0% of its answers loop" in told


def test_every_task_is_among_the_results(candidate: Candidate) -> None:
    before = fake.with_task(candidate.before, accuracy=0.111)
    after = fake.with_task(candidate.after, accuracy=0.777, stderr=0.033)
    told = card(RECIPE, replace(candidate, before=before, after=after))
    assert "- caps/accuracy: **0.777 ± 0.033**, base 0.111" in told
    metrics = {name: value for name, value in after.metrics.items() if name != "prompt_strict_acc"}
    told = card(RECIPE, replace(candidate, before=before, after=after.model_copy(update={"metrics": metrics})))
    assert "- IFEval was not asked: whether it follows instructions was not measured" in told


def test_it_says_what_exporting_changed(candidate: Candidate) -> None:
    export = {"export/nats_a_reply": 0.31, "export/nats_a_reply_low": 0.2, "export/nats_a_reply_high": 0.42}
    checkpoint = candidate.checkpoint.model_copy(update={"export": export | {"export/margin_noise": 0.5}})
    told = card(RECIPE, replace(candidate, checkpoint=checkpoint))
    assert "- exporting changed held-out replies by 0.31 nats (mean, 95 % interval 0.2 to 0.42), and margins by" in told
    assert "exporting" not in card(RECIPE, candidate)
