"""Output of the run commands ``dpo runs`` and ``dpo compare``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from dpo_core.config.recipe import TrackSettings
from dpo_core.config.settings import read_recipe
from flows import prefect_setup
from flows.reports.run_table import open_experiment, runs_table

WIDTH_WITHOUT_TERMINAL = 160


def track_settings(options: Mapping[str, str | None]) -> TrackSettings:
    """The MLflow store and experiment from the options; what is not given is as for ``dpo run``."""
    return read_recipe(None, [f"{name}={value}" for name, value in options.items() if value]).track


def runs(options: Mapping[str, str | None], limit: int) -> None:
    """Print the table of the newest ``limit`` runs."""
    console = Console(highlight=False)
    if not console.is_terminal:  # rich assumes 80 columns for a file or a pipe
        console.width = max(console.width, WIDTH_WITHOUT_TERMINAL)
    console.print(runs_table(open_experiment(track_settings(options)), limit))


def compare(options: Mapping[str, str | None], run_names: Sequence[str], out: Path | None) -> None:
    """Print tables and tests. Write page, plot and data to the directory ``out`` and to the first run in MLflow.

    ``run_names`` names the runs, see :func:`flows.reports.run_table.find_run`.
    """
    # Lazy: matplotlib, which dpo runs does not need.
    from flows.reports import compare_runs, comparison_page

    track = track_settings(options)
    experiment = open_experiment(track)
    comparison = compare_runs.compare(experiment, compare_runs.find_runs(experiment, run_names))
    directory = out or track.runs_dir / "comparisons" / compare_runs.directory_name(comparison)
    page = compare_runs.write_files(comparison, directory)
    compare_runs.log_files(experiment, comparison, directory)
    post_to_prefect(comparison_page.to_markdown(comparison))
    comparison_page.print_comparison(comparison)
    print(f"Page: {page}\nCurves: {directory / compare_runs.PICTURE}\nMLflow: artifacts of run {comparison.ids[0]}")


def post_to_prefect(markdown: str) -> None:
    """Store the comparison as an artifact on the Prefect server of PREFECT_API_URL, if that is set.

    Raises TrackingError when the server does not answer.
    """
    prefect_setup.check_prefect()
    prefect_setup.post("artifacts/", {"key": "comparison", "type": "markdown", "data": markdown})
