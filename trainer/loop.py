"""Training, in one function that reads top to bottom, and prediction.

Shapes: B batch, N clip, M modality, C class.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from mmfuse.trainer import distributed
from mmfuse.trainer.checkpoint import Checkpoints
from mmfuse.trainer.compiled import Steps, compiled
from mmfuse.trainer.config import TrainConfig
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.device import CPU, draws_kept, sent
from mmfuse.trainer.losses import WHOLE, shares_of, terms_of, weighed
from mmfuse.trainer.model import FusionModel, drop_modalities
from mmfuse.trainer.optim import average, factor, set_rates
from mmfuse.trainer.state import Fit, Record, State
from mmfuse.trainer.stored_encoders import layer_shares
from mmfuse.trainer.task import Task
from mmfuse.trainer.windows import WHOLE_CLIPS, Windows

_EVAL_CLIPS = 64
_NOTHING = 2.0**-40  # what a window in which a clip has nothing counts, beside one in which it has
_FILL = "fill_uninitialized_memory"


@contextmanager
def reproducible(seed: int, threads: int, device: torch.device = CPU) -> Iterator[None]:
    """Same seed and threads, same bits on a CPU; torch's own state is as before afterwards.

    On a card it is the same draws, but sums in whatever order is fast.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    before = torch.get_num_threads()
    memory = torch.utils.deterministic
    fill = getattr(memory, _FILL)
    with draws_kept(device):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(device.type == "cpu")
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
    checkpoints: Checkpoints | None = None,
    windows: Windows = WHOLE_CLIPS,
    epochs: int = 0,
) -> Fit:
    """Fit on the train split, stop by the validation split, keep the weights that are best there.

    With `epochs`, stop after so many, without a look at validation, and keep the last weights;
    rates are as in a training of `config.epochs`.

    Call inside `reproducible`. Ctrl-C ends training early, with the best weights so far.
    `report` gets one record an epoch. The unit of an optimizer step is a window of `accumulate`
    batches: order, crops, presence and losses are those of one large batch. With `checkpoints`,
    training goes on from the newest one as if nothing had happened. Processes of torchrun share
    each window; the first one validates, by the `windows` that `predict` is to take, and writes.
    """
    clips, validation = data.clips_of("train"), data.clips_of("validation")
    window_size = config.batch_size * config.accumulate * distributed.size()
    steps_an_epoch = -(-len(clips) // window_size)
    steps, rising = (n * steps_an_epoch for n in (config.epochs, config.modality_dropout_warmup))
    device = next(model.parameters()).device
    objective = data.task.objective(config, data.label[clips])
    there = objective.to(device)
    state = State(model, config)
    optimizer, averaged, balance = state.optimizer, state.averaged, state.balance
    if checkpoints and (found := checkpoints.load()):
        state.unpack(*found)
        for record in state.fit.records:
            report(record)
    result, first = state.fit, distributed.rank() == 0
    run, clock = compiled(model) if config.compile else model, Steps()

    def heard() -> Record:
        if epochs or not first:
            return {}
        return validated(data, validation, predict_all(averaged, data, validation, windows=windows))

    def goes_on() -> bool:
        if epochs:
            return state.epoch <= epochs
        return state.epoch <= min(config.epochs, result.best_epoch + config.patience)

    def heads(clips: NDArray[np.int64]) -> dict[str, float]:
        return head_losses(data, clips, predict_all(averaged, data, clips, windows=windows))

    try:
        while goes_on():
            model.train()
            order = data.order(clips, window_size, config.seed, state.epoch)
            for rows in order[state.done :]:
                clock.begin()
                model.thaw(result.steps)
                distributed.reseed(config.seed, result.steps)
                set_rates(optimizer, result.steps, config, steps)
                views = data.draw_views(rows, config.seed, state.epoch)
                window = data.plan(rows, config.crop_s, state.crops, views)
                dropout = config.modality_dropout * risen(result.steps, rising)
                shown_WM = distributed.from_first(drop_modalities(window.present_BM, dropout))
                loss = torch.zeros((), device=device)
                for parameter in state.parameters:  # as zero_grad, which takes longer to begin
                    parameter.grad = None
                parts = slices(len(rows), config.batch_size)
                weight_W = objective.weight(window.label_B) if parts[1:] else None
                for part in parts[distributed.rank() :: distributed.size()]:
                    piece = window if weight_W is None else window[part]
                    batch, shown_BM = data.gather(piece), sent(shown_WM[part], device)
                    shares = None if weight_W is None else shares_of(weight_W, shown_WM, part)
                    with lowered(config.precision, device):
                        output = run(batch, shown_BM)
                    terms = terms_of(output, batch, shown_BM, there, shares)
                    total = weighed(terms, balance.weights)
                    balance.look(terms, output, batch, shown_BM)
                    torch.autograd.backward(state.scaler.scale(total))
                    loss += total.detach()
                distributed.add_gradients(model)
                distributed.add([loss])
                state.scaler.unscale_(optimizer)
                balance.settle(result.steps, state.epoch)
                state.norms.note(config.grad_clip)
                state.scaler.step(optimizer)
                state.scaler.update()
                result.steps += 1
                if averaged is not model:
                    average(state.means, state.weights, config.ema, result.steps)
                state.windowed(loss)
                clock.end()
                if checkpoints and first and checkpoints.due():
                    checkpoints.save(result.steps, *state.pack())
            record = {
                "epoch": state.epoch,
                "step": result.steps,
                "lr": config.lr * factor(config.schedule, result.steps, config.warmup_steps, steps),
                "train_loss": state.mean_loss(),
                **heard(),
                **state.norms.record(),
                **layer_shares(averaged.encoders),
            }
            record = distributed.told(record)
            result.records.append(record)
            if epochs or better(record, result.best, data.task, config.best_by):
                result.best = {k.removeprefix("val_"): v for k, v in record.items() if "val_" in k}
                result.best_epoch = state.epoch
                state.best = copy.deepcopy(averaged.state_dict())
            if first:
                balance.close(state.epoch, lambda: (heads(clips), heads(validation)))
            balance.unpack(distributed.told(balance.pack()))
            state.begin(state.epoch + 1)
            report(record)
    except KeyboardInterrupt:
        result.interrupted = True
    model.load_state_dict(state.best)
    result.compiled = clock.cost() if config.compile else None
    return result


def lowered(precision: str, device: torch.device = CPU) -> torch.autocast:
    """Products and convolutions in 16 bits inside, where that is asked for; weights stay float32.

    Logits come out in float32, and losses, gradients of weights, and evaluation are in float32.
    """
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "float32")


