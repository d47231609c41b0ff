"""A member of a sweep in a process of its own: the pipeline, its outcome left in a file.

``python -m flows.sweep.sweep_worker <recipe.json> <outcome.json>``. SIGINT is Ctrl-C: the step is finished, a
checkpoint saved.
"""

import os
import signal
import sys
from pathlib import Path

from dpo_core.config.recipe import Recipe
from dpo_core.errors import DPOError, StoppedError
from dpo_core.system import gc_tuning


def main(request: Path, outcome: Path) -> int:
    """Run the member, and return its exit code; an error goes to stderr, its last line."""
    gc_tuning.none_at_the_end()
    # A parent started in the background hands SIGINT down as ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from flows import prefect_setup  # lazy: before Prefect is imported, which reads what this sets

    prefect_setup.configure_console(bool(os.environ.get("DPO_DEBUG")))
    with gc_tuning.importing():
        from prefect import tags

        from flows.pipeline import pipeline

    recipe = Recipe.model_validate_json(request.read_text())
    try:
        with tags(f"sweep-{request.parent.name}"):
            made = pipeline(recipe)
    except DPOError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return StoppedError.exit_code
    aside = outcome.with_suffix(".new")
    aside.write_text(made.model_dump_json(indent=1))
    aside.replace(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
