"""Questions from files, put to a model as `uld train` puts them."""

from transformers import PreTrainedTokenizerBase

from ..data.formatting import PROMPT_TEMPLATE, read_json_lines
from ..evaluation.evaluation import Question, check_questions


def read_questions(path: str, tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """
    Read a set of questions.

    Args:
        path (`str`):
            JSONL file of rows with `question` and `answer`, or `prompt` and `completion`; optionally
            `paraphrased_answer` and `perturbed_answer` (a list), as in TOFU.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer. If it has a chat template, questions go through it.

    Returns:
        `list[Question]`: The questions.

    Raises:
        ValueError: If a row lacks a question or an answer, or only some rows have paraphrased or wrong answers.
    """
    rows = enumerate(read_json_lines(path), start=1)
    questions = [_question(row, f"Row {number} of {path}", tokenizer) for number, row in rows]
    check_questions(questions)
    return questions


def _question(row: dict, source: str, tokenizer: PreTrainedTokenizerBase) -> Question:
    asked, answered = ("prompt", "completion") if "prompt" in row else ("question", "answer")
    for name in (asked, answered):
        if not (isinstance(row.get(name), str) and row[name].strip()):
            raise ValueError(
                f"{source} has no text under {name!r}: rows need 'question' and 'answer', or 'prompt' and 'completion'."
            )
    wrong = row.get("perturbed_answer") or []
    if not (isinstance(wrong, list) and all(isinstance(text, str) for text in wrong)):
        raise ValueError(f"{source}: 'perturbed_answer' must be a list of strings, not {wrong!r}.")
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": row[asked]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # What the template puts before an answer, a space for one, was there in training too.
        messages.append({"role": "assistant", "content": row[answered]})
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        start = whole.find(row[answered].strip(), len(prompt))
        if not whole.startswith(prompt) or start < 0:
            raise ValueError(
                f"{source}: the tokenizer's chat template renders question and answer as {whole!r}, which does not go "
                f"on from the prompt {prompt!r}: use a tokenizer whose template does, or none."
            )
        space = whole[len(prompt) : start]
        if tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id:  # the tokenizer begins with it by itself
            prompt = prompt.removeprefix(tokenizer.bos_token)
    else:
        prompt = row[asked] if asked == "prompt" else PROMPT_TEMPLATE.format(question=row[asked])
        space = "" if asked == "prompt" else " "
    paraphrase = row.get("paraphrased_answer")
    return Question(
        prompt=prompt,
        answer=space + row[answered],
        paraphrased_answer=None if paraphrase is None else space + paraphrase,
        perturbed_answers=tuple(space + text for text in wrong),
    )
