"""Speed of answering IFEval-like prompts through inspect-ai: our provider and inspect-ai's own ``hf``, side by side.

    python benchmarks/generate.py [--shape 40m|1b|8b] [--prompts 541] [--max-new-tokens 256] [--precision fp32 bf16]
                                  [--engines torch paged vllm] [--hf-batches 32 128 541] [--ifeval FILE] [--repeat 1]

Random weights of the shape, prompts as long as IFEval's, greedy answers that all run to their limit; every contender
in a process of its own, one after the other, on the GPU where there is one, its model loaded and asked once before the
clock starts. Without ``--engines``, ours is measured with our own batches, on a GPU also with transformers' continuous
batching, and there with vLLM where it is installed. Without ``--hf-batches``, hf's best batch is looked for: from 32
up and down, by factors of two, until it gets slower. Answers are scored by IFEval's checkers, in those kinds that need
no data of NLTK's, or as a file of prompts says (``--ifeval``; then NLTK_DATA is needed). The row "overhead" is what
ours takes besides generation: inspect-ai, the scoring of every answer, the log. Prints a table and, last, one JSON line
with the same figures.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpo_step import SHAPES  # this folder's

# Quantiles of the 541 prompts' lengths in GPT-2's tokens.
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
LENGTHS = (14, 22, 32, 41, 57, 82, 103, 360)
RESULT = "result: "
FIRST = 32
# A prompt has one instruction or two, some of them costly to check (the language of an answer).
KINDS: list[dict[str, dict[str, Any]]] = [
    {"punctuation:no_comma": {}, "change_case:english_lowercase": {}},
    {"length_constraints:number_words": {"relation": "at least", "num_words": 100}},
    {"keywords:existence": {"keywords": ["w7", "w8"]}, "startend:quotation": {}},
    {"language:response_language": {"language": "de"}},
    {"detectable_format:number_highlighted_sections": {"num_highlights": 3}, "detectable_content:postscript": {}},
    {"length_constraints:number_paragraphs": {"num_paragraphs": 2}},
]
Figures = dict[str, Any]


def main() -> None:
    """Run every contender in a process of its own and compare."""
    options = parse()
    if options.contender:
        print(RESULT + json.dumps(run(options)))
        return
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place), options)
        found = {name: told for precision in options.precision for name, told in contenders(place, precision, options)}
    report(found, options)


def contenders(place: str, precision: str, options: argparse.Namespace) -> Iterator[tuple[str, Figures]]:
    """Ours and hf in each of its batch sizes, measured; those that failed are left out."""

    def at(size: int) -> Figures | None:
        return measure(f"hf, batch {size}, {precision}", options, [place, precision, str(size)])

    ours = {name: measure(title(name, precision), options, [place, precision, name]) for name in engines(options)}
    if options.ours:
        theirs: dict[int, Figures | None] = {}
    else:
        theirs = {size: at(size) for size in options.hf_batches} if options.hf_batches else climb(at, options.prompts)
    yield from ((title(name, precision), told) for name, told in ours.items() if told)
    yield from ((f"hf, batch {size}, {precision}", told) for size, told in sorted(theirs.items()) if told)


def engines(options: argparse.Namespace) -> list[str]:
    """What ours is measured with: as asked, or all that is for this device."""
    import torch

    if options.engines or not torch.cuda.is_available():
        return options.engines or ["torch"]
    return ["torch", "paged"] + (["vllm"] if find_spec("vllm") else [])


def title(engine: str, precision: str) -> str:
    """A row of ours."""
    return f"ours, {engine}, {precision}"


def climb(at: Callable[[int], Figures | None], most: int) -> dict[int, Figures | None]:
    """Figures by batch size, from the first size up, then down, each way until it gets slower or fails."""
    first = min(FIRST, most)
    found = {first: at(first)}
    up = (min(first * 2**power, most) for power in itertools.count(1))
    down = (first // 2**power for power in itertools.count(1))
    for sizes in (up, down):
        size, before = next(sizes), first
        while size and size not in found:
            found[size] = at(size)
            if speed(found[size]) <= speed(found[before]):
                break
            size, before = next(sizes), size
    return found


def speed(told: Figures | None) -> float:
    """Tokens a second, 0 for a contender that failed."""
    return float(told["tokens_per_s"]) if told else 0.0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="40m")
    parser.add_argument("--prompts", type=int, default=541)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--engines", nargs="*", choices=("torch", "paged", "vllm"), default=[])
    parser.add_argument("--hf-batches", nargs="*", type=int, default=[], help="by default the best is looked for")
    parser.add_argument("--ours", action="store_true", help="leave hf out")
    parser.add_argument("--ifeval", type=Path, help="prompts in IFEval's schema whose instructions are judged")
    parser.add_argument("--repeat", type=int, default=1, help="the best of so many")
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(place: Path, options: argparse.Namespace) -> None:
    """A tokenizer of whole words, prompts made of them, and a model of this shape."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    shape = SHAPES[options.shape]
    words = {"</s>": 0, "<unk>": 1} | {f"w{place}": place for place in range(2, shape["vocab_size"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(place / "model")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=4096, eos_token_id=0))
    model.save_pretrained(place / "model")
    rng = np.random.default_rng(0)
    lengths = np.interp(rng.random(options.prompts), QUANTILES, LENGTHS).astype(int)
    texts = [" ".join(f"w{token}" for token in rng.integers(2, shape["vocab_size"], length)) for length in lengths]
    rows = [
        {"key": key, "prompt": text, "instruction_id_list": [*kind], "kwargs": [*kind.values()]}
        for key, (text, kind) in enumerate(zip(texts, itertools.cycle(kinds(options.ifeval)), strict=False))
    ]
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def kinds(path: Path | None) -> list[dict[str, dict[str, Any]]]:
    """The instructions of prompts, with their arguments."""
    if path is None:
        return KINDS
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [dict(zip(row["instruction_id_list"], row["kwargs"], strict=True)) for row in rows]


def measure(name: str, options: argparse.Namespace, contender: list[str]) -> Figures | None:
    """One contender's best figures, None if it failed (as for want of memory)."""
    best: Figures | None = None
    for _ in range(options.repeat):
        words = ["--max-new-tokens", str(options.max_new_tokens), "--contender", *contender]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
        told = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
        if done.returncode or not told:
            print(f"{name}: failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
            continue
        figures: Figures = json.loads(told[0].removeprefix(RESULT))
        print(f"{name}: {figures['tokens_per_s']:.0f} tokens/s", flush=True)
        best = max((one for one in (best, figures) if one), key=speed)
    return best


def run(options: argparse.Namespace) -> Figures:
    """One contender: seconds of a whole evaluation, tokens that it generated, peak memory."""
    import anyio
    from inspect_ai import eval
    from inspect_ai.model import GenerateConfig, get_model

    from dpo_core.evaluate.ifeval.ifeval_task import ifeval
    from dpo_core.inference.select_engine import DTYPES

    place, precision, engine = Path(options.contender[0]), *options.contender[1:]
    size = int(engine) if engine.isdigit() else 0
    if size:
        how: dict[str, Any] = {"batch_size": size, "do_sample": False}
        model = get_model(f"hf/{place / 'model'}", memoize=False, dtype=DTYPES[precision], **how)
    else:
        model = get_model(f"dpo/{place / 'model'}", memoize=False, precision=precision, engine=engine)
    anyio.run(model.generate, "w2 w3", [], None, GenerateConfig(max_tokens=4))
    task, generating = ifeval(str(place / "prompts.jsonl")), [0.0]
    if not size:
        timed(model.api.answerer, generating)
    started = time.perf_counter()
    [log] = eval(
        task,
        model=model,
        max_tokens=options.max_new_tokens,
        max_connections=size or 4096,
        max_samples=4096,
        display="none",
        log_dir=str(place / "logs"),
        log_realtime=False,
        score_display=False,
        ctl_server=False,
    )
    seconds = time.perf_counter() - started
    assert log.status == "success", log.error
    tokens = sum(sample.output.usage.output_tokens for sample in log.samples or [] if sample.output.usage)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "overhead": seconds - generating[0] if not size else None,
        "device": device(),
        "peak_gb": peak_gb(),
        "answers": [sample.output.completion.strip()[:80] for sample in (log.samples or [])[:4]],
    }


def device() -> str:
    """What the models ran on."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def peak_gb() -> float:
    """The GPU's memory that was used at most, without one the process's."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(answerer: Any, seconds: list[float]) -> None:
    """Count the time that an answerer spends on generating."""
    kind = type(answerer)
    attempt = kind.responses_or_errors

    def counted(self: Any, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return attempt(self, *arguments)
        finally:
            seconds[0] += time.perf_counter() - started

    kind.responses_or_errors = counted


def report(found: dict[str, Figures], options: argparse.Namespace) -> None:
    """The table, ours beside hf's best, and the same as one JSON line."""
    print(f"\n{', '.join({told['device'] for told in found.values()})}")
    print(f"{'':28}{'tokens/s':>10}{'seconds':>9}{'tokens':>9}{'peak GB':>9}")
    for name, told in found.items():
        print(f"{name:28}{speed(told):10.0f}{told['seconds']:9.1f}{told['tokens']:9d}{told['peak_gb']:9.2f}")
        if told["overhead"] is not None:
            print(f"{'  overhead':28}{'':10}{told['overhead']:9.1f}")
    summary: dict[str, float | bool] = {}
    for precision in options.precision:
        theirs = [one for name, one in found.items() if name.startswith("hf") and name.endswith(precision)]
        ours = {name: told for name, told in found.items() if name.startswith("ours") and name.endswith(precision)}
        if theirs:
            best = max(theirs, key=speed)
            for name, told in ours.items():
                summary[f"{name}, times hf's best"] = speed(told) / speed(best)
                summary[f"{name}, first answers are hf's"] = told["answers"] == best["answers"]
    for line, value in summary.items():
        print(f"{line}: {value if isinstance(value, bool) else f'{value:.2f}'}")
    print(json.dumps({"options": vars(options), "contenders": found, "summary": summary}, default=str))


if __name__ == "__main__":
    main()
