"""The loss curve is TRL's: the same weights, tokens, order and optimizer give the same losses step by step."""

import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler

from dpo_core.config.recipe import TrainSettings
from dpo_core.render.token_dataset import TokenPair
from dpo_core.train import data_order
from dpo_core.train.loop import Run, steps
from tests import tiny
from tests.conftest import shared

SETTINGS = TrainSettings(batch_size=4, num_epochs=1, learning_rate=1e-3, dpo_beta=0.1)


def trl_losses(path: Path, pairs: list[TokenPair]) -> list[float]:
    """TRL's DPOTrainer over the pairs in the order given, its own tokenisation skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer
        from trl import DPOConfig, DPOTrainer

        class InOrder(DPOTrainer):  # type: ignore[misc]
            def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
                return dataset

            def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
                return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        rows = [
            {
                "prompt_ids": pair.prompt.tolist(),
                "chosen_ids": pair.sides.chosen.ids.tolist(),
                "rejected_ids": pair.sides.rejected.ids.tolist(),
            }
            for pair in pairs
        ]
        config = DPOConfig(
            output_dir=str(path / "trl"),
            per_device_train_batch_size=SETTINGS.batch_size,
            learning_rate=SETTINGS.learning_rate,
            beta=SETTINGS.dpo_beta,
            lr_scheduler_type="linear",
            adam_beta2=SETTINGS.adam_beta2,
            max_grad_norm=1e9,
            num_train_epochs=1,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            bf16=False,
            use_cpu=True,
            max_length=None,
            disable_tqdm=True,
            gradient_checkpointing=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(shared("models", "stories260K"))
        tokenizer.pad_token = tokenizer.eos_token
        trainer = InOrder(
            tiny.llama(), tiny.llama(), args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.main_job
def test_the_loss_curve_is_trls(tmp_path: Path) -> None:
    pairs = tiny.token_pairs(16)
    total = data_order.total_steps(len(pairs), SETTINGS)
    in_order = [pairs[index] for step in range(total) for index in data_order.batch_indices(step, len(pairs), SETTINGS)]
    theirs = trl_losses(tmp_path, in_order)

    model = tiny.llama()
    split = tiny.rows(tmp_path, pairs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    run = Run(model, optimizer, split, tiny.references(tmp_path, model, split), SETTINGS)
    ours = [metrics.values["dpo_loss"] for metrics in steps(run)]

    assert len(ours) == total == 4
    assert ours == pytest.approx(theirs, abs=1e-4)  # TRL logs four decimals
    assert abs(ours[-1] - ours[0]) > 1e-3
