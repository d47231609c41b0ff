"""Pipeline from end to end by ``python -m dpo_core``, on the GPU where there is one, else on the CPU.

    python -m tests.gpu.pipeline demo|lora WORK_DIRECTORY [key=value …]

demo: the built-in demo. lora: a Llama of 100 million parameters with LoRA's default settings in bf16, killed in
training and continued; at the same time three steps each of other training configurations. Ends with a line
``figure: …``, or an error.
"""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_core.data.demo import demo_pairs
from dpo_core.model import demo_model

ROOT = Path(__file__).parents[2]
# 100 million parameters, heads 64 wide, grouped.
SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
LORA = (
    "dataset=demo demo_pairs=1024 sft_steps=40 sft_learning_rate=1e-3 precision=bf16 learning_rate=1e-4 batch_size=64"
    " max_steps=8 eval_every=4 save_every=2 infrequent_eval_every=8 infrequent_prompts=4 num_samples=4"
    " max_new_tokens=32 ifeval_limit=32"
)
CONFIGURATIONS = {
    "full, padded, reference on the fly, activations computed again": (
        "lora_rank=0 layout=padded reference_mode=on_the_fly activation_checkpointing=true"
    ),
    "full, tree, activations computed again": "lora_rank=0 layout=tree activation_checkpointing=true",
    "LoRA, tree, reference on the fly": "layout=tree reference_mode=on_the_fly",
    "full, tree, fp32": "lora_rank=0 layout=tree precision=fp32",
}
LN_2_WITHIN = 3e-3  # in bf16: the reference is scored by other kernels than the compiled ones


def main(words: list[str]) -> None:
    """One of the two pipelines."""
    name, work, *settings = words
    figure = {"demo": run_demo, "lora": run_lora}[name](Path(work), settings)
    print(f"figure: {figure}", flush=True)


def run_demo(work: Path, settings: list[str]) -> str:
    """Run the demo; returns its metrics before and after training."""
    out = finish(start("demo", "run", ["recipes/demo.toml", f"runs_dir={work}", *settings]))
    base, trained = (stage_line(out, name) for name in ("evaluate the base", "evaluate"))
    before, after = (read_metric(line, "prompt_strict_acc") for line in (base, trained))
    assert after > before + 0.2, f"strict {before} before, {after} after"
    return f"strict {before:.3f} → {after:.3f}, accuracy {read_metric(trained, 'test/accuracy'):.3f}, {layouts(out)}"


def run_lora(work: Path, settings: list[str]) -> str:
    """Kill and continue a LoRA run while the other configurations train; returns its figure."""
    started = time.monotonic()
    model = write_model(work / "model", TINY if "shape=tiny" in settings else SHAPE)
    words = [
        *shlex.split(LORA),
        f"model_name={model}",
        f"runs_dir={work}",
        *(word for word in settings if word != "shape=tiny"),
    ]
    log_path = work / "lora"
    first = start("killed", "run", [*words, f"log_path={log_path}"])
    wait_for(lambda: steps_done(log_path) >= 3, first)
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    kill_orphans(log_path)
    print(f"{time.monotonic() - started:.0f} s: killed after step {steps_done(log_path)}", flush=True)
    runs = {
        name: start(
            f"other-{number}", "train", [*words, *extra.split(), "max_steps=3", f"log_path={work / str(number)}"]
        )
        for number, (name, extra) in enumerate(CONFIGURATIONS.items())
    }
    out = finish(start("continued", "run", [*words, f"log_path={log_path}"]))
    print(f"{time.monotonic() - started:.0f} s: continued and finished", flush=True)
    assert "Continuing after step" in out, "the second run did not continue from a checkpoint"
    journal = read_journal(log_path)
    assert [row["step"] for row in journal] == list(range(9)), [row["step"] for row in journal]
    assert abs(journal[1]["dpo_loss"] - math.log(2)) < LN_2_WITHIN, journal[1]["dpo_loss"]
    figure = f"accuracy {read_metric(stage_line(out, 'evaluate'), 'test/accuracy'):.3f}, continued, {layouts(out)}"
    for number, (name, process) in enumerate(runs.items()):
        finish(process)
        rows = read_journal(work / str(number))
        assert abs(rows[1]["dpo_loss"] - math.log(2)) < LN_2_WITHIN, f"{name}: {rows[1]['dpo_loss']}"
        print(f"{name}: {[round(row['dpo_loss'], 5) for row in rows[1:]]}, {rows[2]['batch_time']:.2f} s a step")
    return f"{figure}; {len(runs)} other ways start at ln 2"


def write_model(path: Path, shape: dict[str, int]) -> Path:
    """A Llama of this shape with the demo's tokenizer, random weights in bf16."""
    import torch  # lazy: run_demo needs no torch in this process
    from transformers import AutoConfig, AutoModelForCausalLM

    demo_model.write_base(path, demo_pairs.training_texts(demo_pairs.generate(256, 0)))
    config = json.loads((path / "config.json").read_text()) | {"num_key_value_heads": 4} | shape
    (path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))  # type: ignore[no-untyped-call]
    model.to(torch.bfloat16).save_pretrained(path)
    return path


@dataclass(frozen=True)
class Command:
    """A running command, and the file that holds what it prints."""

    process: "subprocess.Popen[bytes]"
    log: Path


def start(name: str, stage: str, words: list[str]) -> Command:
    """Start the command in its own process group, its output in ``name``.log in the temporary directory."""
    log = Path(tempfile.gettempdir()) / f"{name}.log"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "dpo_core", stage, *words]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    return Command(process, log)


def finish(command: Command) -> str:
    """Wait for the command; returns what it printed.

    Raises AssertionError when it failed.
    """
    code = command.process.wait()
    out = command.log.read_text(errors="replace")
    assert code == 0, f"exit code {code}\n{out[-3000:]}"
    return out


def wait_for(done: Callable[[], bool], command: Command) -> None:
    """Wait until ``done`` is true.

    Raises AssertionError when the command ends before.
    """
    while not done():
        assert command.process.poll() is None, f"it ended before it could be killed\n{finish(command)}"
        time.sleep(0.2)


def kill_orphans(log_path: Path) -> None:
    """Kill the train stage's process of the run in ``log_path``, whose command has been killed."""
    import psutil  # lazy: as above

    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "dpo_core.process.worker" in words and "train" in words and str(log_path.parent) in " ".join(words):
            process.kill()


def steps_done(log_path: Path) -> int:
    """The last step in the journal, -1 if the journal is empty."""
    rows = read_journal(log_path)
    return int(rows[-1]["step"]) if rows else -1


def read_journal(log_path: Path) -> list[dict[str, Any]]:
    """The complete lines of the journal."""
    path = log_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def stage_line(out: str, stage: str) -> str:
    """The line that the command printed for a stage."""
    return next(line for line in out.splitlines() if line.startswith(f"{stage}: "))


def read_metric(line: str, name: str) -> float:
    """The value of a metric in a stage's line."""
    return float(line.split(f"{name}=")[1].split(",")[0])


def layouts(out: str) -> str:
    """The layout and token budget that the train stage printed."""
    return next((line.split("engine", 1)[1].strip(" :│|") for line in out.splitlines() if "layout, " in line), "?")


if __name__ == "__main__":
    main(sys.argv[1:])
