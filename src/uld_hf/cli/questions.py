"""Questions from files, put to a model as `uld train` puts them; and documents, in passages to continue."""

import difflib
import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.formatting import PROMPT_TEMPLATE, read_json_lines, template_options
from ..data.local import load_from_hub
from ..evaluation.evaluation import Question, check_fit, check_questions
from ..evaluation.verbatim import split_passages
from ..prompt_tokens import begin_token
from . import output
from .rows import check_is_json_lines


OPTIONAL_COLUMNS = {"paraphrased_answer", "paraphrased_question", "perturbed_answer"}


def read_rows(path: str) -> list[dict[str, Any]]:
    """
    Read the rows of a dataset.

    Args:
        path (`str`):
            JSONL file, or a hub id with an optional configuration after a colon.

    Returns:
        `list[dict[str, Any]]`: The rows.

    Raises:
        ValueError: If a file is not JSONL.
    """
    check_is_json_lines(path)
    return read_json_lines(path) if os.path.isfile(path) else load_from_hub(path).to_list()


def has_questions(rows: Sequence[Mapping[str, Any]]) -> bool:
    """
    Whether rows are questions and answers, and so are trained, and to be asked, in their template.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            The rows.

    Returns:
        `bool`: Whether the first row has a `question`.
    """
    return "question" in rows[0]


def documents_of(rows: Sequence[Mapping[str, Any]], source: str) -> list[str]:
    """
    Documents among the rows of a dataset.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            The rows.
        source (`str`):
            Where they are from.

    Returns:
        `list[str]`: The `text` of every row; empty where the rows are questions.

    Raises:
        ValueError: If only some rows are documents, or one is without a text.
    """
    are_documents = ["text" in row for row in rows]
    if not any(are_documents):
        return []
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row.get("text"), str) and row["text"].strip()):
            raise ValueError(f"Row {number} of {source} has no text under 'text', as other rows of the file have.")
    return [row["text"] for row in rows]


def read_questions(
    path: str, tokenizer: PreTrainedTokenizerBase, prefix_tokens: int = 50, continuation_tokens: int = 50
) -> list[Question]:
    """
    Read a set of questions, or of documents, which are cut into passages to continue.

    Args:
        path (`str`):
            JSONL file (or a hub id), see [`questions_of`] for its rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer. If it has a chat template, questions go through it.
        prefix_tokens (`int`, *optional*, defaults to `50`):
            Tokens of a document that the model is shown.
        continuation_tokens (`int`, *optional*, defaults to `50`):
            Tokens that follow, which it should or should not know.

    Returns:
        `list[Question]`: The questions.

    Raises:
        ValueError: If a row is not what it must be, or a document is shorter than a passage.
    """
    return questions_of(read_rows(path), path, tokenizer, prefix_tokens, continuation_tokens)


def questions_of(
    rows: Sequence[Mapping[str, Any]],
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    prefix_tokens: int = 50,
    continuation_tokens: int = 50,
) -> list[Question]:
    """
    Questions of the rows of a dataset, or passages of its documents to continue.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            Rows with `question` and `answer`, or `prompt` and `completion`; optionally `paraphrased_answer`,
            `perturbed_answer` (a list) and `paraphrased_question`, as in TOFU, and `fact`, the words of the answer that
            must not come out. `messages` may take the place of the first two. Or rows with `text`.
        source (`str`):
            Where they are from.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer. If it has a chat template, questions go through it.
        prefix_tokens (`int`, *optional*, defaults to `50`):
            Tokens of a document that the model is shown.
        continuation_tokens (`int`, *optional*, defaults to `50`):
            Tokens that follow, which it should or should not know.

    Returns:
        `list[Question]`: The questions.

    Raises:
        ValueError: If a row lacks a question or an answer, only some rows have paraphrased or wrong answers, or a
            document is shorter than a passage.
    """
    documents = documents_of(rows, source)
    if documents:
        pairs = [
            pair
            for document in documents
            for pair in zip(*split_passages(tokenizer, document, prefix_tokens, continuation_tokens), strict=True)
        ]
        return [Question(prefix, continuation, is_passage=True) for prefix, continuation in pairs]
    _check_spelling(rows[0], source)
    questions = [_question(row, f"Row {number} of {source}", tokenizer) for number, row in enumerate(rows, start=1)]
    several = sum(sum(each["role"] == "assistant" for each in row.get("messages") or ()) > 1 for row in rows)
    if several:
        output.note(
            f"{several} of {len(rows)} rows of {source} are conversations with several answers: only the last one is "
            "asked for. Give each exchange a row of its own to have all of them."
        )
    check_questions(questions)
    return questions


