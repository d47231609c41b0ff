"""Golden texts and weights of every renderer, and what is refused."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from dpo_core.config.recipe import TrainOnWhat
from dpo_core.data.preference import Message
from dpo_core.errors import DataError, RecipeError
from dpo_core.render.registry import get_renderer
from dpo_core.render.renderer import Renderer
from dpo_core.render.tokenizer import load_tokenizer
from tests.conftest import shared
from tests.render.tokenizers import NAMES, byte_tokenizer, marked

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
CHATML = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
GOLDEN = [
    ("role_colon", TALK, "System: S\n\nUser: U\n\nAssistant:⟦ A\n\nUser:⟧"),
    ("role_colon", TWO_TURNS, "User: U1\n\nAssistant: A1\n\nUser: U2\n\nAssistant:⟦ A2\n\nUser:⟧"),
    (
        "llama3",
        TALK,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦A<|eot_id|>⟧",
    ),
    ("qwen3", TALK, f"{CHATML}⟦<think>\n\n</think>\n\nA<|im_end|>⟧"),
    (
        "qwen3",
        TWO_TURNS,
        "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nU2<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nA2<|im_end|>⟧",
    ),
    ("qwen3_disable_thinking", TALK, f"{CHATML}<think>\n\n</think>\n\n⟦A<|im_end|>⟧"),
    ("qwen3_instruct", TALK, f"{CHATML}⟦A<|im_end|>⟧"),
    ("deepseekv3", TALK, "<｜begin▁of▁sentence｜>S<｜User｜>U<｜Assistant｜></think>⟦A<｜end▁of▁sentence｜>⟧"),
    (
        "gpt_oss_no_sysprompt",
        TALK,
        "<|start|>developer<|message|># Instructions\n\nS\n\n<|end|><|start|>user<|message|>U<|end|>"
        "<|start|>assistant⟦<|channel|>final<|message|>A<|return|>⟧",
    ),
    (
        "gpt_oss_no_sysprompt",
        TWO_TURNS,
        "<|start|>user<|message|>U1<|end|><|start|>assistant<|channel|>final<|message|>A1<|end|>"
        "<|start|>user<|message|>U2<|end|><|start|>assistant⟦<|channel|>final<|message|>A2<|return|>⟧",
    ),
    (
        "kimi_k2",
        TALK,
        "<|im_system|>system<|im_middle|>S<|im_end|><|im_user|>user<|im_middle|>U<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>⟦<think></think>A<|im_end|>⟧",
    ),
    (
        "kimi_k2",
        TALK[1:],
        "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>"
        "<|im_user|>user<|im_middle|>U<|im_end|><|im_assistant|>assistant<|im_middle|>⟦<think></think>A<|im_end|>⟧",
    ),
    ("gemma", TALK, "<bos><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\n⟦A<end_of_turn>⟧"),
    ("mistral", TALK, "<s>[INST] S\n\nU[/INST]⟦ A</s>⟧"),
    ("mistral", [TALK[0], *TWO_TURNS], "<s>[INST] U1[/INST] A1</s>[INST] S\n\nU2[/INST]⟦ A2</s>⟧"),
]


@pytest.mark.parametrize(("name", "messages", "golden"), GOLDEN)
def test_golden_texts(name: str, messages: list[Message], golden: str) -> None:
    assert marked(get_renderer(name, byte_tokenizer()), messages) == golden


def test_role_colon_begins_with_bos_where_there_is_one() -> None:
    renderer = get_renderer("role_colon", byte_tokenizer(bos="<|begin_of_text|>"))
    assert marked(renderer, TALK).startswith("<|begin_of_text|>System: S")


LONG: list[Message] = [*TALK, *TWO_TURNS[2:3], {"role": "assistant", "content": "A2"}, TWO_TURNS[3]]


@pytest.mark.parametrize(
    ("what", "golden"),
    [
        (
            "last_assistant_message",
            "System: S\n\nUser: U\n\nAssistant: A\n\nUser: U2\n\nAssistant: A2\n\nAssistant:⟦ A2\n\nUser:⟧",
        ),
        (
            "last_assistant_turn",
            "System: S\n\nUser: U\n\nAssistant: A\n\nUser: U2\n\nAssistant:⟦ A2\n\n⟧Assistant:⟦ A2\n\nUser:⟧",
        ),
        (
            "all_assistant_messages",
            "System: S\n\nUser: U\n\nAssistant:⟦ A\n\n⟧User: U2\n\nAssistant:⟦ A2\n\n⟧Assistant:⟦ A2\n\nUser:⟧",
        ),
        (
            "all_messages",
            "System:⟦ S\n\n⟧User:⟦ U\n\n⟧Assistant:⟦ A\n\n⟧User:⟦ U2\n\n⟧Assistant:⟦ A2\n\n⟧Assistant:⟦ A2\n\nUser:⟧",
        ),
        ("all_tokens", "⟦System: S\n\nUser: U\n\nAssistant: A\n\nUser: U2\n\nAssistant: A2\n\nAssistant: A2\n\nUser:⟧"),
        (
            "all_user_and_system_messages",
            "System:⟦ S\n\n⟧User:⟦ U\n\n⟧Assistant: A\n\nUser:⟦ U2\n\n⟧Assistant: A2\n\nAssistant: A2\n\nUser:",
        ),
    ],
)
def test_train_on_what(what: TrainOnWhat, golden: str) -> None:
    assert marked(get_renderer("role_colon", byte_tokenizer()), LONG, train_on_what=what) == golden


def test_customized_reads_each_messages_flag() -> None:
    renderer = get_renderer("role_colon", byte_tokenizer())
    flagged = [Message(role=m["role"], content=m["content"], trainable=m["content"] in ("U1", "A2")) for m in TWO_TURNS]
    golden = "User:⟦ U1\n\n⟧Assistant: A1\n\nUser: U2\n\nAssistant:⟦ A2\n\nUser:⟧"
    assert marked(renderer, flagged, train_on_what="customized") == golden
    with pytest.raises(DataError, match=r"Message 1 .*\(user\) has no trainable flag"):
        renderer.build_supervised_example(TWO_TURNS, "customized")
    with pytest.raises(DataError, match=r"Message 1 .*\(user\) has a trainable flag.*no other value reads it"):
        renderer.build_supervised_example(flagged)


def test_a_misspelled_train_on_what_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"all_assistant_messages, all_messages.*Choose one of them"):
        get_renderer("role_colon", byte_tokenizer()).build_supervised_example(TALK, "everything")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_all_tokens_trains_everything_but_the_opening(name: str) -> None:
    renderer = get_renderer(name, byte_tokenizer())
    example = renderer.build_supervised_example(TALK, "all_tokens")
    untrained = len(renderer.encoder.encode(renderer.opening(TALK)))
    assert example.weights == [0] * untrained + [1] * (len(example.ids) - untrained)


def completion(renderer: Renderer, text: str) -> list[int]:
    """The trained tokens of an answer."""
    example = renderer.build_supervised_example([*TALK[:-1], Message(role="assistant", content=text)])
    return [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]


@pytest.mark.parametrize("name", NAMES)
def test_a_reply_without_its_end_is_cut_off(name: str) -> None:
    renderer = get_renderer(name, byte_tokenizer())
    ids = completion(renderer, "some answer")
    assert renderer.parse_response(ids).ended
    reply = renderer.parse_response(ids[: -len("\n\nUser:") if name == "role_colon" else -1])
    assert (reply.message["content"], reply.ended) == ("some answer", False)


@pytest.mark.parametrize(("name", "text"), [("qwen3", "<think>\nR\n</think>\n\nA"), ("kimi_k2", "<think>R</think>A")])
def test_reasoning_is_told_from_the_answer(name: str, text: str) -> None:
    renderer = get_renderer(name, byte_tokenizer())
    reply = renderer.parse_response(completion(renderer, text))
    assert (reply.message["content"], reply.thinking, reply.ended) == ("A", "R", True)
    unfinished = renderer.parse_response(renderer.encoder.encode_text("<think>\nR and"))
    assert (unfinished.message["content"], unfinished.thinking, unfinished.ended) == ("", "R and", False)


def test_harmonys_analysis_is_told_from_the_final_answer() -> None:
    renderer = get_renderer("gpt_oss_no_sysprompt", byte_tokenizer())
    text = "<|channel|>analysis<|message|>R<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>"
    reply = renderer.parse_response(renderer.tokenizer.encode(text, add_special_tokens=False))
    assert (reply.message["content"], reply.thinking, reply.ended) == ("A", "R", True)


def test_reasoning_is_refused_where_it_is_disabled() -> None:
    renderer = get_renderer("qwen3_disable_thinking", byte_tokenizer())
    with pytest.raises(DataError, match=r"Message 3 reasons.*renderer_name=qwen3"):
        completion(renderer, "<think>\nR\n</think>\n\nA")


@pytest.mark.parametrize(
    ("name", "messages", "found"),
    [
        ("gemma", [TALK[1], TALK[1], TALK[2]], "Message 2 of a conversation is the user's"),
        ("mistral", [TALK[1], TALK[0], TALK[2]], "Message 2 of a conversation is the system's"),
        ("deepseekv3", [TALK[1], TALK[0], TALK[2]], "Message 2 is a system message"),
    ],
)
def test_what_a_format_cannot_express_is_refused(name: str, messages: list[Message], found: str) -> None:
    with pytest.raises(DataError, match=found):
        get_renderer(name, byte_tokenizer()).build_supervised_example(messages)


def test_a_real_sentencepiece_tokenizer_puts_no_spaces_between_parts(stories: Path) -> None:
    renderer = get_renderer("role_colon", load_tokenizer(stories))
    text = renderer.tokenizer.decode(renderer.build_supervised_example(TALK).ids)
    assert text == "<s>System: S\n\nUser: U\n\nAssistant: A\n\nUser:"


def test_a_template_that_rewrites_messages_is_refused() -> None:
    tokenizer: PreTrainedTokenizerBase = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(DataError, match="changes the messages' text"):
        get_renderer("chat_template", tokenizer).build_generation_prompt([Message(role="user", content="quiet")])


def test_a_template_that_refuses_a_conversation_says_so() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no such roles') }}"
    with pytest.raises(DataError, match="refuses a conversation: no such roles"):
        get_renderer("chat_template", tokenizer).build_generation_prompt(TALK)


def test_a_template_whose_answers_do_not_follow_its_prompt_is_refused_by_name() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.name_or_path = "someone/model"
    each = "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.chat_template = each + "{% if add_generation_prompt %}<|im_start|>answer:{% endif %}"
    with pytest.raises(RecipeError, match="In the chat template of someone/model answers do not follow"):
        get_renderer("chat_template", tokenizer).build_supervised_example(TALK)


def test_a_template_trains_what_is_asked() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = shared("templates", "qwen3_instruct_2507.jinja").read_text()
    theirs = get_renderer("chat_template", tokenizer)
    ours = get_renderer("qwen3_instruct", tokenizer)
    for what in ("all_assistant_messages", "all_messages", "all_user_and_system_messages"):
        assert marked(theirs, TWO_TURNS, train_on_what=what) == marked(ours, TWO_TURNS, train_on_what=what)
