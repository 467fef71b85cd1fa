"""Ctrl-C during a training: the step is finished, a checkpoint is written, and only then is it over."""

import re
import shlex
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from . import output


# What a person sends from the keyboard, and a cluster before it takes the machine away.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The token of the Hub in the JSON of --model_init_kwargs.
_TOKEN_IN_JSON = re.compile(r'("token"\s*:\s*")[^"]*(?=")')


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


def train_until_done(trainer: Trainer, command: Sequence[str]) -> dict[str, float]:
    """
    Train, from where `resume_from_checkpoint` says; stop at Ctrl-C with a checkpoint.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer.
        command (`Sequence[str]`):
            The command line, to say how to go on.

    Returns:
        `dict[str, float]`: The last value of everything that was logged.

    Raises:
        KeyboardInterrupt: At Ctrl-C, after a checkpoint, saying how to go on.
    """
    interrupt = SaveOnInterrupt()
    trainer.add_callback(interrupt)
    output.hush(trainer)
    try:
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    finally:
        interrupt.restore()
    state = trainer.state
    if interrupt.interrupted:
        again = without_tokens([*without_resuming(command), "--resume_from_checkpoint", "True"])
        raise KeyboardInterrupt(
            f"stopped after step {state.global_step} of {state.max_steps}, saved in {trainer.args.output_dir}. Go on "
            f"with:\n  {again}"
        )
    return {name: value for entry in state.log_history for name, value in entry.items()}


def without_resuming(argv: Sequence[str]) -> list[str]:
    """
    A command line less its `--resume_from_checkpoint`.

    Args:
        argv (`Sequence[str]`):
            The command line.

    Returns:
        `list[str]`: The rest of it.
    """
    name = "--resume_from_checkpoint"
    return [
        part
        for index, part in enumerate(argv)
        if part != name and not part.startswith(f"{name}=") and (index == 0 or argv[index - 1] != name)
    ]


def without_tokens(argv: Sequence[str]) -> str:
    """
    A command line to be copied into a shell. Logs keep what is printed, so that tokens of the Hub are left out.

    Args:
        argv (`Sequence[str]`):
            The command line.

    Returns:
        `str`: Its words in quotes where they need them; a token is what the shell has in `HF_TOKEN`.
    """
    shown: list[str] = []
    is_token = False  # the option before it says so
    for part in argv:
        option, equals, _ = part.partition("=")
        takes_token = option.replace("-", "_") == "__hub_token"  # it has both spellings
        if is_token:
            shown.append('"$HF_TOKEN"')
        elif takes_token and equals:
            shown.append(f'{option}="$HF_TOKEN"')
        else:
            # The single quotes around JSON are closed there: a shell puts nothing in between them.
            shown.append(_TOKEN_IN_JSON.sub(r"""\1'"$HF_TOKEN"'""", shlex.quote(part)))
        is_token = takes_token and not equals
    return " ".join(shown)
