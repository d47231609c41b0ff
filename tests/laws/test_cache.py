"""What a stored reference depends on, and what it does not; and that storing it changes nothing."""

from pathlib import Path
from typing import Any

import torch

from dpo_core.config.recipe import Recipe, TrainSettings
from dpo_core.model.locate import describe
from dpo_core.pipeline import stage_calls
from dpo_core.records import DataReport, ModelSource, PairSet, ReferenceSet, RenderedSet
from dpo_core.stages.stage import StageCall
from dpo_core.train.batching.packing import branches, build
from dpo_core.train.loop import Run, steps
from dpo_core.train.reference import OnTheFlyReference
from tests import tiny

REPORT = DataReport(rows_read=64, kept=64)


def rendered(path: Path) -> RenderedSet:
    return RenderedSet(
        path=path,
        fingerprint="r",
        renderer_name="role_colon",
        tokenizer_path=path,
        train_pairs=64,
        test_pairs=4,
        tokens=1000,
        truncated=0,
        train_report=REPORT,
        test_report=REPORT,
    )


def recipe(train: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(sections | {"train": {"batch_size": 8} | (train or {})})


def calls(model: ModelSource, *recipes: Recipe) -> list[StageCall[ReferenceSet]]:
    return [stage_calls.score_reference_call(recipe, rendered(model.path), model) for recipe in recipes]


def keys(model: ModelSource, *recipes: Recipe) -> list[str]:
    return [call.cache_key for call in calls(model, *recipes)]


# Another value than the default of every setting of the optimisation, beside batch_size=10.
OTHER: dict[str, Any] = {
    "learning_rate": 1e-3,
    "warmup_steps": 3,
    "lr_schedule": "cosine",
    "dpo_beta": 0.5,
    "loss": "ipo",
    "label_smoothing": 0.1,
    "simpo_gamma": 1.0,
    "rpo_alpha": 0.5,
    "reference_mode": "on_the_fly",
    "batch_size": 24,
    "num_epochs": 2,
    "max_steps": 3,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "adam_eps": 1e-6,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "precision": "bf16",
    "token_budget": 512,
    "layout": "padded",
    "activation_checkpointing": True,
    "compile_model": True,
    "deterministic": True,
    "seed": 1,
    "eval_every": 3,
    "infrequent_eval_every": 3,
    "save_every": 3,
    "save_every_minutes": 3,
    "keep_checkpoints": 1,
    "best_metric": "test/accuracy",
    "on_save_error": "continue",
    "max_minutes": 3,
    "step_timeout_minutes": 3,
    "show_every": 3,
    "log_path": "elsewhere",
    "behavior_if_log_dir_exists": "delete",
}
VISITED = {"batch_size", "num_epochs", "max_steps", "seed", "reference_mode"}
NUMERICS = {"precision", "layout"}


def test_a_stored_reference_depends_on_the_pairs_visited_and_the_numerics_and_on_no_other_setting(
    tmp_path: Path,
) -> None:
    assert OTHER.keys() == TrainSettings.model_fields.keys()
    model, train = describe(tiny.directory(tmp_path), "tiny"), {"batch_size": 10}  # 60 of 64 pairs an epoch
    [own] = keys(model, recipe(train=train))
    told = keys(model, *(recipe(train=train | {name: value}) for name, value in OTHER.items()))
    changed = {name for name, key in zip(OTHER, told, strict=True) if key != own}
    assert changed == VISITED | NUMERICS


def test_what_is_stored_of_any_pairs_is_shared_by_runs_of_the_same_numerics(tmp_path: Path) -> None:
    model, train = describe(tiny.directory(tmp_path), "tiny"), {"batch_size": 10}
    recipes = [recipe(train=train), *(recipe(train=train | {name: value}) for name, value in OTHER.items())]
    own, *told = [call.request.base_key for call in calls(model, *recipes)]  # type: ignore[attr-defined]
    assert own
    assert {name for name, key in zip(OTHER, told, strict=True) if key != own} == NUMERICS


def test_a_warm_start_depends_on_its_own_settings_seed_and_numerics_and_not_on_the_microbatches(tmp_path: Path) -> None:
    model = describe(tiny.directory(tmp_path), "tiny")

    def key(train: dict[str, Any], **warm_start: float) -> str:
        with_warm_start = recipe(train=train, warm_start={"sft_steps": 3} | warm_start)
        call = stage_calls.warm_start_call(with_warm_start, rendered(tmp_path), model)
        assert call is not None
        return call.cache_key

    own = key({})
    assert {name for name, value in OTHER.items() if key({name: value}) != own} == NUMERICS | {"seed"}
    assert key({"token_budget": "auto"}) == own
    others = {"sft_steps": 4, "sft_learning_rate": 1e-3, "sft_batch_size": 8, "sft_chosen_fraction": 0.5}
    assert len({own} | {key({}, **{name: value}) for name, value in others.items()}) == 5


def test_numerics_seen_pairs_and_weights_do_not(tmp_path: Path) -> None:
    model = describe(tiny.directory(tmp_path), "tiny")
    lora, full = {"lora_rank": 8}, {"lora_rank": 0}
    half = {"precision": "bf16"}
    told = keys(
        model,
        recipe(train={"precision": "fp32"}),
        recipe(train=half, model=full),
        recipe(train=half, model=lora),
        recipe(train={"layout": "padded"}),
        recipe(train={"max_steps": 1, "batch_size": 4}),
    )
    tiny.llama(seed=1).save_pretrained(model.path)
    told += keys(describe(model.path, "tiny"), recipe())
    assert len(set(told)) == len(told)


def test_another_max_length_or_treatment_of_what_is_beyond_it_renders_anew(tmp_path: Path) -> None:
    model = describe(tiny.directory(tmp_path), "tiny")
    pairs = PairSet(
        path=tmp_path,
        fingerprint="p",
        dataset="demo",
        source="demo",
        train_pairs=64,
        test_pairs=4,
        train_report=REPORT,
        test_report=REPORT,
    )
    changes = ({}, {"max_length": 1024}, {"max_length": 1024, "over_length": "drop"})
    recipes = [recipe(render=changed | {"renderer_name": "role_colon"}) for changed in changes]
    assert len({stage_calls.render_call(one, pairs, model).cache_key for one in recipes}) == 3


def test_the_stored_reference_is_the_one_on_the_fly(tmp_path: Path) -> None:
    model, pairs = tiny.llama(), tiny.token_pairs(9)
    stored = tiny.references(tmp_path, model, tiny.rows(tmp_path, pairs))
    order = [7, 2, 5]
    batch = build("tree", [branches(pairs[index]) for index in order], torch.device("cpu"))
    computed = OnTheFlyReference(model, "fp32").reference_logps(order, batch)
    torch.testing.assert_close(computed, stored.reference_logps(order, batch), atol=1e-5, rtol=0)


def test_a_reference_found_and_one_scored_now_give_the_same_run_to_the_bit(tmp_path: Path) -> None:
    split = tiny.rows(tmp_path, tiny.token_pairs(16))
    tiny.references(tmp_path, tiny.llama(), split)

    def losses(known: Any) -> list[dict[str, float]]:
        policy = tiny.llama()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, fused=True)
        run = Run(policy, optimizer, split, known, recipe(train={"batch_size": 4}).train)
        return [{k: v for k, v in step.values.items() if "/" not in k and k != "batch_time"} for step in steps(run)]

    found = losses(tiny.open_references(tmp_path, "train"))
    (tmp_path / "train.safetensors").unlink()
    assert losses(tiny.references(tmp_path, tiny.llama(), split)) == found
