"""Generation speed on IFEval-like prompts through inspect-ai: our provider and inspect-ai's own ``hf``, side by side.

    python benchmarks/generate.py [--shape 40m|1b|8b] [--prompts 541] [--max-new-tokens 256] [--precision fp32 bf16]
                                  [--engines torch paged vllm] [--hf-batches 32 128 541] [--ifeval FILE] [--repeat 1]

The model has random weights, prompts are as long as IFEval's, and greedy responses all run to their limit. Every
contender runs in its own process, one after the other, on the GPU where there is one; its model is loaded and has
answered once before the clock starts. Without ``--engines`` our provider runs with engine torch, on a GPU also with
paged and, where it is installed, vLLM. Without ``--hf-batches`` hf's best batch size is searched: from 32 up and down,
by factors of two, until it gets slower. Responses are scored by those of IFEval's checkers that need no NLTK data, or
by those of a file of prompts (``--ifeval``; this needs NLTK_DATA). The row "overhead" is our time besides generation:
inspect-ai, scoring, the log. Prints a table and, last, one JSON line with the same figures.
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
    """Run every contender in its own process and compare them."""
    options = parse()
    if options.contender:
        print(RESULT + json.dumps(run(options)))
        return
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory), options)
        results = {
            name: figures
            for precision in options.precision
            for name, figures in contenders(directory, precision, options)
        }
    report(results, options)


def contenders(directory: str, precision: str, options: argparse.Namespace) -> Iterator[tuple[str, Figures]]:
    """Measure our engines, and hf with each batch size; failed contenders are left out."""

    def measure_hf(size: int) -> Figures | None:
        return measure(f"hf, batch {size}, {precision}", options, [directory, precision, str(size)])

    own = {name: measure(title(name, precision), options, [directory, precision, name]) for name in engines(options)}
    if options.ours:
        hf: dict[int, Figures | None] = {}
    else:
        hf = (
            {size: measure_hf(size) for size in options.hf_batches}
            if options.hf_batches
            else climb(measure_hf, options.prompts)
        )
    yield from ((title(name, precision), figures) for name, figures in own.items() if figures)
    yield from ((f"hf, batch {size}, {precision}", figures) for size, figures in sorted(hf.items()) if figures)


def engines(options: argparse.Namespace) -> list[str]:
    """Our engines to measure: those of ``--engines``, else all for this device."""
    import torch

    if options.engines or not torch.cuda.is_available():
        return options.engines or ["torch"]
    return ["torch", "paged"] + (["vllm"] if find_spec("vllm") else [])


def title(engine: str, precision: str) -> str:
    """Name of the table's row for one of our engines."""
    return f"ours, {engine}, {precision}"


