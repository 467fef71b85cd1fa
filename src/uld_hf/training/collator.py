"""Batches of forget and retain rows, with a mask that says which token is which."""

from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad


@dataclass
class DataCollatorForULD(DataCollatorForLanguageModeling):
    """
    trl's language modeling collator, plus `retain_mask`.

    The mask is per token, not per row, so rows may be padded or flattened into one.

    Args:
        pad_token_id (`int`):
            Token that pads `input_ids`.
        padding_free (`bool`, *optional*, defaults to `False`):
            Flatten the rows into one, instead of padding them.
        pad_to_multiple_of (`int`, *optional*):
            Pad the rows to a multiple of this length.

    Example:

    ```python
    >>> collator = DataCollatorForULD(pad_token_id=0)
    >>> batch = collator([{"input_ids": [1, 2, 3], "is_retain": False}, {"input_ids": [4, 5], "is_retain": True}])
    >>> batch["retain_mask"]
    tensor([[False, False, False],
            [ True,  True, False]])
    ```
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Collate tokenized rows.

        Args:
            examples (`list[dict[str, Any]]`):
                Rows with `input_ids`, `labels` and `is_retain`.

        Returns:
            `dict[str, torch.Tensor]`: trl's batch, and `retain_mask` of shape `(batch_size, sequence_length)`. Without
            padding, also `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q`, `max_length_k`: where rows begin.
        """
        batch = super().torch_call(examples)
        masks = [torch.full((len(example["input_ids"]),), bool(example["is_retain"])) for example in examples]
        if self.padding_free:
            if "cu_seq_lens_q" not in batch:  # where rows begin: trl says so from 1.16 on
                positions = batch["position_ids"][0]
                ends = torch.cat([(positions == 0).nonzero()[:, 0], torch.tensor([len(positions)])]).int()
                batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = ends
                batch["max_length_q"] = batch["max_length_k"] = int(ends.diff().max())
            masks = [torch.cat(masks)]
        batch["retain_mask"] = pad(
            masks, padding_value=False, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of
        )
        return batch
