"""Worker process of a sweep: runs the pipeline for one member and writes its outcome to a file.

``python -m flows.sweep.sweep_worker <recipe.json> <outcome.json>``. On SIGINT training finishes its step, saves a
checkpoint and ends.
"""

import os
import signal
import sys
from pathlib import Path

from dpo_core.config.recipe import Recipe
from dpo_core.errors import DPOError, StoppedError
from dpo_core.system import gc_tuning


def main(request: Path, outcome: Path) -> int:
    """Run the member and return its exit code; an error is printed to stderr as the last line."""
    gc_tuning.skip_at_exit()
    # A parent that was started in the background passes SIGINT on as ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from flows import prefect_setup  # lazy: sets what Prefect reads when it is imported

    prefect_setup.configure_console(bool(os.environ.get("DPO_DEBUG")))
    with gc_tuning.paused():
        from prefect import tags

        from flows.pipeline import pipeline

    recipe = Recipe.model_validate_json(request.read_text())
    try:
        with tags(f"sweep-{request.parent.name}"):
            result = pipeline(recipe)
    except DPOError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return StoppedError.exit_code
    partial = outcome.with_suffix(".new")
    partial.write_text(result.model_dump_json(indent=1))
    partial.replace(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
