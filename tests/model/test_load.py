"""Broken weights are refused with an error that names their file."""

import shutil
from pathlib import Path

import pytest

from dpo_core.errors import RecipeError
from dpo_core.model.load import load_model
from tests import tiny


@pytest.mark.parametrize("kept", [-100, 20, 0])
def test_truncated_weights_are_refused_with_their_file(kept: int, tmp_path: Path) -> None:
    """Truncated in the tensors, in the header, and to nothing."""
    path = tiny.directory(tmp_path / "model")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(RecipeError) as caught:
        load_model(path)
    assert caught.value.found.startswith(f"The weights in {path} are broken (model.safetensors): ")
    assert caught.value.remedy == "Copy or download it again."


def test_of_several_files_the_broken_one_is_named(tmp_path: Path) -> None:
    path = tiny.directory(tmp_path / "model")
    model = load_model(path)
    shutil.rmtree(path)
    model.save_pretrained(path, max_shard_size="20KB")
    shards = sorted(path.glob("*.safetensors"))
    assert len(shards) > 1
    shards[-1].write_bytes(shards[-1].read_bytes()[:-1])
    with pytest.raises(RecipeError, match=rf"are broken \({shards[-1].name}\)"):
        load_model(path)
