"""One contender of ``dpo_step.py``: a trainer over given pairs, timed step by step."""

import json
import resource
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

Options = dict[str, Any]
BETA, BETAS = 0.1, (0.9, 0.95)


def run(options: Options) -> dict[str, Any]:
    """Train; returns losses, pairs a second after the first step, and the most memory that the process held."""
    told = json.loads((Path(options["place"]) / "options.json").read_text())
    rows = json.loads((Path(options["place"]) / "pairs.json").read_text())
    figures = (ours if options["whose"] == "ours" else theirs)(options | {"config": told["config"]}, rows)
    return figures | {"peak_gb": peak_gb()}


def peak_gb() -> float:
    """Of the GPU, or without one of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def model(options: Options) -> PreTrainedModel:
    """Random weights from a seed, in float32 (bf16 where LoRA leaves them as they are and bf16 computes)."""
    torch.manual_seed(0)
    config = LlamaConfig(**options["config"], max_position_embeddings=16_384, bos_token_id=1, eos_token_id=2)
    frozen = options["lora_rank"] and options["precision"] == "bf16"
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return LlamaForCausalLM(config).to(torch.bfloat16 if frozen else torch.float32)


def ours(options: Options, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Our loop; ``reference``: scored (its pass counts), cached (it does not), or step (on the fly)."""
    from safetensors.numpy import save_file

    from dpo_core.model.heap import keep_heap
    from dpo_core.model.lora import trainable
    from dpo_core.recipe import ModelSettings, TrainSettings
    from dpo_core.train.compiled import compiled
    from dpo_core.train.flops import matmul_peak
    from dpo_core.train.loop import Run, steps
    from dpo_core.train.reference import OnTheFly, References, score
    from dpo_core.train.session import adamw, prepared

    if not torch.cuda.is_available():
        keep_heap()  # as load_model does
    size, precision = options["batch_size"], options["precision"]
    train = TrainSettings(
        batch_size=size,
        learning_rate=options["learning_rate"],
        precision=precision,
        dpo_beta=BETA,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        activation_checkpointing=bool(options["activation_checkpointing"]),
        compile_model="auto" if options["compile_model"] else False,
    )
    base = model(options).eval()
    split = InOrder(rows, train)
    scoring = time.perf_counter()
    policy = trainable(base, ModelSettings(lora_rank=options["lora_rank"]), seed=0)
    with tempfile.TemporaryDirectory() as place:
        if options["reference"] == "step":
            frozen = policy if options["lora_rank"] else model(options).eval().requires_grad_(False)
            known: Any = OnTheFly(frozen, precision)
        else:
            tensors = score(base, split, list(range(len(split))), "tree", precision)
            save_file(tensors, Path(place) / "train.safetensors")
            known = References(Path(place) / "train.safetensors")
    scoring = time.perf_counter() - scoring
    compiled(prepared(policy, train), train)
    optimizer = adamw(policy, train)
    peak = matmul_peak(next(policy.parameters()).device, precision)
    budget = options["token_budget"] or options["micro"]
    history = list(steps(Run(policy, optimizer, split, known, train, token_budget=budget, peak_flops=peak)))
    timed = history[1:]
    seconds = sum(step.values["batch_time"] for step in timed)
    seconds += scoring * len(timed) / len(history) if options["reference"] == "scored" else 0
    return {
        "losses": [step.values["dpo_loss"] for step in history],
        "pairs_per_s": len(timed) * size / seconds,
        "mfu_useful": float(np.mean([step.values["perf/mfu_useful"] for step in timed])),
        "matmul_peak_gflops": peak / 1e9,
    }


class InOrder:
    """Rows whose order in training is the order given: row i stands where the run's permutation will ask for it."""

    def __init__(self, rows: list[dict[str, list[int]]], train: Any) -> None:
        from dpo_core.train.order import permutation

        self.pairs: list[Any] = [None] * len(rows)
        for row, index in zip(rows, permutation(train.seed, 0, len(rows)).tolist(), strict=True):
            self.pairs[index] = pair(row)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index]


def pair(row: dict[str, list[int]]) -> Any:
    """A row as a rendered pair."""
    from dpo_core.pair import Pair
    from dpo_core.render.rendered import Completion, TokenPair

    def side(name: str) -> Completion:
        ids = np.array(row[f"{name}_ids"], dtype=np.int32)
        return Completion(ids, np.ones(len(ids), dtype=np.bool_))

    return TokenPair(np.array(row["prompt_ids"], dtype=np.int32), Pair(side("chosen"), side("rejected")))


def theirs(options: Options, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """TRL's DPOTrainer over the same token ids in the same order, its own tokenisation skipped."""
    warnings.simplefilter("ignore")
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    losses: list[float] = []
    times: list[float] = []

    class Ordered(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
            return dataset

        def _get_train_sampler(self, dataset: Dataset | None = None) -> SequentialSampler:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            told = super().compute_loss(*arguments, **named)
            losses.append(float(told[0] if isinstance(told, tuple) else told))
            return told

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    size = options["batch_size"]
    micro = options["micro"] or size
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as place:
        config = DPOConfig(
            output_dir=place,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=size // micro,
            learning_rate=options["learning_rate"],
            beta=BETA,
            lr_scheduler_type="linear",
            adam_beta2=BETAS[1],
            max_grad_norm=1e9,
            num_train_epochs=1,
            logging_steps=1_000_000,
            save_strategy="no",
            report_to=[],
            bf16=options["precision"] == "bf16",
            use_cpu=not on_gpu,
            max_length=None,
            disable_tqdm=True,
            gradient_checkpointing=False,
            precompute_ref_log_probs=options["reference"] == "cached",
            use_liger_kernel="liger" in options["whose"],
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 2}, unk_token="<pad>")),
            pad_token="<pad>",
            eos_token="</s>",
        )
        rank = options["lora_rank"]
        lora = LoraConfig(r=rank or 1, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = Ordered(
            model(options),
            None if rank else model(options),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
            peft_config=lora if rank else None,
        )
        trainer.train()
    steps = np.array(losses[-len(times) * (size // micro) :]).reshape(len(times), -1).mean(1)
    return {"losses": steps.tolist(), "pairs_per_s": (len(times) - 1) * size / (times[-1] - times[0])}
