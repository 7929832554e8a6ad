"""A pretrained audio model trained along, from the `waveform` stream.

Shapes: B batch, N sample, T frame, L layer of the pretrained model, E its width.
"""

from fractions import Fraction

import torch
from torch import Tensor, nn

from mmfuse.features.wav2vec2 import EPSILON, Wav2vec2, Wav2vec2Params, picked
from mmfuse.features.windows import Windows
from mmfuse.trainer.layers import Encoded
from mmfuse.trainer.stored_encoders import StoredEncoder

_FULL = 32767.0  # of the waveform stream's int16
_WHOLE = Windows(Fraction(30), Fraction(30))  # only cutting would look at it


class FineTunedEncoder(nn.Module):
    """`StoredEncoder` over the hidden states of a model that runs, and learns, here.

    As in features, nothing is padded: clips of one length go through the model together and the
    others by themselves, so a clip's frames do not depend on its neighbours. Frozen, the model is
    in evaluation mode and gives the frames that the store would hold. Its own masking and dropping
    of layers, which draw from elsewhere, are off.

    Args:
        source: the model, with its architecture, rate, normalisation and layers.
        head: what reads its hidden states.
        freeze: leave the model as it is.
        unfreeze_at_step: but from this optimizer step on, counted from 0; 0 is never.
    """

    def __init__(
        self, source: Wav2vec2, head: StoredEncoder, *, freeze: bool, unfreeze_at_step: int
    ) -> None:
        super().__init__()
        self.dim = head.dim
        self.pretrained, self.head = source.load(), head
        self.pretrained.config.apply_spec_augment = False  # type: ignore[union-attr]
        self.pretrained.config.layerdrop = 0.0  # type: ignore[union-attr]
        self._source, self.freeze, self.unfreeze_at_step = source, freeze, unfreeze_at_step
        self.frozen = freeze
        self.pretrained.requires_grad_(not freeze)

    @property
    def later(self) -> list[nn.Parameter]:
        """Parameters that are frozen now and will not be."""
        return list(self.pretrained.parameters()) if self.frozen and self.unfreeze_at_step else []

    def thaw(self, step: int) -> None:
        """Freeze or unfreeze as it has to be at an optimizer step; depends on nothing else."""
        frozen = self.freeze and not 0 < self.unfreeze_at_step <= step
        if frozen != self.frozen:
            self.frozen = frozen
            self.pretrained.requires_grad_(not frozen)
            self.train(self.training)

    def train(self, mode: bool = True) -> "FineTunedEncoder":
        """As ever, but a frozen model stays in evaluation mode."""
        super().train(mode)
        self.pretrained.train(mode and not self.frozen)
        return self

    def forward(self, x_BN: Tensor, mask_BN: Tensor, times_BN: Tensor) -> Encoded:
        """Samples (B, N) in int16's range, mask, times -> as `StoredEncoder` of their frames."""
        lengths = mask_BN.sum(dim=1).tolist()
        frames = [self._source.frames(length) for length in lengths]
        longest = max(1, *frames)
        E = int(self._source.config.hidden_size)
        shape = (len(x_BN), longest, len(self._source.layers), E)
        x_BTLE = torch.zeros(shape, device=x_BN.device)
        for length in sorted(set(lengths)):
            count = self._source.frames(length)
            if count:
                rows = [b for b, other in enumerate(lengths) if other == length]
                states = self._hidden(torch.stack([x_BN[b, :length] for b in rows]))
                x_BTLE[rows, :count] = states
        frame_T = torch.arange(longest, device=x_BN.device)
        mask_BT = frame_T < torch.tensor(frames, device=x_BN.device)[:, None]
        hop_s = self._source.stride / self._source.rate_hz
        middle_s = self._source.shortest / (2 * self._source.rate_hz)
        times_BT = torch.where(mask_BT, times_BN[:, :1] + middle_s + frame_T * hop_s, torch.nan)
        encoded: Encoded = self.head.encode(x_BTLE, mask_BT, times_BT)
        return encoded

    def _hidden(self, x_BN: Tensor) -> Tensor:
        """Clips of one length -> (B, T, L, E)."""
        x_BN = x_BN.float() / _FULL
        if self._source.normalise:
            variance_B1, mean_B1 = torch.var_mean(x_BN, dim=1, keepdim=True, correction=0)
            x_BN = (x_BN - mean_B1) / (variance_B1 + EPSILON).sqrt()
        wanted = any(layer != "last" for layer in self._source.layers)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = self.pretrained(x_BN, output_hidden_states=wanted)
        return torch.stack([picked(found, layer) for layer in self._source.layers], dim=2)


def fine_tuned_source(model: str, layers: str, random_weights: int | None) -> Wav2vec2:
    """The model to train along; see `Wav2vec2` for what is refused."""
    return Wav2vec2(Wav2vec2Params(model, _WHOLE, layers, random_weights))