def _check_spelling(row: Mapping[str, Any], path: str) -> None:
    """Of an optional column nobody would miss what a misspelt one holds, and other figures would be chosen by."""
    found = {name.lower(): name for name in row}
    for column in OPTIONAL_COLUMNS - row.keys():
        for close in difflib.get_close_matches(column, found, n=1, cutoff=0.9):
            meant = found[close]
            raise ValueError(f"The rows of {path} have {meant!r}: rename it to {column!r}, or to something unlike it.")


def check_apart(sets: Mapping[str, Sequence[Question]]) -> None:
    """
    Refuse sets that have a question and its answer in common: figures would say that all is well.

    Of documents, which may begin alike, as two books do with a licence, only sets are refused of which one is in the
    other.

    Args:
        sets (`Mapping[str, Sequence[Question]]`):
            Questions by the set's name.

    Raises:
        ValueError: If two sets have.
    """
    for (one, questions), (other, others) in combinations(sets.items(), 2):
        rows, others_rows = ({(each.prompt, each.answer) for each in each_set} for each_set in (questions, others))
        common = [each for each in questions if (each.prompt, each.answer) in others_rows]
        enough = min(len(rows), len(others_rows)) if questions[0].is_passage else 1
        if len(rows & others_rows) >= enough:
            raise ValueError(
                f"The {one} set and the {other} set have {common[0].prompt[-60:]!r} in common: what must be forgotten, "
                "what must be kept and what was never told are three things. Give another file, or remove the row from "
                "one of them."
            )


def check_sets_fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Question]],
    max_new_tokens: int = 0,
) -> None:
    """
    Refuse questions that a model cannot be asked, and say of which set they are.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        sets (`Mapping[str, Sequence[Question]]`):
            Questions by the set's name.
        max_new_tokens (`int`, *optional*, defaults to `0`):
            Longest answer to generate, in tokens.

    Raises:
        ValueError: If one does not fit into the model's context, or its answer has no token to score.
    """
    for name, questions in sets.items():
        try:
            check_fit(model, tokenizer, questions, max_new_tokens)
        except ValueError as error:
            raise ValueError(f"{name} set: {error}") from error


def note_wrong_answers(forget: Sequence[Question], retain: Sequence[Question], retain_dataset: str) -> None:
    """
    Tell of retain rows that ask what the forget set asks: `uld augment` adds wrong answers to what is trained on.

    Args:
        forget (`Sequence[Question]`):
            Questions about what must be forgotten.
        retain (`Sequence[Question]`):
            Questions about what must be kept.
        retain_dataset (`str`):
            Where these are from.
    """
    asked = {question.prompt for question in forget if not question.is_passage}
    number = sum(question.prompt in asked for question in retain)
    if number:
        output.note(
            f"{number} of {len(retain)} rows of {retain_dataset} ask what the forget set asks. If they are the wrong "
            "answers that `uld augment` wrote for training, measure on the retain set that it was given: these are "
            "nothing that must be kept."
        )


