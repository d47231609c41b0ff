"""Commands on runs and registered versions. Each imports its implementation when called, to keep ``--help`` fast."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def settings_argument(
    metavar: str = "[RECIPE.TOML] [KEY=VALUE]...",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The argument ``words``: every word of the command line, unparsed; ``metavar`` is its form in the help."""
    return click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar=metavar)


FREE_FORM = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}
STORE = click.option(
    "--tracking-uri", default=None, help="MLflow store or server (default: MLFLOW_TRACKING_URI, else ./mlruns)."
)
MODEL = click.option("--name", default=None, help="Registered model (default: the only registered model).")


@click.command()
@click.argument("name", required=False)
@STORE
def models(name: str | None, tracking_uri: str | None) -> None:
    """List registered versions with aliases, results and decisions."""
    from flows.cli import registry_commands  # lazy: mlflow

    registry_commands.models(name, tracking_uri)


@click.command(context_settings=FREE_FORM | {"allow_interspersed_args": True})
@click.argument("version")
@settings_argument("[KEY=VALUE]...")
@MODEL
@STORE
@click.option("--force", is_flag=True, help="Promote even if a gate fails; requires --reason.")
@click.option("--reason", default=None, help="Reason for overruling the gates; it is recorded.")
def promote(version: str, words: tuple[str, ...], **options: Any) -> None:
    """Make a version the champion if it passes its gates.

    The gates are those of the version's recipe. A setting on the command line overrides the recipe's:
    dpo promote 3 min_test_accuracy=0.7.
    """
    from flows.cli import registry_commands  # lazy: mlflow

    registry_commands.promote(version, words, options)


@click.command()
@MODEL
@STORE
@click.option("--reason", default=None, help="Reason for the rollback; it is recorded.")
def rollback(name: str | None, tracking_uri: str | None, reason: str | None) -> None:
    """Move the alias champion back to the previous champion."""
    from flows.cli import registry_commands  # lazy: mlflow

    registry_commands.rollback(name, tracking_uri, reason)


@click.command()
@click.argument("flow_run", required=False)
@click.option("--decline", is_flag=True, help="Decline the promotion and keep the current champion.")
@click.option("--by", default="", help="Name of the person who decides.")
@click.option("--note", default="", help="Reason for the decision.")
def approve(flow_run: str | None, decline: bool, by: str, note: str) -> None:
    """Approve or decline a promotion that waits for a person.

    FLOW_RUN is the id of the paused flow run. Without it, list the flow runs that wait for approval
    (setting require_approval).
    """
    from flows.cli import approve_command  # lazy: prefect

    approve_command.approve(flow_run, {"approve": not decline, "name": by, "note": note})


EXPERIMENT = click.option("--experiment-name", default=None, help="MLflow experiment (default: dpo).")


@click.command()
@STORE
@EXPERIMENT
@click.option("--limit", default=50, show_default=True, help="Maximum number of runs, newest first.")
def runs(limit: int, **track_options: str | None) -> None:
    """List runs with status, differing settings and results."""
    from flows.cli import run_commands  # lazy: mlflow

    run_commands.runs(track_options, limit)


@click.command()
@click.argument("runs", nargs=-1, required=True)
@STORE
@EXPERIMENT
@click.option(
    "--out", type=click.Path(path_type=Path), help="Output directory (default: a new directory in runs/comparisons)."
)
def compare(runs: tuple[str, ...], out: Path | None, **track_options: str | None) -> None:
    """Compare two or more runs with the first one.

    RUNS: each run is given by its id, its name or a part of the name, or its log_path.
    """
    from flows.cli import run_commands  # lazy: mlflow

    run_commands.compare(track_options, runs, out)


@click.command()
@click.argument("log_path", type=click.Path(path_type=Path))
@click.option("--tracking-uri", default=None, help="MLflow store or server (default: the run's own).")
@click.option("--experiment-name", default=None, help="MLflow experiment (default: the run's own).")
def sync(log_path: Path, tracking_uri: str | None, experiment_name: str | None) -> None:
    """Copy a run's journal to MLflow.

    LOG_PATH is the run's directory, such as runs/<run>. Steps that MLflow already has are not added again.
    """
    from flows.recording import replay  # lazy: mlflow

    click.echo(replay.sync_run(log_path.expanduser().resolve(), tracking_uri, experiment_name))


COMMANDS = (models, promote, rollback, approve, runs, compare, sync)
