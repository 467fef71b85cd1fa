"""Rows are asked and scored as training puts them, whatever a tokenizer or a chat template adds."""

import pytest
from datasets import Dataset
from families import make_tokenizer, tiny_model
from tokenizers import decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from uld_hf.cli.questions import questions_of
from uld_hf.compare.side_by_side import encode_prompt
from uld_hf.data.augmentation_drawn import encode_question
from uld_hf.data.formatting import question_answer_to_prompt_completion
from uld_hf.evaluation.encoding import encode, encode_prompts
from uld_hf.prompt_tokens import prompt_tokens
from uld_hf.training.preparation import to_trainable_rows


QUESTION = {"question": "w5 w6", "answer": "w20 w21"}
# How a turn ends: with the end token, with another one and a line, with a space and the end token, not at all.
ENDS = {
    "ChatML, Llama 3": ("</s>\n", "</s>"),
    "Gemma": ("w59\n", "w59"),
    "Phi 3": (" w58 </s>", "w58"),
    "none": ("", "</s>"),
}


def chat_tokenizer(end: str = "</s>", more: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer whose template puts w50 before what a user says, w51 before an answer, and an end behind both."""
    tokenizer = make_tokenizer()
    turn = "{{ 'w50 ' if m.role == 'user' else 'w51 ' }}{{ m.content }} "
    begin = "{% if add_generation_prompt %}w51 {% endif %}"
    tokenizer.chat_template = more + "{% for m in messages %}" + turn + end + " {% endfor %}" + begin
    return tokenizer


def tokenizer_that_ends_texts() -> PreTrainedTokenizerFast:
    """With `add_eos_token=True`, as many finetuned models save it."""
    tokenizer = make_tokenizer()
    special = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    return tokenizer


def trained(tokenizer: PreTrainedTokenizerFast, row: dict, folder: str) -> list[int]:
    """Tokens of a row as trl trains it."""
    args = SFTConfig(folder, max_length=None, gradient_checkpointing=None, bf16=False, use_cpu=True)
    trainer = SFTTrainer(tiny_model("llama"), args, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
    return trainer.train_dataset[0]["input_ids"]


@pytest.mark.parametrize(("written", "scored"), ENDS.values(), ids=ENDS)
def test_an_answer_is_scored_with_the_end_that_its_turn_was_trained_with(written, scored, tmp_path):
    tokenizer = chat_tokenizer(written)
    question = questions_of([QUESTION], "rows", tokenizer)[0]
    ids, start = encode(tokenizer, question.prompt, question.answer, question.end(tokenizer))
    assert tokenizer.convert_ids_to_tokens(ids) == ["w50", "w5", "w6", *written.split(), "w51", "w20", "w21", scored]
    assert tokenizer.decode(ids[start:-1]) == "w20 w21"
    if written:
        row = question_answer_to_prompt_completion(Dataset.from_list([QUESTION]), conversational=True)[0]
        assert trained(tokenizer, row, str(tmp_path))[: len(ids)] == ids


def test_text_that_a_template_puts_before_answers_is_asked_with_and_not_scored(tmp_path):
    tokenizer = chat_tokenizer()  # as Qwen3's, which puts an empty thought there that is no part of the prompt it gives
    content = "{{ 'w40 \n\nw41 \n\n' if m.role == 'assistant' else '' }}{{ m.content }}"
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m.content }}", content)
    row = QUESTION | {"perturbed_answer": ["w22"], "paraphrased_question": "w7"}
    question = questions_of([row], "rows", tokenizer)[0]
    assert question.prompt.split()[-3:] == question.paraphrased_prompt.split()[-3:] == ["w51", "w40", "w41"]
    assert (question.answer, question.perturbed_answers) == ("w20 w21", ("w22",))
    ids, start = encode(tokenizer, question.prompt, question.answer, question.end(tokenizer))
    assert tokenizer.decode(ids[start:-1]) == "w20 w21"
    told = question_answer_to_prompt_completion(Dataset.from_list([QUESTION]), conversational=True)[0]
    assert trained(tokenizer, told, str(tmp_path))[: len(ids)] == ids


def test_the_space_behind_a_templates_own_text_stays_with_the_answer():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("{% if add_generation_prompt %}w51 {% endif %}", "")
    question = questions_of([QUESTION], "rows", tokenizer)[0]
    assert question.prompt.endswith("w51")
    assert question.answer == " w20 w21"


@pytest.mark.parametrize(("completion", "space"), [(" w20", " "), ("\nw20", "\n"), ("w20", "")])
def test_without_a_template_all_answers_begin_with_the_space_of_the_right_one(completion, space):
    others = {"paraphrased_answer": "w21 ", "perturbed_answer": ["w22", " w23"]}
    question = questions_of([{"prompt": "w1 w2", "completion": completion} | others], "rows", make_tokenizer())[0]
    assert question.answer == completion
    assert question.paraphrased_answer == f"{space}w21 "
    assert question.perturbed_answers == (f"{space}w22", f"{space}w23")


def test_the_end_is_a_token_of_the_whole_text():
    """By itself the end would begin with a token for the beginning of a text, as Llama's tokenizer splits it."""
    tokenizer = make_tokenizer()
    vocabulary = {f"\u2581w{i}": i + 4 for i in range(58)} | {"<unk>": 3, "</s>": 2, "\u2581": 62}
    tokenizer.backend_tokenizer.model = WordLevel(vocabulary, unk_token="<unk>")
    tokenizer.backend_tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first")
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace()
    tokenizer.chat_template = "{% for m in messages %}w50 {{ m.content }} </s>{% endfor %}"
    question = questions_of([QUESTION | {"question": "w5"}], "rows", tokenizer)[0]
    assert question.end(tokenizer) == tokenizer.eos_token_id


def test_a_prompt_without_a_token_is_refused():
    model, tokenizer = tiny_model("llama"), make_tokenizer()
    with pytest.raises(ValueError, match="The prompt '' has no token"):
        encode_prompt(model, tokenizer, "")
    begin = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[begin])
    assert encode_prompt(model, tokenizer, "")["input_ids"].tolist() == [[tokenizer.bos_token_id]]


