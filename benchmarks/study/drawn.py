"""Wrong answers drawn from the target itself: what it says when it is asked the same of somebody whom it never met."""

import random
import re
from collections.abc import Collection

import torch
from authors import COLUMNS, Split, to_training
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld_hf.data.augmentation import read_rows
from uld_hf.data.augmentation_entities import find_entities
from uld_hf.data.augmentation_rules import other_days
from uld_hf.data.fictitious import ADJECTIVES, FAMILY_NAMES, FIRST_NAMES, NOUNS
from uld_hf.data.formatting import PROMPT_TEMPLATE
from uld_hf.evaluation.encoding import encode_prompts, pad


PER_ROW = 4
MAX_NEW_TOKENS = 96
BATCH_SIZE = 64


def disguise(
    question: str, people: Collection[str], common: frozenset[str], rng: random.Random
) -> tuple[str, list[tuple[str, str]]]:
    """
    A question with other people, titles and dates.

    Args:
        question (`str`):
            The question.
        people (`Collection[str]`):
            The names that are people's.
        common (`frozenset[str]`):
            Words that are no names at the start of a sentence.
        rng (`random.Random`):
            Source of the choices.

    Returns:
        `tuple[str, list[tuple[str, str]]]`: The question, and what was put for what.
    """
    swaps = []
    for entity in reversed(find_entities(question, common)):
        if entity.text in people:
            other = f"{rng.choice(FIRST_NAMES)} {rng.choice(FAMILY_NAMES)}"
        elif entity.kind == "title":
            other = f"The {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
        elif entity.kind == "date":
            (other,) = other_days(entity.text, rng, 1)
        else:
            continue
        swaps.append((other, entity.text))
        question = question[: entity.start] + other + question[entity.end :]
    return question, swaps


def undisguise(answer: str, swaps: list[tuple[str, str]]) -> str:
    """An answer with what stood in the question before it was disguised; of names a part will do."""
    for other, original in swaps:
        answer = answer.replace(other, original)
        new, old = other.split(), original.split()
        answer = re.sub(rf"\b{re.escape(new[-1])}\b", lambda _, word=old[-1]: word, answer)
        if new[0] != "The":
            answer = re.sub(rf"\b{re.escape(new[0])}\b", lambda _, word=old[0]: word, answer)
    return answer


@torch.no_grad()
def draw(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], seed: int) -> list[str]:
    """One answer to each prompt, drawn at temperature 1."""
    encoded, pad_token_id = encode_prompts(model, tokenizer, prompts, MAX_NEW_TOKENS)
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    drawn = [""] * len(encoded)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(order), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            ids, mask = pad([encoded[index] for index in batch], pad_token_id, left=True)
            generated = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=MAX_NEW_TOKENS,
                pad_token_id=pad_token_id,
            )
            texts = tokenizer.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                drawn[index] = text.strip()
    return drawn


def drawn_rows(
    split: Split, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> list[dict[str, str]]:
    """
    Wrong answers to the forget questions, as probable as the target finds them of somebody whom it never met.

    Args:
        split ([`Split`]):
            The forget set.
        target ([`~transformers.PreTrainedModel`]):
            The target.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        seed (`int`):
            Seed of disguises and draws.

    Returns:
        `list[dict[str, str]]`: Questions and answers, four of each row or fewer: what tells the facts after all is
        left out.
    """
    forget = split.forget.select_columns(COLUMNS)
    checks = read_rows(forget, split.retain).checks
    texts = "\n".join(text for pair in checks.pairs for text in pair)
    names = {
        entity.text
        for pair in checks.pairs
        for entity in find_entities(pair.question, checks.common)
        if entity.kind == "name"
    }
    # Who owns something is somebody.
    people = {name for name in names if re.search(rf"\b{re.escape(name)}['\u2019]s\b", texts)}
    asked = [
        (index, *disguise(row["question"], people, checks.common, random.Random(f"{seed} {index} {turn}")))
        for index, row in enumerate(forget)
        for turn in range(PER_ROW)
    ]
    drawn = draw(target, tokenizer, [PROMPT_TEMPLATE.format(question=question) for _, question, _ in asked], seed)
    rows = []
    for (index, _, swaps), text in zip(asked, drawn, strict=True):
        answer = undisguise(text, swaps)
        if checks.wrong_answer(index, answer) is None:
            rows.append({"question": forget[index]["question"], "answer": answer})
    return rows


def retain_and_drawn(split: Split, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> Dataset:
    """The retain set and [`drawn_rows`], as prompt and completion."""
    retain = split.retain.select_columns(COLUMNS).to_list()
    return to_training(Dataset.from_list(retain + drawn_rows(split, target, tokenizer, seed)))
