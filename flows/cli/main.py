"""The command line. Heavy imports wait inside the commands, so that --help and a wrong setting are answered at once."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dpo_core.errors import DPOError, StoppedError, TrainingError, interrupted
from dpo_core.system import gc_tuning
from flows.cli.commands import COMMANDS, FREE_FORM, WORDS

if TYPE_CHECKING:
    from dpo_core.config.recipe import Recipe
    from dpo_core.pipeline.preflight import RunPlan

DEMO_RECIPE = Path(__file__).parents[2] / "recipes" / "demo.toml"


class RecipeCommand(click.Command):
    """A command that takes settings as key=value, and lists them all in its help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every setting by section, with its default."""
        from dpo_core.config.recipe import SECTIONS  # lazy: pydantic, for this help page only

        for section, kind in SECTIONS.items():
            with formatter.section(f"Settings: {section}"):
                rows = [
                    (f"{name}={shown(field.default)}", field.description or "")
                    for name, field in kind.model_fields.items()
                ]
                formatter.write_dl(rows)


def shown(default: object) -> str:
    """A default as it would be typed."""
    return ",".join(str(item) for item in default) if isinstance(default, tuple) else str(default)


class Commands(click.Group):
    """The commands, all of which Ctrl-C stops with the same words and exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """One command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise interrupted() from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dpo-flows")
def cli() -> None:
    """Direct Preference Optimization as a workflow: data, training, evaluation, registry, promotion.

    Start with: dpo demo. With --debug anywhere, errors show their traceback.
    """


for command in COMMANDS:
    cli.add_command(command)


@cli.command(cls=RecipeCommand, context_settings=FREE_FORM)
@WORDS
def run(words: tuple[str, ...]) -> None:
    """Run the whole pipeline: dpo run [recipe.toml] [key=value ...]."""
    from dpo_core.config.settings import split_recipe_file  # lazy: pydantic, half a second that --help need not wait

    execute(*split_recipe_file(words))


@cli.command(cls=RecipeCommand, context_settings=FREE_FORM)
@WORDS
def demo(words: tuple[str, ...]) -> None:
    """Run the built-in demo: no network, no GPU, minutes on two cores. dpo demo [key=value ...]."""
    execute(DEMO_RECIPE, words)


def execute(recipe_file: Path | None, words: Sequence[str]) -> None:
    """Read the recipe, refuse what cannot work, then start the flow."""
    # Lazy, each of these: what comes first must not wait for what comes next.
    from dpo_core.config.settings import read_recipe

    start(read_recipe(recipe_file, words))


def start(recipe: "Recipe") -> None:
    """The flow, on a recipe that can work."""
    plan = refuse_early(recipe)
    end_by_sigterm()
    with gc_tuning.importing():
        # Lazy, each of these: prefect and mlflow come after the checks.
        from flows.cli.final_summary import show
        from flows.pipeline import CHECKED, pipeline
        from flows.tracking import mlflow_server

    CHECKED.set(plan)
    show(pipeline(mlflow_server.without_password(recipe)))


def end_by_sigterm() -> None:
    """Leave in an orderly way, and the server that Prefect brings along with us: it would outlive this process.

    Prefect stops what runs first, and then hands the signal on to this.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(StoppedError.exit_code))


def refuse_early(recipe: "Recipe") -> "RunPlan":
    """What would fail later fails now, before a server is started: names, files, hubs, servers."""
    # Lazy: pyarrow and tokenizers.
    from dpo_core.config import redact
    from dpo_core.pipeline.preflight import preflight
    from dpo_core.train.checkpoint import run_dir
    from flows import prefect_setup
    from flows.tracking import mlflow_server

    uri = mlflow_server.tracking_uri(recipe.track)
    if mlflow_server.is_down(uri):
        told = "Training goes on, and MLflow is brought up to date when it is back."
        click.echo(f"warning: nobody answers at tracking_uri={redact.shown(uri)}. {told}", err=True)
    else:
        mlflow_server.check_server(uri)
    prefect_setup.check_prefect()
    prefect_setup.quieten(bool(os.environ.get("DPO_DEBUG")))
    plan = preflight(recipe)
    run_dir.delete_other_run(recipe)
    return plan


@cli.command(cls=RecipeCommand, context_settings=FREE_FORM)
@WORDS
def data(words: tuple[str, ...]) -> None:
    """Look at preferences without training: dpo data [dataset or path] [key=value ...].

    Prints what is kept and dropped and how long it is; on a terminal, then pages through the pairs.
    """
    become("dpo_core", "data", *words)


@cli.command()
@click.argument("model")
@click.argument("prompts", nargs=-1, required=True)
@click.option("--max-new-tokens", default=256, show_default=True, help="Tokens of an answer at most.")
def generate(model: str, prompts: tuple[str, ...], max_new_tokens: int) -> None:
    """Answer prompts with a model: a directory, as a run's final/, or models:/NAME@champion."""
    try_model("generate", model, [*prompts, f"max_new_tokens={max_new_tokens}"])


