"""The optimizer: which parameter is in which group, each group's rate, and the average of weights.

A rate is a pure function of the optimizer step, so nothing of it has to be remembered.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmfuse.trainer.config import TrainConfig
from mmfuse.trainer.fine_tuned import FineTunedEncoder
from mmfuse.trainer.model import FusionModel

Groups = list[dict[str, Any]]


def build_optimizer(model: FusionModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; parts of the model with the same rates and decay share a group, which is one call."""
    joined: Groups = []
    for group in parameter_groups(model, config.weight_decay):
        section = model.sections.get(group["name"].partition("/")[0].partition(".")[0])
        group["peak"] = group.get("lr", config.lr)
        group["schedule"] = getattr(section, "schedule", None) or config.schedule
        group["begins"] = getattr(section, "freeze_until_step", 0)
        keys = group.keys() - {"name", "params"}
        like = [one for one in joined if all(one.get(k) == group[k] for k in keys)]
        if like:
            like[0]["name"] += f" {group['name']}"
            like[0]["params"] += group["params"]
        else:
            joined.append(group)
    return torch.optim.AdamW(joined, lr=config.lr, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig, steps: int) -> None:
    """Give each group its rate at an optimizer step, counted from 0, of so many in all.

    The schedule of an encoder that is frozen at first begins when it begins to learn.
    """
    for group in optimizer.param_groups:
        begins = group["begins"]
        known = group["schedule"], step - begins, config.warmup_steps, steps - begins
        group["lr"] = group["peak"] * factor(*known) if step >= begins else 0.0


def factor(schedule: str, step: int, warmup: int, steps: int) -> float:
    """Factor of the learning rate: a straight rise, then what the schedule says, down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    if schedule == "constant":
        return 1.0
    return 1 - share if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))


def average(averaged: list[Tensor], now: list[Tensor], decay: float, step: int) -> None:
    """Move averaged weights towards those of now; quickly in the first steps."""
    torch._foreach_lerp_(averaged, now, 1 - min(decay, step / (step + 9)))


def parameter_groups(model: FusionModel, weight_decay: float) -> Groups:
    """One group for each part of the model, with and without decay; norms and biases have none.

    Every parameter that trains, now or after a thaw, is in exactly one group: an optimizer that
    misses some trains a model that looks whole. A group has an `lr` where the configuration gives
    its encoder one; in a fine-tuned encoder that is the pretrained part's. `weight_decay` is that
    of parts whose encoder has none of its own.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for part, parameter in _parts(model):
        decays = parameter.ndim > 1
        own = getattr(model.sections.get(part.partition(".")[0]), "weight_decay", None)
        decay = weight_decay if own is None else own
        group = groups.setdefault(
            (part, decays),
            {
                "name": f"{part}/{'decay' if decays else 'no_decay'}",
                "params": [],
                "weight_decay": decay if decays else 0.0,
                **_own_lr(model, part),
            },
        )
        group["params"].append(parameter)
    grouped = sorted(id(p) for group in groups.values() for p in group["params"])
    trained = sorted({id(p) for p in model.parameters() if p.requires_grad} | _later(model))
    assert grouped == trained, "a parameter is in no group, or in two"
    return list(groups.values())


def _parts(model: FusionModel) -> Iterator[tuple[str, nn.Parameter]]:
    """(part, parameter) with the parts `audio`, `midi`, `text`, `fusion`, `head`.

    What is pretrained is a part of its own, `audio.pretrained`.
    """
    later = _later(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and id(parameter) not in later:
            continue
        first, second, *rest = name.split(".")
        inner = f"{second}.pretrained" if rest[:1] == ["pretrained"] else second
        parts = {"encoders": inner, "fusion": "fusion", "head": "head", "unimodal": "head"}
        yield parts[first], parameter


def _later(model: FusionModel) -> set[int]:
    """Parameters that are frozen now and will not be, by id."""
    return {id(parameter) for held in model.held.values() for parameter in held} | {
        id(parameter)
        for encoder in model.encoders.values()
        if isinstance(encoder, FineTunedEncoder)
        for parameter in encoder.later
    }


def _own_lr(model: FusionModel, part: str) -> dict[str, float]:
    name, _, pretrained = part.partition(".")
    lr = getattr(model.sections.get(name), "lr", 0.0)
    if not lr or (isinstance(model.encoders[name], FineTunedEncoder) and not pretrained):
        return {}
    return {"lr": lr}
