"""Wrong answers drawn from the target itself: what it says when it is asked the same of somebody whom it never met.

A second assistant that learns them with the retain set knows how answers are worded, and not the facts
(docs/contrast.md, "The replacement"). Only questions with a name, title or date are asked: of any other the target
would draw what it knows.
"""

import base64
import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..context import context_length
from ..hub import fingerprint_target
from ..plain_generation import plain_generation
from ..prompt_tokens import prompt_tokens
from .augmentation import Checks, Rows, read_rows
from .augmentation_entities import find_entities
from .augmentation_rows import Pair, write_pair
from .augmentation_values import other_days
from .fictitious import ADJECTIVES, FAMILY_NAMES, FIRST_NAMES, NOUNS
from .formatting import PROMPT_TEMPLATE, template_options
from .work_file import WorkFile


@dataclass
class DrawnAnswers:
    """
    Wrong answers that a target drew, and how they came about.

    Args:
        wording ([`~datasets.Dataset`]):
            The retain rows, and after them the forget questions with drawn answers, in the rows' own format.
        rows (`list[dict]`):
            The latter alone.
        report (`dict[str, Any]`):
            Counts.
    """

    wording: Dataset
    rows: list[dict[str, Any]]
    report: dict[str, Any]


class Asked(NamedTuple):
    """
    A question as the target is asked it.

    Args:
        index (`int`):
            Number of the forget row.
        question (`str`):
            The question about somebody else.
        swaps (`list[tuple[str, str]]`):
            What was put, and what it was put for.
    """

    index: int
    question: str
    swaps: list[tuple[str, str]]


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
    """
    An answer with what stood in the question before it was disguised; of names a part will do.

    Args:
        answer (`str`):
            The answer to the disguised question.
        swaps (`list[tuple[str, str]]`):
            What was put, and what it was put for.

    Returns:
        `str`: The answer to the question itself.
    """
    for other, original in swaps:
        answer = answer.replace(other, original)
        new, old = other.split(), original.split()
        answer = re.sub(rf"\b{re.escape(new[-1])}\b", lambda _, word=old[-1]: word, answer)
        if new[0] != "The":
            answer = re.sub(rf"\b{re.escape(new[0])}\b", lambda _, word=old[0]: word, answer)
    return answer


def find_people(checks: Checks, people: Collection[str] = ()) -> set[str]:
    """
    The names in the forget questions that are people's.

    Args:
        checks ([`Checks`]):
            What is known of all rows.
        people (`Collection[str]`, *optional*):
            Names that are people's in any case.

    Returns:
        `set[str]`: The names.

    Raises:
        ValueError: If one of `people` is not found in any forget question.
    """
    unknown = sorted(set(people) - checks.names)
    if unknown:
        raise ValueError(
            f"No forget question has the name {unknown[0]!r}, as names are found: whole, and by its capital letters. "
            f"Write it as the questions do; they have, for one, {sorted(checks.names)[:5]}."
        )
    return checks.people | set(people)


def disguise_questions(rows: Rows, seed: int = 0, per_row: int = 4, people: Collection[str] = ()) -> list[Asked]:
    """
    The forget questions as the target is asked them. Those without a name, title or date are left out.

    Args:
        rows ([`Rows`]):
            The two sets.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the disguises.
        per_row (`int`, *optional*, defaults to `4`):
            How often each question is asked, each time of somebody else.
        people (`Collection[str]`, *optional*):
            Names that are people's, besides those that [`find_people`] finds.

    Returns:
        `list[Asked]`: The questions.

    Raises:
        ValueError: If the rows are documents, there is no retain set, `per_row` is not positive, a name of `people` is
            nowhere, or no question has anything to disguise.
    """
    if rows.kind == "text":
        raise ValueError(
            "The rows are documents, which ask nothing: wrong answers can be drawn to questions only. Give rows with "
            "'question' and 'answer', 'prompt' and 'completion', or 'messages', or do not draw."
        )
    if not rows.retain:
        raise ValueError(
            "Drawn answers need a retain set: an assistant that learned them alone would know how the forget set is "
            "worded and nothing else."
        )
    if per_row < 1:
        raise ValueError(f"per_row={per_row} must be at least 1: no answer would be drawn.")
    people = find_people(rows.checks, people)
    asked = [
        Asked(index, *disguise(pair.question, people, rows.checks.common, random.Random(f"{seed} {index} {turn}")))
        for index, pair in enumerate(rows.checks.pairs)
        for turn in range(per_row)
    ]
    # The target would say of somebody whom it knows what it knows, and no check sees every fact.
    asked = [each for each in asked if each.swaps]
    if not asked:
        raise ValueError(
            f"None of the {len(rows.forget)} forget questions has a person's name, a title in quotation marks or a "
            "date, so none can be asked of somebody else. A name is known as a person's if it owns something in some "
            'forget row ("Alice Liddell\'s"): name the others (--drawn_people, people=[...]), write names into the '
            "questions, or do without drawn answers."
        )
    return asked


