"""Settings: four sources, one priority, and errors that name the nearest right spelling."""

import ast
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from dpo_core.config.recipe import LEAVES, SECTIONS, Recipe
from dpo_core.config.settings import read_recipe
from dpo_core.errors import RecipeError
from tests.conftest import ROOT


def read(*words: str, toml: Path | None = None, **environment: str) -> Recipe:
    return read_recipe(toml, words, environment)


def test_upstreams_command_line_is_understood_word_for_word() -> None:
    words = (
        "log_path=/tmp/dpo-hhh model_name=meta-llama/Llama-3.2-1B dataset=hhh renderer_name=role_colon "
        "learning_rate=1e-5 dpo_beta=0.1"
    )
    recipe = read(*words.split())
    assert recipe.train.log_path == Path("/tmp/dpo-hhh")
    assert (recipe.train.learning_rate, recipe.train.dpo_beta) == (1e-5, 0.1)
    assert (recipe.data.dataset, recipe.model.model_name) == ("hhh", "meta-llama/Llama-3.2-1B")


@pytest.mark.parametrize(
    "words",
    [
        ("learning_rate=1e-4",),
        ("train.learning_rate=1e-4",),
        ("--train.learning-rate", "1e-4"),
        ("--learning-rate=1e-4",),
    ],
)
def test_every_spelling_of_a_setting_means_the_same(words: tuple[str, ...]) -> None:
    assert read(*words).train.learning_rate == 1e-4


def test_the_command_line_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    toml = tmp_path / "recipe.toml"
    toml.write_text("dpo_beta = 0.3\n[train]\nbatch_size = 3\nseed = 3\n")
    recipe = read("seed=1", toml=toml, DPO_SEED="2", DPO_TRAIN__BATCH_SIZE="2")
    train = recipe.train
    assert (train.seed, train.batch_size, train.dpo_beta, train.num_epochs) == (1, 2, 0.3, 1)


def test_none_and_lists_can_be_typed() -> None:
    assert read("max_steps=none").train.max_steps is None
    assert read("tasks=").evaluate.tasks == ()
    assert read("tasks=ifeval").evaluate.tasks == ("ifeval",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("learning_rat=1",), "Unknown setting 'learning_rat' in the command line. .*Did you mean learning_rate?"),
        (("trian.seed=1",), "Unknown section 'trian'.*Did you mean train?"),
        (("learning_rate=fast",), "learning_rate=fast cannot be used: .*valid number"),
        (("dpo_beta=0",), "dpo_beta=0 cannot be used: .*greater than 0"),
        (("lr_schedule=step",), "lr_schedule=step cannot be used: .*'linear', 'cosine' or 'constant'"),
        (("sft_steps=3", "reference_model_name=x"), "leave out reference_model_name or set sft_steps=0"),
        (("model_name=demo",), "set sft_steps"),
        (("batch_size",), "'batch_size' is not an assignment"),
        (("--batch-size",), "--batch_size has no value"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(*words)


def test_a_misspelt_name_in_the_environment_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"environment \(DPO_TRIAN__SEED\).*Did you mean train"):
        read(DPO_TRIAN__SEED="1")


def test_a_missing_or_broken_recipe_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "demo.toml").write_text("[train\n")
    with pytest.raises(RecipeError, match=r"no recipe file .*Did you mean .*demo\.toml"):
        read(toml=tmp_path / "dmeo.toml")
    with pytest.raises(RecipeError, match="is not TOML"):
        read(toml=tmp_path / "demo.toml")


def test_leaf_names_are_unique_across_sections() -> None:
    names = Counter(leaf for kind in SECTIONS.values() for leaf in kind.model_fields)
    assert [name for name, count in names.items() if count > 1] == []


def test_every_setting_is_explained() -> None:
    assert [
        leaf for kind in SECTIONS.values() for leaf, field in kind.model_fields.items() if not field.description
    ] == []


def test_every_setting_has_a_reader() -> None:
    """Some code outside the recipe and the settings reads each leaf as an attribute."""
    read_names: set[str] = set()
    for path in [*ROOT.glob("dpo_core/**/*.py"), *ROOT.glob("flows/**/*.py")]:
        if path.name not in ("recipe.py", "settings.py"):
            tree = ast.parse(path.read_text())
            read_names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert sorted(set(LEAVES) - read_names) == []


def test_help_and_errors_of_settings_import_no_torch_mlflow_or_prefect() -> None:
    for words, least in ((["--help"], "demo"), (["run", "learning_rat=1"], "Did you mean learning_rate?")):
        code = (
            "import sys; from flows.cli.main import main\n"
            f"try: main({words!r})\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'mlflow', 'prefect', 'transformers', 'datasets'}\n"
            "print(sorted(heavy & sys.modules.keys()))"
        )
        started = time.monotonic()
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert least in process.stdout + process.stderr
        assert process.stdout.strip().endswith("[]")
        assert time.monotonic() - started < 10


def test_the_flows_own_process_imports_no_torch() -> None:
    code = (
        "import sys, dpo_core.pipeline.stage_calls, dpo_core.cli.run_command;"
        "print('torch' in sys.modules, 'datasets' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False False"
