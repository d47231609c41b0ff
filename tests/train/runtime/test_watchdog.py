"""A hung step ends its process with a stack; a stop is asked for by signal or clock."""

import os
import signal
import subprocess
import sys

from dpo_core.train.runtime.signals import StopFlag

HUNG = """
import time
from dpo_core.train.runtime.watchdog import Watchdog
def never_ends():
    time.sleep(60)
with Watchdog(minutes={minutes}) as watchdog:
    for _ in range(4):
        time.sleep(0.1)
        watchdog.alive()
    {then}
"""


def watched(minutes: float, then: str) -> subprocess.CompletedProcess[str]:
    script = HUNG.format(minutes=minutes, then=then)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)


def test_a_hung_step_shows_where_it_is_and_ends() -> None:
    told = watched(0.3 / 60, "never_ends()")
    assert told.returncode == -signal.SIGABRT
    assert "step_timeout_minutes" in told.stderr
    assert "in never_ends" in told.stderr


def test_steps_that_end_in_time_are_left_alone() -> None:
    assert watched(0.3 / 60, "pass").returncode == 0
    assert watched(0, "time.sleep(0.5)").returncode == 0


def test_a_signal_or_the_time_allowed_asks_to_stop() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        flag = StopFlag(max_minutes=60)
        assert not flag.stop_requested
        flag.end = 0.0
        assert (flag.stop_requested, flag.why) == (True, ", as max_minutes says")
        flag = StopFlag()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (flag.stop_requested, flag.why) == (True, "")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
