"""``python -m dpo_core <stage> [recipe.toml] [key=value …]``: the river up to a stage, without Prefect and MLflow."""

import os
import signal
import sys

from dpo_core.config.settings import read_recipe, split_recipe_file
from dpo_core.errors import DPOError, RecipeError, interrupted
from dpo_core.system import gc_tuning

STAGES = ("acquire", "render", "warm_start", "score_reference", "train", "evaluate", "run")
USAGE = f"""usage: python -m dpo_core STAGE [recipe.toml] [key=value ...]

STAGE is one of {", ".join(STAGES)} (run = all of them); stages before it are run too, unless their output exists.
python -m dpo_core data [DATASET | recipe.toml] [key=value ...]: the report of a dataset, and its pairs on a terminal.
python -m dpo_core eval --model A [--against B] [--task NAME ...] [key=value ...]: measure a model, or compare two.
python -m dpo_core generate MODEL_DIR PROMPT..., python -m dpo_core chat MODEL_DIR: try a model.
Registering and promoting need MLflow: that is dpo run. The settings are listed by dpo run --help."""


def main(words: list[str]) -> int:
    """Run, and return the exit code; an error meant for the user is one line on stderr."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    gc_tuning.skip_at_exit()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "--debug" in words:
        os.environ["DPO_DEBUG"] = "1"
    try:
        act(words[0], [word for word in words[1:] if word != "--debug"])
    except (DPOError, KeyboardInterrupt) as raised:
        error = raised if isinstance(raised, DPOError) else interrupted()
        if os.environ.get("DPO_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def act(command: str, words: list[str]) -> None:
    """One command.

    Raises RecipeError for an unknown one.
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
    if command not in STAGES:
        raise RecipeError(f"There is no stage {command!r}.", f"Stages are {', '.join(STAGES)}.", "See --help.")
    recipe = read_recipe(*split_recipe_file(words))
    # Lazy: pyarrow and tokenizers, half a second that a wrong setting need not wait.
    from dpo_core.cli.run_command import run_up_to

    run_up_to(recipe, "evaluate" if command == "run" else command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