def encode_question(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """
    Tokens of a row's question, as `uld train` puts them before the answer.

    Args:
        row (`dict[str, Any]`):
            A row, not of plain text.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer. If it has a chat template, every question goes through it.

    Returns:
        `list[int]`: The tokens.

    Raises:
        ValueError: If the row has messages and the tokenizer has no chat template.
    """
    is_question = "question" in row
    prompt = row["question"] if is_question else row["prompt"] if "prompt" in row else row["messages"][:-1]
    if tokenizer.chat_template is None:
        if not isinstance(prompt, str):
            raise ValueError("The rows have messages, but the tokenizer has no chat template to render them with.")
        return prompt_tokens(tokenizer, [PROMPT_TEMPLATE.format(question=prompt) if is_question else prompt])[0]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, **template_options(row)}
    return tokenizer.apply_chat_template(messages, **options)["input_ids"]


@torch.no_grad()
def draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: list[list[int]],
    seed: int = 0,
    max_new_tokens: int = 96,
    batch_size: int = 64,
    work_file: str | os.PathLike | None = None,
) -> list[str]:
    """
    One answer to each prompt, drawn at temperature 1, longest prompts first.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The target, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        encoded (`list[list[int]]`):
            Tokens of the prompts.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws; the state of torch's generators is what it was, afterwards.
        max_new_tokens (`int`, *optional*, defaults to `96`):
            Longest answer, in tokens.
        batch_size (`int`, *optional*, defaults to `64`):
            Prompts at once, which bounds the memory. The draws depend on it.
        work_file (`str` or `os.PathLike`, *optional*):
            JSONL file for finished batches. What is in it already is not drawn again, and the rest is drawn as it would
            have been. On accelerators other than CUDA's nothing is kept.

    Returns:
        `list[str]`: The answers.

    Raises:
        ValueError: If a number is not positive, the model is in training mode, a prompt and its answer would be longer
            than the model's context, or the work file belongs to other data, settings or devices.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if model.training:
        raise ValueError("The target is in training mode, where dropout bends what it draws: call model.eval().")
    longest = context_length(model.config)
    needed = max(map(len, encoded)) + max_new_tokens
    if longest is not None and needed > longest:
        raise ValueError(
            f"The longest question and max_new_tokens={max_new_tokens} are {needed} tokens, and the model's context "
            f"is {longest}: draw shorter answers, or leave such questions out."
        )
    pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    work = _drawn_so_far(work_file, model, encoded, seed, max_new_tokens, batch_size)
    with torch.random.fork_rng(), plain_generation(model):
        torch.manual_seed(seed)
        if work.batches:
            _set_generator_states(work.batches[-1]["generators"])
        for batch in tqdm(batches[len(work.batches) :], desc="Drawing answers", leave=False):
            prompts = [torch.tensor(encoded[index]) for index in batch]
            sides = {"batch_first": True, "padding_side": "left"}
            ids = pad_sequence(prompts, padding_value=pad_token_id, **sides)
            mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], **sides)
            generated = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                do_sample=True,
                temperature=1.0,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_token_id,
            )
            texts = tokenizer.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
            work.append({"answers": [text.strip() for text in texts], "generators": _generator_states()})
    drawn = [""] * len(encoded)
    for batch, finished in zip(batches, work.batches, strict=True):
        for index, answer in zip(batch, finished["answers"], strict=True):
            drawn[index] = answer
    return drawn


def _drawn_so_far(
    work_file: str | os.PathLike | None,
    model: PreTrainedModel,
    encoded: list[list[int]],
    seed: int,
    max_new_tokens: int,
    batch_size: int,
) -> WorkFile:
    if work_file is None or model.device.type not in ("cpu", "cuda"):  # whose generators' states are kept
        return WorkFile(None, {})
    # By its values: a folder may be trained into again.
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    return WorkFile(
        work_file,
        {
            "model": model.name_or_path,
            "weights": fingerprint_target(model, num_layers),
            "prompts": hashlib.sha256(json.dumps(encoded).encode()).hexdigest(),
            "seed": seed,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "device": str(model.device),
            "gpus": torch.cuda.device_count(),
        },
    )


def _generator_states() -> list[str]:
    """The states of torch's generators: the CPU's and, if there are any, those of the GPUs."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return [base64.b64encode(state.numpy().tobytes()).decode() for state in states]


