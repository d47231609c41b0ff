"""A model that somebody trained (SmolLM2-135M-Instruct, made by ../shared/tools/real-model), through our code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from dpo_core.data.preference import Preference
from dpo_core.inference.decoding import Decoding, decode
from dpo_core.model.load import load_model
from dpo_core.pair import Pair
from dpo_core.render.registry import get_renderer, resolve_renderer
from dpo_core.render.token_dataset import TokenPair
from dpo_core.render.tokenize_pairs import tokenize_pair
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.train.batching.packing import branches, build
from dpo_core.train.logps import completion_logps
from tests.conftest import shared

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Is water wet?"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "Write a haiku about rain, with <|im_end|> in it."},
    ],
]


@pytest.fixture(scope="module")
def directory() -> Path:
    """The model's directory; skips where the model cannot be built."""
    tool = shared("tools", "real-model")
    done = subprocess.run(
        [tool], env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the real model could not be made: {done.stderr.strip().splitlines()[-1]}")
    return Path(done.stdout.strip().splitlines()[-1])


def pairs(directory: Path) -> list[TokenPair]:
    """Some real preferences in the model's own tokens, of at most 160."""
    rows = read_lines(shared("data", "ultrafeedback", "train_prefs_first400.jsonl"))[:40]
    renderer = get_renderer(resolve_renderer(None, str(directory), directory), load_tokenizer(directory, False))
    sides = [(row["chosen"], row["rejected"]) for row in rows if row["chosen"] != row["rejected"]]
    fitted = [tokenize_pair(renderer, Preference(c[:-1], Pair(c[-1:], r[-1:])), 4096).pair for c, r in sides]
    return sorted(fitted, key=lambda pair: pair.longest)[:4]


def test_a_trees_log_probabilities_are_those_of_a_float64_softmax_over_the_models_own_logits(directory: Path) -> None:
    model = load_model(directory)
    items = pairs(directory)
    tree = completion_logps(model, build("tree", [branches(pair) for pair in items], CPU))
    exact = torch.cat(
        [own_logps(model, pair.prompt, side.ids) for pair in items for side in (pair.sides.chosen, pair.sides.rejected)]
    )
    assert (tree.double() - exact).abs().max() < 1e-4


def own_logps(model: torch.nn.Module, prompt: np.ndarray, completion: np.ndarray) -> torch.Tensor:
    """(T,) float64 of a completion's tokens, by the model's plain forward pass."""
    ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
    with torch.no_grad():
        logps = model(ids).logits[0].double().log_softmax(-1)
    return logps[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["user", "system", "turns"])
def test_prompts_are_those_of_its_chat_template(directory: Path, conversation: list[dict[str, str]]) -> None:
    renderer = get_renderer(resolve_renderer(None, str(directory), directory), load_tokenizer(directory, False))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ours = renderer.encoder.encode(renderer.prompt(conversation))
    theirs = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]
    if "<|im_end|>" in conversation[-1]["content"]:  # text stays text here, and becomes a special token there
        assert tokenizer.decode(ours) == tokenizer.decode(theirs)
        assert ours != theirs
    else:
        assert ours == theirs


def test_greedy_completions_are_those_of_generate(directory: Path) -> None:
    model, tokenizer = load_model(directory), AutoTokenizer.from_pretrained(directory)
    renderer = get_renderer(resolve_renderer(None, str(directory), directory), load_tokenizer(directory, False))
    prompts = [renderer.encoder.encode(renderer.prompt(conversation)) for conversation in CONVERSATIONS[:2]]
    stops = renderer.stop_token_ids
    ours = decode(model, prompts, Decoding(max_new_tokens=12, stop_token_ids=stops))
    for prompt, completion in zip(prompts, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=sorted(stops),
            pad_token_id=tokenizer.pad_token_id, attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert list(completion.ids) == theirs


def test_lora_training_stopped_and_resumed_equals_uninterrupted(directory: Path, tmp_path: Path) -> None:
    """The train stage scores its own export again, and fails if the export is another model."""
    source = shared("data", "ultrafeedback", "train_prefs_first400.jsonl")
    rows = sorted(source.read_text().splitlines(), key=len)[:24]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    words = [
        "train", f"dataset={tmp_path / 'pairs.jsonl'}", f"model_name={directory}", "precision=bf16", "lora_rank=8",
        "max_length=256", "batch_size=2", "max_steps=3", "save_every=1", "eval_every=0", "infrequent_eval_every=0",
        "token_budget=1024", "tasks=none",
    ]  # fmt: skip
    run(words, tmp_path / "uninterrupted")
    run([*words, "max_minutes=0.0001"], tmp_path / "resumed", code=75)
    run(words, tmp_path / "resumed")
    journals = [read_lines(tmp_path / name / "run" / "metrics.jsonl") for name in ("uninterrupted", "resumed")]
    losses = [[row["dpo_loss"] for row in rows if row["step"]] for rows in journals]
    assert losses[0] == losses[1]
    assert losses[0][0] == pytest.approx(np.log(2), abs=1e-4)
    final = [
        (tmp_path / name / "run" / "final" / "model.safetensors").read_bytes() for name in ("uninterrupted", "resumed")
    ]
    assert final[0] == final[1]


def read_lines(path: Path) -> list[dict[str, float]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(words: list[str], directory: Path, code: int = 0) -> None:
    """The stages up to training, in processes of their own, with a store of their own."""
    command = [sys.executable, "-m", "dpo_core", *words, f"runs_dir={directory}", f"log_path={directory / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
