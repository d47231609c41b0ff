"""``python -m flows [recipe.toml] [key=value …]`` is ``dpo run``."""

import sys

from flows.cli.main import main

main(["run", *sys.argv[1:]])
