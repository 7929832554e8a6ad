"""Training, in one function that reads top to bottom, and prediction.

Shapes: B batch, N clip, M modality, C class.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmfuse.features.errors import ConfigError
from mmfuse.trainer import metrics
from mmfuse.trainer.config import TrainConfig
from mmfuse.trainer.dataset import Batch, Dataset
from mmfuse.trainer.model import FusionModel, Output, drop_modalities, parameter_groups

Record = dict[str, float]
_EVAL_CLIPS = 64
_FILL = "fill_uninitialized_memory"


@dataclass(slots=True)
class Fit:
    """What training left: the best weights are in the model."""

    best_epoch: int = 0
    best: Record = field(default_factory=lambda: {"macro_f1": -1.0, "loss": math.inf})
    steps: int = 0
    records: list[Record] = field(default_factory=list)
    interrupted: bool = False


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Same seed and threads, same bits on a CPU; torch's own state is as before afterwards."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    before = torch.get_num_threads()
    memory = torch.utils.deterministic
    fill = getattr(memory, _FILL)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        setattr(memory, _FILL, False)  # takes a sixth of the time, and nothing reads it
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            setattr(memory, _FILL, fill)
            torch.set_num_threads(before)


def fit(
    model: FusionModel,
    data: Dataset,
    config: TrainConfig,
    report: Callable[[Record], None] = lambda record: None,
) -> Fit:
    """Fit on the train split, stop by macro-F1 on the validation split, keep the best weights.

    Call inside `reproducible`. Ctrl-C ends training early, with the best weights so far.
    `report` gets one record an epoch.
    """
    clips, validation = data.clips_of("train"), data.clips_of("validation")
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, foreach=True)
    steps_an_epoch = -(-len(clips) // config.batch_size)
    factor = cosine(config.warmup_steps, config.epochs * steps_an_epoch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    weights_C = class_weights(data, clips) if config.class_weights else None
    averaged = copy.deepcopy(model) if config.ema else model
    result, best_state = Fit(), copy.deepcopy(model.state_dict())
    try:
        for epoch in range(1, config.epochs + 1):
            model.train()
            losses = []
            rng = np.random.default_rng([config.seed, epoch, 1])
            for rows in data.order(clips, config.batch_size, config.seed, epoch):
                model.thaw(result.steps)
                views = data.draw_views(rows, config.seed, epoch)
                batch = data.batch(rows, config.crop_s, rng, views)
                present_BM = drop_modalities(batch.present_BM, config.modality_dropout)
                output = model(batch, present_BM)
                loss = loss_of(output, batch, present_BM, config, weights_C)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                if config.grad_clip:
                    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
                optimizer.step()
                schedule.step()
                result.steps += 1
                if averaged is not model:
                    average(averaged, model, config.ema, result.steps)
                losses.append(loss.detach())
            if not torch.isfinite(torch.stack(losses)).all():
                raise ConfigError(
                    f"the loss is not finite in epoch {epoch}; lower train.lr = {config.lr:g}"
                )
            found = validated(data, validation, predict(averaged, data, validation))
            record = {
                "epoch": epoch,
                "step": result.steps,
                "lr": config.lr * factor(result.steps),
                "train_loss": float(torch.stack(losses).mean()),
                **{f"val_{name}": value for name, value in found.items()},
            }
            result.records.append(record)
            if better(record, result.best):
                result.best = {k.removeprefix("val_"): v for k, v in record.items() if "val_" in k}
                result.best_epoch = epoch
                best_state = copy.deepcopy(averaged.state_dict())
            report(record)
            if epoch - result.best_epoch >= config.patience:
                break
    except KeyboardInterrupt:
        result.interrupted = True
    model.load_state_dict(best_state)
    return result


def predict(
    model: FusionModel,
    data: Dataset,
    clips: NDArray[np.int64],
    keep: tuple[bool, ...] | None = None,
    batch_size: int = _EVAL_CLIPS,
) -> NDArray[np.float64]:
    """Class probabilities of clips, (N, C), from whole clips.

    Args:
        model: left in evaluation mode.
        data: where the clips are.
        clips: row numbers.
        keep: modalities to look at, one flag each; all, where it is left out.
        batch_size: clips at once.
    """
    model.eval()
    probabilities_NC = np.zeros((len(data), len(data.classes)))
    with torch.inference_mode():
        for batch in data.batches(clips, batch_size):
            present_BM = batch.present_BM & torch.tensor(keep) if keep else batch.present_BM
            logits_BC = model(batch, present_BM).logits_BC
            probabilities_NC[batch.clips] = logits_BC.double().softmax(dim=1).numpy()
    return probabilities_NC[clips]


def loss_of(
    output: Output,
    batch: Batch,
    present_BM: Tensor,
    config: TrainConfig,
    weights_C: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the whole model, plus that of each modality's own head where it is there."""
    each = F.cross_entropy(
        output.logits_BC, batch.label_B, weights_C, label_smoothing=config.label_smoothing
    )
    for m, logits_BC in enumerate(output.unimodal.values()):
        losses_B = F.cross_entropy(
            logits_BC,
            batch.label_B,
            weights_C,
            reduction="none",
            label_smoothing=config.label_smoothing,
        )
        here_B = present_BM[:, m]
        alone = torch.where(here_B, losses_B, torch.zeros(())).sum() / here_B.sum().clamp(min=1)
        each = each + config.unimodal_weight * alone
    return each


def cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate by optimizer step: a straight rise, then a half cosine to 0."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return factor


def class_weights(data: Dataset, clips: NDArray[np.int64]) -> Tensor:
    """Inverse frequency of each class over clips, with mean 1 over clips: (C,)."""
    counts = np.bincount(data.label[clips], minlength=len(data.classes))
    weights = len(clips) / (len(data.classes) * np.maximum(counts, 1))
    return torch.from_numpy(weights).float()


def average(averaged: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the model's; quickly in the first steps."""
    decay = min(decay, step / (step + 9))
    with torch.no_grad():
        for mean, now in zip(averaged.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)


def validated(
    data: Dataset, clips: NDArray[np.int64], probabilities_NC: NDArray[np.float64]
) -> Record:
    """Loss, accuracy and macro-F1 of probabilities."""
    truth_N = data.label[clips]
    chosen_N = probabilities_NC[np.arange(len(clips)), truth_N]
    found = metrics.scores(truth_N, probabilities_NC.argmax(axis=1), len(data.classes))
    return {"loss": float(-np.log(np.maximum(chosen_N, 1e-12)).mean()), **found}


def better(record: Record, best: Record) -> bool:
    """Higher macro-F1; among equals, lower loss."""
    return (record["val_macro_f1"], -record["val_loss"]) > (best["macro_f1"], -best["loss"])
