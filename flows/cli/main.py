"""Command line ``dpo``. Commands import what they need when called, so that --help and errors in settings are fast."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dpo_core.errors import DPOError, StoppedError, TrainingError, interrupted
from dpo_core.system import gc_tuning
from flows.cli.commands import COMMANDS, EXPERIMENT, FREE_FORM, STORE, settings_argument

if TYPE_CHECKING:
    from dpo_core.config.recipe import Recipe
    from dpo_core.pipeline.preflight import RunPlan

DEMO_RECIPE = Path(__file__).parents[2] / "recipes" / "demo.toml"


class RecipeCommand(click.Command):
    """A command that takes settings as key=value. Its help lists every setting."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write every setting with its default, by section."""
        from dpo_core.config.recipe import SECTIONS  # lazy: pydantic, for this help page only

        for section, kind in SECTIONS.items():
            with formatter.section(f"Settings: {section}"):
                rows = [
                    (f"{name}={format_default(field.default)}", field.description or "")
                    for name, field in kind.model_fields.items()
                ]
                formatter.write_dl(rows)


def format_default(default: object) -> str:
    """A default as it is typed on the command line."""
    return ",".join(str(item) for item in default) if isinstance(default, tuple) else str(default)


class Commands(click.Group):
    """Group of commands. Ctrl-C ends each of them with the same message and exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command.

        Raises StoppedError on Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise interrupted() from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dpo-flows")
def cli() -> None:
    """Direct Preference Optimization as a workflow: data, training, evaluation, registry, promotion.

    Start with: dpo demo. To see the traceback of an error, add --debug to any command.
    """


for command in COMMANDS:
    cli.add_command(command)


@cli.command(cls=RecipeCommand, context_settings=FREE_FORM)
@settings_argument()
def run(words: tuple[str, ...]) -> None:
    """Run the pipeline: data, training, evaluation, promotion."""
    from dpo_core.config.settings import split_recipe_file  # lazy: pydantic, half a second that --help need not wait

    read_and_run(*split_recipe_file(words))


@cli.command(cls=RecipeCommand, context_settings=FREE_FORM)
@settings_argument("[KEY=VALUE]...")
def demo(words: tuple[str, ...]) -> None:
    """Run the built-in demo (no network, no GPU).

    The demo takes a few minutes on two CPU cores.
    """
    read_and_run(DEMO_RECIPE, words)


def read_and_run(recipe_file: Path | None, words: Sequence[str]) -> None:
    """Read the recipe and run it."""
    from dpo_core.config.settings import read_recipe  # lazy: pydantic, which --help need not import

    run_flow(read_recipe(recipe_file, words))


def run_flow(recipe: "Recipe") -> None:
    """Check the recipe, run the flow and print its result."""
    plan = check_before_start(recipe)
    exit_on_sigterm()
    with gc_tuning.paused():
        # Lazy: prefect and mlflow, seconds that an error of the checks must not wait for.
        from flows.cli.final_summary import print_summary
        from flows.pipeline import CHECKED_PLAN, pipeline
        from flows.tracking import mlflow_server

    CHECKED_PLAN.set(plan)
    print_summary(pipeline(mlflow_server.without_password(recipe)))


def exit_on_sigterm() -> None:
    """Exit normally on SIGTERM, so that the temporary Prefect server ends too; it would outlive this process.

    Prefect first stops the running flow and then calls this handler.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(StoppedError.exit_code))


def check_before_start(recipe: "Recipe") -> "RunPlan":
    """Check settings, files, hubs and servers before anything is started; returns the plan of the run.

    Raises DPOError for what would fail later. An MLflow server that is down is only a warning.
    """
    # Lazy: pyarrow and tokenizers.
    from dpo_core.config import redact
    from dpo_core.pipeline.preflight import preflight
    from dpo_core.train.checkpoint import run_dir
    from flows import prefect_setup
    from flows.tracking import mlflow_server

    uri = mlflow_server.tracking_uri(recipe.track)
    if mlflow_server.is_down(uri):
        remedy = "Training continues, and MLflow receives the journal when the server is back."
        click.echo(f"warning: no server answers at tracking_uri={redact.hide_password(uri)}. {remedy}", err=True)
    else:
        mlflow_server.check_server(uri)
    prefect_setup.check_prefect()
    prefect_setup.configure_console(bool(os.environ.get("DPO_DEBUG")))
    plan = preflight(recipe)
    run_dir.delete_other_run(recipe)
    return plan


@cli.command(cls=RecipeCommand, context_settings=FREE_FORM)
@settings_argument("[DATASET] [KEY=VALUE]...")
def data(words: tuple[str, ...]) -> None:
    """Show what a dataset holds, without training.

    Print how many pairs are kept and dropped, and their lengths. On a terminal, page through the pairs afterwards.
    """
    replace_process("dpo_core", "data", *words)