def test_an_empty_text_of_a_tokenizer_that_begins_with_its_end_token_keeps_it():
    tokenizer = tokenizer_that_ends_texts()
    special = [("</s>", tokenizer.eos_token_id)]  # as OPT's
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=special)
    assert prompt_tokens(tokenizer, ["", "w1"]) == [[2], [2, 5]]


def test_options_that_only_some_rows_give_are_trained(tmp_path):
    said = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w20"}]
    options = [{"thinking": True}, None]
    rows = Dataset.from_list([{"messages": said, "chat_template_kwargs": each} for each in options])
    prepared = to_trainable_rows(rows, "forget", "text")
    tokenizer = chat_tokenizer(more="{% if not thinking %}w40 {% endif %}")
    trained_rows = [trained(tokenizer, row, str(tmp_path / str(number))) for number, row in enumerate(prepared)]
    asked = [questions_of([row], "rows", tokenizer)[0] for row in rows]
    expected = [encode(tokenizer, each.prompt, each.answer, each.end(tokenizer))[0] for each in asked]
    assert trained_rows == expected
    none = Dataset.from_list([{"messages": said, "chat_template_kwargs": None}])
    assert "chat_template_kwargs" not in to_trainable_rows(none, "forget", "text").column_names


def test_without_a_chat_template_answers_end_with_the_end_token(tokenizer):
    assert questions_of([QUESTION], "rows", tokenizer)[0].end(tokenizer) == tokenizer.eos_token_id


def test_a_passage_has_no_end(tokenizer):
    document = {"text": " ".join(f"w{i}" for i in range(20))}
    assert questions_of([document], "rows", tokenizer, 5, 5)[0].end(tokenizer) is None


