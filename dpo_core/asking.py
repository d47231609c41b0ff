"""What models are asked: IFEval's prompts and tasks of inspect-ai's; and the key under which answers are kept."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dpo_core import interpreter
from dpo_core.data import acquire as acquisition
from dpo_core.data.hub import Wanted, check_reachable
from dpo_core.errors import DataError
from dpo_core.evaluate import sentences, task_names
from dpo_core.evaluate.prompts import HUB_ID, HUB_REVISION, INSTEAD, kept_by_inspect
from dpo_core.launch import launch
from dpo_core.model import engines
from dpo_core.produce import Produced, Work, make, produce, store
from dpo_core.recipe import EvaluateSettings, Recipe
from dpo_core.records import Imports, ModelSource, PromptSet, RenderedSet, SampleSet, TaskContents, TaskResult
from dpo_core.render.registry import identity
from dpo_core.requests import (
    AnswerRequest,
    GenerateRequest,
    ImportsRequest,
    KeyedAnswers,
    LookRequest,
    PromptsRequest,
)
from dpo_core.store import Store


@dataclass(frozen=True)
class Questions:
    """What every model of a run is asked: IFEval's prompts, and by name a digest of each other task's content."""

    prompts: PromptSet | None
    contents: dict[str, str]


def check_engine(recipe: Recipe) -> None:
    """Raises RecipeError when what is to generate answers is not installed, here or in ``eval_python``."""
    interpreter.check(recipe.evaluate)
    if recipe.evaluate.eval_python is None:
        engines.check(recipe.evaluate.eval_engine)


def questions(recipe: Recipe, prompts: PromptSet | None, judge: str | None = None) -> Questions:
    """The prompts, with what the recipe's other tasks are made of now.

    Each of these is built once in a process of its own: what it needs is then known to be there before anything is
    trained, and what it asks is known, whatever its name. So is the judge; and what ``eval_python`` imports. Raises
    EvaluationError for one that cannot be built, or an interpreter whose packages do not import.
    """
    names = tuple(name for name in task_names.settle(recipe.evaluate.tasks) if name != task_names.IFEVAL)
    python = interpreter.located(recipe.evaluate)
    if python is not None:
        produce(recipe, imports(recipe.evaluate, python), Imports)
    if judge is not None and python is not None:  # a judge is asked from here, whatever generates answers
        contents(LookRequest(tasks=(), judge=judge), None)
        judge = None
    if not names and judge is None:
        return Questions(prompts, {})
    return Questions(prompts, contents(LookRequest(tasks=names, judge=judge), python))


def imports(settings: EvaluateSettings, python: Path) -> Work:
    """Whether all that generating needs can be imported there: done once for what the environment holds now."""
    told = interpreter.check(settings)
    print(f"eval_python={python}: {interpreter.described(told)}", file=sys.stderr, flush=True)
    depends = {"python": str(python), "told": told, "engine": engines.asked_for(settings)}
    return Work("imports", depends, ImportsRequest(engine=engines.asked_for(settings)), python)


def contents(request: LookRequest, python: Path | None) -> dict[str, str]:
    """By name, a digest of what each task is made of where it is asked: in this interpreter or another.

    Raises EvaluationError for a task that cannot be built there, or a judge that cannot be asked.
    """
    with TemporaryDirectory(prefix="dpo-") as place:
        aside = Store(Path(place))
        launch("look", "once", request, aside, python)
        found = aside.find("look", "once", TaskContents)
    if found is None:
        raise RuntimeError("stage look ended well but left no whole output")
    return found.digests


def acquire_prompts(recipe: Recipe) -> Produced[PromptSet] | None:
    """The instruction-following prompts; None when no generation task is asked for."""
    source = prompts_source(recipe)
    if source is None:
        return None
    seed = recipe.train.seed if source == "demo" else 0
    request = PromptsRequest(
        source=source,
        demo_pairs=recipe.data.demo_pairs,
        seed=seed,
        limit=recipe.evaluate.ifeval_limit,
        nltk_data=recipe.evaluate.nltk_data,
    )
    demo_settings = [request.demo_pairs, seed] if source == "demo" else []
    depends = {
        "content": acquisition.digest(source),
        "demo": demo_settings,
        "limit": request.limit,
        # Prompts that could be scored where they were first checked may need what is missing here.
        "sentences": sentences.found(request.nltk_data),
    }
    return produce(recipe, Work("prompts", depends, request), PromptSet)


def prompts_source(recipe: Recipe) -> str | None:
    """Where the prompts are: demo, a file's path, or a pinned hub id.

    Raises DataError when they cannot be found.
    """
    settings = recipe.evaluate
    if task_names.IFEVAL not in task_names.settle(settings.tasks) and not settings.infrequent_prompts:
        return None
    if settings.ifeval_path:
        path = Path(settings.ifeval_path).expanduser()
        if not path.exists():
            raise DataError(f"There is no prompt file {path}.", "ifeval_path is a JSONL file.", "Check the path.")
        return str(path.resolve())
    if recipe.data.dataset == "demo":
        return "demo"
    try:
        return f"{HUB_ID}@{check_reachable(Wanted('dataset', HUB_ID, HUB_REVISION, INSTEAD))}"
    except DataError:
        if (kept := kept_by_inspect()) is not None:
            return str(kept)
        raise


def answers(recipe: Recipe, model: ModelSource, renderer: str, asked: Questions) -> tuple[Work, ...]:
    """A model's answers to each task."""
    return tuple(answer(recipe, model, renderer, task, asked) for task in task_names.settle(recipe.evaluate.tasks))


