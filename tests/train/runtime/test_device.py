"""What a GPU would refuse, found without one: tensors that cannot be pinned, masks on its device, layers compiled."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from dpo_core.config.recipe import ModelSettings, TrainSettings
from dpo_core.model.lora import make_trainable
from dpo_core.train import reference
from dpo_core.train.batching import block_mask, packing
from dpo_core.train.batching.packing import Layout, branches, build, to_device
from dpo_core.train.logps import autocast, backward, completion_logps, logsumexp_rows, write_logits_gradient
from dpo_core.train.loop import Run, steps
from dpo_core.train.reference import OnTheFlyReference
from dpo_core.train.runtime.compile_layers import compile_layers, decoder_layers, uncompiled
from tests import tiny

# dynamo looks at the gradients of tensors that are no leaves, and hides the warning in vain where warnings are errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
LAYOUTS: tuple[Layout, Layout] = ("tree", "padded")


def test_a_tensor_whose_elements_share_memory_is_moved_to_no_device() -> None:
    with pytest.raises(ValueError, match=r"strides \(0, 1\)"):
        to_device(torch.arange(5).expand(2, 5), CPU)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every tensor that goes onto a device, copied as pinning copies: into memory with the tensor's own strides."""
    seen: list[Tensor] = []

    def pinning(tensor: Tensor, device: torch.device) -> Tensor:
        seen.append(torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype).copy_(tensor))
        return seen[-1].to(device)

    for module in (packing, reference, block_mask):
        monkeypatch.setattr(module, "to_device", pinning)
    return seen


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_that_a_step_moves_can_be_pinned(tmp_path: Path, pinned: list[Tensor], layout: Layout) -> None:
    model = tiny.llama()
    rows = tiny.rows(tmp_path, tiny.token_pairs(8))
    known: Any = tiny.references(tmp_path, tiny.llama(), rows, layout=layout)
    train = TrainSettings(batch_size=8, max_steps=1, token_budget=100)
    next(steps(Run(model, torch.optim.AdamW(model.parameters()), rows, known, train, layout=layout, token_budget=100)))
    assert len(pinned) > 8
    assert all(tensor.is_contiguous() for tensor in pinned)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors with a shape, a type and a cuda device, and no content: torch has them without a card."""

    def moved(tensor: Tensor, device: torch.device) -> Tensor:
        assert tensor.is_contiguous()
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)

    monkeypatch.setattr(packing, "to_device", moved)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_microbatch_lies_on_the_gpu_whole(layout: Layout) -> None:
    batch = build(layout, [branches(pair) for pair in tiny.token_pairs(5)], GPU)
    tensors = [batch.ids, batch.positions, batch.predictors, batch.targets]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert layout == "padded" or batch.ids.shape[1] % packing.QUANTUM == 0


def differentiate(policy: nn.Module, layout: Layout = "padded") -> None:
    """A forward and a backward pass of a microbatch, as in the loop."""
    batch = build(layout, [branches(pair) for pair in tiny.token_pairs(4)], CPU)
    with autocast(CPU, "bf16"):
        backward(policy, batch, lambda logps, _: logps.sum())


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_all_layers_share_one_compilation(lora_rank: int) -> None:
    torch._dynamo.reset()
    policy = make_trainable(tiny.llama(), ModelSettings(lora_rank=lora_rank), seed=0)
    counter = CompileCounter()
    compile_layers(policy, counter)
    differentiate(policy)
    assert (counter.frame_count, len(decoder_layers(policy))) == (1, 2)
    with uncompiled(policy):
        completion_logps(policy, build("padded", [branches(pair) for pair in tiny.token_pairs(7)], CPU))
    assert counter.frame_count == 1
    differentiate(policy)
    assert counter.frame_count == 1


def test_compiled_lora_layers_give_the_gradients_of_plain_ones() -> None:
    told = []
    for compile_them in (False, True):
        policy = make_trainable(tiny.llama(), ModelSettings(lora_rank=4), seed=0)
        if compile_them:
            torch._dynamo.reset()
            compile_layers(policy, "eager")
        differentiate(policy)
        told.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert torch.equal(*told)


def test_a_reference_without_adapters_is_the_base(tmp_path: Path) -> None:
    policy = make_trainable(tiny.llama(), ModelSettings(lora_rank=4), seed=0)
    for name, value in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value)
    batch = build("tree", [branches(pair) for pair in tiny.token_pairs(3)], CPU)
    reference_logps = OnTheFlyReference(policy, "fp32").reference_logps([0, 1, 2], batch)
    assert torch.equal(reference_logps, completion_logps(tiny.llama(), batch))
    assert not torch.equal(completion_logps(policy, batch), completion_logps(tiny.llama(), batch))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_the_heads_fused_kernels_give_what_plain_ones_do() -> None:
    torch.manual_seed(0)
    logits, targets, upstream = torch.randn(7, 300), torch.randint(300, (7, 1)), torch.randn(7, 1)
    fused = torch.compile(logsumexp_rows, dynamic=True)(logits)
    assert torch.allclose(fused, logsumexp_rows(logits), atol=1e-6)
    plain, compiled = logits.clone(), logits.clone()
    write_logits_gradient(plain, targets, fused[:, None], upstream)
    torch.compile(write_logits_gradient, dynamic=True)(compiled, targets, fused[:, None], upstream)
    assert torch.allclose(plain, compiled, atol=1e-6)
