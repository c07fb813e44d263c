"""Train a small model with Lightning in a program that may be killed at any moment.

Run it, kill it, run it again: it goes on in mid-epoch and ends with the same weights, bit for bit.

    python examples/lightning_trainer.py runs/lightning
"""

import argparse
import time
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from crashproof.adapters.lightning import Crashproof, ResumableLoader


class SmallModel(LightningModule):
    """Two layers with dropout; a step whose gradients are no numbers is passed over."""

    def __init__(self, width: int = 16, lr: float = 0.01, seconds_per_batch: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters("width", "lr")
        self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 1))
        self.seconds_per_batch = seconds_per_batch

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The mean squared error."""
        time.sleep(self.seconds_per_batch)  # Stands in for the work of a real step.
        inputs, targets = batch
        error = (self.layers(inputs) - targets).abs()
        self.log("largest_error", error.max())
        return error.square().mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave out what is no number."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(nan=0.0)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The same on held-out data."""
        inputs, targets = batch
        self.log("val_loss", nn.functional.mse_loss(self.layers(inputs), targets))

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW, and a rate that falls with every step."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=60)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def made_data(num_samples: int, seed: int) -> Dataset[tuple[Tensor, ...]]:
    """A noisy line; the target of the first sample is no number, as it happens in real data."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_samples, 4, generator=generator)
    targets = inputs.sum(1, keepdim=True) + 0.1 * torch.randn(num_samples, 1, generator=generator)
    targets[0] = float("nan") if seed == 1 else targets[0]
    return TensorDataset(inputs, targets)


def train(output_dir: Path, *, epochs: int = 3, save_every: int = 4, seconds_per_batch: float = 0.0) -> SmallModel:
    """Train, or go on training."""
    seed_everything(7, verbose=False)
    model = SmallModel(seconds_per_batch=seconds_per_batch)
    hold = Crashproof(output_dir)
    saving = ModelCheckpoint(
        dirpath=output_dir,
        filename="checkpoint_{step}",
        auto_insert_metric_name=False,
        every_n_train_steps=save_every,
        save_top_k=3,
        monitor="step",
        mode="max",
    )
    trainer = Trainer(
        callbacks=[hold.callback, saving],
        logger=hold.logger,
        plugins=[hold.checkpoint_io],
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=2,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        model,
        ResumableLoader(made_data(150, seed=1), batch_size=4, seed=7),
        DataLoader(made_data(32, seed=2), batch_size=16),
        ckpt_path=hold.newest_checkpoint(),
    )
    return model


def main() -> None:
    """Train, and keep the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seconds-per-batch", type=float, default=0.0)
    options = parser.parse_args()
    model = train(options.output_dir, epochs=options.epochs, seconds_per_batch=options.seconds_per_batch)
    torch.save(model.state_dict(), options.output_dir / "weights.pt")
    print(f"Done: the weights are in {options.output_dir / 'weights.pt'}.")


if __name__ == "__main__":
    main()
