"""The renderer of docs/renderers.md works as it is printed there."""

import sys
from pathlib import Path

import pytest

from dpo_core.render.registry import get_renderer
from tests.conftest import ROOT
from tests.render.test_renderers import TALK
from tests.render.tokenizers import byte_tokenizer, marked


def test_the_documented_renderer_works_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "renderers.md").read_text()
    text = page.split("## Add a renderer")[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "my_format.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_format", raising=False)
    end = "<|endoftext|>"
    renderer = get_renderer("my_format:Brackets", byte_tokenizer())
    assert marked(renderer, TALK) == f"[system] S{end}[user] U{end}[assistant] ⟦A{end}⟧"