def answer(recipe: Recipe, model: ModelSource, renderer: str, task: str, asked: Questions) -> Work:
    """A model's answers to one task: what they depend on, whoever asks, and what the stage is told."""
    settings, precision = recipe.evaluate, recipe.train.precision
    ours = task == task_names.IFEVAL
    depends = {
        "model": model.fingerprint,
        "tokenizer": model.tokenizer_fingerprint,
        "renderer": identity(renderer),
        "task": task_names.identity(task),
        "content": asked.prompts.fingerprint if ours and asked.prompts else asked.contents.get(task),
        "limit": None if ours else settings.task_limit,
        "sampling": sampling(settings),
        "precision": precision,
    }
    request = AnswerRequest(
        model=model,
        renderer_name=renderer,
        task=task,
        prompts=asked.prompts if ours else None,
        evaluate=settings,
        precision=precision,
    )
    return Work("answer", depends, request, interpreter.located(settings))


def generation(recipe: Recipe, model: ModelSource, rendered: RenderedSet, answers: Sequence[Work]) -> Work | None:
    """All that ``eval_python`` is to generate with a model, in one process since an engine may take a minute to start.

    That is its answers, and where no task is IFEval, held-out prompts continued. None without ``eval_python``.
    """
    settings, precision = recipe.evaluate, recipe.train.precision
    if settings.eval_python is None:
        return None
    depends = {
        "model": model.fingerprint,
        "tokenizer": model.tokenizer_fingerprint,
        "rendered": rendered.fingerprint,
        "answers": [answer.key for answer in answers],
        "samples": [settings.num_samples, sampling(settings)],
        "precision": precision,
    }
    request = GenerateRequest(
        model=model,
        rendered=rendered,
        answers=keyed(answers),
        continues=task_names.IFEVAL not in task_names.settle(settings.tasks),
        evaluate=settings,
        precision=precision,
    )
    return Work("generate", depends, request, interpreter.located(settings))


def generate(recipe: Recipe, work: Work, answers: Sequence[Work]) -> None:
    """Have :func:`generation` done, unless it is, with every answer still there."""
    kept = [store(recipe).find(answer.stage, answer.key, TaskResult) for answer in answers]
    (make if None in kept else produce)(recipe, work, SampleSet)


def keyed(answers: Sequence[Work]) -> tuple[KeyedAnswers, ...]:
    """Answers with the keys that they are kept under, for a stage that gives several."""
    return tuple(KeyedAnswers(key=work.key, request=work.request) for work in answers)


def sampling(settings: EvaluateSettings) -> list[int | float | str | None]:
    """What answers depend on beside the model and the question; a greedy one on no seed."""
    seed = settings.eval_seed if settings.eval_temperature else None
    return [settings.max_new_tokens, settings.eval_temperature, seed, engines.asked_for(settings)]
