"""Train stage: runs the training loop, writes the journal and checkpoints, and exports the final model."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from dpo_core.cache.store import Draft
from dpo_core.errors import OutOfMemoryError, StoppedError
from dpo_core.inference.decoding import Decoding, decode
from dpo_core.records import Checkpoint, StepMetrics
from dpo_core.stages.train import TrainRequest
from dpo_core.system.device import check_precision, device
from dpo_core.system.progress import Progress
from dpo_core.train.batching.budget_attempt import BudgetAttempt, attempt_budget
from dpo_core.train.batching.budget_note import NOTE
from dpo_core.train.checkpoint import checkpoint_state, journal, run_dir
from dpo_core.train.checkpoint.checkpoint_state import Snapshot
from dpo_core.train.checkpoint.checkpoint_writer import CheckpointWriter, best_metric_facts, check_best_metric
from dpo_core.train.checkpoint.run_lock import lock_run_dir
from dpo_core.train.export import export_model, journal_metrics, validate_policy
from dpo_core.train.logps import autocast
from dpo_core.train.loop import steps
from dpo_core.train.runtime.compile_layers import uncompiled
from dpo_core.train.runtime.console import TrainingConsole
from dpo_core.train.runtime.memory_watch import MemoryWatch, explain_memory
from dpo_core.train.runtime.run_summary import show_run
from dpo_core.train.runtime.setup import Session, start_session
from dpo_core.train.runtime.signals import StopFlag
from dpo_core.train.runtime.watchdog import Watchdog

# Arguments of explain_memory (what needed memory, rule, remedy): between microbatches, then in the export.
IN_TRAINING = (
    "a step's optimizer or an evaluation between steps",
    "Weights, gradients, the optimizer's state and what evaluations generate must fit together.",
    "Make memory free, lower max_new_tokens or num_samples, train less (lora_rank), or choose a smaller model; the last"
    " checkpoint stands.",
)
IN_EXPORT = (
    "the export of the trained model",
    "The merged model must fit, and beside it what is read back of it.",
    "Make memory free and run the same command again: the last checkpoint stands, and only the export is left to do.",
)


def run(request: TrainRequest, draft: Draft) -> None:
    """Train to the end; publish the final Checkpoint.

    Raises StoppedError, with a checkpoint saved, after a signal or after max_minutes.
    """
    stop = StopFlag(request.train.max_minutes)
    check_precision(request.train.precision)
    with lock_run_dir(request, run_dir.pointer_path(draft.final.parent.parent, request.fingerprint)):
        session = start_session(request, stop)
        if request.evaluator:
            session = replace(session, policy_metrics=import_module(request.evaluator).metrics_of(request))
        total, done = session.run.total_steps, session.done
        with TrainingConsole(request.log_path / run_dir.LOG, total, done, request.train.show_every) as display:
            show_run(session, display)
            with attempt_budget(request.log_path / NOTE if session.plan.auto else None, session.plan.tokens) as attempt:
                last = run_steps(session, display, attempt)
            final = export_and_record(session, last, display)
        draft.publish(final, elsewhere=files_to_keep(request.log_path))


def run_steps(session: Session, display: TrainingConsole, attempt: BudgetAttempt) -> StepMetrics:
    """Run the training loop; journal, show and checkpoint each step.

    Returns the last step's metrics. That step is checkpointed only: its journal line is written after the export, with
    the metrics of the exported weights. Raises StoppedError after a signal, with the step in a checkpoint, and
    OutOfMemoryError when memory runs out. If that happens in a microbatch, the step before is in a checkpoint.
    """
    last = session.last
    train = session.request.train
    with (
        CheckpointWriter(session.log_path, train, display.say) as writer,
        Watchdog(train.step_timeout_minutes) as watchdog,
        MemoryWatch(device().type == "cpu"),
        explain_memory(*IN_TRAINING),
        save_when_memory_runs_out(session, writer) as done,
    ):
        for metrics in evaluated_steps(session):
            done.append(metrics)
            check_best_metric(train.best_metric, metrics)
            finished = metrics.step == session.run.total_steps
            if finished:
                last = metrics
            else:
                record_step(session, metrics, display)
            watchdog.alive()
            if metrics.step == session.done + 1:
                attempt.write(proven=True)
            writer.check()
            if session.stop.stop_requested and not finished:
                raise save_and_stop(session, metrics, writer)
            if metrics.step and (writer.is_best(metrics) or writer.due(metrics.step) or finished):
                writer.save(session_snapshot(session, metrics))
        writer.wait()
    assert last is not None
    return last


def record_step(session: Session, metrics: StepMetrics, display: TrainingConsole) -> None:
    """Append a step to the journal and show it."""
    journal.append(session.log_path / run_dir.METRICS, journal.to_row(metrics))
    display.step(metrics)


def export_and_record(session: Session, last: StepMetrics, display: TrainingConsole) -> Checkpoint:
    """Export the model; journal the last step with the held-out metrics of the exported weights.

    Raises StoppedError when a stop was requested before the export, and OutOfMemoryError when memory runs out.
    """
    stop_before_export(session)
    started = time.perf_counter()
    with explain_memory(*IN_EXPORT):
        final, metrics_of_export = export_model(session)
    metrics_of_export |= {"time/export": time.perf_counter() - started}
    record_step(session, last.model_copy(update={"values": last.values | metrics_of_export}), display)
    low, high = (final.export[f"export/nats_a_reply_{end}"] for end in ("low", "high"))
    display.say(
        f"exported as {session.request.export_dtype}: held-out replies within {final.export['export/nats_a_reply']:.2g}"
        f" nats of the trained policy's (mean, 95 % interval {low:.2g} to {high:.2g}), margins within"
        f" {final.margin_noise:.2g} (root mean square)"
    )
    return final


def stop_before_export(session: Session) -> None:
    """Raises StoppedError when a stop was requested and the last step has its checkpoint.

    max_minutes stops only a process that has trained: if only the export is left, the process does it.
    """
    total, stop = session.run.total_steps, session.stop
    saved = [path for path in checkpoint_state.newest_first(session.log_path)[:1] if int(path.name) == total]
    if saved and (stop.signalled or (stop.timed_out and session.done < total)):
        raise StoppedError(
            f"Stopped after the last step, {total}, before the export{stop.why}.",
            f"The checkpoint is {saved[0]}.",
            "Run the same command again: only the export is left to do.",
        )


@contextmanager
def save_when_memory_runs_out(session: Session, writer: CheckpointWriter) -> Iterator[deque[StepMetrics]]:
    """Save the last finished step when memory runs out in a microbatch. The block appends each finished step.

    If memory runs out elsewhere, the weights may be those of an unfinished step: torch's own error passes, and nothing
    is saved.
    """
    last: deque[StepMetrics] = deque(maxlen=1)
    try:
        yield last
    except OutOfMemoryError:
        session.run.optimizer.zero_grad(set_to_none=True)
        saved = checkpoint_state.newest_first(session.log_path)
        if last and last[0].step > (int(saved[0].name) if saved else 0):
            writer.save(session_snapshot(session, last[0]))
            writer.wait()
        raise


def session_snapshot(session: Session, metrics: StepMetrics) -> Snapshot:
    """A snapshot of the run after a step."""
    request = session.request
    facts: dict[str, Any] = {
        "run": request.fingerprint,
        "lineage": request.lineage,
        "rendered": request.rendered.fingerprint,
        "reference": request.reference.fingerprint,
        "renderer": session.renderer.name,
    }
    facts |= best_metric_facts(request.train.best_metric, metrics)
    if metrics.step == session.run.total_steps:
        facts[checkpoint_state.ROW] = journal.to_row(metrics)
    return checkpoint_state.take_snapshot(
        session.log_path, session.run.policy, session.run.optimizer, metrics.step, facts
    )


def evaluated_steps(session: Session) -> Iterator[StepMetrics]:
    """The loop's steps with evaluation metrics; step 0 is the model before training."""
    if session.done == 0:
        yield StepMetrics(step=0, time=time.time(), values=evaluate_step(session, 0))
    for metrics in steps(session.run, session.done):
        yield metrics.model_copy(update={"values": metrics.values | evaluate_step(session, metrics.step)})


