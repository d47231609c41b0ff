"""Evaluation plan: which tasks and prompts a run's models are evaluated on, and the cache keys of their results."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dpo_core.cache.store import Store
from dpo_core.config.recipe import EvaluateSettings, Recipe
from dpo_core.data import sources
from dpo_core.data.readers.hub import HubRepository, resolve_commit
from dpo_core.errors import DataError
from dpo_core.evaluate import task_names
from dpo_core.evaluate.ifeval.ifeval_prompts import HUB_ALTERNATIVE, HUB_ID, HUB_REVISION, inspect_cached_prompts
from dpo_core.inference import select_engine
from dpo_core.process.run_stage import run_stage
from dpo_core.records import ModelSource, PromptSet, RenderedSet, SampleSet, TaskResult
from dpo_core.render.registry import renderer_identity
from dpo_core.stages.evaluation import answer, check_imports, generate, inspect_tasks, prompts
from dpo_core.stages.evaluation.answer import AnswerRequest, KeyedAnswers
from dpo_core.stages.evaluation.generate import GenerateRequest
from dpo_core.stages.evaluation.prompts import PromptsRequest
from dpo_core.stages.stage import StageCall
from dpo_core.system import nltk_data, python_environment


@dataclass(frozen=True)
class EvaluationPlan:
    """IFEval's prompts, and by name a digest of each other task's samples; the same for every model of a run."""

    prompts: PromptSet | None
    task_digests: dict[str, str] = field(default_factory=dict)


def check_engine(settings: EvaluateSettings) -> dict[str, Any]:
    """Versions in the environment of ``eval_python``, empty without it.

    Raises RecipeError when the engine that generates is not installed, in this environment or that one.
    """
    if settings.eval_python is None:
        select_engine.check_installed(settings.eval_engine)
    return python_environment.check_interpreter(settings)


def prompts_source(recipe: Recipe) -> str | None:
    """Where IFEval's prompts are: demo, a file's path, or a pinned hub id; None for a run without them.

    Raises DataError when they cannot be found.
    """
    settings = recipe.evaluate
    if task_names.IFEVAL not in task_names.resolve_all(settings.tasks) and not settings.infrequent_prompts:
        return None
    if settings.ifeval_path:
        path = Path(settings.ifeval_path).expanduser()
        if not path.exists():
            raise DataError(f"There is no prompt file {path}.", "ifeval_path is a JSONL file.", "Check the path.")
        return str(path.resolve())
    if recipe.data.dataset == "demo":
        return "demo"
    try:
        return f"{HUB_ID}@{resolve_commit(HubRepository('dataset', HUB_ID, HUB_REVISION, HUB_ALTERNATIVE))}"
    except DataError:
        if (kept := inspect_cached_prompts()) is not None:
            return str(kept)
        raise


def prompts_call(recipe: Recipe, source: str) -> StageCall[PromptSet]:
    """IFEval's prompts from ``source``."""
    request = PromptsRequest(
        source=source,
        demo_pairs=recipe.data.demo_pairs,
        seed=recipe.train.seed if source == "demo" else 0,
        limit=recipe.evaluate.ifeval_limit,
        nltk_data=recipe.evaluate.nltk_data,
    )
    return prompts.call(request, sources.source_digest(source), nltk_data.is_installed(request.nltk_data))


def plan(
    settings: EvaluateSettings,
    prompt_set: PromptSet | None,
    store: Store,
    eval_environment: dict[str, Any],
    judge: str | None = None,
) -> EvaluationPlan:
    """The plan, with a digest of the samples of every task that is not IFEval.

    Tasks are built once, in a process of their own, the judge is asked for, and ``eval_python`` imports what it needs:
    what fails there fails before anything is trained. Raises EvaluationError.
    """
    tasks = tuple(name for name in task_names.resolve_all(settings.tasks) if name != task_names.IFEVAL)
    python = python_environment.interpreter_path(settings)
    if python is not None:
        print(
            f"eval_python={python}: {python_environment.describe_versions(eval_environment)}",
            file=sys.stderr,
            flush=True,
        )
        run_stage(store, check_imports.call(python, eval_environment, select_engine.configured_engine(settings)))
    if judge is not None and python is not None:  # a judge is asked from this interpreter, whatever generates responses
        digest_tasks((), judge, None)
        judge = None
    return EvaluationPlan(prompt_set, digest_tasks(tasks, judge, python) if tasks or judge else {})


def digest_tasks(tasks: tuple[str, ...], judge: str | None, python: Path | None) -> dict[str, str]:
    """By name, a digest of each task's samples, built in this interpreter or another.

    Raises EvaluationError for a task that cannot be built there, or a judge that cannot be asked.
    """
    with TemporaryDirectory(prefix="dpo-") as directory:  # a digest is made anew in each run: nothing to keep
        return run_stage(Store(Path(directory)), inspect_tasks.call(tasks, judge, python)).record.digests


def answer_calls(
    recipe: Recipe, model: ModelSource, renderer: str, evaluation: EvaluationPlan
) -> tuple[StageCall[TaskResult], ...]:
    """A model's responses to every task."""
    tasks = task_names.resolve_all(recipe.evaluate.tasks)
    return tuple(answer_call(recipe, model, renderer, task, evaluation) for task in tasks)


def answer_call(
    recipe: Recipe, model: ModelSource, renderer: str, task: str, evaluation: EvaluationPlan
) -> StageCall[TaskResult]:
    """A model's responses to one task; the same call whichever run makes it."""
    settings = recipe.evaluate
    is_ifeval = task == task_names.IFEVAL
    prompt_set = evaluation.prompts if is_ifeval else None
    request = AnswerRequest(
        model=model,
        renderer_name=renderer,
        task=task,
        prompts=prompt_set,
        evaluate=settings,
        precision=recipe.train.precision,
    )
    content = prompt_set.fingerprint if prompt_set else evaluation.task_digests.get(task)
    return answer.call(
        request,
        select_engine.configured_engine(settings),
        renderer_identity(renderer),
        (task_names.cache_identity(task), content, is_ifeval),
        python_environment.interpreter_path(settings),
    )


def generate_call(
    recipe: Recipe, model: ModelSource, rendered: RenderedSet, answers: Sequence[StageCall[TaskResult]]
) -> StageCall[SampleSet] | None:
    """All that ``eval_python`` generates with a model, in one process since an engine may take a minute to start:
    responses to tasks and, where no task is IFEval, to held-out prompts. None without ``eval_python``."""
    settings = recipe.evaluate
    python = python_environment.interpreter_path(settings)
    if python is None:
        return None
    request = GenerateRequest(
        model=model,
        rendered=rendered,
        answers=keyed(answers),
        continues=task_names.IFEVAL not in task_names.resolve_all(settings.tasks),
        evaluate=settings,
        precision=recipe.train.precision,
    )
    return generate.call(request, select_engine.configured_engine(settings), python)


def keyed(answers: Sequence[StageCall[TaskResult]]) -> tuple[KeyedAnswers, ...]:
    """Calls as values for a request."""
    return tuple(KeyedAnswers.model_validate({"key": call.cache_key, "request": call.request}) for call in answers)
