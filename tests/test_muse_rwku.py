"""MUSE and RWKU: loaders on small files of the same schema, and MUSE's measures on models that know or do not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model

from uld_hf.data.muse import load_muse
from uld_hf.data.rwku import load_rwku
from uld_hf.evaluation import muse as muse_measures
from uld_hf.evaluation.memorization import begin_answer, fluency, leaks
from uld_hf.evaluation.muse import knowledge_memorization, min_k_auc, rouge_l_f1, verbatim_memorization


@pytest.fixture
def muse(tmp_path: Path) -> Path:
    rows = {
        "verbmem/forget": [{"prompt": "w1 w2", "gt": "w3 w4"}],
        "knowmem/forget_qa": [{"question": "w5", "answer": "w6"}],
        "privleak/forget": [{"text": "w1 w2 w3"}],
    }
    for name, content in rows.items():
        file = tmp_path / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def rwku(tmp_path: Path) -> Path:
    rows = [
        {"query": f"w{i}", "answer": f"w{i + 1}", "level": "2", "type": "simple question", "subject": subject}
        for i, subject in enumerate(("Alice", "Bob", "Alice"))
    ]
    (tmp_path / "forget_level2.json").write_text(json.dumps(rows))
    return tmp_path


def test_muse_from_a_folder(muse):
    assert load_muse("news", "verbmem", "forget", muse)[0] == {"prompt": "w1 w2", "gt": "w3 w4"}
    assert load_muse("books", "knowmem", "forget_qa", muse)[0] == {"question": "w5", "answer": "w6"}
    assert load_muse("books", "privleak", "forget", muse)[0] == {"text": "w1 w2 w3"}


def test_muse_from_json_lines(muse):
    (muse / "privleak" / "holdout.jsonl").write_text('{"text": "w7"}\n{"text": "w8"}\n')
    assert load_muse("news", "privleak", "holdout", muse)["text"] == ["w7", "w8"]


def test_what_muse_does_not_have_is_refused(muse):
    with pytest.raises(ValueError, match="MUSE has no 'music', 'raw'"):
        load_muse("music", "raw", "forget", muse)
    with pytest.raises(FileNotFoundError, match="retain_qa"):
        load_muse("news", "knowmem", "retain_qa", muse)
    (muse / "raw").mkdir()
    (muse / "raw" / "forget.json").write_text('[{"content": "w1"}]')
    with pytest.raises(ValueError, match=r"has no column \['text'\]"):
        load_muse("news", "raw", "forget", muse)


def test_rwku_from_a_folder_of_one_person(rwku):
    rows = load_rwku("forget_level2", subject="Alice", path=rwku)
    assert rows.to_list() == [
        {"question": "w0", "answer": "w1", "subject": "Alice"},
        {"question": "w2", "answer": "w3", "subject": "Alice"},
    ]
    assert len(load_rwku("forget_level2", path=rwku)) == 3


def test_what_rwku_does_not_have_is_refused(rwku):
    with pytest.raises(ValueError, match="no part 'forget_level9'"):
        load_rwku("forget_level9", path=rwku)
    with pytest.raises(ValueError, match=r"no rows about 'Eve', only about \['Alice', 'Bob'\]"):
        load_rwku("forget_level2", subject="Eve", path=rwku)


def continuation(model: torch.nn.Module, prompt: str, length: int) -> str:
    tokenizer = make_tokenizer()
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    generated = model.generate(ids, max_new_tokens=length, do_sample=False, eos_token_id=None)[0, ids.shape[1] :]
    return tokenizer.decode(generated, skip_special_tokens=True)


def test_verbatim_memorization_of_what_the_model_says_is_one():
    model = tiny_model("llama")
    prompts = ["w1 w2 w3", "w9 w8"]
    rows = Dataset.from_dict({"prompt": prompts, "gt": [continuation(model, prompts[0], 6), "w1 w1 w1"]})
    scores = verbatim_memorization(model, make_tokenizer(), rows, max_new_tokens=6)
    assert scores[0] == 1.0
    assert scores[1] < 0.5
    # Of a longer passage no more counts than is generated.
    longer = Dataset.from_dict({"prompt": prompts[:1], "gt": [rows["gt"][0] + " w9 w9 w9 w9"]})
    assert verbatim_memorization(model, make_tokenizer(), longer, max_new_tokens=6) == [1.0]


def test_knowledge_memorization_shows_answered_questions_first():
    model, tokenizer = tiny_model("llama"), make_tokenizer()
    examples = Dataset.from_dict({"question": ["w1"], "answer": ["w2"]})
    prompt = "Question: w1\nAnswer: w2\n\nQuestion: w5\nAnswer: "
    rows = Dataset.from_dict({"question": ["w5"], "answer": [continuation(model, prompt, 4)]})
    assert knowledge_memorization(model, tokenizer, rows, examples, max_new_tokens=4)[0] == 1.0


# As MUSE's code cuts answers, and prompts for them.
@pytest.mark.parametrize(
    ("said", "recalled"),
    [
        ("Harry", 1.0),
        (" Harry\n\nQuestion: Who else?", 1.0),
        ("Harry\nQuestion", 1.0),
        ("Harry Question: Who?", 1.0),
        ("\nHarry", 1.0),
        ("\n\nHarry", 0.0),
        ("Question: Harry", 0.0),
    ],
)
def test_an_answer_ends_where_muse_ends_it(monkeypatch, said, recalled):
    prompts, generate = [], muse_measures.generate_completions

    def generated(model, tokenizer, asked, *options, **more):
        prompts.extend(asked)
        return generate(model, tokenizer, asked, *options, **more)

    tokenizer = make_tokenizer()
    monkeypatch.setattr(muse_measures, "generate_completions", generated)
    monkeypatch.setattr(tokenizer, "batch_decode", lambda ids, skip_special_tokens: [said])
    rows, none = (Dataset.from_dict({"question": each, "answer": each}) for each in (["Harry"], []))
    assert knowledge_memorization(tiny_model("llama"), tokenizer, rows, none) == [recalled]
    assert prompts == ["Question: Harry\nAnswer: "]


def test_min_k_tells_texts_that_the_model_writes_from_others():
    model, tokenizer = tiny_model("llama"), make_tokenizer()
    starts = [f"w{i}" for i in range(8)]
    known = Dataset.from_dict({"text": [f"{start} {continuation(model, start, 8)}" for start in starts]})
    words = np.random.default_rng(0).integers(0, 60, (8, 9))
    unknown = Dataset.from_dict({"text": [" ".join(f"w{word}" for word in row) for row in words]})
    assert min_k_auc(model, tokenizer, known, unknown) > 0.8
    assert min_k_auc(model, tokenizer, known, known) == 0.5


def test_rouge_f1_by_hand():
    np.testing.assert_allclose(rouge_l_f1(["a b c d"], ["a x c"]), [2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)])


def test_fluency_is_the_probability_of_a_clean_text():
    def classifier(texts):
        return [[{"label": "clean", "score": 0.9}, {"label": "noise", "score": 0.1}] for _ in texts]

    assert fluency(["one", " ", "two"], classifier).tolist() == [0.9, 0.0, 0.9]
    assert fluency(["", ""], classifier).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="no label 'good'"):
        fluency(["one"], classifier, clean="good")


def test_begun_answers_stop_before_the_fact():
    assert begin_answer(" She was born in Oslo in 1950.", "Oslo") == (" She was born in", "Oslo in 1950.")
    assert begin_answer(" Oslo is where.", "Oslo") == ("", "Oslo is where.")
    assert begin_answer(" In Oslofjord, Oslo.", "Oslo") == (" In Oslofjord,", "Oslo.")


def test_without_a_fact_answers_stop_in_the_middle():
    assert begin_answer(" w1  w2 w1 w2 w1") == (" w1  w2", "w1 w2 w1")
    assert begin_answer("w1") == ("", "w1")


def test_an_answer_leaks_its_fact_or_its_words():
    assert leaks([["in OSLO", "in Rome"]], ["in Oslo"], ["Oslo"]) == [[1.0, 0.0]]
    assert leaks([["w1 w2", "w9"]], ["w1 w2 w3 w4"], [None]) == [[0.5, 0.0]]


def test_passages_of_one_word_are_refused_by_min_k():
    rows = Dataset.from_dict({"text": ["w1 w2", " w3 "]})
    with pytest.raises(ValueError, match=r"1 of 2 passages have fewer than two words \(the first is rows\[1\]\)"):
        min_k_auc(tiny_model("llama"), make_tokenizer(), rows, rows)
