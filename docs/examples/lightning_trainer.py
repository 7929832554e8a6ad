"""The model of `plain_pytorch.py` trained by Lightning.

pip install lightning
python docs/examples/lightning_trainer.py demo/corpus demo/store.zarr
"""

import sys

import lightning
import torch
from plain_pytorch import Model, datasets
from torch import nn
from torch.utils.data import DataLoader

from mmfuse.features.torch_dataset import pad


class Module(lightning.LightningModule):
    """What Lightning wants to know of the model."""

    def __init__(self, classes):
        super().__init__()
        self.model = Model(classes)

    def training_step(self, batch, _):
        """Loss of a batch."""
        return nn.functional.cross_entropy(self.model(batch), batch["label"])

    def test_step(self, batch, _):
        """Accuracy of a batch."""
        right = (self.model(batch).argmax(1) == batch["label"]).float().mean()
        self.log("accuracy", right, batch_size=len(batch["label"]))

    def configure_optimizers(self):
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), 3e-3)


def main(corpus_path, store_path, epochs=10):
    """Train, and print the accuracy on test clips."""
    lightning.seed_everything(0)
    train, test, names = datasets(corpus_path, store_path)
    trainer = lightning.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    module = Module(len(names))
    trainer.fit(module, DataLoader(train, 32, shuffle=True, collate_fn=pad))
    ((scores),) = trainer.test(module, DataLoader(test, 64, collate_fn=pad), verbose=False)
    print(f"test accuracy {scores['accuracy']:.3f} of {len(test)} clips")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
