"""Command line ``python -m dpo_core <stage> [recipe.toml] [key=value …]``: the pipeline, without Prefect and MLflow."""

import os
import signal
import sys

from dpo_core.config.settings import read_recipe, split_recipe_file
from dpo_core.errors import DPOError, RecipeError, interrupted
from dpo_core.stages import STAGES
from dpo_core.system import gc_tuning

COMMANDS = (*(stage.name for stage in STAGES.values() if stage.is_step), "run")
USAGE = f"""usage: python -m dpo_core STAGE [recipe.toml] [key=value ...]

STAGE is one of {", ".join(COMMANDS)} (run = all of them). Earlier stages run first, unless their output exists.
python -m dpo_core data [DATASET | recipe.toml] [key=value ...]: print a dataset's report, and page through its pairs.
python -m dpo_core eval --model A [--against B] [--task NAME ...] [key=value ...]: evaluate a model, or compare two.
python -m dpo_core generate MODEL_DIR PROMPT..., python -m dpo_core chat MODEL_DIR: try a model.
dpo run does the same with Prefect and MLflow, then registers and promotes; dpo run --help lists the settings."""


def main(words: list[str]) -> int:
    """Run the command, and return its exit code; an error meant for the user is one line on stderr."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    gc_tuning.skip_at_exit()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "--debug" in words:
        os.environ["DPO_DEBUG"] = "1"
    try:
        run_command(words[0], [word for word in words[1:] if word != "--debug"])
    except (DPOError, KeyboardInterrupt) as raised:
        error = raised if isinstance(raised, DPOError) else interrupted()
        if os.environ.get("DPO_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run_command(command: str, words: list[str]) -> None:
    """Run one command with its arguments.

    Raises RecipeError when there is no such command.
    """
    if command in ("generate", "chat"):
        from dpo_core.inference import chat  # lazy: torch, 2 s that the stages' parent need not pay

        chat.main(command, words)
        return
    if command == "data":
        from dpo_core.cli.data_viewer import (
            data_command,  # lazy: pyarrow and rich, half a second, for this command only
        )

        data_command(words)
        return
    if command == "eval":
        from dpo_core.cli.eval_command import eval_command  # lazy: as above

        eval_command(words)
        return
    if command not in COMMANDS:
        raise RecipeError(f"There is no stage {command!r}.", f"Stages are {', '.join(COMMANDS)}.", "See --help.")
    recipe = read_recipe(*split_recipe_file(words))
    # Lazy: pyarrow and tokenizers, half a second that a wrong setting need not wait.
    from dpo_core.cli.run_command import run_up_to

    run_up_to(recipe, "evaluate" if command == "run" else command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
