"""Choice of a renderer for a model, custom renderers, and warnings."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_core.errors import RecipeError
from dpo_core.render import registry
from dpo_core.render.registry import (
    get_renderer,
    recommended_renderer,
    register,
    renderer_identity,
    resolve_renderer,
    warn_about_renderer,
)
from dpo_core.render.tokenizer import load_tokenizer
from tests.render.test_renderers import TALK
from tests.render.tokenizers import byte_tokenizer, marked

OWN = '''
from dpo_core.render.renderer import Renderer
from dpo_core.render.message_pieces import Turn

class Shouting(Renderer):
    """HEADER text!"""

    name = "shouting"
    stop_strings = ("!",)

    def turn(self, messages, index):
        return Turn((messages[index]["role"].upper(),), (f" {messages[index]['content']}!",))

class Unfinished(Renderer):
    name = "unfinished"

class Nothing:
    pass
'''


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "role_colon"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama3"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen3_instruct"),
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen3_instruct"),
        ("Qwen/Qwen2.5-0.5B", "role_colon"),
        ("Qwen/Qwen3-8B", "qwen3"),
        ("Qwen/Qwen3-30B-A3B", "qwen3"),
        ("Qwen/Qwen3-8B-Base", "role_colon"),
        ("Qwen/Qwen3-4B-Thinking-2507", None),
        ("deepseek-ai/DeepSeek-V3.1", "deepseekv3"),
        ("deepseek-ai/DeepSeek-V3.1-Base", "role_colon"),
        ("openai/gpt-oss-20b", "gpt_oss_no_sysprompt"),
        ("moonshotai/Kimi-K2-Thinking", "kimi_k2"),
        ("google/gemma-3-1b-it", "gemma"),
        ("google/gemma-2-9b-it", "gemma"),
        ("google/gemma-2-9b", None),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral"),
        ("mistralai/Mistral-7B-Instruct-v0.2", None),
        ("mistralai/Mistral-Nemo-Instruct-2407", None),
        ("someone/unknown-chat", None),
    ],
)
def test_recommended_renderers(model: str, name: str | None) -> None:
    assert recommended_renderer(model) == name


def test_explicit_beats_stored_beats_recommended_beats_template(tmp_path: Path) -> None:
    assert resolve_renderer(None, "someone/unknown", tmp_path) == "role_colon"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    assert resolve_renderer(None, "someone/unknown", tmp_path) == "role_colon"
    (tmp_path / "chat_template.jinja").write_text("")
    assert resolve_renderer(None, "someone/unknown", tmp_path) == "chat_template"
    assert resolve_renderer(None, "meta-llama/Llama-3.2-1B-Instruct", tmp_path) == "llama3"
    (tmp_path / "dpo.json").write_text('{"renderer_name": "qwen3_instruct"}')
    assert resolve_renderer(None, "meta-llama/Llama-3.2-1B-Instruct", tmp_path) == "qwen3_instruct"
    assert resolve_renderer("role_colon", "meta-llama/Llama-3.2-1B-Instruct", tmp_path) == "role_colon"


def warnings_of(caplog: pytest.LogCaptureFixture, explicit: str | None, model: str, path: Path) -> str:
    """The logged warnings."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_about_renderer(explicit, model, path)
    return caplog.text


def test_another_renderer_than_the_models_own_is_a_warning_that_says_what_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = warnings_of(caplog, "role_colon", "Qwen/Qwen3-8B", tmp_path)
    assert "renderer_name=role_colon, but Qwen/Qwen3-8B is made for qwen3" in text
    assert r"will read User: …\n\nAssistant: … instead of <|im_start|>assistant\n" in text
    (tmp_path / "dpo.json").write_text('{"renderer_name": "llama3"}')
    assert "Qwen/Qwen3-8B was trained with llama3" in warnings_of(caplog, "qwen3", "Qwen/Qwen3-8B", tmp_path)
    assert warnings_of(caplog, "llama3", "Qwen/Qwen3-8B", tmp_path) == ""
    assert warnings_of(caplog, None, "Qwen/Qwen3-8B", tmp_path) == ""


def test_role_colon_for_want_of_a_better_one_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = warnings_of(caplog, None, "someone/unknown", tmp_path)
    assert "someone/unknown is not a known model and its tokenizer has no chat template" in text
    assert warnings_of(caplog, None, "meta-llama/Llama-3.2-1B", tmp_path) == ""


def test_a_tokenizer_without_the_needed_tokens_is_refused_with_what_fits(stories: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"no token <\|im_start\|>, token <\|im_end\|>.*needs them.*=role_colon, which"
    ):
        get_renderer("qwen3", load_tokenizer(stories))


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"has no chat template.*chat_template needs it.*role_colon or llama3"):
        get_renderer("chat_template", byte_tokenizer())


def test_a_misspelled_renderer_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean role_colon"):
        get_renderer("role_colom", byte_tokenizer())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of renderers."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(registry, "REGISTERED", {})
    monkeypatch.setattr(registry, "RECOMMENDED", list(registry.RECOMMENDED))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_a_custom_renderer_by_its_class_path(own: Path) -> None:
    assert resolve_renderer("mine:Shouting", "someone/unknown", own) == "mine:Shouting"
    assert get_renderer("mine:Shouting", byte_tokenizer()).name == "mine:Shouting"
    assert marked(get_renderer("mine:Shouting", byte_tokenizer()), TALK) == "SYSTEM S!USER U!ASSISTANT⟦ A!⟧"


def test_a_registered_renderer_is_found_by_name_and_pattern_and_resolves_to_its_class_path(own: Path) -> None:
    register("shouting", "mine:Shouting", recommended_for="^loud-")
    assert resolve_renderer("shouting", "someone/unknown", own) == "mine:Shouting"
    assert resolve_renderer(None, "someone/loud-7b", own) == "mine:Shouting"
    assert get_renderer("shouting", byte_tokenizer()).stop_strings == ("!",)
    for name, path in (("llama3", "mine:Shouting"), ("shouting", "mine:Nothing")):
        with pytest.raises(RecipeError, match=r"There is a renderer .* already"):
            register(name, path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mine:Missing", "does not load: module 'mine' has no attribute 'Missing'"),
        ("mine:Nothing", "mine:Nothing is not a Renderer"),
        ("mine:Unfinished", "mine:Unfinished lacks turn"),
        ("no_such_module:Shouting", "There is no module for the renderer 'no_such_module:Shouting'"),
    ],
)
def test_a_class_that_is_not_a_renderer_is_refused(own: Path, path: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_renderer(path, byte_tokenizer())


def test_a_rendering_depends_on_the_code_of_a_users_own_renderer(own: Path) -> None:
    before = renderer_identity("mine:Shouting")
    (own / "mine.py").write_text(OWN.replace("!", "!!"))
    assert renderer_identity("mine:Shouting") != before
    assert renderer_identity("qwen3") == ["qwen3"]


def test_choosing_a_name_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, dpo_core.render.registry; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
