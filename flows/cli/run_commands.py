"""``dpo runs`` and ``dpo compare``: what they print and write."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from dpo_core.config.recipe import TrackSettings
from dpo_core.config.settings import read_recipe
from flows import prefect_setup
from flows.reports.run_table import open_experiment, table

WIDE = 160


def settings(where: Mapping[str, str | None]) -> TrackSettings:
    """Where runs are: from the options, else as dpo run would have it."""
    return read_recipe(None, [f"{name}={value}" for name, value in where.items() if value]).track


def runs(where: Mapping[str, str | None], limit: int) -> None:
    """The table."""
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = max(console.width, WIDE)
    console.print(table(open_experiment(settings(where)), limit))


def compare(where: Mapping[str, str | None], texts: Sequence[str], out: Path | None) -> None:
    """The tables and tests on the terminal; page, picture and data in a directory and with the first run in MLflow."""
    # Lazy: matplotlib, for which the table of runs must not wait.
    from flows.reports import compare_runs as comparing
    from flows.reports import comparison_page

    track = settings(where)
    experiment = open_experiment(track)
    comparison = comparing.compare(experiment, comparing.resolved(experiment, texts))
    place = out or track.runs_dir / "comparisons" / comparing.folder(comparison)
    page = comparing.write(comparison, place)
    comparing.log(experiment, comparison, place)
    tell_prefect(comparison_page.markdown(comparison))
    comparison_page.show(comparison)
    print(f"Page: {page}\nCurves: {place / comparing.PICTURE}\nIn MLflow: artifacts of run {comparison.ids[0]}")


def tell_prefect(markdown: str) -> None:
    """The same as an artifact on Prefect's server, where PREFECT_API_URL names one.

    Raises TrackingError when it does not answer.
    """
    prefect_setup.check_prefect()
    prefect_setup.post("artifacts/", {"key": "comparison", "type": "markdown", "data": markdown})
