"""``python -m deployments deploy | submit | serve``, which are ``dpo deploy``, ``dpo submit`` and ``dpo serve``."""

import os
import sys

import click

from deployments import prefect_client, register_deployments, serve_deployments, submit_run
from deployments.register_deployments import KINDS, DeploymentOptions
from dpo_core.config.settings import split_recipe_file
from dpo_core.errors import DPOError

FREE_FORM = {
    "ignore_unknown_options": False,
    "help_option_names": ["-h", "--help"],
    "show_default": True,
}
WORDS = click.argument("words", nargs=-1)
CRON = click.option("--cron", help="When the nightly deployment runs: minute hour day month weekday.")
ZONE = click.option("--timezone", help="Time zone of --cron, such as Europe/Berlin.")


@click.group(context_settings=FREE_FORM)
def cli() -> None:
    """The flow as Prefect deployments, on the server at PREFECT_API_URL."""


@cli.command(context_settings=FREE_FORM)
@WORDS
@CRON
@ZONE
@click.option("--pool", help="Work pool of the deployments (default: local).")
@click.option("--type", "kind", type=click.Choice(KINDS), help="Make the work pool, by this kind's job template.")
@click.option("--gpus", default=1, type=click.IntRange(1), help="Stages that may compute on GPUs at the same time.")
def deploy(words: tuple[str, ...], gpus: int, **chosen: str | None) -> None:
    """Register the deployments: dpo deploy [recipe.toml] [key=value ...].

    The settings become the deployments' own, and the nightly one starts when they name a model.
    """
    wishes = DeploymentOptions(**chosen, gpus=gpus)
    told = register_deployments.wanted(wishes, *split_recipe_file(words))
    with prefect_client.connected() as client:
        for line in register_deployments.deploy(client, wishes, told):
            click.echo(line)


@cli.command(context_settings=FREE_FORM)
@WORDS
@click.option("--deployment", "name", default="on-demand", help="Which deployment to run.")
@click.option("--watch", is_flag=True, help="Show its log until it ends; its end is this command's exit code.")
def submit(words: tuple[str, ...], name: str, watch: bool) -> None:
    """Ask for a run: dpo submit [recipe.toml] [key=value ...]. Settings are checked before anything runs."""
    with prefect_client.connected() as client:
        run = submit_run.submit(client, name, *split_recipe_file(words))
    click.echo(f"{run.name} ({run.id}) waits for a worker; prefect flow-run logs {run.id} shows what it says.")
    if watch:
        os.execv(sys.executable, [sys.executable, "-m", "prefect", "flow-run", "watch", str(run.id)])


@cli.command(context_settings=FREE_FORM)
@WORDS
@CRON
@ZONE
@click.option("--limit", default=1, type=click.IntRange(1), help="Runs at the same time.")
def serve(words: tuple[str, ...], cron: str | None, timezone: str | None, limit: int) -> None:
    """Run the deployments from this process until Ctrl-C, without pool and worker: dpo serve [recipe.toml] [...]."""
    told = register_deployments.wanted(DeploymentOptions(cron, timezone), *split_recipe_file(words))
    prefect_client.check()
    for entry in told["deployments"]:
        click.echo(register_deployments.describe(entry | {"work_pool": {"name": "of this process"}}))
    serve_deployments.serve(told, limit)


def main() -> None:
    """An error meant for the user is one line on stderr, its kind the exit code."""
    try:
        cli.main(prog_name="dpo")
    except DPOError as error:
        if os.environ.get("DPO_DEBUG"):
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
