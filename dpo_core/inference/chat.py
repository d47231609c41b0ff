"""Trying a model by hand: answers to prompts, and a conversation on the terminal."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpo_core.data.preference import Message
from dpo_core.errors import EvaluationError, RecipeError
from dpo_core.inference.generator import Response, ResponseGenerator, Sampling, open_answerer
from dpo_core.inference.load_engine import EngineConfig

HINT = "/new starts over, /exit or Ctrl-D ends."
TOKENS, DEFAULT = "max_new_tokens=", 256


def main(command: str, words: list[str]) -> None:
    """``generate MODEL_DIR PROMPT… [max_new_tokens=N]`` or ``chat MODEL_DIR [max_new_tokens=N]``.

    Raises RecipeError for other words, and as the commands do.
    """
    limits = [word.removeprefix(TOKENS) for word in words if word.startswith(TOKENS)]
    model, *prompts = [word for word in words if not word.startswith(TOKENS)] or [""]
    limit = limits[-1] if limits else str(DEFAULT)
    if not model or not limit.isdigit() or int(limit) < 1 or bool(prompts) != (command == "generate"):
        usage = "generate MODEL_DIR PROMPT..." if command == "generate" else "chat MODEL_DIR"
        raise RecipeError(f"{command} does not understand {words}.", f"Write: {usage} [{TOKENS}N].", "")
    if command == "generate":
        generate_command(Path(model), prompts, int(limit))
    else:
        chat_command(Path(model), int(limit))


def generate_command(model: Path, prompts: list[str], max_new_tokens: int) -> None:
    """Print the model's answer to every prompt, greedily decoded, a blank line between answers.

    Raises RecipeError for a directory that is no model, EvaluationError for a prompt that fills the context.
    """
    answerer = open_answerer(model, EngineConfig(engine="torch", batch_size=max(len(prompts), 1)))
    conversations = [[user(prompt)] for prompt in prompts]
    answers = answerer.answer(conversations, Sampling(max_new_tokens))
    print("\n\n".join(said(answer, max_new_tokens) for answer in answers))


def chat_command(model: Path, max_new_tokens: int) -> None:
    """A conversation over standard input and output, until /exit or the input's end.

    Raises as :func:`generate_command`.
    """
    answerer = open_answerer(model, EngineConfig(engine="torch", batch_size=1))
    print(f"{model} ({answerer.renderer.name}). {HINT}", file=sys.stderr)
    history: list[Message] = []
    for text in spoken():
        if text == "/new":
            history = []
            continue
        history = fitting(answerer, [*history, user(text)])
        [answer] = answerer.answer([history], Sampling(max_new_tokens))
        print(said(answer, max_new_tokens), flush=True)
        history = [*history, {"role": "assistant", "content": answer.text}]


def spoken() -> Iterator[str]:
    """What the user says, line by line; the prompt sign only where someone sees it."""
    sign = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(sign).strip()
        except EOFError:
            return
        if text == "/exit":
            return
        if text:
            yield text


def fitting(answerer: ResponseGenerator, messages: Sequence[Message]) -> list[Message]:
    """The conversation without its oldest turns, so many that the model's context has room for an answer."""
    longest = answerer.engine.context
    kept = list(messages)
    while longest and len(kept) > 1 and len(answerer.renderer.build_generation_prompt(kept)) >= longest:
        kept = kept[2:]
    return kept


def said(answer: Response, max_new_tokens: int) -> str:
    """The answer's text; one that was cut off says so.

    Raises EvaluationError when the prompt left no room for any.
    """
    if not answer.tokens:
        found = f"The prompt has {answer.prompt_tokens} tokens, which fill the model's context."
        raise EvaluationError(found, "An answer needs room.", "Shorten the prompt.")
    cut = {"max_tokens": f" [cut off after max_new_tokens={max_new_tokens}]", "model_length": " [context full]"}
    return answer.text + cut.get(answer.stop_reason, "")


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}
