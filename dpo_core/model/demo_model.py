"""Demo base model: a tokenizer trained on the demo's text, and the configuration of a small Llama without weights."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dpo_core.cache.store import Draft
from dpo_core.data.demo import demo_pairs
from dpo_core.model.locate import describe
from dpo_core.render.registry import CHECKPOINT_METADATA
from dpo_core.stages.demo_base import DemoBaseRequest

VOCABULARY = 1536
CONTEXT = 256
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ARCHITECTURE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "dtype": "float32",
}


def run(request: DemoBaseRequest, draft: Draft) -> None:
    """Publish the demo's base as a ModelSource."""
    write_base(draft.path, demo_pairs.training_texts(demo_pairs.generate(request.demo_pairs, request.seed)))
    draft.publish(describe(draft.path, "demo", draft.final))


def write_base(path: Path, texts: Iterable[str]) -> None:
    """Write tokenizer, chat template, configuration and renderer name to ``path``, in transformers' format.

    There are no weights: :func:`dpo_core.model.load.load_model` initializes them from its seed.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts)
    tokenizer.save(str(path / "tokenizer.json"))
    ids = {"pad_token_id": tokenizer.token_to_id(PAD), "eos_token_id": tokenizer.token_to_id(END), "bos_token_id": None}
    contents = {
        "config.json": ARCHITECTURE | ids | {"vocab_size": VOCABULARY},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": PAD,
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
        CHECKPOINT_METADATA: {"renderer_name": "qwen3_instruct"},
    }
    for name, content in contents.items():
        (path / name).write_text(json.dumps(content, indent=1))


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE of VOCABULARY entries, or fewer where the text has no more pairs to merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