@cli.command()
@click.argument("model")
@click.argument("prompts", nargs=-1, required=True)
@click.option("--max-new-tokens", default=256, show_default=True, help="Maximum number of tokens in a response.")
def generate(model: str, prompts: tuple[str, ...], max_new_tokens: int) -> None:
    """Generate a response to each prompt.

    MODEL is a directory, such as a run's final/, or a registered version, such as models:/NAME@champion.
    """
    run_with_model("generate", model, [*prompts, f"max_new_tokens={max_new_tokens}"])


@cli.command()
@click.argument("model")
@click.option("--max-new-tokens", default=256, show_default=True, help="Maximum number of tokens in a response.")
def chat(model: str, max_new_tokens: int) -> None:
    """Chat with a model.

    MODEL is a directory, such as a run's final/, or a registered version, such as models:/NAME@champion.
    """
    run_with_model("chat", model, [f"max_new_tokens={max_new_tokens}"])


def run_with_model(command: str, model: str, words: Sequence[str]) -> None:
    """Run ``generate`` or ``chat`` on a directory, or on the weights of a registered version."""
    if model.startswith("models:"):
        from flows.registry.model_uri import directory  # lazy: mlflow, for registered models only

        model = str(directory(model))
    replace_process("dpo_core", command, model, *words)


@cli.command()
@click.option("--port", default=5000, show_default=True, help="Port of the MLflow UI.")
@STORE
@EXPERIMENT
def ui(port: int, tracking_uri: str | None, experiment_name: str | None) -> None:
    """Serve the MLflow UI of the runs until Ctrl-C."""
    from dpo_core.config.settings import read_recipe  # lazy: pydantic
    from flows.cli.ui import serve

    options = {"tracking_uri": tracking_uri, "experiment_name": experiment_name}
    recipe = read_recipe(None, [f"{name}={value}" for name, value in options.items() if value])
    serve(recipe.track, port)


@cli.command("eval", cls=RecipeCommand, context_settings=FREE_FORM)
@settings_argument("[RECIPE.TOML] --model A [--against B] [KEY=VALUE]...")
def evaluate(words: tuple[str, ...]) -> None:
    """Evaluate a model, or compare two models.

    \b
    A, B     a run's final/ or adapter/, a model directory, a hub id, or models:/NAME@champion
    --task   ifeval (default), inspect_evals/NAME or FILE.py@TASK; repeat it repeated
    --limit  evaluate at most this many prompts of each task
    --judge  inspect-ai model (PROVIDER/MODEL) that picks the better response, in both orders
    --show   how many changed prompts prompts to show in each direction (default 3)

    Responses are cached: a repeated command reads them, and an interrupted one continues.
    """
    replace_process("dpo_core", "eval", *words)


@cli.command(cls=RecipeCommand, context_settings=FREE_FORM)
@settings_argument()
def sweep(words: tuple[str, ...]) -> None:
    """Run every combination of several values per setting.

    Separate the values of a setting by commas: learning_rate=1e-6,5e-6. If the setting is itself a list, repeat it
    for each alternative: lora_targets=all-linear lora_targets=q_proj.
    """
    # Lazy: an error in the settings must not wait for the imports of the flow.
    from dpo_core.config.settings import split_recipe_file
    from flows.sweep import sweep_plan

    recipe, axes = sweep_plan.read_sweep(*split_recipe_file(words))
    planned = sweep_plan.plan_sweep(recipe, axes)
    check_before_start(recipe)
    exit_on_sigterm()
    with gc_tuning.paused():
        from flows.sweep import sweep_flow
        from flows.tracking import mlflow_server

    values = {leaf: list(values) for leaf, values in axes.items()}
    outcome = sweep_flow.sweep(mlflow_server.without_password(recipe), values)
    click.echo(f"Best: {outcome.best}, version {outcome.promotion.version}. Members: {planned.directory}")
    if outcome.unfinished:
        sys.exit(TrainingError.exit_code)


@cli.command(context_settings=FREE_FORM | {"help_option_names": []})
@settings_argument()
def deploy(words: tuple[str, ...]) -> None:
    """Register the deployments at PREFECT_API_URL."""
    replace_process("deployments", "deploy", *words)


@cli.command(context_settings=FREE_FORM | {"help_option_names": []})
@settings_argument()
def submit(words: tuple[str, ...]) -> None:
    """Submit a run to a deployment at PREFECT_API_URL."""
    replace_process("deployments", "submit", *words)


@cli.command(context_settings=FREE_FORM | {"help_option_names": []})
@settings_argument()
def serve(words: tuple[str, ...]) -> None:
    """Serve the deployments from this process."""
    replace_process("deployments", "serve", *words)


def replace_process(package: str, *words: str) -> NoReturn:
    """Replace this process by ``python -m package words…``, which this package must not or need not import.

    The process id stays, so signals, the terminal and the exit code reach the command directly.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # buffered output would be lost with this program
    os.execv(sys.executable, [sys.executable, "-m", package, *words])


def main(arguments: Sequence[str] | None = None) -> None:
    """Console script. A DPOError is printed as one line on stderr, and its class sets the exit code.

    ``--debug`` anywhere, or DPO_DEBUG=1, shows tracebacks here and in the stages' processes.
    """
    gc_tuning.skip_at_exit()
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