def climb(measure_hf: Callable[[int], Figures | None], largest: int) -> dict[int, Figures | None]:
    """Figures by batch size: upward from the first size, then downward, each until it gets slower or fails."""
    first = min(FIRST, largest)
    results = {first: measure_hf(first)}
    up = (min(first * 2**power, largest) for power in itertools.count(1))
    down = (first // 2**power for power in itertools.count(1))
    for sizes in (up, down):
        size, previous = next(sizes), first
        while size and size not in results:
            results[size] = measure_hf(size)
            if speed(results[size]) <= speed(results[previous]):
                break
            size, previous = next(sizes), size
    return results


def speed(figures: Figures | None) -> float:
    """Tokens per second, 0 for a contender that failed."""
    return float(figures["tokens_per_s"]) if figures else 0.0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="40m")
    parser.add_argument("--prompts", type=int, default=541)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--engines", nargs="*", choices=("torch", "paged", "vllm"), default=[])
    parser.add_argument(
        "--hf-batches", nargs="*", type=int, default=[], help="batch sizes of hf; by default the best is searched"
    )
    parser.add_argument("--ours", action="store_true", help="leave hf out")
    parser.add_argument("--ifeval", type=Path, help="prompts in IFEval's schema whose instructions are checked")
    parser.add_argument("--repeat", type=int, default=1, help="number of runs; the best counts")
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(directory: Path, options: argparse.Namespace) -> None:
    """Write a word-level tokenizer, a model of the shape with random weights, and the prompts."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    shape = SHAPES[options.shape]
    words = {"</s>": 0, "<unk>": 1} | {f"w{token}": token for token in range(2, shape["vocab_size"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(directory / "model")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=4096, eos_token_id=0))
    model.save_pretrained(directory / "model")
    rng = np.random.default_rng(0)
    lengths = np.interp(rng.random(options.prompts), QUANTILES, LENGTHS).astype(int)
    texts = [" ".join(f"w{token}" for token in rng.integers(2, shape["vocab_size"], length)) for length in lengths]
    rows = [
        {"key": key, "prompt": text, "instruction_id_list": [*kind], "kwargs": [*kind.values()]}
        for key, (text, kind) in enumerate(zip(texts, itertools.cycle(kinds(options.ifeval)), strict=False))
    ]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def kinds(path: Path | None) -> list[dict[str, dict[str, Any]]]:
    """The instructions of each prompt, with their arguments."""
    if path is None:
        return KINDS
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [dict(zip(row["instruction_id_list"], row["kwargs"], strict=True)) for row in rows]


def measure(name: str, options: argparse.Namespace, contender: list[str]) -> Figures | None:
    """One contender's best figures, None if it failed (for example out of memory)."""
    best: Figures | None = None
    for _ in range(options.repeat):
        words = ["--max-new-tokens", str(options.max_new_tokens), "--contender", *contender]
        process = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
        lines = [line for line in process.stdout.splitlines() if line.startswith(RESULT)]
        if process.returncode or not lines:
            print(f"{name}: failed: {(process.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
            continue
        figures: Figures = json.loads(lines[0].removeprefix(RESULT))
        print(f"{name}: {figures['tokens_per_s']:.0f} tokens/s", flush=True)
        best = max((candidate for candidate in (best, figures) if candidate), key=speed)
    return best


def run(options: argparse.Namespace) -> Figures:
    """Figures of one contender: seconds of an evaluation, generated tokens, peak memory in GiB."""
    import anyio
    from inspect_ai import eval
    from inspect_ai.model import GenerateConfig, get_model

    from dpo_core.evaluate.ifeval.ifeval_task import ifeval
    from dpo_core.inference.select_engine import DTYPES

    directory, precision, engine = Path(options.contender[0]), *options.contender[1:]
    size = int(engine) if engine.isdigit() else 0
    if size:
        model_options: dict[str, Any] = {"batch_size": size, "do_sample": False}
        model = get_model(f"hf/{directory / 'model'}", memoize=False, dtype=DTYPES[precision], **model_options)
    else:
        model = get_model(f"dpo/{directory / 'model'}", memoize=False, precision=precision, engine=engine)
    anyio.run(model.generate, "w2 w3", [], None, GenerateConfig(max_tokens=4))
    task, generation_s = ifeval(str(directory / "prompts.jsonl")), [0.0]
    if not size:
        count_generation_time(model.api.answerer, generation_s)
    started = time.perf_counter()
    [log] = eval(
        task,
        model=model,
        max_tokens=options.max_new_tokens,
        max_connections=size or 4096,
        max_samples=4096,
        display="none",
        log_dir=str(directory / "logs"),
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
        "overhead": seconds - generation_s[0] if not size else None,
        "device": device(),
        "peak_gb": peak_gb(),
        "answers": [sample.output.completion.strip()[:80] for sample in (log.samples or [])[:4]],
    }


def device() -> str:
    """Name of the device."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def peak_gb() -> float:
    """Peak memory of the GPU in GiB, of the process where there is no GPU."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def count_generation_time(generator: Any, seconds: list[float]) -> None:
    """Add the time that a generator spends on generating to ``seconds[0]``."""
    generator_type = type(generator)
    attempt = generator_type.responses_or_errors

    def timed_attempt(self: Any, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return attempt(self, *arguments)
        finally:
            seconds[0] += time.perf_counter() - started

    generator_type.responses_or_errors = timed_attempt


def report(results: dict[str, Figures], options: argparse.Namespace) -> None:
    """Print the table and the ratios to hf's best, then the same figures as one JSON line."""
    print(f"\n{', '.join({figures['device'] for figures in results.values()})}")
    print(f"{'':28}{'tokens/s':>10}{'seconds':>9}{'tokens':>9}{'peak GB':>9}")
    for name, figures in results.items():
        print(
            f"{name:28}{speed(figures):10.0f}{figures['seconds']:9.1f}{figures['tokens']:9d}{figures['peak_gb']:9.2f}"
        )
        if figures["overhead"] is not None:
            print(f"{'  overhead':28}{'':10}{figures['overhead']:9.1f}")
    summary: dict[str, float | bool] = {}
    for precision in options.precision:
        hf = [candidate for name, candidate in results.items() if name.startswith("hf") and name.endswith(precision)]
        own = {
            name: figures for name, figures in results.items() if name.startswith("ours") and name.endswith(precision)
        }
        if hf:
            best = max(hf, key=speed)
            for name, figures in own.items():
                summary[f"{name}, times hf's best"] = speed(figures) / speed(best)
                summary[f"{name}, first answers are hf's"] = figures["answers"] == best["answers"]
    for line, value in summary.items():
        print(f"{line}: {value if isinstance(value, bool) else f'{value:.2f}'}")
    print(json.dumps({"options": vars(options), "contenders": results, "summary": summary}, default=str))


if __name__ == "__main__":
    main()
