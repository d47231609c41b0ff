"""Engines: which one is chosen, and that each generates the same tokens as the torch engine."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedModel

from dpo_core.config.recipe import EngineName
from dpo_core.errors import EvaluationError, RecipeError
from dpo_core.inference import load_engine, select_engine
from dpo_core.inference.decoding import DecodedTokens, Decoding, default_streams
from dpo_core.inference.load_engine import EngineConfig, open_engine
from dpo_core.inference.paged_engine import PagedEngine
from dpo_core.inference.torch_engine import Engine, TorchEngine
from dpo_core.model.load import load_model
from tests import tiny

PROMPTS = [[1, 5, 6, 7], [1, 9] * 20, [1, 40], [1], [1, 60, 61, 62, 63]]


def generate(engine: Engine, decoding: Decoding, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[DecodedTokens]:
    """The completions in the prompts' order, each finished exactly once."""
    completions: dict[int, DecodedTokens] = {}

    def on_finished(index: int, completion: DecodedTokens) -> None:
        assert index not in completions
        completions[index] = completion

    engine.generate(prompts, decoding, default_streams(prompts), on_finished)
    return [completions[index] for index in range(len(prompts))]


@pytest.mark.parametrize(
    ("name", "device", "precision", "installed", "expected"),
    [
        ("auto", "cuda", "bf16", True, "vllm"),
        ("auto", "cuda", "bf16", False, "paged"),
        ("auto", "cuda", "fp32", True, "torch"),
        ("auto", "cpu", "bf16", True, "torch"),
        ("torch", "cuda", "bf16", True, "torch"),
        ("paged", "cpu", "fp32", False, "paged"),
        ("vllm", "cpu", "fp32", True, "vllm"),
    ],
)
def test_the_engine_that_is_chosen(
    name: EngineName, device: str, precision: str, installed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select_engine, "find_spec", lambda package: object() if installed else None)
    assert select_engine.choose_engine(name, device, precision) == expected


def test_an_engine_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select_engine, "find_spec", lambda package: None)
    with pytest.raises(RecipeError, match="vLLM is not installed"):
        select_engine.check_installed("vllm")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose likeliest token is far ahead, with heads of 64, which vLLM's kernels require."""
    return tiny.directory(tmp_path_factory.mktemp("wide"), hidden_size=256, spread=0.2)


@pytest.fixture(scope="module")
def model(wide: Path) -> PreTrainedModel:
    return load_model(wide)


@pytest.fixture(scope="module")
def paged(model: PreTrainedModel) -> PagedEngine:
    return PagedEngine(TorchEngine(model))


@pytest.mark.slow
def test_the_paged_engine_generates_the_torch_engines_greedy_tokens(
    model: PreTrainedModel, paged: PagedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Some end at a stop token, most at their limit, one at the end of the context, and one has no room at all."""
    first = generate(TorchEngine(model), Decoding(30))
    stop = first[0].ids[11]
    decoding = Decoding(30, frozenset({stop}))
    prompts = [*PROMPTS, [1] * 244, [1] * 256]
    expected = generate(TorchEngine(model), decoding, prompts)
    assert generate(paged, decoding, prompts) == expected
    assert [len(completion.ids) for completion in expected[-2:]] == [12, 0]
    assert expected[0].ended
    assert model.config._attn_implementation == "sdpa"
    assert not [record for record in caplog.records if record.name.startswith("dpo_core")]  # old releases warn


@pytest.mark.parametrize(
    "decoding",
    [Decoding(6, temperature=1.0, seed=3), Decoding(6, logprobs=2)],
)
def test_decoding_that_paging_does_not_support_uses_the_torch_engine(
    model: PreTrainedModel, paged: PagedEngine, decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PagedEngine, "generate_paged", None)
    assert generate(paged, decoding) == generate(TorchEngine(model), decoding)


def test_after_a_paging_failure_the_torch_engine_generates_the_rest(
    model: PreTrainedModel, paged: PagedEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = generate(TorchEngine(model), Decoding(6))

    def failing(self: Any, prompts: Any, limits: Any, decoding: Any, on_finished: Any) -> None:
        on_finished(2, expected[2])
        raise RuntimeError("its thread has ended")

    monkeypatch.setattr(PagedEngine, "generate_paged", failing)
    assert generate(paged, Decoding(6)) == expected
    assert "its thread has ended" in caplog.text


def test_an_engine_that_does_not_start_is_replaced_unless_the_settings_name_it(
    wide: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a GPU, with a vLLM that does not support the model."""
    monkeypatch.setattr(load_engine, "choose_engine", lambda *config: "vllm")
    monkeypatch.setattr("dpo_core.inference.vllm_engine.VLLMEngine", lambda *config: 1 / 0)
    assert open_engine(wide, EngineConfig()).engine.name == "paged"
    assert "vLLM does not start" in caplog.text
    with pytest.raises(EvaluationError, match="division by zero"):
        open_engine(wide, EngineConfig(engine="vllm"))


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("vllm"), reason="needs vLLM")
@pytest.mark.filterwarnings("ignore")  # its own and those of its dependencies
def test_vllm_generates_the_torch_engines_tokens_ends_and_scores(wide: Path) -> None:
    """One test in one process: vLLM cannot be loaded twice in it."""
    ours, theirs = (open_engine(wide, EngineConfig(engine=name)).engine for name in ("torch", "vllm"))
    assert theirs.name == "vllm"
    assert ours.context_length == theirs.context_length == 256
    first = generate(ours, Decoding(40))
    tokenizer = AutoTokenizer.from_pretrained(wide)
    prompts = [*PROMPTS, [1] * 244, [1] * 256]
    text = tokenizer.decode(list(first[0].ids[5:9]))
    for decoding in (
        Decoding(40),
        Decoding(40, frozenset({first[0].ids[11]})),
        Decoding(40, stop_strings=(text,), tokenizer=tokenizer),
    ):
        assert generate(theirs, decoding, prompts) == generate(ours, decoding, prompts)

    scored, expected = (generate(engine, Decoding(10, logprobs=2)) for engine in (theirs, ours))
    for actual, reference in zip(scored, expected, strict=True):
        assert actual.ids == reference.ids
        assert [score.logp for score in actual.scores] == pytest.approx(
            [score.logp for score in reference.scores], abs=2e-4
        )
        assert [[token for token, _ in score.top] for score in actual.scores] == [
            [token for token, _ in score.top] for score in reference.scores
        ]

    drawing = Decoding(20, temperature=1.0, seed=3)
    drawn = generate(theirs, drawing)
    assert drawn == generate(theirs, drawing)
    assert drawn[1:3] == generate(theirs, drawing, PROMPTS[1:3])
    assert drawn != generate(theirs, Decoding(20, temperature=1.0, seed=4))
