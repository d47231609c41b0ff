"""``eval_python``: another interpreter generates the responses; everything else is as without it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpo_core.config.recipe import Recipe
from dpo_core.pipeline import evaluation_plan
from dpo_core.pipeline.base_model import InitialModel
from dpo_core.pipeline.evaluation_plan import EvaluationPlan
from dpo_core.pipeline.pipeline import EvaluationSteps
from dpo_core.pipeline.preflight import RunPlan
from dpo_core.records import EvalResult
from tests.conftest import pair_rows
from tests.evaluate.conftest import prompt_file
from tests.evaluate.test_evaluate import World, lines, world
from tests.evaluate.test_run_task import ASKED, TASK
from tests.interpreters import processes, twin

__all__ = ["prompt_file", "world"]

pytestmark = pytest.mark.slow
PromptFile = Callable[[dict[str, dict[str, Any]]], Path]
# A Python with vLLM, made as docs/vllm.md says.
VLLM = "TEST_EVAL_PYTHON"


def start(place: Path, command: str, *words: str) -> "subprocess.Popen[str]":
    """``python -m dpo_core`` in a directory."""
    environment = os.environ | {"INSPECT_CACHE_DIR": str(place / "cache"), "COLUMNS": "100"}
    line = [sys.executable, "-m", "dpo_core", command, *words]
    return subprocess.Popen(line, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(place: Path, command: str, *words: str) -> str:
    """Run the command; returns what it printed."""
    process = start(place, command, *words)
    out, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    return out


def read_outputs(place: Path, runs: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Responses and metrics of all evaluations, sorted, and their engines."""
    answers = [lines(path) for path in place.glob(f"{runs}/store/answer/*/answers.jsonl")]
    records = [json.loads(path.read_text()) for path in place.glob(f"{runs}/store/evaluate/*/record.json")]
    metrics = [json.dumps(record["metrics"], sort_keys=True) for record in records]
    return sorted(answers, key=json.dumps), sorted(metrics), [record["settings"]["engine"] for record in records]


@pytest.fixture
def words(stories: Path, prompt_file: PromptFile, tmp_path: Path) -> list[str]:
    """Settings of a run on a model with random weights, with heads of the size that vLLM's kernels need."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    PreTrainedTokenizerFast.from_pretrained(stories).save_pretrained(tmp_path / "wide")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows(40)))
    (tmp_path / "tales.py").write_text(TASK)
    given = ["dataset=pairs.jsonl", "model_name=wide", "renderer_name=role_colon", f"ifeval_path={prompt_file(ASKED)}"]
    given += ["lora_rank=4", "batch_size=4", "learning_rate=1e-3", "max_steps=4", "max_length=128", "max_new_tokens=16"]
    return [*given, "num_samples=2", "infrequent_prompts=2", "infrequent_eval_every=2", "tasks=ifeval,tales.py@words"]


def test_a_run_gives_the_same_result_and_only_generation_uses_the_other_interpreter(
    words: list[str], tmp_path: Path
) -> None:
    python = twin(tmp_path / "venv")
    run(tmp_path, "run", *words, "runs_dir=here")
    other = (*words, "runs_dir=there", f"eval_python={python}", "eval_engine=torch")
    run(tmp_path, "run", *other)
    assert read_outputs(tmp_path, "there") == read_outputs(tmp_path, "here")
    assert processes(python) == ["imports", "look", "generate", "generate"]
    assert "evaluate: cached" in run(tmp_path, "run", *other, "behavior_if_log_dir_exists=resume")
    assert processes(python).count("generate") == 2


def test_vllm_generates_in_an_environment_of_its_own(words: list[str], tmp_path: Path) -> None:
    """In float32 its greedy responses equal those of the torch engine."""
    if VLLM not in os.environ:
        pytest.skip(f"needs {VLLM}, a Python made as docs/vllm.md says")
    run(tmp_path, "run", *words, "runs_dir=here")
    run(tmp_path, "run", *words, "runs_dir=there", f"eval_python={os.environ[VLLM]}")
    answers, metrics, engines = read_outputs(tmp_path, "here")
    assert len(answers) == 4
    assert read_outputs(tmp_path, "there") == (answers, metrics, ["vllm"] * len(engines))
    eval_words = (
        "--model",
        "wide",
        "--task",
        "tales.py",
        *words[2:3],
        "max_new_tokens=7",
        f"eval_python={os.environ[VLLM]}",
    )
    assert "tales.py@words: 3 samples" in run(tmp_path, "eval", *eval_words)


def evaluate_base(world: World, runs: Path, **settings: Any) -> EvalResult:
    """Evaluation of the base without tasks."""
    recipe = Recipe.model_validate(
        {
            "evaluate": {"tasks": (), "max_new_tokens": 8, "num_samples": 3, **settings},
            "train": {"batch_size": 2},
            "track": {"runs_dir": runs},
        }
    )
    environment = evaluation_plan.check_engine(recipe.evaluate)
    source = InitialModel("world", world.model.path)
    plan = RunPlan(recipe, "demo", None, source, environment)
    evaluation = EvaluationPlan(None)
    result: EvalResult = (
        EvaluationSteps(plan, world.rendered, world.reference, evaluation).step(world.model, "").run().record
    )
    return result


def test_samples_without_a_task_use_the_other_interpreter_too(world: World, tmp_path: Path) -> None:
    python = twin(tmp_path / "venv")
    own = evaluate_base(world, tmp_path / "here")
    other = evaluate_base(world, tmp_path / "there", eval_python=python, eval_engine="torch")
    assert processes(python) == ["generate"]
    assert len(lines(other.path / "samples.jsonl")) == 3
    assert lines(other.path / "samples.jsonl") == lines(own.path / "samples.jsonl")
    assert other.metrics == own.metrics


def test_a_signal_stops_the_other_interpreter_too(stories: Path, prompt_file: PromptFile, tmp_path: Path) -> None:
    python = twin(tmp_path / "venv")
    prompts = prompt_file({f"Tell me of story {number}.": {"punctuation:no_comma": {}} for number in range(2000)})
    process = start(
        tmp_path, "eval", "--model", str(stories), f"ifeval_path={prompts}", "max_new_tokens=400", "eval_batch_size=32",
        "renderer_name=role_colon", f"eval_python={python}", "eval_engine=torch",
    )  # fmt: skip
    while process.poll() is None and not any(
        file.stat().st_size for file in tmp_path.glob("runs/store/answer/.*.jsonl")
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "error: Stopped in stage answer. Finished stages are kept." in error
    assert "Traceback" not in error
