"""Chat on the terminal, and generation for prompts of the command line: for trying a model by hand."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpo_core.data.preference import Message
from dpo_core.errors import EvaluationError, RecipeError
from dpo_core.inference.generator import Response, ResponseGenerator, Sampling, open_generator
from dpo_core.inference.load_engine import EngineConfig

HINT = "/new starts over, /exit or Ctrl-D ends."
TOKENS_OPTION, DEFAULT_TOKENS = "max_new_tokens=", 256


def main(command: str, words: list[str]) -> None:
    """``generate MODEL_DIR PROMPT… [max_new_tokens=N]`` or ``chat MODEL_DIR [max_new_tokens=N]``.

    Raises RecipeError for other words, and as the commands do.
    """
    limits = [word.removeprefix(TOKENS_OPTION) for word in words if word.startswith(TOKENS_OPTION)]
    model, *prompts = [word for word in words if not word.startswith(TOKENS_OPTION)] or [""]
    limit = limits[-1] if limits else str(DEFAULT_TOKENS)
    if not model or not limit.isdigit() or int(limit) < 1 or bool(prompts) != (command == "generate"):
        usage = "generate MODEL_DIR PROMPT..." if command == "generate" else "chat MODEL_DIR"
        raise RecipeError(f"{command} does not understand {words}.", f"Write: {usage} [{TOKENS_OPTION}N].", "")
    if command == "generate":
        generate_command(Path(model), prompts, int(limit))
    else:
        chat_command(Path(model), int(limit))


def generate_command(model: Path, prompts: list[str], max_new_tokens: int) -> None:
    """Print the model's greedy response to every prompt, with a blank line between responses.

    Raises RecipeError for a directory that is no model, EvaluationError for a prompt that fills the context.
    """
    generator = open_generator(model, EngineConfig(engine="torch", batch_size=max(len(prompts), 1)))
    conversations = [[user_message(prompt)] for prompt in prompts]
    responses = generator.responses(conversations, Sampling(max_new_tokens))
    print("\n\n".join(response_text(response, max_new_tokens) for response in responses))


def chat_command(model: Path, max_new_tokens: int) -> None:
    """Hold a conversation over standard input and output, until /exit or the end of the input.

    Raises as :func:`generate_command`.
    """
    generator = open_generator(model, EngineConfig(engine="torch", batch_size=1))
    print(f"{model} ({generator.renderer.name}). {HINT}", file=sys.stderr)
    history: list[Message] = []
    for text in read_inputs():
        if text == "/new":
            history = []
            continue
        history = fit_to_context(generator, [*history, user_message(text)])
        [response] = generator.responses([history], Sampling(max_new_tokens))
        print(response_text(response, max_new_tokens), flush=True)
        history = [*history, {"role": "assistant", "content": response.text}]


def read_inputs() -> Iterator[str]:
    """The user's lines that are not empty, until /exit or the end of the input; a prompt sign on a terminal only."""
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


def fit_to_context(generator: ResponseGenerator, messages: Sequence[Message]) -> list[Message]:
    """The conversation without its oldest turns, so that the model's context has room for a response."""
    longest = generator.engine.context_length
    kept = list(messages)
    while longest and len(kept) > 1 and len(generator.renderer.build_generation_prompt(kept)) >= longest:
        kept = kept[2:]
    return kept


def response_text(response: Response, max_new_tokens: int) -> str:
    """The response's text, with a mark when it was cut off.

    Raises EvaluationError when the prompt left no room for a response.
    """
    if not response.tokens:
        found = f"The prompt has {response.prompt_tokens} tokens, which fill the model's context."
        raise EvaluationError(found, "The context must have room for a response.", "Shorten the prompt.")
    marks = {"max_tokens": f" [cut off after max_new_tokens={max_new_tokens}]", "model_length": " [context full]"}
    return response.text + marks.get(response.stop_reason, "")


def user_message(text: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": text}
