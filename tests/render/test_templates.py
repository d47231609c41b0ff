"""Token for token what the models' own templates write, wherever both can express the conversation."""

import importlib.util
import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from dpo_core.data.preference import Message
from dpo_core.render.registry import get_renderer
from dpo_core.render.renderer import Renderer
from tests.conftest import shared
from tests.render.conversations import plain, talks, texts
from tests.render.tokenizers import byte_tokenizer, tiny_bpe

Talk = list[Message]


def peer(name: str) -> Path:
    """A template among TRL's, which is installed for tests; found without importing it (7 s)."""
    spec = importlib.util.find_spec("trl")
    if spec is None:
        pytest.skip("needs TRL, of whose templates this is one")
    assert spec.origin is not None
    return Path(spec.origin).parent / "chat_templates" / name


def both(name: str, template: Path, bos: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Renderer:
    """The renderer over a tokenizer that also has the template."""
    made = tokenizer or byte_tokenizer(bos)
    made.chat_template = template.read_text()
    return get_renderer(name, made)


PEERS = ("gemma.jinja", "gemma3.jinja", "gptoss.jinja", "deepseekv3.jinja")
BOS = {"gemma": "<bos>", "deepseekv3": "<｜begin▁of▁sentence｜>"}
MADE: dict[tuple[str, str, str], Renderer] = {}


def over(name: str, template: str, kind: str = "bytes") -> Renderer:
    """A renderer with a template, made once."""
    key = (name, template, kind)
    if key not in MADE:
        path = peer(template) if template in PEERS else shared("templates", template)
        MADE[key] = both(name, path, BOS.get(name, "<|begin_of_text|>"), tiny_bpe() if kind == "tiny" else None)
    return MADE[key]


def written(renderer: Renderer, talk: Talk, generation: bool = False, **options: object) -> str:
    """The template's text."""
    return str(
        renderer.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=generation, **options)
    )


def read(renderer: Renderer, ids: list[int]) -> str:
    """The text of ids, special tokens shown."""
    return str(renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def check(renderer: Renderer, talk: Talk, theirs: tuple[str, str]) -> None:
    """Our example and prompt are the template's texts, and its tokens where no text looks like a marker."""
    whole = renderer.build_supervised_example(talk).ids
    prompt = renderer.build_generation_prompt(talk[:-1])
    assert (read(renderer, whole), read(renderer, prompt)) == theirs
    if all(plain(message["content"]) for message in talk):
        expected = [renderer.tokenizer.encode(text, add_special_tokens=False) for text in theirs]
        assert [whole, prompt] == expected


SHIPPED = [
    ("llama3", "llama3.jinja", None),
    ("qwen3", "qwen3.jinja", None),
    ("qwen3_instruct", "qwen3_instruct_2507.jinja", None),
    ("qwen3_instruct", "qwen2_5.jinja", True),
]


@pytest.mark.parametrize(("name", "template", "system"), SHIPPED)
@given(data=st.data())
def test_equal_to_the_shipped_template(name: str, template: str, system: bool | None, data: st.DataObject) -> None:
    renderer = over(name, template)
    talk = data.draw(talks(texts(), system))
    check(renderer, talk, (written(renderer, talk).removesuffix("\n"), written(renderer, talk[:-1], generation=True)))


@given(talk=talks(texts(forged=False), True))
def test_llama3_writes_llama_3_2s_date_as_system_text(talk: Talk) -> None:
    renderer = over("llama3", "llama3_2.jinja")
    dated = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    system = talk[0]["content"].strip() or "S"
    theirs = [Message(role="system", content=system), *talk[1:]]
    ours = [Message(role="system", content=dated + system), *talk[1:]]
    options = {"date_string": "26 Jul 2024"}
    check(renderer, ours, (written(renderer, theirs, **options), written(renderer, theirs[:-1], True, **options)))


@given(talk=talks(texts(forged=False)))
def test_qwen3_without_thinking_gives_the_empty_block_in_the_prompt(talk: Talk) -> None:
    renderer = over("qwen3_disable_thinking", "qwen3.jinja")
    prompt = written(renderer, talk[:-1], True, enable_thinking=False)
    check(renderer, talk, (written(renderer, talk).removesuffix("\n"), prompt))


@pytest.mark.parametrize("reasoning", ["", "two\nlines"])
def test_qwen3_keeps_reasoning_in_the_produced_turn_only(reasoning: str) -> None:
    renderer = over("qwen3", "qwen3.jinja")
    thought = f"<think>\n{reasoning}\n</think>\n\nA"
    talk = [Message(role=role, content=text) for role, text in [("user", "U"), ("assistant", thought)] * 2]
    example = renderer.build_supervised_example(talk)
    assert read(renderer, example.ids) == written(renderer, talk).removesuffix("\n")
    trained = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
    assert read(renderer, trained) == f"{thought}<|im_end|>"
    assert read(renderer, example.ids).count("<think>") == 1


@pytest.mark.parametrize(
    ("name", "template"), [("qwen3", "qwen3.jinja"), ("qwen3_instruct", "qwen3_instruct_2507.jinja")]
)
@given(data=st.data())
def test_equal_with_a_real_bpe(name: str, template: str, data: st.DataObject) -> None:
    """Headers end in a line's end, which merges with one that a text begins with: parts are tokenized separately."""
    renderer = over(name, template, "tiny")
    talk = [m for m in data.draw(talks(texts(forged=False))) if "\n" not in leading(m["content"])]
    assume_alternates(talk)
    theirs = written(renderer, talk).removesuffix("\n")
    assert renderer.build_supervised_example(talk).ids == renderer.tokenizer.encode(theirs, add_special_tokens=False)


def leading(text: str) -> str:
    """The white space at a text's start, line's ends by one name."""
    normal = unicodedata.normalize("NFC", text)
    return normal[: len(normal) - len(normal.lstrip())].replace("\r", "\n")


def assume_alternates(talk: Talk) -> None:
    """Leave out what filtering made no conversation."""
    assume(talk and talk[-1]["role"] == "assistant" and any(message["role"] == "user" for message in talk))


@given(talk=talks(texts(forged=False)))
def test_gemma_equals_gemma_3s_template(talk: Talk) -> None:
    renderer = over("gemma", "gemma3.jinja")
    whole, prompt = written(renderer, talk), written(renderer, talk[:-1], generation=True)
    check(renderer, talk, (whole.removesuffix("\n"), prompt))


@given(talk=talks(texts(forged=False), False))
def test_gemma_equals_gemmas_first_template(talk: Talk) -> None:
    renderer = over("gemma", "gemma.jinja")
    whole, prompt = written(renderer, talk), written(renderer, talk[:-1], generation=True)
    check(renderer, talk, (whole.removesuffix("\n"), prompt))


@given(talk=talks(texts(forged=False)))
def test_gpt_oss_equals_its_template_without_the_system_message(talk: Talk) -> None:
    renderer = over("gpt_oss_no_sysprompt", "gptoss.jinja")
    whole, prompt = (
        written(renderer, told, generation).partition("<|end|>")[2]
        for told, generation in ((talk, False), (talk[:-1], True))
    )
    check(renderer, talk, (whole, prompt))


@given(talk=talks(texts(forged=False)))
def test_deepseekv3_equals_the_template_but_for_the_closed_think_block(talk: Talk) -> None:
    renderer = over("deepseekv3", "deepseekv3.jinja")
    ours = read(renderer, renderer.build_supervised_example(talk).ids)
    assert ours.replace("<｜Assistant｜></think>", "<｜Assistant｜>") == written(renderer, talk)
