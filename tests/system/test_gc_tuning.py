"""No search for garbage when a process ends, except where it would be noticed."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, gc, sys
atexit.register(lambda: print("kept" if gc.get_freeze_count() else "searched"))
from dpo_core.system import gc_tuning as garbage
garbage.none_at_the_end()
with garbage.importing():
    import decimal
sys.modules.update(dict.fromkeys(sys.argv[1:]))
"""


@pytest.mark.parametrize(("modules", "expected"), [([], "kept"), (["triton"], "searched")])
def test_what_was_imported_is_not_searched_at_the_end_unless_triton_would_call_it_leaked(
    modules: list[str], expected: str
) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *modules], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]
