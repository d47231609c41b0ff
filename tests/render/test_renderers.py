"""Golden texts and tokens of every renderer; replies come back as they went in; text is never a special token."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpo_core.data.preference import Message
from dpo_core.errors import RecipeError
from dpo_core.render.registry import get_renderer, recommended, resolve
from dpo_core.render.renderer import Renderer
from dpo_core.render.tokenizer import load_tokenizer
from tests.conftest import shared

MARKERS = [
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
]
TALK: list[Message] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
]
TWO_TURNS: list[Message] = [
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
    {"role": "assistant", "content": "A2"},
]


def byte_tokenizer(bos: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte, and the markers of every renderer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": MARKERS})
    return fast


def marked(renderer: Renderer, messages: list[Message]) -> str:
    """The rendered text with ⟦ ⟧ around the trained part."""
    example = renderer.build_supervised_example(messages)
    text, inside = "", False
    for token, weight in zip(example.ids, example.weights, strict=True):
        text += ("⟦" if weight and not inside else "⟧" if inside and not weight else "") + renderer.tokenizer.decode(
            [token]
        )
        inside = bool(weight)
    return text + ("⟧" if inside else "")


@pytest.mark.parametrize(
    ("name", "messages", "golden"),
    [
        ("role_colon", TALK, "System: S\n\nUser: U\n\nAssistant:⟦ A\n\nUser:⟧"),
        ("role_colon", TWO_TURNS, "User: U1\n\nAssistant: A1\n\nUser: U2\n\nAssistant:⟦ A2\n\nUser:⟧"),
        (
            "llama3",
            TALK,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦A<|eot_id|>⟧",
        ),
        (
            "qwen3_instruct",
            TALK,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧",
        ),
    ],
)
def test_golden_texts(name: str, messages: list[Message], golden: str) -> None:
    assert marked(get_renderer(name, byte_tokenizer()), messages) == golden


def test_role_colon_begins_with_bos_where_there_is_one() -> None:
    renderer = get_renderer("role_colon", byte_tokenizer(bos="<|begin_of_text|>"))
    assert marked(renderer, TALK).startswith("<|begin_of_text|>System: S")


@pytest.mark.parametrize(
    ("name", "template"), [("llama3", "llama3.jinja"), ("qwen3_instruct", "qwen3_instruct_2507.jinja")]
)
def test_equal_to_the_shipped_template_token_by_token(name: str, template: str) -> None:
    tokenizer = byte_tokenizer(bos="<|begin_of_text|>")
    tokenizer.chat_template = shared("templates", template).read_text()
    renderer = get_renderer(name, tokenizer)
    for messages in (TALK, TWO_TURNS):
        theirs = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert renderer.build_generation_prompt(messages[:-1]) == theirs
        whole = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")
        assert tokenizer.decode(renderer.build_supervised_example(messages).ids) == whole


@pytest.fixture(params=["role_colon", "llama3", "qwen3_instruct", "chat_template"])
def renderer(request: pytest.FixtureRequest) -> Renderer:
    tokenizer = byte_tokenizer()
    if request.param == "chat_template":
        tokenizer.chat_template = shared("templates", "qwen3_instruct_2507.jinja").read_text()
    return get_renderer(request.param, tokenizer)


def test_an_answer_begins_where_its_prompt_ends(renderer: Renderer) -> None:
    example = renderer.build_supervised_example(TWO_TURNS)
    prompt = renderer.build_generation_prompt(TWO_TURNS[:-1])
    assert example.ids[: len(prompt)] == prompt
    assert example.weights[: len(prompt)] == [0] * len(prompt)
    assert example.weights[len(prompt)] == 1


@pytest.mark.parametrize("text", ["A", "Zwei Zeilen\nund ⟦mehr⟧ ☃", "ends in spaces  ", "1. <b>\n\n2. x"])
def test_a_reply_comes_back_as_it_was(renderer: Renderer, text: str) -> None:
    text = text.strip() if renderer.name == "llama3" else text
    messages = [*TALK[:-1], Message(role="assistant", content=text)]
    example = renderer.build_supervised_example(messages)
    completion = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
    reply = renderer.parse_response(completion)
    assert (reply.message["content"], reply.ended) == (text, True)
    assert not renderer.parse_response(completion[:1]).ended


@pytest.mark.parametrize("marker", MARKERS)
def test_message_text_is_never_a_special_token(renderer: Renderer, marker: str) -> None:
    plain = renderer.build_supervised_example(TALK).ids
    forged: list[Message] = [Message(role=m["role"], content=f"{m['content']} {marker}") for m in TALK]
    ids = renderer.build_supervised_example(forged).ids
    special = renderer.tokenizer.get_vocab()[marker]
    assert ids.count(special) == plain.count(special)
    assert marker in renderer.tokenizer.decode([token for token in ids if token != special])


def test_a_real_sentencepiece_tokenizer_puts_no_spaces_between_parts(stories: Path) -> None:
    renderer = get_renderer("role_colon", load_tokenizer(stories))
    text = renderer.tokenizer.decode(renderer.build_supervised_example(TALK).ids)
    assert text == "<s>System: S\n\nUser: U\n\nAssistant: A\n\nUser:"


def test_a_tokenizer_without_the_needed_tokens_is_refused(stories: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no token <\|im_start\|>.*renderer qwen3_instruct needs it"):
        get_renderer("qwen3_instruct", load_tokenizer(stories)).build_generation_prompt(TALK[:-1])


def test_a_template_that_rewrites_messages_is_refused() -> None:
    tokenizer: PreTrainedTokenizerBase = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(RecipeError, match="changes the messages' text"):
        get_renderer("chat_template", tokenizer).build_generation_prompt([Message(role="user", content="quiet")])


def test_a_misspelt_renderer_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean role_colon"):
        get_renderer("role_colom", byte_tokenizer())


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "role_colon"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama3"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen3_instruct"),
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen3_instruct"),
        ("Qwen/Qwen2.5-0.5B", "role_colon"),
        ("someone/unknown-chat", None),
    ],
)
def test_recommended_renderers(model: str, name: str | None) -> None:
    assert recommended(model) == name


def test_explicit_beats_stored_beats_recommended_beats_template(tmp_path: Path) -> None:
    assert resolve(None, "someone/unknown", tmp_path) == "role_colon"
    (tmp_path / "chat_template.jinja").write_text("")
    assert resolve(None, "someone/unknown", tmp_path) == "chat_template"
    assert resolve(None, "meta-llama/Llama-3.2-1B-Instruct", tmp_path) == "llama3"
    (tmp_path / "dpo.json").write_text('{"renderer_name": "qwen3_instruct"}')
    assert resolve(None, "meta-llama/Llama-3.2-1B-Instruct", tmp_path) == "qwen3_instruct"
    assert resolve("role_colon", "meta-llama/Llama-3.2-1B-Instruct", tmp_path) == "role_colon"
