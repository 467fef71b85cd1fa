"""Ctrl-C during a training: the step is finished, a checkpoint is written, and only then is it over."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from . import output


# What a person sends from the keyboard, and a cluster before it takes the machine away.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SaveOnInterrupt(TrainerCallback):
    """
    Ends a training at the first signal, with a checkpoint; a second signal ends it at once, without.

    All processes of a training end at the same step: the first to be told tells the others.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt("interrupted, without saving.")
        self.interrupted = True
        output.note("\nInterrupted: finishing this step and saving. Once more stops at once, without saving.")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listen; only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop if any process was told to."""
        if args.world_size > 1:
            told = torch.tensor(float(self.interrupted), device=args.device)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
            self.interrupted = bool(told)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
