"""Two processes change a model's weights as one does: this file is also the script that each of them runs."""

import os
import sys
from pathlib import Path

import torch
from families import make_tokenizer, tiny_model
from processes import end_together
from test_trainer_ddp import make_rows

from uld_hf import UnlearnConfig, UnlearnTrainer


# What is averaged over rows and over tokens, with a reference remembered, copied, and none; rows per micro-batch and
# micro-batches per step, so that in one of them a process sees one kind of rows only.
METHODS = {
    "npo kl": (("npo", "kl"), (2, 2)),
    "dpo nll": (("dpo", "nll"), (4, 1)),
    "simnpo nll": (("simnpo", "nll"), (1, 4)),
    "rmu activations": (("rmu", "activations"), (2, 2)),
}


def train(output_dir: Path, method: str, batch_size: int, steps: int) -> dict[str, torch.Tensor]:
    """The weights after two epochs of 12 forget rows, eight rows to a step in every layout."""
    (loss_type, retain_loss_type), _ = METHODS[method]
    args = UnlearnConfig(
        str(output_dir),
        loss_type=loss_type,
        retain_loss_type=retain_loss_type,
        retain_weight=1.0,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=steps,
        num_train_epochs=2,
        optim="sgd",  # unlike Adam, it does not blow up the last digits of a gradient
        learning_rate=1e-4 if loss_type == "rmu" else 0.02,
        warmup_steps=0,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = {"forget_dataset": make_rows(12, seed=0), "retain_dataset": make_rows(30, seed=1)}
    trainer = UnlearnTrainer(tiny_model("llama"), args, **rows, processing_class=make_tokenizer())
    trainer.train()
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def main(folder: Path) -> None:
    """What each process does."""
    for method, (_, layout) in METHODS.items():
        torch.save(train(folder / method, method, *layout), folder / f"{method}-{os.environ['RANK']}.pt")
    end_together()


# One test, or the processes would be started by each worker that has one of the methods.
def test_two_processes_end_with_the_weights_of_one(left_by_two: Path, tmp_path: Path) -> None:
    before = dict(tiny_model("llama").named_parameters())
    for method in METHODS:
        first, second = (torch.load(left_by_two / f"{method}-{rank}.pt") for rank in (0, 1))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        alone = train(tmp_path / method, method, 8, 1)
        assert max((alone[name] - before[name]).abs().max().item() for name in alone) > 1e-3
        torch.testing.assert_close(first, alone, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
