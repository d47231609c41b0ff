"""Command line of ``python -m deployments``: ``dpo deploy``, ``dpo submit`` and ``dpo serve``."""

import os
import sys

import click

from deployments import prefect_client, register_deployments, serve_deployments, submit_run
from deployments.register_deployments import KINDS, DeploymentOptions
from dpo_core.config.settings import split_recipe_file
from dpo_core.errors import DPOError

CONTEXT = {
    "ignore_unknown_options": False,
    "help_option_names": ["-h", "--help"],
    "show_default": True,
}
WORDS = click.argument("words", nargs=-1)
CRON = click.option("--cron", help="When the nightly deployment runs: minute hour day month weekday.")
TIMEZONE = click.option("--timezone", help="Time zone of --cron, such as Europe/Berlin.")


@click.group(context_settings=CONTEXT)
def cli() -> None:
    """The flow as Prefect deployments, on the server at PREFECT_API_URL."""


@cli.command(context_settings=CONTEXT)
@WORDS
@CRON
@TIMEZONE
@click.option("--pool", help="Work pool of the deployments (default: local).")
@click.option("--type", "kind", type=click.Choice(KINDS), help="Create the work pool, with this type's job template.")
@click.option("--gpus", default=1, type=click.IntRange(1), help="Number of stages that may use a GPU at the same time.")
def deploy(words: tuple[str, ...], gpus: int, **values: str | None) -> None:
    """Register the deployments: dpo deploy [recipe.toml] [key=value ...].

    The settings are stored with the deployments. The nightly deployment is active when they name a model.
    """
    options = DeploymentOptions(**values, gpus=gpus)
    catalogue = register_deployments.read_catalogue(options, *split_recipe_file(words))
    with prefect_client.connect() as client:
        for line in register_deployments.deploy(client, options, catalogue):
            click.echo(line)


@cli.command(context_settings=CONTEXT)
@WORDS
@click.option("--deployment", "name", default="on-demand", help="Name of the deployment to run.")
@click.option("--watch", is_flag=True, help="Follow the run until it ends; its result is the exit code.")
def submit(words: tuple[str, ...], name: str, watch: bool) -> None:
    """Submit a run: dpo submit [recipe.toml] [key=value ...]. Settings are checked before the run is created."""
    with prefect_client.connect() as client:
        run = submit_run.submit(client, name, *split_recipe_file(words))
    click.echo(f"{run.name} ({run.id}) waits for a worker. Its log: prefect flow-run logs {run.id}")
    if watch:
        os.execv(sys.executable, [sys.executable, "-m", "prefect", "flow-run", "watch", str(run.id)])


@cli.command(context_settings=CONTEXT)
@WORDS
@CRON
@TIMEZONE
@click.option("--limit", default=1, type=click.IntRange(1), help="Number of runs at the same time.")
def serve(words: tuple[str, ...], cron: str | None, timezone: str | None, limit: int) -> None:
    """Serve the deployments from this process until Ctrl-C, without a work pool: dpo serve [recipe.toml] [...]."""
    catalogue = register_deployments.read_catalogue(DeploymentOptions(cron, timezone), *split_recipe_file(words))
    prefect_client.check_server()
    for entry in catalogue["deployments"]:
        click.echo(register_deployments.describe(entry | {"work_pool": {"name": "of this process"}}))
    serve_deployments.serve(catalogue, limit)


def main() -> None:
    """Run the command line. A DPOError is printed as one line on stderr and gives the exit code."""
    try:
        cli.main(prog_name="dpo")
    except DPOError as error:
        if os.environ.get("DPO_DEBUG"):
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
