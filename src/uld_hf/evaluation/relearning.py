"""How soon weights learn again what they have forgotten: an attack that finetunes them."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from ..modeling_uld import ULDForCausalLM


@dataclass(frozen=True)
class Relearning:
    """
    What an attack brought back.

    Args:
        steps (`int`, *optional*):
            Optimizer steps at the first test at which enough was back; `None` if it never was.
        remembered (`list[float]`):
            What every test said; the first is of the model as it was given.
    """

    steps: int | None
    remembered: list[float]


def relearn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    remembered: Callable[[PreTrainedModel], float],
    until: float,
    learning_rate: float = 3e-4,
    rows_per_step: int = 4,
    test_every: int = 4,
    max_steps: int = 120,
    seed: int = 0,
) -> Relearning:
    """
    Finetune a copy of a model until enough of what it forgot is back.

    All weights are trained in float32, by AdamW at a constant learning rate.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. It is not changed.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows ([`~datasets.Dataset`]):
            What it is taught, in any format that [`~trl.SFTTrainer`] takes: what was forgotten, a part of it, or
            something else.
        remembered (`Callable`):
            Says of a model how much it remembers, e.g. the share of right answers.
        until (`float`):
            How much is enough.
        learning_rate (`float`, *optional*, defaults to `3e-4`):
            Learning rate.
        rows_per_step (`int`, *optional*, defaults to `4`):
            Rows of an optimizer step.
        test_every (`int`, *optional*, defaults to `4`):
            Steps between two tests.
        max_steps (`int`, *optional*, defaults to `120`):
            Steps after which the attack gives up.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the rows' order.

    Returns:
        [`Relearning`]: The steps it took, and the tests.

    Raises:
        TypeError: If the model is an [`ULDForCausalLM`]: its weights have not forgotten.
        ValueError: If the model is quantized, there are no rows, or a number of steps or rows is below 1.
    """
    if isinstance(model, ULDForCausalLM):
        raise TypeError("An unlearned model's weights are the target's, which have forgotten nothing: bake it first.")
    if "quantization_config" in vars(model.config):
        raise ValueError("The model is quantized, and relearning trains all weights: load it as it was saved.")
    for name, value in {"rows_per_step": rows_per_step, "test_every": test_every, "max_steps": max_steps}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if len(rows) == 0:
        raise ValueError("There are no rows to teach the model.")
    student = copy.deepcopy(model).float().requires_grad_(True).eval()
    test = _Test(remembered, until, test_every, max_steps)
    test(student, step=0)
    if test.steps is None:
        with tempfile.TemporaryDirectory() as folder:
            args = SFTConfig(
                folder,
                max_steps=max_steps,
                per_device_train_batch_size=rows_per_step,
                learning_rate=learning_rate,
                lr_scheduler_type="constant",
                max_length=None,  # trl would cut long rows, and drop those of which the prompt is long
                gradient_checkpointing=None,
                bf16=False,
                use_cpu=student.device.type == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=seed,
            )
            own = copy.deepcopy(tokenizer)  # trl may give it a padding token
            trainer = SFTTrainer(student, args, train_dataset=rows, processing_class=own, callbacks=[test])
            trainer.remove_callback(PrinterCallback)  # a line of JSON for every attack
            trainer.train()
    return Relearning(test.steps, test.remembered)


class _Test(TrainerCallback):
    """Looks now and then at how much is back, and stops when it is enough."""

    def __init__(self, remembered: Callable[[PreTrainedModel], float], until: float, every: int, last: int):
        self.ask = remembered
        self.until = until
        self.every = every
        self.last = last
        self.remembered: list[float] = []
        self.steps: int | None = None

    def __call__(self, model: PreTrainedModel, step: int) -> None:
        self.remembered.append(self.ask(model))
        if self.remembered[-1] >= self.until:
            self.steps = step

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        step = state.global_step
        if step % self.every and step != self.last:
            return
        model.eval()
        self(model, step)
        model.train()
        control.should_training_stop |= self.steps is not None