def risen(step: int, steps: int) -> float:
    """Share of modality dropout at a step: straight up from 0 over so many steps, then 1."""
    return min(1.0, step / steps) if steps else 1.0


def slices(count: int, size: int) -> list[slice]:
    """Stretches of at most `size` that cover `count` places."""
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def predict(
    model: FusionModel,
    data: Dataset,
    clips: NDArray[np.int64],
    keep: tuple[bool, ...] | None = None,
    batch_size: int = _EVAL_CLIPS,
    windows: Windows = WHOLE_CLIPS,
) -> NDArray[np.float64]:
    """What a model says of clips, (N, K): class probabilities or a number.

    Args:
        model: left in evaluation mode.
        data: where the clips are.
        clips: row numbers.
        keep: modalities to look at, one flag each; all, where it is left out.
        batch_size: clips at once.
        windows: of each clip, whose answers are averaged; those in which it has nothing do not
            count, unless all are such.
    """
    return predict_all(model, data, clips, keep, batch_size, windows)[WHOLE]


def predict_all(
    model: FusionModel,
    data: Dataset,
    clips: NDArray[np.int64],
    keep: tuple[bool, ...] | None = None,
    batch_size: int = _EVAL_CLIPS,
    windows: Windows = WHOLE_CLIPS,
) -> dict[str, NDArray[np.float64]]:
    """As `predict`, of the whole model and of each modality's own head, by name.

    A head's rows mean nothing where the clip lacks the modality.
    """
    model.eval()
    names = (WHOLE, *model.unimodal)
    sums = {name: np.zeros((len(data), data.task.outputs)) for name in names}
    weights = {name: np.zeros((len(data), 1)) for name in names}
    with torch.inference_mode():
        for place in windows.places:
            for batch in data.batches(clips, batch_size, windows.length_s, place):
                present_BM = batch.present_BM
                if keep:
                    present_BM = present_BM & torch.tensor(keep, device=present_BM.device)
                output = model(batch, present_BM)
                here = dict(zip(model.unimodal, present_BM.T, strict=False))
                here[WHOLE] = present_BM.any(dim=1)
                for name, logits_BK in ({WHOLE: output.logits_BC} | output.unimodal).items():
                    weight_B1 = np.where(here[name].cpu().numpy(), 1.0, _NOTHING)[:, None]
                    said_BK = data.task.answer(logits_BK.cpu().double()).numpy()
                    sums[name][batch.clips] += weight_B1 * said_BK
                    weights[name][batch.clips] += weight_B1
    return {name: sums[name][clips] / weights[name][clips] for name in names}


def validated(
    data: Dataset, clips: NDArray[np.int64], found: Mapping[str, NDArray[np.float64]]
) -> Record:
    """Loss and scores; of each modality's own head the one that selects, on clips that have it."""
    task, truth_N = data.task, data.label[clips]
    plain = task.plain(truth_N, found[WHOLE])
    record = {"val_loss": plain[task.loss]}
    record |= {f"val_{name}": plain[name] for name in task.shown}
    for m, name in enumerate(data.streams):
        here_N = data.present_NM[clips, m]
        if name in found and here_N.any():
            own = task.scores(truth_N[here_N], task.decide(found[name][here_N]))
            record[f"head.{name}"] = own[task.select]
    return record


def head_losses(
    data: Dataset, clips: NDArray[np.int64], found: Mapping[str, NDArray[np.float64]]
) -> dict[str, float]:
    """Loss of the whole model, and of each head on clips that have the modality, by name."""
    here = {name: data.present_NM[clips, m] for m, name in enumerate(data.streams)}
    here[WHOLE] = np.ones(len(clips), np.bool_)
    return {
        name: data.task.plain(data.label[clips][here[name]], said_NK[here[name]])[data.task.loss]
        for name, said_NK in found.items()
        if here[name].any()
    }


def better(record: Record, best: Record, task: Task, by: str = "score") -> bool:
    """A higher score on validation, and among equals a lower loss.

    By "loss" it is a lower loss, by "last" whatever comes later.
    """
    if not best or by == "last":
        return True
    if by == "loss":
        return record["val_loss"] < best["loss"]
    now = record[f"val_{task.select}"], -record["val_loss"]
    return now > (best[task.select], -best["loss"])
