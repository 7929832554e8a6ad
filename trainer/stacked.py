"""Models of one architecture trained side by side, each as it would be trained alone.

Parameters of K models stand side by side in one array; `torch.func.vmap` runs the model over them,
one AdamW moves them all, and what a step calls is written down (`recorded.py`) to be called again.
Each model has its own seed, order of clips, random numbers (`draws.py`), rate, decay, dropout and
early stopping, and its weights are those of `loop.fit` up to the order of sums.

Shapes: K model, P parameter of all, B batch, N clip, M modality, C class.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmfuse.features.errors import ConfigError
from mmfuse.trainer.batch import Batch
from mmfuse.trainer.checkpoint import Checkpoints
from mmfuse.trainer.config import TrainConfig
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.draws import Recorder, Replay, Request, draw
from mmfuse.trainer.loop import better, validated
from mmfuse.trainer.losses import WHOLE
from mmfuse.trainer.model import FusionModel, Output, drop_modalities
from mmfuse.trainer.objectives import class_weights
from mmfuse.trainer.optim import factor
from mmfuse.trainer.recorded import Recorded
from mmfuse.trainer.stacked_adamw import AdamW, Parts
from mmfuse.trainer.state import Fit, crops_of

FORM = 2  # of what `pack` gives; checkpoints of another form are of another sweep
_IGNORED = -100  # the label that no loss looks at
_EVAL_CLIPS = 64
_MOST_KEPT = 31 * 2**20  # bytes; glibc learns from blocks below 32 MiB


class Trainer:
    """K models in training. `models` hold their first weights, `states` their generators."""

    def __init__(
        self,
        models: Sequence[FusionModel],
        states: Sequence[Tensor],
        data: Dataset,
        configs: Sequence[TrainConfig],
    ) -> None:
        self.models, self.data = list(models), data
        self.generators = [torch.Generator().set_state(state) for state in states]
        self.configs, self.one = list(configs), configs[0]
        self.here = list(range(len(models)))  # numbers of those that still train
        self.base = copy.deepcopy(models[0])
        self.optimizer = AdamW(models, configs)
        self.fits = [Fit() for _ in models]
        self.epoch = self.step = 0  # that are behind
        self.best = [self._weights(k) for k in self.here]
        self.clips = data.clips_of("train")
        self.weights_C = None
        if self.one.class_weights:
            self.weights_C = class_weights(data.label[self.clips], len(data.classes))
        self.resident = {name: data.resident(name) for name in data.layers}
        self.crops: list[np.random.Generator] = []  # of those that still train, in this epoch
        self._requests: dict[Any, list[Request]] = {}
        self._differentiated = Recorded(self._losses)

    def fit(self, checkpoints: Checkpoints | None = None, runs: Sequence[str] = ()) -> list[Fit]:
        """Train all; the best weights are in `models` afterwards.

        With `checkpoints`, one is taken after an epoch whenever it is time, with the names of the
        `runs`; `unpack` goes on from one.
        """
        steps = self.one.epochs * -(-len(self.clips) // self.one.batch_size)
        step = self.step
        # gives this back, and from then on keeps what a step frees for the next one
        torch.empty(_MOST_KEPT, dtype=torch.uint8)
        for epoch in range(self.epoch + 1, self.one.epochs + 1):
            if not self.here:
                break
            self.base.train()
            orders = [self._order(k, epoch) for k in self.here]
            self.crops = [crops_of(self.configs[k].seed, epoch) for k in self.here]
            losses = []
            for rows in zip(*orders, strict=True):
                loss_K = self._step(rows, step, steps)
                step += 1
                losses.append(loss_K)
            self._validate(epoch, step, steps, torch.stack(losses).mean(dim=0))
            self._stop(epoch)
            self.epoch, self.step = epoch, step
            if checkpoints and checkpoints.due():
                checkpoints.save(step, *self.pack(runs))
        for model, best in zip(self.models, self.best, strict=True):
            model.load_state_dict(best, strict=False)  # buffers are as they were
        return self.fits

    def _weights(self, i: int) -> Parts:
        """A copy of what would be tested now of the i-th of those that train."""
        tested = self.optimizer.averaged if self.one.ema else self.optimizer.weights
        return {name: of[i].clone() for name, of in tested.items()}

    def pack(self, runs: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that training changes, between two epochs: tensors, and what JSON can hold."""
        tensors = {
            f"{what}.{name}": part
            for what, of in self.optimizer.stored.items()
            for name, part in of.items()
        }
        for name in self.optimizer.weights:
            tensors[f"best.{name}"] = torch.stack([best[name] for best in self.best])
        tensors["random"] = torch.stack([one.get_state() for one in self.generators])
        fits = json.dumps([asdict(fit) for fit in self.fits])  # as text: keys keep their order
        document = {"epoch": self.epoch, "step": self.step, "here": self.here, "fits": fits}
        return tensors, document | {"runs": list(runs)}

    def unpack(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Become what was packed."""
        self._keep(document["here"])
        for what, of in self.optimizer.stored.items():
            for name, part in of.items():
                part.copy_(tensors[f"{what}.{name}"])
        self.best = [
            {name: tensors[f"best.{name}"][k].clone() for name in self.optimizer.weights}
            for k in range(len(self.models))
        ]
        for generator, state in zip(self.generators, tensors["random"], strict=True):
            generator.set_state(state.clone())
        self.epoch, self.step = document["epoch"], document["step"]
        self.fits = [Fit(**fit) for fit in json.loads(document["fits"])]
        for fit in self.fits:
            fit.resumed_at = self.step

    def _order(self, k: int, epoch: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        return self.data.order(self.clips, self.one.batch_size, self.configs[k].seed, epoch)

    def _step(self, rows: Sequence[Any], step: int, steps: int) -> Tensor:
        """One optimizer step of every model, on its own clips; the losses, (K,)."""
        batch, sizes = self._gather(rows)
        requests = [self._requests_of(i, k, batch, sizes[i]) for i, k in enumerate(self.here)]
        drawn = draw(requests, [self.generators[k] for k in self.here])
        loss_K, *gradients = self._differentiated(
            self.optimizer.leaves, drawn, batch.x, batch.mask, batch.times_s, batch.present_BM,
            batch.label_B,
        )  # fmt: skip
        with torch.no_grad():
            self.optimizer.step(gradients, step, steps)
        return loss_K

    def _losses(self, leaves: Parts, *inputs: Any) -> list[Tensor]:
        """The loss of every model, (K,), then its gradients, (K, *shape)."""
        loss_K = vmap(self._loss)(leaves, *inputs)
        gradients = torch.autograd.grad(loss_K.sum(), list(leaves.values()), materialize_grads=True)
        return [loss_K.detach(), *gradients]

    def _loss(
        self, parameters: Parts, drawn: list[Tensor], x: Parts, mask: Parts, times_s: Parts,
        present_BM: Tensor, label_B: Tensor,
    ) -> Tensor:  # fmt: skip
        """The loss of one model."""
        batch = Batch(np.empty(0, np.int64), x, mask, times_s, present_BM, label_B)
        # the others of attention's kernels would run model after model
        with Replay(drawn), sdpa_kernel(SDPBackend.MATH):
            shown_BM = drop_modalities(present_BM, self.one.modality_dropout)
            output = functional_call(self.base, parameters, (batch, shown_BM))
        return _loss_of(output, label_B, shown_BM, self.one, self.weights_C)

    def _gather(self, rows: Sequence[Any]) -> tuple[Batch, list[tuple[int, ...]]]:
        """Batches of all models, (K, B, ...), and each one's own sizes: clips, then rows.

        A smaller batch is filled up with clips that have nothing, not even a label.
        """
        widest = max(map(len, rows))
        clips = np.stack([np.pad(one, (0, widest - len(one)), mode="edge") for one in rows])
        filler = np.arange(widest) >= np.array([len(one) for one in rows])[:, None]
        views, crop_s = np.zeros_like(clips), self.one.crop_s
        spans_2KB = None
        if crop_s:  # each model draws as many as it has clips
            each = [
                self.data.spans(one, np.zeros_like(one), crop_s, crops)
                for one, crops in zip(rows, self.crops, strict=True)
            ]
            wide = [np.pad(one, ((0, 0), (0, widest - one.shape[1]))) for one in each]
            spans_2KB = np.concatenate(wide, axis=1)
        x, mask, times_s, present = {}, {}, {}, []
        sizes = [[len(one)] for one in rows]
        for name, resident in self.resident.items():
            chosen = resident.choose(clips.ravel(), views.ravel(), spans_2KB)
            rows_KB = np.where(filler, 0, chosen.rows_B.reshape(clips.shape))
            x[name], times_s[name], mask[name] = (
                part.view(*clips.shape, *part.shape[1:])
                for part in resident.gather(chosen.starts_B, rows_KB.ravel())
            )
            present.append(torch.from_numpy(rows_KB > 0))
            for own, most in zip(sizes, rows_KB.max(axis=1), strict=True):
                own.append(max(1, int(most)))
        label_KB = np.where(filler, _IGNORED, self.data.label[clips])
        batch = Batch(
            clips, x, mask, times_s, torch.stack(present, dim=2), torch.from_numpy(label_KB)
        )
        return batch, [tuple(own) for own in sizes]

    def _requests_of(self, i: int, k: int, batch: Batch, sizes: tuple[int, ...]) -> list[Request]:
        """Which numbers model k draws for a batch of these sizes."""
        if (k, sizes) not in self._requests:
            self._requests[k, sizes] = self._record(i, k, batch, sizes)
        return self._requests[k, sizes]

    def _record(self, i: int, k: int, batch: Batch, sizes: tuple[int, ...]) -> list[Request]:
        clips = sizes[0]
        x, mask, times_s = (
            {
                name: part[i, :clips, :rows]
                for (name, part), rows in zip(of.items(), sizes[1:], strict=True)
            }
            for of in (batch.x, batch.mask, batch.times_s)
        )
        present_BM = batch.present_BM[i, :clips]
        alone = Batch(batch.clips[i], x, mask, times_s, present_BM, batch.label_B[i, :clips])
        with torch.no_grad(), torch.random.fork_rng(devices=[]), Recorder() as recorder:
            shown_BM = drop_modalities(present_BM, self.one.modality_dropout)
            self.models[k].train()(alone, shown_BM)
        requests: list[Request] = recorder.requests
        return requests

    def _validate(self, epoch: int, step: int, steps: int, loss_K: Tensor) -> None:
        """Score the averaged weights of all models, and keep those that are their best."""
        if not torch.isfinite(loss_K).all():
            k = self.here[int(torch.isfinite(loss_K).logical_not().nonzero()[0])]
            raise ConfigError(
                f"the loss is not finite in epoch {epoch}; lower train.lr = {self.configs[k].lr:g}"
            )
        clips = self.data.clips_of("validation")
        found = self._predict(clips)
        for i, k in enumerate(self.here):
            fit, own = self.fits[k], {name: of[i] for name, of in found.items()}
            fit.steps = step
            record = {
                "epoch": epoch,
                "step": step,
                "lr": self.configs[k].lr
                * factor(self.one.schedule, step, self.one.warmup_steps, steps),
                "train_loss": float(loss_K[i]),
                **validated(self.data, clips, own),
            }
            fit.records.append(record)
            if better(record, fit.best, self.data.task, self.configs[k].best_by):
                fit.best = {n.removeprefix("val_"): v for n, v in record.items() if "val_" in n}
                fit.best_epoch = epoch
                self.best[k] = self._weights(i)

    def _predict(self, clips: Any) -> dict[str, Any]:
        """Class probabilities of all models and their heads, (K, N, C) by name."""
        self.base.eval()
        tested = self.optimizer.averaged if self.one.ema else self.optimizer.weights
        names = (WHOLE, *self.base.unimodal)
        shape = (len(self.here), len(self.data), len(self.data.classes))
        found = {name: np.zeros(shape) for name in names}

        def logits(parameters: Parts) -> tuple[Tensor, ...]:
            output = functional_call(self.base, parameters, (batch, batch.present_BM))
            return output.logits_BC, *output.unimodal.values()

        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            for batch in self.data.batches(clips, _EVAL_CLIPS):
                for name, said_KBC in zip(names, vmap(logits)(tested), strict=True):
                    found[name][:, batch.clips] = said_KBC.double().softmax(dim=2).numpy()
        return {name: of[:, clips] for name, of in found.items()}

    def _stop(self, epoch: int) -> None:
        """Let those go whose patience is over."""
        goes_on = [
            i for i, k in enumerate(self.here)
            if epoch + 1 <= self.fits[k].best_epoch + self.configs[k].patience
        ]  # fmt: skip
        if len(goes_on) == len(self.here):
            return
        self._keep(goes_on)

    def _keep(self, places: Sequence[int]) -> None:
        """Go on with the models at these places."""
        self.here = [self.here[i] for i in places]
        self.optimizer.keep(places)


def _loss_of(
    output: Output,
    label_B: Tensor,
    shown_BM: Tensor,
    config: TrainConfig,
    weights_C: Tensor | None,
) -> Tensor:
    """`losses.loss_of`, with clips among them that have no label, from what vmap can take."""

    def each(logits_BC: Tensor) -> Tensor:
        smoothing = config.label_smoothing
        return F.cross_entropy(
            logits_BC, label_B, weights_C, reduction="none", label_smoothing=smoothing
        )

    weight_B = (label_B != _IGNORED).to(output.logits_BC.dtype)
    if weights_C is not None:
        weight_B = weight_B * weights_C[label_B.clamp(min=0)]
    total = each(output.logits_BC).sum() / weight_B.sum()
    for m, logits_BC in enumerate(output.unimodal.values()):
        here_B = shown_BM[:, m]
        losses_B = torch.where(here_B, each(logits_BC), torch.zeros(()))
        total = total + config.unimodal_weight * losses_B.sum() / here_B.sum().clamp(min=1)
    return total
