"""What is written down of a function does what the function does, to the bit."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

from mmfuse.trainer import recorded
from mmfuse.trainer.recorded import Recorded


@pytest.fixture(autouse=True)
def early(monkeypatch):
    monkeypatch.setattr(recorded, "AFTER", 1)


def counted(function):
    """A function, and a list that has an entry for each time that Python ran it."""
    runs = []

    def run(*arguments):
        runs.append(len(arguments))
        return function(*arguments)

    return Recorded(run), runs


def test_losses_and_gradients_of_stacked_models_are_the_same_bits():
    torch.manual_seed(0)
    scale = torch.tensor(3.0)  # comes from elsewhere, so it stays

    def loss(weights, x_BI, mask_B):
        y_BO = F.layer_norm(F.linear(x_BI, weights["w"], weights["b"]), (4,))
        y_BO = torch.where(mask_B[:, None], y_BO, scale)
        peak_B, _ = y_BO.max(dim=1)
        return (F.gelu(torch.cat([y_BO, peak_B[:, None]], dim=1)) * scale).square().mean()

    def losses(weights, x_KBI, mask_KB):
        loss_K = vmap(loss)(weights, x_KBI, mask_KB)
        return [loss_K.detach(), *torch.autograd.grad(loss_K.sum(), list(weights.values()))]

    weights = {"w": torch.randn(3, 4, 5), "b": torch.randn(3, 4)}
    leaves = {name: of.requires_grad_() for name, of in weights.items()}
    function, runs = counted(losses)
    for _ in range(5):
        inputs = leaves, torch.randn(3, 6, 5), torch.rand(3, 6) < 0.7
        for mine, other in zip(function(*inputs), losses(*inputs), strict=True):
            assert torch.equal(mine, other) and not mine.requires_grad
    assert len(runs) == 2


def test_what_changes_its_arguments_changes_them_each_time():
    function, runs = counted(lambda x, y: [x.add_(y), x.view(-1)[1:].mul_(2), x + torch.ones(())])
    for number in range(1, 5):
        x, y = torch.arange(4.0).view(2, 2), torch.tensor(float(number))
        first, second, third = function(x, y)
        expected = (torch.arange(4.0) + number) * torch.tensor([1, 2, 2, 2])
        assert torch.equal(x.view(-1), expected) and first.data_ptr() == x.data_ptr()
        assert torch.equal(second, expected[1:]) and torch.equal(third, x + 1)
    assert len(runs) == 2


def test_other_shapes_and_layouts_are_written_down_by_themselves():
    function, runs = counted(lambda x: [x.reshape(-1)])
    square = torch.arange(9.0).view(3, 3)
    for x in (square, square.mT, square[:2], square.double()) * 3:
        assert torch.equal(function(x)[0], x.flatten())
    assert len(runs) == 8
