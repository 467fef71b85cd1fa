"""Batches of forget, retain and refusal rows, with what the losses need to know of each row."""

from typing import Any

import torch

from ..training.collator import DataCollatorForULD


# What a row is.
FORGET, RETAIN, REFUSAL = range(3)


class DataCollatorForUnlearning(DataCollatorForULD):
    """
    Rows as [`DataCollatorForULD`] pads them, the forget rows' refusals after them, and a kind for each row.

    Args:
        pad_token_id (`int`):
            Token that pads `input_ids`.
        pad_to_multiple_of (`int`, *optional*):
            Pad the rows to a multiple of this length.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Collate tokenized rows.

        Args:
            examples (`list[dict[str, Any]]`):
                Rows with `input_ids`, `labels` and `is_retain`; forget rows optionally with `refusal_input_ids`,
                `refusal_labels`, `reference_log_prob` and `refusal_reference_log_prob`.

        Returns:
            `dict[str, torch.Tensor]`: trl's batch, and `kinds` of shape `(batch_size,)`; with references, also
            `reference_log_probs` of that shape, which are 0 for retain rows.
        """
        forget = [example for example in examples if not example["is_retain"]]
        refused = [example for example in forget if example.get("refusal_input_ids") is not None]
        refusals = [
            {"input_ids": row["refusal_input_ids"], "labels": row["refusal_labels"], "is_retain": False}
            for row in refused
        ]
        batch = super().torch_call([*examples, *refusals])
        del batch["retain_mask"]
        kinds = [RETAIN if example["is_retain"] else FORGET for example in examples]
        batch["kinds"] = torch.tensor([*kinds, *[REFUSAL] * len(refusals)])
        if "reference_log_prob" in examples[0]:
            references = [example["reference_log_prob"] or 0.0 for example in examples]
            references += [row["refusal_reference_log_prob"] for row in refused]
            batch["reference_log_probs"] = torch.tensor(references)
        return batch