def _question(row: Mapping[str, Any], source: str, tokenizer: PreTrainedTokenizerBase) -> Question:
    asked, answer = _asked_and_answer(row, source)
    for name in ("paraphrased_answer", "paraphrased_question", "fact"):
        if row.get(name) is not None and not (isinstance(row[name], str) and row[name].strip()):
            raise ValueError(f"{source}: {name!r} must be a text, not {row[name]!r}.")
    wrong = row.get("perturbed_answer") or []
    if not (isinstance(wrong, list) and all(isinstance(text, str) for text in wrong)):
        raise ValueError(f"{source}: 'perturbed_answer' must be a list of strings, not {wrong!r}.")
    fact, paraphrase, in_other_words = (
        row.get(name) for name in ("fact", "paraphrased_answer", "paraphrased_question")
    )
    if fact is not None and fact not in answer:
        raise ValueError(f"{source}: the fact {fact!r} is not in the answer {answer!r}.")
    is_prompt = "prompt" in row
    if tokenizer.chat_template is not None and is_prompt and isinstance(asked, str):
        answer = answer.strip()  # as `uld train` does: the space between the two is the template's affair
    options = template_options(row)
    prompt, space, end = _put(asked, answer, is_prompt, source, tokenizer, options)
    if in_other_words is not None:
        # What was said before the question, a system message for one, stays.
        other = in_other_words if isinstance(asked, str) else [*asked[:-1], {**asked[-1], "content": in_other_words}]
        in_other_words = _put(other, answer, is_prompt, source, tokenizer, options)[0]

    def put_answer(text: str) -> str:
        if tokenizer.chat_template is not None:
            return space + text.strip()
        return space + (text.lstrip() if is_prompt else text)

    return Question(
        prompt=prompt,
        answer=put_answer(answer),
        paraphrased_answer=None if paraphrase is None else put_answer(paraphrase),
        perturbed_answers=tuple(map(put_answer, wrong)),
        paraphrased_prompt=in_other_words,
        fact=fact,
        end_token_id=end,
    )


def _asked_and_answer(row: Mapping[str, Any], source: str) -> tuple[str | list[dict[str, str]], str]:
    """What a row asks, as a text or in messages, and the right answer."""
    messages = row.get("messages")
    if isinstance(row.get("prompt"), list):
        messages = [*row["prompt"], *(row.get("completion") or [])]
    if messages is not None:
        if any(missing := {"role", "content"} - message.keys() for message in messages):
            raise ValueError(f"{source} has a message without {sorted(missing)}: rename its fields.")
        *asked, answer = messages
        if not asked or answer.get("role") != "assistant" or not (answer.get("content") or "").strip():
            raise ValueError(f"{source}: its last message must be the assistant's answer to those before it.")
        return asked, answer["content"]
    names = ("prompt", "completion") if "prompt" in row else ("question", "answer")
    for name in names:
        if not (isinstance(row.get(name), str) and row[name].strip()):
            raise ValueError(
                f"{source} has no text under {name!r}: rows need 'question' and 'answer', 'prompt' and 'completion', "
                "'messages', or 'text'."
            )
    return row[names[0]], row[names[1]]


def _put(
    asked: str | list[dict[str, str]],
    answer: str,
    is_prompt: bool,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any],
) -> tuple[str, str, int | None]:
    """A question as the model is to see it, the space before its answer, and the token behind that, if a template's."""
    if tokenizer.chat_template is None:
        if not isinstance(asked, str):
            raise ValueError(f"{source} has messages, but the tokenizer has no chat template to render them with.")
        if is_prompt:
            return asked, answer[: len(answer) - len(answer.lstrip())], None
        return PROMPT_TEMPLATE.format(question=asked), " ", None
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options)
    # What the template puts before an answer, a space for one, was there in training too.
    answered = [*messages, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(answered, tokenize=False, **options)
    start = whole.find(answer.strip(), len(prompt))
    if not whole.startswith(prompt) or start < 0:
        raise ValueError(
            f"{source}: the tokenizer's chat template renders question and answer as {whole!r}, which does not go "
            f"on from the prompt {prompt!r}: use a tokenizer whose template does, or none."
        )
    space, stop = whole[len(prompt) : start], start + len(answer.strip())
    if space.strip():
        # Text of the template's own, an empty thought for one, is no part of an answer. Spaces stay with the answer:
        # many tokenizers make one token of them and the word that follows.
        prompt += space.rstrip(" ")
        space = whole[len(prompt) : start]
    # Of the tokens of the whole: by itself what follows may be split otherwise.
    told, all_of_it = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (whole[:stop], whole))
    behind = all_of_it[len(told) :]
    ends = [token for token in behind if tokenizer.decode([token]).strip()] or behind
    if begin_token(tokenizer) is not None:
        prompt = prompt.removeprefix(tokenizer.bos_token)
    return prompt, space, ends[0] if ends else None
