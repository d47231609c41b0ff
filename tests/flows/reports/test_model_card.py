"""Model card of a version: base, data, results, limits and command."""

from dataclasses import replace

from dpo_core.config.recipe import EvaluateSettings, ModelSettings, Recipe, TrainSettings
from flows.registry.versions import Candidate
from flows.reports import run_report
from flows.reports.model_card import model_card_markdown
from tests.flows import fake

RECIPE = Recipe(model=ModelSettings(lora_rank=8), train=TrainSettings(learning_rate=3e-5, batch_size=32))


def test_card_has_base_data_training_and_command(candidate: Candidate) -> None:
    text = model_card_markdown(RECIPE, candidate)
    assert "- base: **tiny**, LoRA of rank 8, merged" in text
    assert "- data: 100 pairs of hhh (Anthropic/hh-rlhf@c0ffee); dropped: 10 equal sides" in text
    assert "- training: 20 steps of 32 pairs, loss sigmoid, beta 0.1, learning rate 3e-05, renderer role_colon" in text
    assert f"    {run_report.run_command(RECIPE)}" in text
    assert "|" not in text  # MLflow renders no tables


def test_card_has_results_and_sample_sizes(candidate: Candidate) -> None:
    text = model_card_markdown(RECIPE, candidate)
    assert "- prompts followed strictly (IFEval): **0.900**, base 0.400" in text
    assert (
        "- preference accuracy: measured on 300 held-out pairs of the same source, 95 % interval 0.870 to 0.930" in text
    )
    assert "not measured: truthfulness, safety" in text


def test_card_names_what_was_not_measured(candidate: Candidate) -> None:
    metrics = {name: value for name, value in candidate.after.metrics.items() if name != "prompt_strict_acc"}
    bare = replace(candidate, after=candidate.after.model_copy(update={"metrics": metrics | {"loop_share": 0.25}}))
    text = model_card_markdown(RECIPE.model_copy(update={"evaluate": EvaluateSettings(tasks=())}), bare)
    assert "instruction following was not measured" in text
    assert "- 25.0% of the responses loop" in text


def test_every_task_is_among_the_results(candidate: Candidate) -> None:
    before = fake.with_task(candidate.before, accuracy=0.111)
    after = fake.with_task(candidate.after, accuracy=0.777, stderr=0.033)
    text = model_card_markdown(RECIPE, replace(candidate, before=before, after=after))
    assert "- caps/accuracy: **0.777 ± 0.033**, base 0.111" in text
    metrics = {name: value for name, value in after.metrics.items() if name != "prompt_strict_acc"}
    text = model_card_markdown(
        RECIPE, replace(candidate, before=before, after=after.model_copy(update={"metrics": metrics}))
    )
    assert "- IFEval was not run, so instruction following was not measured" in text


def test_card_has_the_change_by_the_export(candidate: Candidate) -> None:
    export = {"export/nats_a_reply": 0.31, "export/nats_a_reply_low": 0.2, "export/nats_a_reply_high": 0.42}
    checkpoint = candidate.checkpoint.model_copy(update={"export": export | {"export/margin_noise": 0.5}})
    text = model_card_markdown(RECIPE, replace(candidate, checkpoint=checkpoint))
    change = "changed the log-probability of a held-out response by 0.31 nats (mean, 95 % interval 0.2 to 0.42)"
    assert f"- exporting the weights {change} and margins by" in text
    assert "exporting" not in model_card_markdown(RECIPE, candidate)
