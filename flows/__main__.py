"""``python -m flows [recipe.toml] [key=value …]`` is ``dpo run``."""

import sys

from flows.cli import main

main(["run", *sys.argv[1:]])
