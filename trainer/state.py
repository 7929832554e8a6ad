"""All that training changes, in one record, and its way into a checkpoint and back.

What is a pure function of step, epoch and seed (rates, order, views) is not in it.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfuse.features.errors import ConfigError
from mmfuse.trainer.balance import build_balance
from mmfuse.trainer.config import TrainConfig
from mmfuse.trainer.device import draws, set_draws
from mmfuse.trainer.gradients import GradientNorms
from mmfuse.trainer.model import FusionModel
from mmfuse.trainer.optim import build_optimizer

Record = dict[str, float]


@dataclass(slots=True)
class Fit:
    """What training left: the best weights are in the model."""

    best_epoch: int = 0
    best: Record = field(default_factory=dict)
    steps: int = 0
    records: list[Record] = field(default_factory=list)
    interrupted: bool = False
    resumed_at: int = 0  # step that a checkpoint had
    compiled: dict[str, float] | None = None  # what torch.compile cost, see `compiled.Steps`


class State:
    """Training between two optimizer steps.

    `done` windows of the epoch are behind, `losses` theirs; `crops` draws the crops of the epoch.
    """

    def __init__(self, model: FusionModel, config: TrainConfig) -> None:
        self.model, self.config = model, config
        self.averaged = copy.deepcopy(model) if config.ema else model
        self.parameters = list(model.parameters())
        # the parameters of both, without their gradients
        self.means, self.weights = (
            [p.detach() for p in one.parameters()] for one in (self.averaged, model)
        )
        self.optimizer = build_optimizer(model, config)
        self.device = next(model.parameters()).device
        # float16 has few small numbers: losses are scaled up, and gradients down again
        half = config.precision == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.norms = GradientNorms(model, self.optimizer)
        self.balance = build_balance(model, config)
        self.fit, self.best = Fit(), copy.deepcopy(model.state_dict())
        self.losses: list[Tensor] = []
        self.begin(1)

    def begin(self, epoch: int) -> None:
        """Forget the epoch before."""
        self.epoch, self.done, self.losses = epoch, 0, []
        self.crops = crops_of(self.config.seed, epoch)

    def windowed(self, loss: Tensor) -> None:
        """One window more is behind."""
        self.done += 1
        self.losses.append(loss)

    def mean_loss(self) -> float:
        """Mean over the windows of the epoch.

        Raises:
            ConfigError: it is not finite.
        """
        losses = torch.stack(self.losses)
        if not torch.isfinite(losses).all():
            raise ConfigError(
                f"the loss is not finite in epoch {self.epoch}; lower train.lr = {self.config.lr:g}"
            )
        return float(losses.mean())

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and what JSON can hold."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        if self.averaged is not self.model:
            tensors |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
        states = draws(self.device)
        tensors["random"] = states.pop("cpu")
        tensors |= {f"random.{k}": v for k, v in states.items()}
        tensors["norms.totals"] = self.norms.totals_2M
        tensors["norms.smooth"] = self.norms.smooth_M
        if self.losses:
            tensors["losses"] = torch.stack(self.losses)
        if self.norms.norms:
            tensors["norms.late"] = torch.stack(self.norms.norms)
        return tensors, {
            "fit": json.dumps(asdict(self.fit)),  # as text, in which keys keep their order
            "epoch": self.epoch,
            "done": self.done,
            "crops": self.crops.bit_generator.state,
            "balance": self.balance.pack(),
            "scaler": self.scaler.state_dict(),
            "norms": [self.norms.steps, self.norms.steps_in_epoch, self.norms.rates],
        }

    def unpack(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Become what was packed."""
        self.model.load_state_dict(_below(tensors, "model."))
        self.best = _below(tensors, "best.")
        if self.averaged is not self.model:
            self.averaged.load_state_dict(_below(tensors, "averaged."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        set_draws({"cpu": tensors["random"], **_below(tensors, "random.")}, self.device)
        self.norms.totals_2M.copy_(tensors["norms.totals"])
        self.norms.smooth_M.copy_(tensors["norms.smooth"])
        self.norms.norms = (
            list(tensors["norms.late"].to(self.device)) if "norms.late" in tensors else []
        )
        self.norms.steps, self.norms.steps_in_epoch, self.norms.rates = document["norms"]
        self.balance.unpack(document["balance"])
        self.losses = list(tensors["losses"].to(self.device)) if "losses" in tensors else []
        self.scaler.load_state_dict(document["scaler"])
        self.fit = Fit(**json.loads(document["fit"]))
        self.fit.resumed_at = self.fit.steps
        self.epoch, self.done = document["epoch"], document["done"]
        self.crops.bit_generator.state = document["crops"]


def crops_of(seed: int, epoch: int) -> np.random.Generator:
    """What draws the crops of an epoch."""
    return np.random.default_rng([seed, epoch, 1])


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
