"""bfloat16 changes the numbers a little, the learning not, and the weights' type never."""

import numpy as np
import pytest
import torch

from mmfuse.trainer.loop import fit, lowered, predict, reproducible
from mmfuse.trainer.losses import loss_of
from mmfuse.trainer.run import build_model

ALL = ("text", "audio", "midi")


@pytest.mark.parametrize(
    "fusion",
    [
        "late",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("early", "cross_modal", "gated", "low_rank", "bottleneck")
        ),
    ],
)
def test_every_fusion_runs_in_bfloat16_and_gradients_are_about_the_same(plant, fusion):
    planted = plant(fusion=fusion, missing=0.3)
    config, data = planted.run_config(), planted.data()
    with reproducible(0, 1):
        model = build_model(config, data).eval()
    batch = data.batch(np.arange(24))
    found = {}
    for precision in ("float32", "bfloat16"):
        model.zero_grad()
        with lowered(precision):
            output = model(batch)
        assert output.logits_BC.dtype == torch.float32
        loss = loss_of(output, batch, batch.present_BM, config.train)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found[precision] = loss.item(), gradient
    assert found["bfloat16"][0] == pytest.approx(found["float32"][0], rel=0.02)
    assert found["bfloat16"][0] != found["float32"][0]
    one, other = (gradient for _, gradient in found.values())
    assert one.dtype == other.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.99


@pytest.mark.slow
def test_training_in_bfloat16_learns(plant):
    planted = plant(
        lambda bits: f"class-{bits['text']}", (240, 60, 100), epochs=6, patience=6,
        precision="bfloat16",
    )  # fmt: skip
    config, data = planted.run_config(), planted.data()
    with reproducible(0, 1):
        model = build_model(config, data)
        fit(model, data, config.train)
        clips = data.clips_of("test")
        right = predict(model, data, clips).argmax(axis=1) == data.label[clips]
    assert right.mean() > 0.93
    assert {p.dtype for p in model.parameters()} == {torch.float32}