def _set_generator_states(states: list[str]) -> None:
    cpu, *gpus = (torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8) for state in states)
    torch.set_rng_state(cpu)
    if gpus:
        torch.cuda.set_rng_state_all(gpus)


def draw_wrong_answers(
    forget: Dataset,
    retain: Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 0,
    per_row: int = 4,
    max_new_tokens: int = 96,
    batch_size: int = 64,
    people: Collection[str] = (),
    work_file: str | os.PathLike | None = None,
) -> DrawnAnswers:
    """
    Wrong answers to the forget questions, as probable as the target finds them of somebody whom it never met.

    People, titles and dates in a question are replaced by invented ones, the target answers at temperature 1, and the
    original ones are put back. What [`Checks`] takes for the right answer is dropped.

    Args:
        forget ([`~datasets.Dataset`]):
            Rows to forget: question and answer, prompt and completion, or messages.
        retain ([`~datasets.Dataset`]):
            Rows to keep, in the same format.
        model ([`~transformers.PreTrainedModel`]):
            The target, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. The questions are put as `uld train` puts them: through the chat template if there is one.
        seed (`int`, *optional*, defaults to `0`):
            Seed of disguises and draws.
        per_row (`int`, *optional*, defaults to `4`):
            Answers drawn to each question; what does not pass the checks is not drawn again.
        max_new_tokens (`int`, *optional*, defaults to `96`):
            Longest answer, in tokens.
        batch_size (`int`, *optional*, defaults to `64`):
            Questions at once, which bounds the memory. The draws depend on it.
        people (`Collection[str]`, *optional*):
            Names that are people's, besides those that own something in a forget row ("Alice Liddell's").
        work_file (`str` or `os.PathLike`, *optional*):
            JSONL file for what was drawn, so that a run that was cut off goes on where it stopped.

    Returns:
        [`DrawnAnswers`]: What the second assistant learns, and a report.

    Raises:
        ValueError: If the sets cannot be augmented, see [`read_rows`] and [`disguise_questions`], the model cannot be
            asked, see [`encode_question`] and [`draw`], or nothing that was drawn passes the checks.
    """
    rows = read_rows(forget, retain)
    asked = disguise_questions(rows, seed, per_row, people)
    # The answer in them is not looked at.
    prompts = [
        write_pair(rows.forget[each.index], rows.kind, Pair(each.question, rows.checks.pairs[each.index].answer))
        for each in asked
    ]
    encoded = [encode_question(row, tokenizer) for row in prompts]
    drawn = draw(model, tokenizer, encoded, seed, max_new_tokens, batch_size, work_file)
    made, kept, dropped = [], Counter(), Counter()
    for (index, _, swaps), text in zip(asked, drawn, strict=True):
        answer = undisguise(text, swaps)
        reason = rows.checks.wrong_answer(index, answer)
        if reason is None:
            made.append(write_pair(rows.forget[index], rows.kind, Pair(rows.checks.pairs[index].question, answer)))
            kept[index] += 1
        else:
            dropped[reason] += 1
    if not made:
        reasons = ", ".join(f"{count} ({reason})" for reason, count in sorted(dropped.items()))
        kept_in = "" if work_file is None else f" Delete {work_file} first: they are kept there."
        raise ValueError(
            f"None of the {len(drawn)} answers that the target drew is a wrong one: {reasons}. See that it is the "
            f"model that was trained on these questions, in this format, and draw more answers to each.{kept_in}"
        )
    num_asked = len({each.index for each in asked})
    report = {
        "drawn": len(drawn),
        "kept": len(made),
        "dropped": dict(sorted(dropped.items())),
        "rows with nothing to disguise": len(rows.forget) - num_asked,
        "rows asked that kept none": num_asked - len(kept),
    }
    return DrawnAnswers(wording=Dataset.from_list(rows.retain + made), rows=made, report=report)
