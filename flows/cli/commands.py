"""Commands that look at runs and versions, and decide about them. Each imports what it needs when it is called."""

from pathlib import Path
from typing import Any

import click

WORDS = click.argument("words", nargs=-1, type=click.UNPROCESSED)
FREE_FORM = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}
STORE = click.option("--tracking-uri", default=None, help="Store or server (default: MLFLOW_TRACKING_URI or ./mlruns).")
MODEL = click.option("--name", default=None, help="Registered model (default: the only one there is).")


@click.command()
@click.argument("name", required=False)
@STORE
def models(name: str | None, tracking_uri: str | None) -> None:
    """List the versions of the registered models: aliases, run, results, and why each was promoted or not."""
    from flows.cli import registry_commands  # lazy: mlflow

    registry_commands.models(name, tracking_uri)


@click.command(context_settings=FREE_FORM | {"allow_interspersed_args": True})
@click.argument("version")
@WORDS
@MODEL
@STORE
@click.option("--force", is_flag=True, help="Whatever the gates say; needs --reason.")
@click.option("--reason", default=None, help="Why the gates are overruled; recorded.")
def promote(version: str, words: tuple[str, ...], **options: Any) -> None:
    """Make a version the champion, through the gates of its recipe: dpo promote 3 [min_test_accuracy=0.7 ...]."""
    from flows.cli import registry_commands  # lazy: mlflow

    registry_commands.promote(version, words, options)


@click.command()
@MODEL
@STORE
@click.option("--reason", default=None, help="Why; recorded.")
def rollback(name: str | None, tracking_uri: str | None, reason: str | None) -> None:
    """Give the alias champion back to the version that had it before."""
    from flows.cli import registry_commands  # lazy: mlflow

    registry_commands.rollback(name, tracking_uri, reason)


@click.command()
@click.argument("flow_run", required=False)
@click.option("--decline", is_flag=True, help="Leave the champion as it is.")
@click.option("--by", default="", help="Who says so.")
@click.option("--note", default="", help="Why.")
def approve(flow_run: str | None, decline: bool, by: str, note: str) -> None:
    """Answer a flow that waits for approval (require_approval); without its id, list those that wait."""
    from flows.cli import approve_command  # lazy: prefect

    approve_command.approve(flow_run, {"approve": not decline, "name": by, "note": note})


EXPERIMENT = click.option("--experiment-name", default=None, help="Experiment (default: dpo).")


@click.command()
@STORE
@EXPERIMENT
@click.option("--limit", default=50, show_default=True, help="The newest so many runs.")
def runs(limit: int, **where: str | None) -> None:
    """List runs: status, the settings in which they differ, results, and which is a champion."""
    from flows.cli import run_commands  # lazy: mlflow

    run_commands.runs(where, limit)


@click.command()
@click.argument("runs", nargs=-1, required=True)
@STORE
@EXPERIMENT
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the files (default: in runs/comparisons).")
def compare(runs: tuple[str, ...], out: Path | None, **where: str | None) -> None:
    """Compare runs, each given by its id, name (or part of it) or log_path, with the first of them."""
    from flows.cli import run_commands  # lazy: mlflow

    run_commands.compare(where, runs, out)


@click.command()
@click.argument("log_path", type=click.Path(path_type=Path))
@click.option("--tracking-uri", default=None, help="Store or server (default: the run's own).")
@click.option("--experiment-name", default=None, help="Experiment (default: the run's own).")
def sync(log_path: Path, tracking_uri: str | None, experiment_name: str | None) -> None:
    """Bring MLflow up to a run's journal: dpo sync runs/<run>."""
    from flows.replay import sync_run  # lazy: mlflow

    click.echo(sync_run(log_path.expanduser().resolve(), tracking_uri, experiment_name))


COMMANDS = (models, promote, rollback, approve, runs, compare, sync)
