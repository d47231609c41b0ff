"""Small tokenizers of every kind that know the special tokens of every renderer."""

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dpo_core.data.preference import Message
from dpo_core.render.renderer import Renderer
from dpo_core.render.tokenizer import load_tokenizer
from tests.conftest import shared

LLAMA3 = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
CHATML = ["<|im_start|>", "<|im_end|>"]
DEEPSEEK = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
HARMONY = ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"]
KIMI = ["<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>"]
GEMMA = ["<bos>", "<start_of_turn>", "<end_of_turn>"]
MISTRAL = ["<s>", "</s>", "[INST]", "[/INST]"]
MARKERS = [*LLAMA3, *CHATML, *DEEPSEEK, *HARMONY, *KIMI, *GEMMA, *MISTRAL, "<|endoftext|>"]
TAGS = ["<think>", "</think>"]

NAMES = (
    *("role_colon", "llama3", "qwen3", "qwen3_disable_thinking", "qwen3_instruct", "deepseekv3"),
    *("gpt_oss_no_sysprompt", "kimi_k2", "gemma", "mistral"),
)


def with_markers(tokenizer: Tokenizer, bos: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer with every marker; DeepSeek's are declared as its real tokenizer does, as not special."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="<|endoftext|>")
    special = [marker for marker in MARKERS if marker not in DEEPSEEK[2:]]
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.add_tokens([AddedToken(text, normalized=False, special=False) for text in [*DEEPSEEK[2:], *TAGS]])
    return fast


def byte_tokenizer(bos: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_markers(tokenizer, bos)


def prefix_space_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with a space before every text (as RoBERTa's)."""
    fast = byte_tokenizer()
    fast.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    return fast


LETTERS = "abcdefghijklmnopqrstuvwxyzSUA.:/[]INT"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """Llama-2's kind: a dummy prefix, byte fallback, and a decoder that strips the first space."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", *LETTERS, "▁a", "▁h", "he", "▁he"]
    model = models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[("▁", "a"), ("h", "e"), ("▁", "he"), ("▁", "h")],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_markers(tokenizer, "<s>")


def sentencepiece_unigram() -> PreTrainedTokenizerFast:
    """T5's kind: the special tokens stand in the model's own vocabulary, with the best of scores."""
    scored = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((byte, -20.0) for byte in BYTES), ("▁", -2.0)]
    scored += [*((letter, -5.0) for letter in LETTERS), ("▁a", -3.0), ("he", -4.0)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always", split=False)]
    )
    return with_markers(tokenizer, "<s>")


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's kind, which does not keep white space; words that are markers stand in its vocabulary."""
    letters = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    pieces = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *letters]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    return with_markers(tokenizer)


def tiny_bpe() -> PreTrainedTokenizerFast:
    """A real BPE of 2,000 merges with Qwen's pre-tokenizer; skips where it is absent."""
    loaded = load_tokenizer(shared("tokenizers", "tiny-bpe"))
    return with_markers(loaded.backend_tokenizer, "<|endoftext|>")


EXACT: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": byte_tokenizer,
    "prefix space": prefix_space_tokenizer,
    "sentencepiece bpe": sentencepiece_bpe,
    "sentencepiece unigram": sentencepiece_unigram,
}
KINDS = EXACT | {"word piece": word_piece, "tiny bpe": tiny_bpe}


def marked(renderer: Renderer, messages: list[Message], **what: object) -> str:
    """The rendered text with ⟦ ⟧ around the trained part."""
    example = renderer.build_supervised_example(messages, **what)  # type: ignore[arg-type]
    text, inside = "", False
    for token, weight in zip(example.ids, example.weights, strict=True):
        text += ("⟦" if weight and not inside else "⟧" if inside and not weight else "") + renderer.tokenizer.decode(
            [token]
        )
        inside = bool(weight)
    return text + ("⟧" if inside else "")
