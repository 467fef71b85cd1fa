"""The order of training rows: forget and retain rows alternate, whatever the sizes of the two sets."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class AlternatingSampler(Sampler[int]):
    """
    Indices of a dataset that holds the forget rows first and the retain rows after them.

    An epoch is one pass over the forget set. Each forget row is followed by its share of retain rows, so that every
    batch holds both in the same ratio. Retain rows are drawn without repetition until the whole set has been seen, over
    as many epochs as that takes: with a retain set larger than the forget set, every epoch sees other rows.

    Args:
        num_forget (`int`):
            Number of forget rows.
        num_retain (`int`):
            Number of retain rows.
        retain_per_forget (`float`):
            Retain rows for each forget row.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order.
    """

    def __init__(self, num_forget: int, num_retain: int, retain_per_forget: float, seed: int = 0):
        self.num_forget = num_forget
        self.num_retain = num_retain
        self.retain_per_epoch = max(1, round(num_forget * retain_per_forget))
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """
        Choose the epoch, so that its order does not depend on what ran before (as after resuming).

        Args:
            epoch (`int`):
                Number of the epoch, from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_forget + self.retain_per_epoch

    def _permutation(self, length: int, *key: int) -> list[int]:
        # A generator of its own for each (seed, set, pass), whatever ran before.
        return np.random.default_rng([self.seed, *key]).permutation(length).tolist()

    def __iter__(self) -> Iterator[int]:
        forget = self._permutation(self.num_forget, 0, self.epoch)
        first = self.epoch * self.retain_per_epoch
        passes: dict[int, list[int]] = {}
        retain = []
        for position in range(first, first + self.retain_per_epoch):
            number, offset = divmod(position, self.num_retain)
            if number not in passes:
                passes[number] = self._permutation(self.num_retain, 1, number)
            retain.append(self.num_forget + passes[number][offset])
        # Merged by rank: the i-th of n rows stands at (i + 1/2) / n of the epoch, so any stretch has both in ratio.
        ranked = [((i + 0.5) / len(rows), index) for rows in (forget, retain) for i, index in enumerate(rows)]
        return iter([index for _, index in sorted(ranked, key=lambda pair: pair[0])])


class EpochCallback(TrainerCallback):
    """
    Tells the sampler the epoch. The trainer does not reach it through the wrappers of a resumed run on many processes.

    Args:
        sampler ([`AlternatingSampler`]):
            The sampler.
    """

    def __init__(self, sampler: AlternatingSampler):
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Before the epoch's first batch is drawn."""
        self.sampler.set_epoch(int(state.epoch))
