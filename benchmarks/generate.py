"""Speed of answering IFEval-like prompts through inspect-ai: our provider and inspect-ai's own ``hf``, side by side.

    python benchmarks/generate.py [--shape 40m|1b|8b] [--prompts 541] [--max-new-tokens 256] [--precision fp32 bf16]
                                  [--hf-batches 32 128 541] [--repeat 1]

Random weights of the shape, prompts as long as IFEval's, greedy answers that all run to their limit; every contender
in a process of its own, one after the other, its model loaded before the clock starts. ``overhead``: seconds of ours
that are not generation (inspect-ai, its log, the scoring of every answer). Runs unchanged on a GPU. Prints a table and,
last, one JSON line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dpo_step import SHAPES  # this folder's

# Quantiles of the 541 prompts' lengths in GPT-2's tokens.
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
LENGTHS = (14, 22, 32, 41, 57, 82, 103, 360)
RESULT = "result: "


def main() -> None:
    """Run every contender in a process of its own and compare."""
    options = parse()
    if options.contender:
        print(RESULT + json.dumps(run(options)))
        return
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place), options)
        results = {}
        for precision in options.precision:
            for size in [0, *options.hf_batches]:
                name = f"hf, batch {size}, {precision}" if size else f"ours, {precision}"
                results[name] = measure(name, options, [place, precision, str(size)])
    report({name: told for name, told in results.items() if told}, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "tiny"], default="40m")
    parser.add_argument("--prompts", type=int, default=541)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--hf-batches", nargs="*", type=int, default=[32, 128, 541])
    parser.add_argument("--repeat", type=int, default=1, help="the best of so many")
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(place: Path, options: argparse.Namespace) -> None:
    """A tokenizer of whole words, prompts made of them, and a model of this shape."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    shape = SHAPES.get(options.shape) or SHAPES["40m"] | {"vocab_size": 2000, "hidden_size": 64, "num_hidden_layers": 2}
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
    kind = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    rows = [{"key": key, "prompt": text, **kind} for key, text in enumerate(texts)]
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(name: str, options: argparse.Namespace, contender: list[str]) -> dict[str, Any] | None:
    """One contender's best figures, None if it failed (as for want of memory)."""
    best: dict[str, Any] | None = None
    for _ in range(options.repeat):
        words = ["--max-new-tokens", str(options.max_new_tokens), "--contender", *contender]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
        told = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
        if done.returncode or not told:
            print(f"{name}: failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
            continue
        figures: dict[str, Any] = json.loads(told[0].removeprefix(RESULT))
        print(f"{name}: {figures['tokens_per_s']:.0f} tokens/s", flush=True)
        best = max((one for one in (best, figures) if one), key=lambda one: float(one["tokens_per_s"]))
    return best


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One contender: seconds of a whole evaluation, tokens that it generated, peak memory."""
    import resource

    from inspect_ai import eval
    from inspect_ai.model import get_model

    from dpo_core.evaluate.ifeval import ifeval

    place, precision, size = Path(options.contender[0]), options.contender[1], int(options.contender[2])
    if size:
        how: dict[str, Any] = {"batch_size": size, "do_sample": False}
        model = get_model(f"hf/{place / 'model'}", memoize=False, dtype=DTYPES[precision], **how)
    else:
        model = get_model(f"dpo/{place / 'model'}", memoize=False, precision=precision)
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
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "answers": [sample.output.completion[:80] for sample in (log.samples or [])[:4]],
    }


DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def timed(answerer: Any, seconds: list[float]) -> None:
    """Count the time that an answerer spends on generating."""
    kind = type(answerer)
    attempt = kind.attempt

    def counted(self: Any, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return attempt(self, *arguments)
        finally:
            seconds[0] += time.perf_counter() - started

    kind.attempt = counted


def report(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """The table, ours beside hf's best, and the same as one JSON line."""
    print(f"\n{'':28}{'tokens/s':>10}{'seconds':>9}{'tokens':>9}{'overhead':>10}{'peak GB':>9}")
    for name, told in found.items():
        overhead = "" if told["overhead"] is None else f"{told['overhead']:.1f}"
        row = (
            f"{told['tokens_per_s']:10.0f}{told['seconds']:9.1f}{told['tokens']:9d}{overhead:>10}{told['peak_gb']:9.2f}"
        )
        print(f"{name:28}{row}")
    summary = {}
    for precision in options.precision:
        theirs = [one for name, one in found.items() if name.startswith("hf") and name.endswith(precision)]
        ours = found.get(f"ours, {precision}")
        if ours and theirs:
            best = max(theirs, key=lambda one: float(one["tokens_per_s"]))
            summary[f"ours {precision}, times hf's best"] = ours["tokens_per_s"] / best["tokens_per_s"]
            summary[f"first answers equal, {precision}"] = ours["answers"] == best["answers"]
    for line, value in summary.items():
        print(f"{line}: {value if isinstance(value, bool) else f'{value:.2f}'}")
    print(json.dumps({"options": vars(options), "contenders": found, "summary": summary}))


if __name__ == "__main__":
    main()
