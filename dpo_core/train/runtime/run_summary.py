"""Facts about a run, told where its training starts: what it works on, how, and what the user should know of it."""

import shutil

from dpo_core.data.report import over_length_warnings
from dpo_core.inference.decoding import context_length
from dpo_core.stages.train import TrainRequest
from dpo_core.system.device import device, why_on_cpu
from dpo_core.train.logps import causal_model
from dpo_core.train.runtime.console import TrainingConsole
from dpo_core.train.runtime.setup import Session

EXAMPLES = 2
BYTES_PER_WEIGHT = 4


def show_run(session: Session, display: TrainingConsole) -> None:
    """The run's facts and two example pairs."""
    request, rendered = session.request, session.request.rendered
    parameters = list(session.run.policy.parameters())
    training = sum(p.numel() for p in parameters if p.requires_grad)
    display.show_facts(
        {
            "model": f"{request.model.name}, {sum(p.numel() for p in parameters):,} parameters, {training:,} trained",
            "device": device_line(request),
            "renderer": rendered.renderer_name,
            "pairs": f"{rendered.train_pairs:,} to train on, {rendered.test_pairs:,} held out",
            "dropped": dropped_line(request),
            "steps": f"{session.run.total_steps:,} of {request.train.batch_size} pairs",
            "loss": loss_line(session),
            "engine": engine_line(session),
            "log_path": str(request.log_path),
        }
    )
    for line in [*session.lines, *length_warnings(session), *disk_warnings(session)]:
        display.say(line)
    rows = session.run.rows
    display.show_examples(session.renderer, [rows[index] for index in range(min(EXAMPLES, len(rows)))])


def disk_warnings(session: Session) -> list[str]:
    """A warning when the disk has not the room for the checkpoints and the final model that the run will keep."""
    train, policy, log_path = session.request.train, session.run.policy, session.log_path
    model_bytes = sum(p.numel() * BYTES_PER_WEIGHT for p in policy.parameters())
    checkpoint_bytes = 3 * sum(p.numel() * BYTES_PER_WEIGHT for p in policy.parameters() if p.requires_grad)
    saves = session.run.total_steps // train.save_every if train.save_every else 0
    needed = model_bytes + checkpoint_bytes * (
        1 + min(saves, train.keep_checkpoints or saves)
    )  # the one being written among them
    free = shutil.disk_usage(log_path).free
    if needed <= free:
        return []
    return [
        f"Warning: {log_path} has {free / 1e9:.1f} GB free, and the run's checkpoints and final model will take"
        f" {needed / 1e9:.1f} GB. Make room, or lower keep_checkpoints."
    ]


def loss_line(session: Session) -> str:
    """The objective in a line."""
    train = session.request.train
    rpo = f", NLL of the chosen side × {train.rpo_alpha:g}" if train.rpo_alpha else ""
    how = "asked in every step" if session.request.on_the_fly else "scored beforehand"
    return f"{train.loss}, beta {train.dpo_beta:g}{rpo}; reference {how}"


def device_line(request: TrainRequest) -> str:
    """Device and compute type, and why it is the CPU where one might expect a GPU."""
    why = why_on_cpu()
    return f"{device()}, {request.train.precision}" + (f"; {why}" if why else "")


def engine_line(session: Session) -> str:
    """Layout and size of microbatches, and how many pairs are beyond it."""
    run = session.run
    prompt, sides = run.rows.lengths()
    longer = int((prompt + sides.chosen + sides.rejected > run.token_budget).sum())
    alone = f"; {longer:,} longer pairs go alone" if longer else ""
    return f"{run.layout} layout, {session.plan}{alone}"


def dropped_line(request: TrainRequest) -> str:
    """Rows that are not trained on, by cause, and truncated pairs."""
    dropped = [f"{count:,} {cause}" for cause, count in request.rendered.train_report.dropped.items()]
    return ", ".join([*dropped, f"{request.rendered.truncated:,} kept but truncated"])


def length_warnings(session: Session) -> list[str]:
    """Lines about pairs over max_length, and about sampled prompts that leave the model's context too little room."""
    request, longest = session.request, context_length(causal_model(session.run.policy))
    rendered = request.rendered
    lines = list(over_length_warnings({"train": rendered.train_report, "test": rendered.test_report}))
    prompts = session.test_split[0].whole_prompts(request.samples) if request.train.infrequent_eval_every else []
    longer = sum(longest is not None and len(prompt) + request.max_new_tokens > longest for prompt in prompts)
    if longer:
        lines.append(
            f"Of the {len(prompts)} held-out prompts that are sampled, {longer} leave less room than"
            f" max_new_tokens={request.max_new_tokens} in the model's context of {longest} tokens: their samples are"
            " shorter, or empty."
        )
    return lines
