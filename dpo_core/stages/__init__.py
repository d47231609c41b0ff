"""Stages: for each its request, data version, cache key, output and entry point. ``STAGES`` is the list of all."""

from dpo_core.stages import acquire, demo_base, evaluate, merge, render, score_reference, train, warm_start
from dpo_core.stages.evaluation import answer, check_imports, generate, inspect_tasks, judge, prompts
from dpo_core.stages.stage import Stage

_MODULES = (
    acquire,
    demo_base,
    merge,
    prompts,
    check_imports,
    inspect_tasks,
    render,
    warm_start,
    score_reference,
    train,
    generate,
    answer,
    evaluate,
    judge,
)
STAGES: dict[str, Stage] = {module.STAGE.name: module.STAGE for module in _MODULES}  # type: ignore[type-arg]
