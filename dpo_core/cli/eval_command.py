"""Command ``dpo eval``: evaluates one model, or compares two on the same prompts; results are cached in the store."""

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

DEFAULT_FLIPS = 3
LIMITS = ("ifeval_limit", "task_limit")
OPTIONS = ("--model", "--against", "--task", "--limit", "--judge", "--show")
USAGE = (
    "Write: eval [recipe.toml] --model A [--against B] [--task NAME ...] [--limit N] [--judge provider/model]"
    " [--show N] [key=value ...]."
)


@dataclass(frozen=True)
class Evaluation:
    """Arguments of ``dpo eval``: model names, the judge's name, number of flipped prompts to show, and the recipe."""

    model: str
    against: str | None
    judge: str | None
    show: int
    recipe: Recipe


def number_parser(least: int) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """A click callback that parses an option's number.

    The callback raises RecipeError for a word that is no number, or a number below ``least``.
    """

    def parse_number(_: click.Context, option: click.Parameter, word: str | None) -> int | None:
        if word is not None and (not word.isdigit() or int(word) < least):
            raise RecipeError(f"--{option.name} {word} cannot be used.", f"It is a whole number, {least} or more.", "")
        return None if word is None else int(word)

    return parse_number


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.option("--model")
@click.option("--against")
@click.option("--judge")
@click.option("--task", multiple=True)
@click.option("--limit", callback=number_parser(1))
@click.option("--show", callback=number_parser(0), default=str(DEFAULT_FLIPS))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def command_line(words: tuple[str, ...], **options: Any) -> Evaluation:
    """Build an Evaluation from the command's words."""
    if options["model"] is None:
        raise RecipeError("No model is given.", USAGE, "")
    if options["judge"] and not options["against"]:
        raise RecipeError(
            f"The judge {options['judge']} has one model.",
            "A judge compares two models' responses.",
            "Add --against B.",
        )
    for word in words:
        check_option(word)
    tasks = [f"tasks={','.join(options['task'])}"] if options["task"] else []
    limits = [f"{setting}={options['limit']}" for setting in LIMITS] if options["limit"] else []
    recipe_file, settings = split_recipe_file(words)
    recipe = read_recipe(recipe_file, [*settings, *tasks, *limits])
    return Evaluation(options["model"], options["against"], options["judge"], options["show"], recipe)


def parse_command(words: Sequence[str]) -> Evaluation:
    """Parse the command line.

    Raises RecipeError for unknown options, missing values and wrong settings.
    """
    try:
        evaluation: Evaluation = command_line.main(list(words), standalone_mode=False)
    except click.BadOptionUsage as error:
        raise RecipeError(f"{error.option_name} has no value.", USAGE, "") from None
    return evaluation


def check_option(word: str) -> None:
    """Raises RecipeError for an option that is neither in OPTIONS nor a setting, but is spelled almost like one."""
    name = word.partition("=")[0]
    matches = close_matches(name, OPTIONS, cutoff=0.75)
    if name.startswith("--") and matches and option_name(name).rpartition(".")[2] not in LEAVES:
        raise RecipeError(f"There is no option {name}.", USAGE, f"Did you mean {matches[0]}?")


def eval_command(words: Sequence[str]) -> None:
    """Run every task on one or two models, and print the results.

    Raises RecipeError for a wrong command line, and what the stages raise.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    evaluation = parse_command(words)
    recipe, store = evaluation.recipe, store_of(evaluation.recipe)
    tasks = task_names.resolve_all(recipe.evaluate.tasks)
    eval_environment = evaluation_plan.check_engine(recipe.evaluate)
    if not tasks:
        raise RecipeError("No task is named.", "An evaluation runs at least one task.", "Add --task ifeval.")
    models = [find_model_source(name, recipe) for name in (evaluation.model, evaluation.against) if name is not None]
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
        evaluation_report.print_results(results, evaluation.show, console)
        if evaluation.judge and len(results) == 2:
            judgement = run_stage(
                store, judge.call(evaluation.judge, *results), announce(f"judging with {evaluation.judge} …")
            )
            evaluation_report.print_judgement(judgement.record, results, console)


def find_model_source(name: str, recipe: Recipe) -> tuple[ModelSource, str]:
    """The model of this name, and its renderer's name.

    ``name``: a directory of weights or LoRA adapters, a registered model, or a hub id. Raises RecipeError when there is
    no such model, or when the adapters do not fit their base.
    """
    path = find_model(name)
    own_name, own_path = adapter.renderer_source(path, name)
    renderer = resolve_renderer(recipe.render.renderer_name, own_name, own_path)
    if not adapter.is_adapter(path):
        return describe(path, name, trust_remote_code=recipe.model.trust_remote_code), renderer
    adapter.check_weights(path)
    base = adapter.base_model_name(path)
    base_source = describe(locate(base, None), base)
    adapter.check_base_fingerprint(path, base_source.fingerprint, base)
    digest = fingerprint.of_value([base_source.fingerprint, fingerprint.of_files(adapter.adapter_files(path), path)])
    return base_source.model_copy(update={"path": path, "name": name, "fingerprint": digest}), renderer


def task_result(store: Store, model: ModelSource, call: StageCall[TaskResult]) -> TaskResult:
    """A model's result on a task, from the store or generated now."""
    request = AnswerRequest.model_validate(call.request)
    result = run_stage(store, call, announce(f"{request.task}: evaluating {model.name} …")).record
    # The cached result carries the name that the model had when it was evaluated.
    return result.model_copy(update={"model_name": model.name})


@contextmanager
def announce(line: str) -> Iterator[None]:
    """Print a line on stderr before a stage runs."""
    print(line, file=sys.stderr, flush=True)
    yield
