"""Encoders of what a pretrained model left in the store: its hidden states, or its embeddings.

Shapes: B batch, T row, L layer of the pretrained model, E its width, D ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.trainer.layers import (
    Downsample,
    Encoded,
    TransformerLayer,
    blank,
    masked_max,
    masked_mean,
    strides,
    time_features,
)

_TOKEN_S = 0.1  # what a row without time counts for


class LayerMix(nn.Module):
    """A weighted sum of layers, its weights a softmax of one learned number each, at first equal.

    With `layer_norm` each layer's row has mean 0 and deviation 1 before: otherwise the loudest
    layers speak, whatever the weights. The sum is then taken of what is scaled, without a scaled
    copy of every layer.

    Source: Peters et al., arXiv 1802.05365, equation 1; Yang et al., SUPERB, arXiv 2105.01051.
    """

    def __init__(self, layers: int, *, layer_norm: bool = True, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.layer_norm, self.epsilon = layer_norm, epsilon
        # one layer has nothing to weigh, and a parameter that never moves is a lie
        self.logits_L = nn.Parameter(torch.zeros(layers)) if layers > 1 else None

    @property
    def weights_L(self) -> Tensor:
        """Shares of the layers; they add up to 1."""
        return torch.ones(1) if self.logits_L is None else self.logits_L.softmax(dim=0)

    def forward(self, x_BTLE: Tensor) -> Tensor:
        """(B, T, L, E), finite -> (B, T, E)."""
        if self.logits_L is None:
            x_BTE = x_BTLE[:, :, 0]
            return (
                F.layer_norm(x_BTE, x_BTE.shape[-1:], eps=self.epsilon)
                if self.layer_norm
                else x_BTE
            )
        weight_BTL = self.weights_L.expand(x_BTLE.shape[:3])
        if not self.layer_norm:
            return torch.einsum("btl,btle->bte", weight_BTL, x_BTLE)
        variance_BTL, mean_BTL = torch.var_mean(x_BTLE, dim=3, correction=0)
        scaled_BTL = weight_BTL * (variance_BTL + self.epsilon).rsqrt()
        centre_BT1 = (scaled_BTL * mean_BTL).sum(dim=2, keepdim=True)
        return torch.einsum("btl,btle->bte", scaled_BTL, x_BTLE) - centre_BT1


def layer_shares(encoders: nn.ModuleDict) -> dict[str, float]:
    """`mix.audio.0`, ...: shares of the layers that encoders mix, in the order they are read in."""
    return {
        f"mix.{name}.{layer}": share
        for name, encoder in encoders.items()
        for module in encoder.modules()
        if isinstance(module, LayerMix) and module.logits_L is not None
        for layer, share in enumerate(module.weights_L.tolist())
    }


class StoredEncoder(nn.Module):
    """Layer mix, projection, convolutions that shorten, attention, then mean and maximum.

    The mean of the mixed rows goes into the pooled vector as well, by a way of its own: with few
    clips that is the linear probe, which the rest can only add to. Rows without times are told
    apart by their order.
    """

    def __init__(
        self,
        width: int,
        count: int,
        hidden_dim: int,
        stride: int,
        transformer_layers: int,
        attention_heads: int,
        dropout: float,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.dim = hidden_dim
        self.mix = LayerMix(count, layer_norm=layer_norm)
        self.project = nn.Linear(width, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.shorten = nn.ModuleList(
            Downsample(hidden_dim, hidden_dim, step, dropout) for step in strides(stride)
        )
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_dim, attention_heads, dropout)
            for _ in range(transformer_layers)
        )
        self.pool = nn.Linear(2 * hidden_dim + width, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
        """Rows of one layer (B, T, E) or of several (B, T, L, E) -> T / stride steps."""
        x_BTLE = (x.unsqueeze(2) if x.ndim == 3 else x).to(self.project.weight.dtype)
        here = mask_BT[:, :, None, None]
        return self.encode(torch.where(here, x_BTLE, x_BTLE.new_zeros(())), mask_BT, times_BT)

    def encode(self, x_BTLE: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
        """The same of rows that are finite everywhere."""
        mixed_BTE = self.mix(x_BTLE)
        sequence_BTD, steps_BT = self.norm(self.project(self.dropout(mixed_BTE))), mask_BT
        step_T = torch.arange(times_BT.shape[1], device=times_BT.device)
        order_BT = (_TOKEN_S * step_T).expand(times_BT.shape)
        clock_BT = torch.where(torch.isfinite(times_BT), times_BT, order_BT)
        for shorten in self.shorten:
            sequence_BTD, steps_BT, times_BT = shorten(sequence_BTD, steps_BT, times_BT)
            clock_BT = clock_BT[:, :: shorten.stride]
        sequence_BTD = self.dropout(sequence_BTD + time_features(clock_BT, self.dim))
        for layer in self.layers:
            sequence_BTD = layer(sequence_BTD, steps_BT)
        pooled_BD = self.pool(
            torch.cat(
                [
                    self.dropout(masked_mean(mixed_BTE, mask_BT)),
                    masked_mean(sequence_BTD, steps_BT),
                    masked_max(sequence_BTD, steps_BT),
                ],
                dim=1,
            )
        )
        return Encoded(blank(sequence_BTD, steps_BT), steps_BT, pooled_BD, times_BT)


class Wav2Vec2Encoder(StoredEncoder):
    """Over hidden states of a model of the wav2vec2 family, one layer or several."""


class CLAPEncoder(StoredEncoder):
    """Over CLAP's embeddings of windows, the `clap` stream."""


class TextEmbeddingEncoder(StoredEncoder):
    """Over a text model's embeddings of tokens or of a whole text, the `text_embedding` stream."""
