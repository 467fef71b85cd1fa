"""The order of training rows: forget and retain rows alternate, whatever the sizes of the two sets."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


# Steps whose rows are put together by length. More leave less padding, and less of the order to chance.
_MOST_STEPS = 50
_LEAST_WINDOWS = 4  # of an epoch


def merge_by_rank(*sets: Sequence[int]) -> list[int]:
    """
    Merge sets in their order so that every stretch of the result has its share of each.

    Args:
        *sets (`Sequence[int]`):
            Indices. The i-th of n stands at (i + 1/2) / n of the result.

    Returns:
        `list[int]`: All indices.
    """
    ranked = [((i + 0.5) / len(rows), index) for rows in sets for i, index in enumerate(rows)]
    return [index for _, index in sorted(ranked, key=lambda pair: pair[0])]


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
        lengths (`Sequence[int]`, *optional*):
            Length of each row, to put rows of similar lengths into a step. Within up to 50 steps, and a quarter of the
            epoch at most, the shortest forget rows meet the shortest retain rows, and so on; the steps are then
            shuffled. Inside of a step rows are sorted, so that its micro-batches and processes need little padding too.
        rows_per_step (`int`, *optional*, defaults to `1`):
            Rows of an optimizer step, over all micro-batches and processes. Matters with `lengths` only.
    """

    def __init__(
        self,
        num_forget: int,
        num_retain: int,
        retain_per_forget: float,
        seed: int = 0,
        lengths: Sequence[int] | None = None,
        rows_per_step: int = 1,
    ):
        self.num_forget = num_forget
        self.num_retain = num_retain
        self.retain_per_epoch = max(1, round(num_forget * retain_per_forget))
        self.seed = seed
        self.lengths = lengths
        self.rows_per_step = rows_per_step
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
        order = merge_by_rank(forget, retain)
        return iter(order if self.lengths is None else self._group_by_length(order))

    def _group_by_length(self, order: list[int]) -> list[int]:
        """The same rows in each window of steps; in a step, rows of similar lengths."""
        size, num_steps = self.rows_per_step, len(order) // self.rows_per_step
        window = size * max(1, min(_MOST_STEPS, num_steps // _LEAST_WINDOWS))
        generator = np.random.default_rng([self.seed, 2, self.epoch])
        grouped = []
        for start in range(0, num_steps * size, window):
            rows = sorted(order[start : min(start + window, num_steps * size)], key=self.lengths.__getitem__)
            merged = merge_by_rank(
                [index for index in rows if index < self.num_forget],
                [index for index in rows if index >= self.num_forget],
            )
            steps = [merged[first : first + size] for first in range(0, len(merged), size)]
            for step in generator.permutation(len(steps)):
                grouped += sorted(steps[step], key=self.lengths.__getitem__)
        return grouped + sorted(order[num_steps * size :], key=self.lengths.__getitem__)


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
