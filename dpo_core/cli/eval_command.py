"""``dpo eval``: results of one model, or of two compared on the same prompts; a second call finds them in the store."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Store, store_of
from dpo_core.cli import evaluation_report
from dpo_core.config.recipe import LEAVES, Recipe
from dpo_core.config.settings import option_name, read_recipe, split_recipe_file
from dpo_core.config.spelling import close_matches
from dpo_core.errors import RecipeError
from dpo_core.evaluate import task_names
from dpo_core.model import adapter
from dpo_core.model.locate import describe, locate
from dpo_core.model.model_lookup import find_model
from dpo_core.pipeline import evaluation_plan
from dpo_core.process.run_stage import run_stage
from dpo_core.records import ModelSource, TaskResult
from dpo_core.render.registry import resolve_renderer
from dpo_core.stages.evaluation import judge
from dpo_core.stages.evaluation.answer import AnswerRequest
from dpo_core.stages.stage import StageCall
from dpo_core.system import python_environment

SHOWN = 3
LIMITS = ("ifeval_limit", "task_limit")
OPTIONS = ("--model", "--against", "--task", "--limit", "--judge", "--show")
USAGE = (
    "Write: eval [recipe.toml] --model A [--against B] [--task NAME ...] [--limit N] [--judge provider/model]"
    " [--show N] [key=value ...]."
)


@dataclass(frozen=True)
class Evaluation:
    """What is measured: the models' names, the judge, and the recipe with its tasks and settings."""

    model: str
    against: str | None
    judge: str | None
    show: int
    recipe: Recipe


def number(least: int) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """The parser of an option's number, which raises RecipeError for one that is none or too small."""

    def parse_number(_: click.Context, option: click.Parameter, word: str | None) -> int | None:
        if word is not None and (not word.isdigit() or int(word) < least):
            raise RecipeError(f"--{option.name} {word} cannot be used.", f"It is a number, {least} or more.", "")
        return None if word is None else int(word)

    return parse_number


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.option("--model")
@click.option("--against")
@click.option("--judge")
@click.option("--task", multiple=True)
@click.option("--limit", callback=number(1))
@click.option("--show", callback=number(0), default=str(SHOWN))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def command_line(words: tuple[str, ...], **options: Any) -> Evaluation:
    """The words of the command as an Evaluation."""
    if options["model"] is None:
        raise RecipeError("No model is given.", USAGE, "")
    if options["judge"] and not options["against"]:
        raise RecipeError(
            "There is a judge and one model.", "A judge compares two models' responses.", "Add --against B."
        )
    for word in words:
        check_option(word)
    tasks = [f"tasks={','.join(options['task'])}"] if options["task"] else []
    limits = [f"{setting}={options['limit']}" for setting in LIMITS] if options["limit"] else []
    recipe_file, settings = split_recipe_file(words)
    recipe = read_recipe(recipe_file, [*settings, *tasks, *limits])
    return Evaluation(options["model"], options["against"], options["judge"], options["show"], recipe)


def parse(words: Sequence[str]) -> Evaluation:
    """The command line.

    Raises RecipeError for what it does not understand.
    """
    try:
        evaluation: Evaluation = command_line.main(list(words), standalone_mode=False)
    except click.BadOptionUsage as error:
        raise RecipeError(f"{error.option_name} has no value.", USAGE, "") from None
    return evaluation


def check_option(word: str) -> None:
    """Raises RecipeError for an option that is neither one of ours nor a setting, but is spelled nearly as one."""
    name = word.partition("=")[0]
    matches = close_matches(name, OPTIONS, cutoff=0.75)
    if name.startswith("--") and matches and option_name(name).rpartition(".")[2] not in LEAVES:
        raise RecipeError(f"There is no option {name}.", USAGE, f"Did you mean {matches[0]}?")


def eval_command(words: Sequence[str]) -> None:
    """Run every task on one or two models, and print the results.

    Raises RecipeError for words that mean nothing, and what the stages raise.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    evaluation = parse(words)
    recipe, store = evaluation.recipe, store_of(evaluation.recipe)
    tasks = task_names.settle(recipe.evaluate.tasks)
    eval_environment = evaluation_plan.check_engine(recipe.evaluate)
    if not tasks:
        raise RecipeError("No task is named.", "An evaluation runs at least one task.", "Add --task ifeval.")
    models = [model_source(name, recipe) for name in (evaluation.model, evaluation.against) if name is not None]
    for _, renderer in models:
        python_environment.check_module(recipe.evaluate, renderer)
    source = evaluation_plan.prompts_source(recipe)
    prompts = run_stage(store, evaluation_plan.prompts_call(recipe, source)).record if source else None
    plan = evaluation_plan.plan(recipe.evaluate, prompts, store, eval_environment, evaluation.judge)
    console = Console(highlight=False)
    for task in tasks:
        results = [
            task_result(store, model, evaluation_plan.answer_call(recipe, model, renderer, task, plan))
            for model, renderer in models
        ]
        evaluation_report.show(results, evaluation.show, console)
        if evaluation.judge and len(results) == 2:
            judgement = run_stage(
                store, judge.call(evaluation.judge, *results), announced(f"{evaluation.judge} judges …")
            )
            evaluation_report.show_judgement(judgement.record, results, console)


def model_source(name: str, recipe: Recipe) -> tuple[ModelSource, str]:
    """The model of this name (a directory of weights or adapters, a registered one, or the hub's), and its renderer.

    Raises RecipeError when there is none.
    """
    path = find_model(name)
    own_name, own_path = adapter.renderer_source(path, name)
    renderer = resolve_renderer(recipe.render.renderer_name, own_name, own_path)
    if not adapter.is_adapter(path):
        return describe(path, name, trust_remote_code=recipe.model.trust_remote_code), renderer
    adapter.check_weights(path)
    base = adapter.base_model_name(path)
    whole = describe(locate(base, None), base)
    adapter.check_base_fingerprint(path, whole.fingerprint, base)
    digest = fingerprint.of_value([whole.fingerprint, fingerprint.of_files(adapter.adapter_files(path), path)])
    return whole.model_copy(update={"path": path, "name": name, "fingerprint": digest}), renderer


def task_result(store: Store, model: ModelSource, call: StageCall[TaskResult]) -> TaskResult:
    """A model's result on a task: found, or made now."""
    request = AnswerRequest.model_validate(call.request)
    result = run_stage(store, call, announced(f"{request.task}: asking {model.name} …")).record
    # The cache keeps what was measured, not what the model was called when it was.
    return result.model_copy(update={"model_name": model.name})


@contextmanager
def announced(line: str) -> Iterator[None]:
    """Print what is being waited for."""
    print(line, file=sys.stderr, flush=True)
    yield
