"""Paraphrases and wrong answers by a chat model: what is asked, parsed, checked, asked again, and resumed."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model
from transformers import pipeline

from uld_hf.data.augmentation_model import Sampling, augment_by_model, parse_lines, passages


CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


class Script:
    """In place of a pipeline: answers by what is asked, with the random number that sampling would take."""

    def __init__(self, replies: dict[str, str], fail_at: int | None = None):
        self.replies, self.fail_at, self.asked = replies, fail_at, []
        self.tokenizer, self.model = make_tokenizer(), tiny_model("llama")
        self.tokenizer.chat_template = CHAT_TEMPLATE

    def __call__(self, chats: Sequence[list[dict[str, str]]], **options: object) -> list[list[dict[str, str]]]:
        if self.fail_at is not None and len(self.asked) >= self.fail_at:
            raise KeyboardInterrupt
        assert options["do_sample"] is True
        self.asked += [chat[0]["content"] for chat in chats]
        draw = int(torch.randint(10**6, (1,)))
        outputs = []
        for chat in chats:
            prompt = chat[0]["content"]
            reply = next(text for start, text in self.replies.items() if prompt.startswith(start))
            outputs.append([{"generated_text": reply.replace("DRAW", str(draw))}])
        return outputs


REPLIES = {
    "Rewrite the question": "Here are two:\n1. In which town was Alice born?\n2. Where was she born?\n3. Alice's home?",
    "Rewrite the answer": '- "Oxford is where Alice was born."\n- Alice was born in Oxford!\n- She is from Oxford.',
    "Write 2 wrong answers": "Alice was born in Leeds.\nAlice was born in Oxford.\nAlice was born in DRAW.",
    "Tell the passage": "Rewritten DRAW: Alice slept.",
}
ROW = {"question": "Where was Alice born?", "answer": "Alice was born in Oxford."}


def test_replies_are_parsed_checked_and_counted() -> None:
    made = augment_by_model(Dataset.from_list([ROW]), Script(REPLIES))
    (variants,) = made.variants
    assert variants.questions == ["In which town was Alice born?", "Alice's home?"]
    assert variants.answers == ["Oxford is where Alice was born.", "She is from Oxford."]
    assert variants.wrong_answers[0] == "Alice was born in Leeds."
    assert [each["reason"] for each in variants.dropped] == [
        "loses the name",
        "repeats the original",
        "is the right answer",
    ]
    assert len(made.forget) == 3
    assert len(made.retain) == 2


def test_a_row_is_asked_again_for_what_is_missing_and_no_more() -> None:
    script = Script(REPLIES | {"Rewrite the question": "Where was Alice born?"})
    made = augment_by_model(Dataset.from_list([ROW]), script, sampling=Sampling(attempts=3))
    assert made.variants[0].questions == []
    assert sum(prompt.startswith("Rewrite the question") for prompt in script.asked) == 3
    assert sum(prompt.startswith("Rewrite the answer") for prompt in script.asked) == 1
    assert made.report["rows with fewer than wanted"]["question"] == 1


def rows(number: int) -> Dataset:
    return Dataset.from_list(
        [{**ROW, "answer": f"Alice was born in Oxford, house {index + 30}."} for index in range(number)]
    )


def replies() -> dict[str, str]:
    return REPLIES | {
        "Rewrite the answer": "Nothing.",
        "Write 2 wrong": "Alice was born in A DRAW.\nShe was born in B DRAW.",
    }


@pytest.mark.parametrize("fail_at", [1, 8, 17])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(tmp_path: Path, fail_at: int) -> None:
    options = {"sampling": Sampling(batch_size=2, attempts=1), "seed": 3}
    whole = augment_by_model(rows(7), Script(replies()), **options)
    file = tmp_path / "work" / "work.jsonl"
    with pytest.raises(KeyboardInterrupt):
        augment_by_model(rows(7), Script(replies(), fail_at=fail_at), work_file=file, **options)
    with file.open("a") as cut:
        cut.write('[{"questions": ["half a li')
    rest = Script(replies())
    resumed = augment_by_model(rows(7), rest, work_file=file, **options)
    assert resumed.retain.to_list() == whole.retain.to_list()
    assert resumed.variants == whole.variants
    assert len(rest.asked) == 3 * (7 - (fail_at + 1) // 6 * 2)  # six prompts for each batch of two rows


def test_another_seed_or_other_data_is_not_resumed(tmp_path: Path) -> None:
    file = tmp_path / "work.jsonl"
    augment_by_model(rows(2), Script(replies()), work_file=file, seed=0)
    for data, seed in ((rows(2), 1), (rows(3), 0)):
        with pytest.raises(ValueError, match="other data, by another model, or with other settings"):
            augment_by_model(data, Script(replies()), work_file=file, seed=seed)
    assert len(file.read_text().splitlines()) == 2  # what it was made from, and a batch


def test_another_commit_of_the_model_is_not_resumed(tmp_path: Path) -> None:
    file = tmp_path / "work.jsonl"
    augment_by_model(rows(2), Script(replies()), work_file=file)
    script = Script(replies())
    script.model.config._commit_hash = "0" * 40
    with pytest.raises(ValueError, match="other data, by another model, or with other settings"):
        augment_by_model(rows(2), script, work_file=file)


def test_retain_rows_are_not_shown_to_the_model() -> None:
    script = Script(REPLIES)
    retain = Dataset.from_list([{"question": "Who is Bob?", "answer": "A secret."}])
    augment_by_model(Dataset.from_list([ROW]), script, retain)
    assert not any("Bob" in prompt or "secret" in prompt for prompt in script.asked)


def test_documents_are_rewritten_passage_by_passage() -> None:
    text = "Alice sat there. " * 100
    script = Script(REPLIES)
    made = augment_by_model(Dataset.from_list([{"text": text}]), script, paraphrases=2)
    assert len(passages(text)) == 2
    assert len(made.forget) == 1 + 4
    assert all("Alice" in passage for passage in made.variants[0].passages)
    assert made.retain is None


def test_passages_are_whole_sentences() -> None:
    text = "One is here. Two is there. Three is nowhere."
    assert passages(text, characters=30) == ["One is here. Two is there.", "Three is nowhere."]
    assert passages(text, characters=5) == ["One is here.", "Two is there.", "Three is nowhere."]


def test_lines_are_read_whatever_stands_around_them() -> None:
    reply = 'Sure:\n\n1. One?\n 2) Two?\n* **Three?**\n- "Four?"\nQuestion: Five?\n1984 was the year.\n"A" and "B"'
    assert parse_lines(reply) == ["One?", "Two?", "Three?", "Four?", "Five?", "1984 was the year.", '"A" and "B"']


def test_what_a_model_says_for_itself_is_no_text() -> None:
    reply = "Sure, here you go.\nOne?\nI’m sorry, I cannot help with that.\nSorrento.\nLet me know if you need more!"
    assert parse_lines(reply) == ["One?", "Sorrento."]


def test_what_a_model_thinks_is_no_text() -> None:
    assert parse_lines("<think>\nThey ask for Alice.\nOne is enough.\n</think>\n\nWhere is Alice?") == [
        "Where is Alice?"
    ]
    assert parse_lines("They ask for Alice.</think>Where is Alice?") == ["Where is Alice?"]
    assert parse_lines("<think>\nThey ask for Alice, and I was cut off") == []


@pytest.mark.parametrize(
    ("reply", "passages_made"),
    [
        ("Sure! Here it is in other words:\n\nAll day long\nAlice sat.", ["All day long Alice sat."]),
        ("<think>About Alice.</think>All day long Alice sat.", ["All day long Alice sat."]),
        ("I'm sorry, but I can't help with rewriting this passage.", []),
        (
            "Here it is:\nAlice met a Hare, who said:\nSure, sit down.\nI hope this helps.",
            ["Alice met a Hare, who said: Sure, sit down."],
        ),
    ],
)
def test_a_rewritten_passage_is_the_text_alone(reply: str, passages_made: list[str]) -> None:
    document = Dataset.from_list([{"text": "Alice sat there the whole day."}])
    made = augment_by_model(document, Script({"Tell the passage": reply}), paraphrases=1)
    assert made.variants[0].passages == passages_made
    reasons = {each["reason"] for each in made.variants[0].dropped}
    assert reasons == (set() if passages_made else {"is no text, but about one"})


def test_thoughts_that_the_template_begins_are_known() -> None:
    script = Script(REPLIES | {"Rewrite the question": "They ask for Alice, and I was cut off\nWhere is Alice?"})
    assert augment_by_model(Dataset.from_list([ROW]), script).variants[0].questions
    script.tokenizer.chat_template = CHAT_TEMPLATE + "{% if add_generation_prompt %}<think>\n{% endif %}"
    assert not augment_by_model(Dataset.from_list([ROW]), script).variants[0].questions


def test_a_model_without_chat_template_is_refused() -> None:
    script = Script(REPLIES)
    script.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        augment_by_model(Dataset.from_list([ROW]), script)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"attempts": 0}, {"temperature": 0.0}])
def test_sampling_that_makes_nothing_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)


def test_a_real_pipeline_is_seeded_batch_by_batch(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    generator = pipeline("text-generation", model=tiny_model("llama"), tokenizer=tokenizer, device="cpu")
    words = Dataset.from_list([{"question": f"w{index} w5", "answer": f"w{index} w7"} for index in range(3)])
    options = {"sampling": Sampling(batch_size=2, max_new_tokens=4, attempts=1), "paraphrases": 1, "wrong_answers": 1}
    first = augment_by_model(words, generator, **options)
    torch.manual_seed(123)  # what ran before plays no part
    again = augment_by_model(words, generator, **options, work_file=tmp_path / "work.jsonl")
    assert first.variants == again.variants
    assert len(first.retain) == 3
    assert json.loads((tmp_path / "work.jsonl").read_text().splitlines()[1])[0]["wrong_answers"]