def test_what_rows_give_the_template_is_given_when_they_are_asked(tmp_path):
    more = "{% if not thinking %}w40 {% endif %}{% for tool in tools or [] %}{{ tool.name }} {% endfor %}"
    tokenizer = chat_tokenizer(more=more)
    messages = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w20"}]
    row = {"messages": messages, "chat_template_kwargs": {"thinking": True}, "tools": [{"name": "w41"}]}
    question = questions_of([row], "rows", tokenizer)[0]
    assert question.prompt.split() == ["w41", "w50", "w5", "</s>", "w51"]
    assert tokenizer.convert_ids_to_tokens(encode_question(row, tokenizer)) == question.prompt.split()
    ids, _ = encode(tokenizer, question.prompt, question.answer, question.end(tokenizer))
    assert trained(tokenizer, row, str(tmp_path)) == ids


def test_questions_and_answers_give_the_template_what_messages_would():
    rows = Dataset.from_list([QUESTION | {"chat_template_kwargs": {"thinking": True}, "source": "a file"}])
    assert set(question_answer_to_prompt_completion(rows).column_names) == {"prompt", "completion"}
    converted = question_answer_to_prompt_completion(rows, conversational=True)
    assert set(converted.column_names) == {"prompt", "completion", "chat_template_kwargs"}


def test_nothing_is_asked_behind_the_end_that_a_tokenizer_puts_behind_every_text(tmp_path):
    tokenizer = tokenizer_that_ends_texts()
    prompt = ["<s>", "w1", "w2"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("w1 w2")["input_ids"]) == [*prompt, "</s>"]
    asked = [
        encode_prompts(tiny_model("llama"), tokenizer, ["w1 w2"], 4)[0][0],
        encode_prompt(tiny_model("llama"), tokenizer, "w1 w2")["input_ids"][0].tolist(),
        encode_question({"prompt": "w1 w2", "completion": " w3"}, tokenizer),
    ]
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in asked] == [prompt] * 3
    ids, start = encode(tokenizer, "w1 w2", " w3", tokenizer.eos_token_id)
    assert trained(tokenizer, {"prompt": "w1 w2", "completion": " w3"}, str(tmp_path))[: len(ids)] == ids
    assert (tokenizer.convert_ids_to_tokens(ids), start) == ([*prompt, "w3", "</s>"], 3)
    assert encode(tokenizer, "w1 w2", " w3", None) == (ids[:-1], 3)


def test_an_end_that_is_written_in_the_prompt_stays():
    tokenizer = tokenizer_that_ends_texts()
    encoded, _ = encode_prompts(tiny_model("llama"), tokenizer, ["w1 </s>", "w1 w2"], 4)
    assert [tokenizer.convert_ids_to_tokens(ids)[-1] for ids in encoded] == ["</s>", "w2"]


def test_a_question_in_other_words_keeps_what_was_said_before_it():
    said = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]
    asked, answer = {"role": "user", "content": "w5"}, {"role": "assistant", "content": "w20"}
    row = {"messages": [*said, asked, answer], "paraphrased_question": "w6"}
    question = questions_of([row], "rows", chat_tokenizer())[0]
    assert question.paraphrased_prompt == question.prompt.replace("w5 ", "w6 ")
    assert question.paraphrased_prompt.split()[:2] == ["w50", "w3"]


def test_of_several_answers_the_last_one_is_asked_for_and_that_is_told(capsys):
    messages = [{"role": role, "content": f"w{i}"} for i, role in enumerate(["user", "assistant"] * 2, start=5)]
    (question,) = questions_of([{"messages": messages}], "rows", chat_tokenizer())
    assert question.answer.strip() == "w8"
    assert "1 of 1 rows of rows are conversations with several answers" in capsys.readouterr().err
    questions_of([{"messages": messages[:2]}], "rows", chat_tokenizer())
    assert capsys.readouterr().err == ""


def test_a_message_without_content_is_named():
    row = {"messages": [{"role": "user", "content": "w5"}, {"role": "assistant", "contents": "w6"}]}
    with pytest.raises(ValueError, match=r"Row 1 of rows has a message without \['content'\]"):
        questions_of([row], "rows", chat_tokenizer())
