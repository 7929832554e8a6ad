"""A trainer of one's own in plain PyTorch: labels of clips from log-mel frames and text tokens.

mmfeat sample demo/corpus
mmfeat run configs/late.toml
python docs/examples/plain_pytorch.py demo/corpus demo/store.zarr
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

from mmfuse.features.corpus import open_corpus
from mmfuse.features.store import open_store
from mmfuse.features.torch_dataset import pad

STREAMS = ("logmel", "text_tokens")
VOCABULARY = 2000


class Model(nn.Module):
    """Mean of the frames and mean of the tokens' embeddings, then one hidden layer."""

    def __init__(self, classes, bands=80, width=64):
        super().__init__()
        self.norm = nn.LayerNorm(bands)
        self.embed = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.head = nn.Sequential(
            nn.Linear(bands + width, width), nn.GELU(), nn.Linear(width, classes)
        )

    def forward(self, batch):
        """A batch of `pad` -> logits, (B, C)."""
        frames_BTF = self.norm(batch["logmel"].float())
        tokens_BTD = self.embed(batch["text_tokens"])
        means = [
            mean(frames_BTF, batch["logmel_rows"]),
            mean(tokens_BTD, batch["text_tokens_rows"]),
        ]
        return self.head(torch.cat(means, dim=1))


def mean(x_BTD, rows_B):
    """Mean over the rows that are no padding; 0 of clips without rows."""
    is_row_BT = torch.arange(x_BTD.shape[1]) < rows_B[:, None]
    return (x_BTD * is_row_BT[..., None]).sum(1) / rows_B.clamp(min=1)[:, None]


def datasets(corpus_path, store_path):
    """The train and the test split, and the names of the classes."""
    clips = [clip for clip in open_corpus(corpus_path).labels() if clip.label and clip.split]
    names = sorted({clip.label for clip in clips})
    labels = {clip.id: names.index(clip.label) for clip in clips}
    store = open_store(store_path)
    stored = set(store["logmel"].ids) | set(store["text_tokens"].ids)
    splits = {
        split: store.as_torch_dataset(
            STREAMS,
            [clip.id for clip in clips if clip.split == split and clip.id in stored],
            labels=labels,
        )
        for split in ("train", "test")
    }
    return splits["train"], splits["test"], names


def main(corpus_path, store_path, epochs=10):
    """Train, and print the accuracy on test clips."""
    torch.manual_seed(0)
    train, test, names = datasets(corpus_path, store_path)
    model = Model(len(names))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    loader = DataLoader(train, 32, shuffle=True, collate_fn=pad, num_workers=2)
    for epoch in range(epochs):
        total = 0.0
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch["label"])
        print(f"epoch {epoch}: loss {total / len(train):.3f}")
    model.eval()
    with torch.no_grad():
        batches = DataLoader(test, 64, collate_fn=pad)
        right = sum(int((model(b).argmax(1) == b["label"]).sum()) for b in batches)
    print(f"test accuracy {right / len(test):.3f} of {len(test)} clips")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
