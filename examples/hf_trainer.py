"""Train a small language model with the Hugging Face Trainer, in a process that may be killed at any moment.

Run it, kill it, run it again: it goes on from its newest whole checkpoint and ends with the same weights.

    python examples/hf_trainer.py runs/hf

SIGTERM lets it finish the step, save, and exit with code 75 (EX_TEMPFAIL): "start me again". A scheduler that
knows that code needs nothing else; elsewhere `until python examples/hf_trainer.py runs/hf; do :; done` will do.
"""

import logging
import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from crashproof.adapters.transformers import CrashproofCallback


class CountingText(Dataset):
    """Sequences that count upwards from anywhere, in steps of one or two: something that can be learnt."""

    def __init__(self, num_samples: int) -> None:
        self.starts = torch.randint(64, (num_samples, 2), generator=torch.Generator().manual_seed(7))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start, step = self.starts[index]
        tokens = (start + torch.arange(16) * (1 + step % 2)) % 64
        return {"input_ids": tokens, "labels": tokens}


def make_trainer(output_dir: Path, *, trainer_class: type[Trainer] = Trainer) -> Trainer:
    """A Trainer as anybody would write it: dropout, accumulation, evaluation, a limit of checkpoints."""
    set_seed(7)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2))
    args = TrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=24,
        learning_rate=1e-3,
        warmup_steps=4,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=4,
        save_steps=4,
        save_total_limit=3,
        seed=7,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return trainer_class(model, args, train_dataset=CountingText(75), eval_dataset=CountingText(8))


def main(output_dir: Path, *, trainer_class: type[Trainer] = Trainer) -> int:
    """Train, or go on training; the exit code."""
    trainer = make_trainer(output_dir, trainer_class=trainer_class)
    hold = CrashproofCallback(trainer)
    trainer.train(resume_from_checkpoint=hold.newest_checkpoint())
    if hold.was_preempted:
        return hold.exit_code
    trainer.save_model(str(output_dir / "final"))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/hf")))
