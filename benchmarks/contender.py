"""One contender of ``dpo_step.py``: a trainer over given pairs, timed step by step."""

import json
import resource
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import product  # this folder's
import torch
from transformers import PreTrainedModel

from dpo_core.config.recipe import ModelSettings, TrainSettings

Options = dict[str, Any]
BETA, BETAS = 0.1, (0.9, 0.95)


def run(options: Options) -> dict[str, Any]:
    """Train; returns losses, pairs a second after the first step, and the most memory that the process held."""
    rows = json.loads((Path(options["place"]) / "pairs.json").read_text())
    figures = (ours if options["whose"] == "ours" else theirs)(options, rows)
    return figures | {"peak_gb": peak_gb()}


def peak_gb() -> float:
    """Of the GPU, or without one of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def model(options: Options) -> PreTrainedModel:
    """The weights that every contender starts from."""
    return product.random_model(setup(options))


def ours(options: Options, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Our loop; ``reference``: scored (its pass counts), cached (it does not), or step (on the fly)."""
    from dpo_core.train.loop import steps

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        session, scoring = product.session(Path(place), setup(options), rows)
        ready = time.perf_counter()
        history = list(steps(session.run))
    timed = history[1:]
    seconds = sum(step.values["batch_time"] for step in timed)
    seconds += scoring * len(timed) / len(history) if options["reference"] == "scored" else 0.0
    return {
        "losses": [step.values["dpo_loss"] for step in history],
        "pairs_per_s": len(timed) * options["batch_size"] / seconds,
        "mfu_useful": float(np.mean([step.values["perf/mfu_useful"] for step in timed])),
        "matmul_peak_gflops": (session.run.peak_flops or 0) / 1e9,
        "layout": session.run.layout,
        "token_budget": session.run.token_budget,
        "setup_s": ready - began,
        "first_step_s": history[0].values["batch_time"],
    }


def setup(options: Options) -> product.Setup:
    """The recipe's sections that a contender's options mean."""
    train = TrainSettings(
        batch_size=options["batch_size"],
        learning_rate=options["learning_rate"],
        precision=options["precision"],
        dpo_beta=BETA,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        reference_mode="on_the_fly" if options["reference"] == "step" else "cached",
        token_budget=options["token_budget"],
        activation_checkpointing=options["recompute"],
        compile_model=options["compile_model"],
    )
    return product.Setup(options["config"], ModelSettings(lora_rank=options["lora_rank"]), train)


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
