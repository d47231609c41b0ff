"""The train stage: the loop's steps into the journal, onto the terminal, into checkpoints and a final model."""

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
from dpo_core.system.device import check, device
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

# What is asked of memory beside a step's microbatches, and what helps there; then the same of the export.
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

    Raises StoppedError, with a checkpoint saved, when asked to stop or when its time is up.
    """
    stop = StopFlag(request.train.max_minutes)
    check(request.train.precision)
    with lock_run_dir(request, draft):
        session = start_session(request, stop)
        if request.evaluator:
            session = replace(session, policy_metrics=import_module(request.evaluator).metrics_of(request))
        total, done = session.run.total, session.done
        with TrainingConsole(request.log_path / run_dir.LOG, total, done, request.train.show_every) as display:
            show_run(session, display)
            with attempt_budget(request.log_path / NOTE if session.plan.auto else None, session.plan.tokens) as attempt:
                last = run_steps(session, display, attempt)
            final = export_and_record(session, last, display)
        draft.publish(final, elsewhere=files_to_keep(request.log_path))


def run_steps(session: Session, display: TrainingConsole, attempt: BudgetAttempt) -> StepMetrics:
    """Do with each step what it is for: note it, show it, save it; stop when asked to.

    The last step is only saved, with its metrics, which are returned: what is noted of it is measured on the weights
    that are exported. Raises StoppedError once a signal has come and the step is safe in a checkpoint, and
    OutOfMemoryError when memory runs out, the step before being safe where that is in a step's microbatches.
    """
    last = session.last
    train = session.request.train
    with (
        CheckpointWriter(session.log_path, train, display.say) as saver,
        Watchdog(train.step_timeout_minutes) as watchdog,
        MemoryWatch(device().type == "cpu"),
        explain_memory(*IN_TRAINING),
        save_when_memory_runs_out(session, saver) as done,
    ):
        for metrics in evaluated_steps(session):
            done.append(metrics)
            check_best_metric(train.best_metric, metrics)
            finished = metrics.step == session.run.total
            if finished:
                last = metrics
            else:
                record_step(session, metrics, display)
            watchdog.alive()
            if metrics.step == session.done + 1:
                attempt.note(proven=True)
            saver.check()
            if session.stop.asked and not finished:
                raise save_and_stop(session, metrics, saver)
            if metrics.step and (saver.is_best(metrics) or saver.due(metrics.step) or finished):
                saver.save(session_snapshot(session, metrics))
        saver.settle()
    assert last is not None
    return last


def record_step(session: Session, metrics: StepMetrics, display: TrainingConsole) -> None:
    """A step into the journal and onto the terminal."""
    journal.append(session.log_path / run_dir.METRICS, journal.to_row(metrics))
    display.step(metrics)


def export_and_record(session: Session, last: StepMetrics, display: TrainingConsole) -> Checkpoint:
    """Export the model, and note the last step with what the exported weights measure in place of the policy's.

    Raises StoppedError when a stop was asked for before, and OutOfMemoryError when memory runs out.
    """
    stop_before_export(session)
    started = time.perf_counter()
    with explain_memory(*IN_EXPORT):
        final, found = export_model(session)
    found |= {"time/export": time.perf_counter() - started}
    record_step(session, last.model_copy(update={"values": last.values | found}), display)
    low, high = (final.export[f"export/nats_a_reply_{end}"] for end in ("low", "high"))
    display.say(
        f"exported as {session.request.export_dtype}: held-out replies within {final.export['export/nats_a_reply']:.2g}"
        f" nats of the trained policy's (mean, 95 % interval {low:.2g} to {high:.2g}), margins within"
        f" {final.margin_noise:.2g} (root mean square)"
    )
    return final


def stop_before_export(session: Session) -> None:
    """Raises StoppedError when a stop was asked for and the last step's checkpoint is there.

    The end of the time allowed stops a process that trained; one that has but the export to do goes on with it.
    """
    total, stop = session.run.total, session.stop
    saved = [path for path in checkpoint_state.newest_first(session.log_path)[:1] if int(path.name) == total]
    if saved and (stop.signalled or (stop.timed_out and session.done < total)):
        raise StoppedError(
            f"Stopped after the last step, {total}, before the export{stop.why}.",
            f"The checkpoint is {saved[0]}.",
            "Run the same command again: only the export is left to do.",
        )


@contextmanager
def save_when_memory_runs_out(session: Session, saver: CheckpointWriter) -> Iterator[deque[StepMetrics]]:
    """Save the step before the one whose microbatches memory ran out in. The block notes the steps that are done.

    Anywhere else the weights may already be those of a step that is not done: torch's own errors pass, and nothing is
    saved.
    """
    last: deque[StepMetrics] = deque(maxlen=1)
    try:
        yield last
    except OutOfMemoryError:
        session.run.optimizer.zero_grad(set_to_none=True)
        saved = checkpoint_state.newest_first(session.log_path)
        if last and last[0].step > (int(saved[0].name) if saved else 0):
            saver.save(session_snapshot(session, last[0]))
            saver.settle()
        raise


def session_snapshot(session: Session, metrics: StepMetrics) -> Snapshot:
    """The run after a step."""
    request = session.request
    facts: dict[str, Any] = {
        "run": request.fingerprint,
        "lineage": request.lineage,
        "rendered": request.rendered.fingerprint,
        "reference": request.reference.fingerprint,
        "renderer": session.renderer.name,
    }
    facts |= best_metric_facts(request.train.best_metric, metrics)
    if metrics.step == session.run.total:
        facts[checkpoint_state.ROW] = journal.to_row(metrics)
    return checkpoint_state.take_snapshot(
        session.log_path, session.run.policy, session.run.optimizer, metrics.step, facts
    )


def evaluated_steps(session: Session) -> Iterator[StepMetrics]:
    """The loop's steps with what the evaluators find; step 0 is the model before training."""
    if session.done == 0:
        yield StepMetrics(step=0, time=time.time(), values=evaluate_step(session, 0))
    for metrics in steps(session.run, session.done):
        yield metrics.model_copy(update={"values": metrics.values | evaluate_step(session, metrics.step)})


