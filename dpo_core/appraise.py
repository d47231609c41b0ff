"""``dpo eval``: one model's results, or two models compared on the same prompts; asked once, found again after that."""

import difflib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dpo_core import appraisal, asking, fingerprint, interpreter
from dpo_core.errors import RecipeError
from dpo_core.evaluate import task_names
from dpo_core.model import adapter
from dpo_core.model.names import find
from dpo_core.model.source import describe, locate
from dpo_core.produce import Work, produce
from dpo_core.recipe import LEAVES, Recipe
from dpo_core.records import Judgement, ModelSource, TaskResult
from dpo_core.render.registry import resolve
from dpo_core.requests import JudgeRequest
from dpo_core.settings import read_recipe

OPTIONS = ("model", "against", "task", "limit", "judge", "show")
USAGE = (
    "Write: eval [recipe.toml] --model A [--against B] [--task NAME ...] [--limit N] [--judge provider/model]"
    " [--show N] [key=value ...]."
)
SHOWN = 3
LIMITS = ("ifeval_limit", "task_limit")


@dataclass(frozen=True)
class Wanted:
    """What is to be measured: the models' names, the recipe with its tasks and settings, the judge."""

    model: str
    against: str | None
    judge: str | None
    show: int
    recipe: Recipe


def eval_command(words: Sequence[str]) -> None:
    """Ask one or two models every task, and show what came of it.

    Raises RecipeError for words that mean nothing, and what the stages raise.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    wanted = parse(words)
    recipe = wanted.recipe
    tasks = task_names.settle(recipe.evaluate.tasks)
    asking.check_engine(recipe)
    if not tasks:
        raise RecipeError("There is no task.", "An evaluation asks something.", "Add --task ifeval.")
    sources = [source(name, recipe) for name in (wanted.model, wanted.against) if name is not None]
    for _, renderer in sources:
        interpreter.check_module(recipe.evaluate, renderer)
    prompts = asking.acquire_prompts(recipe)
    questions = asking.questions(recipe, prompts.record if prompts else None, wanted.judge)
    console = Console(highlight=False)
    for task in tasks:
        results = [
            answer(recipe, model, task, asking.answer(recipe, model, renderer, task, questions))
            for model, renderer in sources
        ]
        appraisal.show(results, wanted.show, console)
        if wanted.judge and len(results) == 2:
            appraisal.show_judgement(judged(recipe, wanted.judge, results), results, console)


def parse(words: Sequence[str]) -> Wanted:
    """The command line.

    Raises RecipeError for what it does not understand.
    """
    given: dict[str, list[str]] = {name: [] for name in OPTIONS}
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, is_joined, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in OPTIONS:
            rest.append(checked(word, name))
        elif is_joined or left:
            given[name].append(value if is_joined else left.pop(0))
        else:
            raise RecipeError(f"--{name} has no value.", USAGE, "")
    if not given["model"]:
        raise RecipeError("No model is given.", USAGE, "")
    if given["judge"] and not given["against"]:
        raise RecipeError(
            "There is a judge and one model.", "A judge compares two models' answers.", "Add --against B."
        )
    limit = [f"{setting}={count('limit', given['limit'][-1], 1)}" for setting in LIMITS] if given["limit"] else []
    files = [word for word in rest[:1] if word.endswith(".toml")]
    tasks = [f"tasks={','.join(given['task'])}"] if given["task"] else []
    recipe = read_recipe(Path(files[0]) if files else None, [*rest[len(files) :], *tasks, *limit])
    show = count("show", given["show"][-1], 0) if given["show"] else SHOWN
    return Wanted(given["model"][-1], last(given["against"]), last(given["judge"]), show, recipe)


def checked(word: str, name: str) -> str:
    """A word that is none of the options, and so a setting's.

    Raises RecipeError for one that looks like an option that was misspelt.
    """
    near = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0.75)
    if word.startswith("--") and near and name.replace("-", "_").rpartition(".")[2] not in LEAVES:
        raise RecipeError(f"There is no option --{name}.", USAGE, f"Did you mean --{near[0]}?")
    return word


def last(values: Sequence[str]) -> str | None:
    """The last of several, as command lines have it."""
    return values[-1] if values else None


def count(name: str, word: str, least: int) -> int:
    """A number of the command line.

    Raises RecipeError for one that is none, or too small.
    """
    if not word.isdigit() or int(word) < least:
        raise RecipeError(f"--{name} {word} cannot be used.", f"It is a number, {least} or more.", "")
    return int(word)


def source(name: str, recipe: Recipe) -> tuple[ModelSource, str]:
    """The model of this name (a directory of weights or adapters, a registered one, or the hub's), and its renderer.

    Raises RecipeError when there is none.
    """
    path = find(name)
    own_name, own_path = adapter.whose(path, name)
    renderer = resolve(recipe.render.renderer_name, own_name, own_path)
    if not adapter.is_adapter(path):
        return describe(path, name, trust_remote_code=recipe.model.trust_remote_code), renderer
    adapter.check_weights(path)
    base = adapter.base_name(path)
    whole = describe(locate(base, None), base)
    adapter.check_base(path, whole.fingerprint, base)
    digest = fingerprint.of_value([whole.fingerprint, fingerprint.of_files(adapter.files(path), path)])
    return whole.model_copy(update={"path": path, "name": name, "fingerprint": digest}), renderer


def answer(recipe: Recipe, model: ModelSource, task: str, work: Work) -> TaskResult:
    """A model's answers to a task: found, or asked for now."""
    result = produce(recipe, work, TaskResult, told(f"{task}: asking {model.name} …")).record
    # The cache keeps what was measured, not what the model was called when it was.
    return result.model_copy(update={"model_name": model.name})


@contextmanager
def told(line: str) -> Iterator[None]:
    """Say what is being waited for, to whoever watches."""
    print(line, file=sys.stderr, flush=True)
    yield


def judged(recipe: Recipe, judge: str, results: Sequence[TaskResult]) -> Judgement:
    """The judge's preferences between two models' answers: found, or asked for now."""
    first, second = results
    depends = {"judge": judge, "answers": [first.fingerprint, second.fingerprint]}
    request = JudgeRequest(judge=judge, first=first, second=second)
    return produce(recipe, Work("judge", depends, request), Judgement, told(f"{judge} judges …")).record
