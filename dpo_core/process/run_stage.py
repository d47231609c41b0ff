"""Running a stage: its output is found in the store, or the stage runs and makes it."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

from dpo_core.cache.store import Store
from dpo_core.process.launch import launch
from dpo_core.records import Record
from dpo_core.stages.stage import Stage, StageCall, StageResult

R = TypeVar("R", bound=Record)

NOTHING = nullcontext()


def no_limit(stage: Stage[Any]) -> AbstractContextManager[None]:
    """No stage waits for another run."""
    return nullcontext()


# Context in which a stage runs that makes its output. An orchestrator whose runs share a GPU sets it.
GPU_LIMIT: ContextVar[Callable[[Stage[Any]], AbstractContextManager[None]]] = ContextVar("gpu_limit", default=no_limit)


def run_stage(
    store: Store, call: StageCall[R], while_running: AbstractContextManager[None] = NOTHING
) -> StageResult[R]:
    """The output of a stage: found whole in the store, or made now, inside ``while_running``."""
    found = store.find(call.stage.name, call.cache_key, call.stage.output)
    return StageResult(found, True) if found is not None else rerun_stage(store, call, while_running)


def rerun_stage(
    store: Store, call: StageCall[R], while_running: AbstractContextManager[None] = NOTHING
) -> StageResult[R]:
    """The output of a stage, made now, inside ``while_running``; it replaces one that exists."""
    with GPU_LIMIT.get()(call.stage), while_running:
        if call.stage.has_own_process:
            launch(call, store)
        else:
            run_here(call, store)
    record = store.find(call.stage.name, call.cache_key, call.stage.output)
    if record is None:
        raise RuntimeError(f"stage {call.stage.name} ended well but left no whole output")
    return StageResult(record, False)


def run_here(call: StageCall[R], store: Store) -> None:
    """Run a stage in this process."""
    with store.write(call.stage.name, call.cache_key) as draft:
        if not draft.there:
            importlib.import_module(call.stage.entry_point).run(call.request, draft)