def evaluate_step(session: Session, step: int) -> dict[str, float]:
    """Held-out metrics after ``step`` steps, and samples for ``samples.jsonl``, where their cadence says so."""
    train, last = session.request.train, step == session.run.total
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
    """Let the policy answer the first held-out prompts."""
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
        answers = decode(session.run.policy, prompts, decoding, finished=progress.one)  # type: ignore[arg-type]
    for prompt, answer in zip(prompts, answers, strict=True):
        said = renderer.parse_response(answer.ids).message["content"]
        row = {"step": step, "prompt": renderer.tokenizer.decode(prompt), "reply": said, "ended": answer.ended}
        journal.append(session.log_path / run_dir.SAMPLES, row)


def save_and_stop(session: Session, metrics: StepMetrics, saver: CheckpointWriter) -> StoppedError:
    """Save where the run is, and say how it goes on; before the first step there is nothing to save."""
    again = "Run the same command again to continue from it."
    if metrics.step == 0:
        return StoppedError(
            f"Stopped before the first step{session.stop.why}.", "", again.removesuffix(" from it.") + "."
        )
    saver.save(session_snapshot(session, metrics))
    saver.settle()
    return StoppedError(
        f"Stopped after step {metrics.step} of {session.run.total}{session.stop.why}.",
        f"The checkpoint is {checkpoint_state.newest_first(session.log_path)[0]}.",
        again,
    )


def files_to_keep(log_path: Path) -> list[Path]:
    """What must stay as it is for the finished run to count as whole."""
    directories = (log_path / run_dir.FINAL, log_path / run_dir.ADAPTER, checkpoint_state.newest_first(log_path)[0])
    parts = [path for directory in directories for path in sorted(directory.rglob("*")) if path.is_file()]
    names = (run_dir.CONFIG, run_dir.METRICS, run_dir.SAMPLES, run_dir.CHECKPOINTS)
    return [log_path / name for name in names if (log_path / name).is_file()] + parts