def evaluate_step(session: Session, step: int) -> dict[str, float]:
    """Held-out metrics after ``step`` steps, and samples for ``samples.jsonl``, at the steps where they are due."""
    train, last = session.request.train, step == session.run.total_steps
    values: dict[str, float] = {}
    started = time.perf_counter()
    if train.eval_every and (last or due(train.eval_every, step)):
        session.measured.clear()
        session.measured[step] = validate_policy(session)
        values = journal_metrics(session.measured[step].metrics)
    if train.infrequent_eval_every and (last or due(train.infrequent_eval_every, step)):
        with uncompiled(session.run.policy):
            sample_policy(session, step)
            values |= session.policy_metrics(session.run.policy, session.renderer)
    return values | ({"time/evaluation": time.perf_counter() - started} if values else {})


def due(every: int, step: int) -> bool:
    """Whether a cadence falls on this step; 0 is off."""
    return every > 0 and step % every == 0


def sample_policy(session: Session, step: int) -> None:
    """Sample the policy's responses to the first held-out prompts into ``samples.jsonl``."""
    request, renderer = session.request, session.renderer
    rows = session.test_split[0]
    prompts = rows.whole_prompts(request.samples)
    progress = Progress("generating", len(prompts), "samples")
    decoding = Decoding(
        max_new_tokens=request.max_new_tokens,
        stop_token_ids=renderer.stop_token_ids,
        stop_strings=renderer.stop_strings,
        tokenizer=renderer.tokenizer,
        on_step=progress.beat,
    )
    with autocast(device(), request.train.precision):
        completions = decode(session.run.policy, prompts, decoding, on_finished=progress.advance_one)  # type: ignore[arg-type]
    for prompt, completion in zip(prompts, completions, strict=True):
        response = renderer.parse_response(completion.ids).message["content"]
        row = {"step": step, "prompt": renderer.tokenizer.decode(prompt), "reply": response, "ended": completion.ended}
        journal.append(session.log_path / run_dir.SAMPLES, row)


def save_and_stop(session: Session, metrics: StepMetrics, writer: CheckpointWriter) -> StoppedError:
    """Save a checkpoint and make the error that says how to continue; before the first step nothing is saved."""
    again = "Run the same command again to continue from it."
    if metrics.step == 0:
        return StoppedError(
            f"Stopped before the first step{session.stop.why}.", "", again.removesuffix(" from it.") + "."
        )
    writer.save(session_snapshot(session, metrics))
    writer.wait()
    return StoppedError(
        f"Stopped after step {metrics.step} of {session.run.total_steps}{session.stop.why}.",
        f"The checkpoint is {checkpoint_state.newest_first(session.log_path)[0]}.",
        again,
    )


def files_to_keep(log_path: Path) -> list[Path]:
    """The files that must stay unchanged for the finished run to count as complete."""
    directories = (log_path / run_dir.FINAL, log_path / run_dir.ADAPTER, checkpoint_state.newest_first(log_path)[0])
    parts = [path for directory in directories for path in sorted(directory.rglob("*")) if path.is_file()]
    names = (run_dir.CONFIG, run_dir.METRICS, run_dir.SAMPLES, run_dir.CHECKPOINTS)
    return [log_path / name for name in names if (log_path / name).is_file()] + parts