@cli.command()
@click.argument("model")
@click.option("--max-new-tokens", default=256, show_default=True, help="Tokens of an answer at most.")
def chat(model: str, max_new_tokens: int) -> None:
    """Talk with a model: a directory, as a run's final/, or models:/NAME@champion."""
    try_model("chat", model, [f"max_new_tokens={max_new_tokens}"])


def try_model(command: str, model: str, words: Sequence[str]) -> None:
    """Start generate or chat with a directory, or with the weights of a registered version."""
    if model.startswith("models:"):
        from flows.registry.model_uri import directory  # lazy: mlflow, for registered models only

        model = str(directory(model))
    become("dpo_core", command, model, *words)


@cli.command()
@click.option("--port", default=5000, show_default=True, help="Port of the MLflow UI.")
@click.option("--tracking-uri", default=None, help="Store or server (default: MLFLOW_TRACKING_URI, else ./mlruns).")
@click.option("--experiment-name", default=None, help="Experiment whose page is shown (default: dpo).")
def ui(port: int, tracking_uri: str | None, experiment_name: str | None) -> None:
    """Open the MLflow UI on the runs' store."""
    from dpo_core.config.settings import read_recipe  # lazy: pydantic
    from flows.cli.ui import serve

    given = {"tracking_uri": tracking_uri, "experiment_name": experiment_name}
    recipe = read_recipe(None, [f"{name}={value}" for name, value in given.items() if value])
    serve(recipe.track, port)


@cli.command("eval", cls=RecipeCommand, context_settings=FREE_FORM)
@WORDS
def evaluate(words: tuple[str, ...]) -> None:
    """Measure a model, or compare two: dpo eval [recipe.toml] --model A [--against B] [key=value ...].

    \b
    A, B     a run's final/ or adapter/, any model directory, a hub id, models:/NAME@champion
    --task   ifeval (default), inspect_evals/NAME, FILE.py@TASK; may be given again
    --limit  first so many prompts of each task
    --judge  PROVIDER/MODEL of inspect-ai that prefers one of two answers, both orders
    --show   prompts that flipped to show each way (default 3)

    Answers are kept: a second call is a lookup, and one that was cut off goes on.
    """
    become("dpo_core", "eval", *words)


@cli.command(cls=RecipeCommand, context_settings=FREE_FORM)
@WORDS
def sweep(words: tuple[str, ...]) -> None:
    """Run every combination of settings given several values: dpo sweep [recipe.toml] learning_rate=1e-6,5e-6 ...

    A setting that is itself a list is given again for each alternative: lora_targets=all-linear lora_targets=q_proj.
    """
    # Lazy, as in execute: a wrong setting must not wait for what comes next.
    from dpo_core.config.settings import split_recipe_file
    from flows.sweep import sweep_plan as plans

    recipe, axes = plans.read(*split_recipe_file(words))
    planned = plans.plan(recipe, axes)
    refuse_early(recipe)
    end_by_sigterm()
    with gc_tuning.importing():
        from flows.sweep.sweep_flow import sweep as sweeping
        from flows.tracking import mlflow_server

    outcome = sweeping(mlflow_server.without_password(recipe), {leaf: list(values) for leaf, values in axes.items()})
    click.echo(f"Best: {outcome.best}, version {outcome.promotion.version}. Members: {planned.place}")
    if outcome.undone:
        sys.exit(TrainingError.exit_code)


@cli.command(context_settings=FREE_FORM | {"help_option_names": []})
@WORDS
def deploy(words: tuple[str, ...]) -> None:
    """Register the deployments at PREFECT_API_URL: dpo deploy [recipe.toml] [key=value ...]; dpo deploy --help."""
    become("deployments", "deploy", *words)


@cli.command(context_settings=FREE_FORM | {"help_option_names": []})
@WORDS
def submit(words: tuple[str, ...]) -> None:
    """Ask for a run of a deployment: dpo submit [recipe.toml] [key=value ...]; dpo submit --help."""
    become("deployments", "submit", *words)


@cli.command(context_settings=FREE_FORM | {"help_option_names": []})
@WORDS
def serve(words: tuple[str, ...]) -> None:
    """Run the deployments from this process: dpo serve [recipe.toml] [key=value ...]; dpo serve --help."""
    become("deployments", "serve", *words)


def become(package: str, *words: str) -> NoReturn:
    """Go on as ``python -m package words…``: ``deployments`` stands above this package, ``dpo_core`` loads in its time.

    Nobody stands between the command and a signal, the terminal, or whoever waits for the exit code: it is the same
    process.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # what replaces this process has buffers of its own
    os.execv(sys.executable, [sys.executable, "-m", package, *words])


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: an error meant for the user is one line on stderr, its kind the exit code.

    ``--debug`` anywhere (or DPO_DEBUG=1) shows tracebacks, here and in the stages' processes.
    """
    gc_tuning.none_at_the_end()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in words:
        os.environ["DPO_DEBUG"] = "1"
        words.remove("--debug")
    try:
        cli.main(words, prog_name="dpo")
    except DPOError as error:
        if os.environ.get("DPO_DEBUG"):
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
