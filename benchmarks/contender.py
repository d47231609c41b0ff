"""Contender of ``dpo_step.py``: dpo-flows or TRL training on given pairs, timed step by step."""

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
    """Train; returns the losses, pairs per second after the first step, and peak memory in GB."""
    rows = json.loads((Path(options["directory"]) / "pairs.json").read_text())
    figures = (run_dpo_flows if options["trainer"] == "dpo-flows" else run_trl)(options, rows)
    return figures | {"peak_gb": peak_gb()}


def peak_gb() -> float:
    """Peak memory of the GPU in GB, of the process where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def new_model(options: Options) -> PreTrainedModel:
    """The model with the initial weights of every contender."""
    return product.random_model(to_setup(options))


def run_dpo_flows(options: Options, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Train with dpo-flows. ``reference``: scored (scoring is timed), cached (it is not), or step (on the fly)."""
    from dpo_core.train.loop import steps

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        session, scoring = product.benchmark_session(Path(directory), to_setup(options), rows)
        set_up = time.perf_counter()
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
        "setup_s": set_up - started,
        "first_step_s": history[0].values["batch_time"],
    }


def to_setup(options: Options) -> product.Setup:
    """The recipe's sections for a contender's options."""
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


def run_trl(options: Options, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Train with TRL's DPOTrainer on the same token ids in the same order, without its tokenization."""
    warnings.simplefilter("ignore")
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    losses: list[float] = []
    times: list[float] = []

    class InOrder(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
            return dataset

        def _get_train_sampler(self, dataset: Dataset | None = None) -> SequentialSampler:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
            output = super().compute_loss(*arguments, **keywords)
            losses.append(float(output[0] if isinstance(output, tuple) else output))
            return output

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    size = options["batch_size"]
    microbatch = options["microbatch"] or size
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as directory:
        config = DPOConfig(
            output_dir=directory,
            per_device_train_batch_size=microbatch,
            gradient_accumulation_steps=size // microbatch,
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
            use_liger_kernel="liger" in options["trainer"],
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 2}, unk_token="<pad>")),
            pad_token="<pad>",
            eos_token="</s>",
        )
        rank = options["lora_rank"]
        lora = LoraConfig(r=rank or 1, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = InOrder(
            new_model(options),
            None if rank else new_model(options),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
            peft_config=lora if rank else None,
        )
        trainer.train()
    steps = np.array(losses[-len(times) * (size // microbatch) :]).reshape(len(times), -1).mean(1)
    return {"losses": steps.tolist(), "pairs_per_s": (len(times) - 1) * size / (times[-1] - times[0])}
