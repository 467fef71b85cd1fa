"""Answers that give nothing away, which DPO prefers to those that must be forgotten."""

import random
from collections.abc import Sequence

from datasets import Dataset


# Our own wording. Short and long, with and without an excuse, so that no one phrase stands for all of them.
REFUSALS = (
    "I don't know.",
    "I don't know the answer to that.",
    "I'm not sure about this one.",
    "I have no information on that.",
    "That is something I know nothing about.",
    "Sorry, I can't tell you that.",
    "I'm afraid I don't have an answer for you.",
    "This is outside of what I know.",
    "I have never learned about this.",
    "I can't say, because I don't know.",
    "Nothing that I know answers this question.",
    "My knowledge does not cover this.",
    "I would have to guess, and I would rather not.",
    "I'm not familiar with this subject.",
    "You would have to look that up elsewhere, as I don't know.",
    "Unfortunately, I have no details about that.",
    "I don't have the facts to answer this.",
    "I really couldn't say.",
    "That is not known to me.",
    "I'm unable to answer that question.",
)


def refuse_each(forget: Dataset, refusals: Sequence[str], seed: int) -> Dataset:
    """
    The forget rows with a refusal in place of each answer.

    Args:
        forget ([`~datasets.Dataset`]):
            Rows with a prompt and a completion, plain or conversational.
        refusals (`Sequence[str]`):
            Refusals to draw from.
        seed (`int`):
            Seed of the draw.

    Returns:
        [`~datasets.Dataset`]: As many rows, in the same order.

    Raises:
        ValueError: If the rows have no prompts: there is no question to refuse.
    """
    if not {"prompt", "completion"} <= set(forget.column_names):
        raise ValueError(
            f"loss_type='dpo' needs forget rows with a question to refuse, got {sorted(forget.column_names)}. Give "
            "'prompt' and 'completion' or 'messages', or use another loss_type."
        )
    drawn = random.Random(seed).choices(refusals, k=len(forget))

    def refuse(row: dict, index: int) -> dict:
        if not isinstance(row["completion"], str):
            return {"completion": [{"role": "assistant", "content": drawn[index]}]}
        # The space belongs to the completion, as in the answer's place.
        blank = row["completion"][: len(row["completion"]) - len(row["completion"].lstrip())]
        return {"completion": f"{blank}{drawn[index]}"}

    return forget.map(refuse, with_indices=True, desc="Refusing forget dataset")
