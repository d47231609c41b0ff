"""No garbage collection when a process exits, unless Triton would report leaks."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, gc, sys
atexit.register(lambda: print("kept" if gc.get_freeze_count() else "searched"))
from dpo_core.system import gc_tuning
gc_tuning.skip_at_exit()
with gc_tuning.paused():
    import decimal
sys.modules.update(dict.fromkeys(sys.argv[1:]))
"""


@pytest.mark.parametrize(("modules", "expected"), [([], "kept"), (["triton"], "searched")])
def test_imported_objects_are_not_collected_at_exit_unless_triton_would_report_leaks(
    modules: list[str], expected: str
) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *modules], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]
