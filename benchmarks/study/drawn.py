"""Wrong answers drawn from the target itself, as `uld augment --drawn_by` makes them."""

from authors import COLUMNS, Split, to_training
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld_hf.data.augmentation_drawn import draw_wrong_answers


def retain_and_drawn(split: Split, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> Dataset:
    """The retain set, and four wrong answers or fewer to each forget question, as prompt and completion."""
    sets = (split.forget.select_columns(COLUMNS), split.retain.select_columns(COLUMNS))
    return to_training(draw_wrong_answers(*sets, target, tokenizer, seed).wording)
