"""`evaluate`, `uld eval` and `uld sweep`: figures of whole sets, kept row by row, resumed, compared and chosen from."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from families import make_tokenizer, tiny_model, train_like
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from scipy.stats import hmean, ks_2samp
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification, PreTrainedModel

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.cli.eval import measure_set
from uld_hf.cli.identity import identify
from uld_hf.cli.main import main as uld
from uld_hf.cli.questions import check_apart, has_questions, read_questions, read_rows
from uld_hf.cli.sweep import describe_choice
from uld_hf.cli.train import load_rows
from uld_hf.configuration_uld import SHARED_SETTINGS
from uld_hf.evaluation.comparison import compare, kept_utility
from uld_hf.evaluation.evaluation import Evaluation, Question, SetResults, check_fit, evaluate
from uld_hf.evaluation.memorization import sample_completions
from uld_hf.evaluation.scoring import Subtraction, score_completions
from uld_hf.evaluation.sweep import Outcome, Reference, apply_subtraction, choose, has_forgotten, sweep
from uld_hf.evaluation.tofu import forget_quality, generate_completions, rouge_l_recall, truth_ratio
from uld_hf.evaluation.tofu_logs import SETS
from uld_hf.evaluation.verbatim import word_perplexity
from uld_hf.hub import record_evaluation


def make_questions(first: int, number: int = 5) -> list[dict]:
    return [
        {
            "question": f"w{first + i}",
            "paraphrased_question": f"w{first + i} w9",
            "fact": f"w{i}",
            "answer": f"w{first + i} w{i}",
            "paraphrased_answer": f"w{i} w{first + i} w9",
            "perturbed_answer": [f"w{first + i} w{40 + j}" for j in range(2 + i % 2)],
        }
        for i in range(number)
    ]


def as_questions(rows: list[dict]) -> list[Question]:
    return [
        Question(row["question"], f" {row['answer']}", f" {row['paraphrased_answer']}",
                 tuple(f" {wrong}" for wrong in row["perturbed_answer"]))
        for row in rows
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unlearned() -> ULDForCausalLM:
    target = tiny_model("llama")
    return ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), alpha=0.7, relative_top=0)


@pytest.fixture
def files(tmp_path: Path, unlearned: ULDForCausalLM) -> dict[str, str]:
    """A saved unlearned model, its target, a retrained model, and three sets."""
    unlearned.target.save_pretrained(tmp_path / "target")
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), alpha=0.7, relative_top=0)
    model.save_pretrained(tmp_path / "unlearned")
    tiny_model("llama", seed=6).save_pretrained(tmp_path / "retrained")
    for name in ("target", "unlearned", "retrained"):
        make_tokenizer().save_pretrained(tmp_path / name)
    for name, first in (("forget", 10), ("retain", 20), ("holdout", 30)):
        rows = make_questions(first)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ("target", "unlearned", "retrained", "forget.jsonl", "retain.jsonl", "holdout.jsonl", "results")
    return {name.removesuffix(".jsonl"): str(tmp_path / name) for name in names}


def run_eval(files: dict[str, str], *more: str) -> int:
    sets = [part for name in ("forget", "retain", "holdout") for part in (f"--{name}_dataset", files[name])]
    return uld(["eval", "--model", files["unlearned"], "--output_dir", files["results"],
                "--max_new_tokens", "4", *sets, *more])  # fmt: skip


# --- one model, one set ---


def test_losses_are_those_of_each_answer_by_itself(unlearned):
    rows = make_questions(10)
    results = evaluate(unlearned, make_tokenizer(), as_questions(rows), max_new_tokens=4)

    def loss(prompt: str, answer: str) -> float:
        return score_completions(unlearned, make_tokenizer(), [prompt], [f" {answer}"])[0].loss

    for i, row in enumerate(rows):
        assert results.loss[i] == pytest.approx(loss(row["question"], row["answer"]), abs=1e-4)
        assert results.paraphrased_loss[i] == pytest.approx(loss(row["question"], row["paraphrased_answer"]), abs=1e-4)
        expected = [loss(row["question"], wrong) for wrong in row["perturbed_answer"]]
        np.testing.assert_allclose(results.perturbed_losses[i], expected, atol=1e-4)


def test_rows_may_have_different_numbers_of_wrong_answers(unlearned):
    results = evaluate(unlearned, make_tokenizer(), as_questions(make_questions(10)), max_new_tokens=4)
    means = np.array([[np.mean(losses)] for losses in results.perturbed_losses])
    np.testing.assert_allclose(results.truth_ratios, truth_ratio(np.array(results.paraphrased_loss), means))


def test_results_are_read_back_as_they_were(unlearned, tmp_path):
    results = evaluate(unlearned, make_tokenizer(), as_questions(make_questions(10)), max_new_tokens=4)
    evaluation = Evaluation("unlearned", {"forget": results}, {"seed": 1})
    evaluation.save(tmp_path / "results.json")
    assert Evaluation.load(tmp_path / "results.json") == evaluation


def test_numbers_that_are_not_finite_are_written_as_json_and_read_back(unlearned, tmp_path):
    results = evaluate(unlearned, make_tokenizer(), as_questions(make_questions(10, 2)), max_new_tokens=4)
    results.loss, results.word_perplexity = [np.inf, 1.5], np.inf
    results.attacks["min_k"] = [-np.inf, 0.0]
    results.attacks["min_k++"] = [np.nan, 0.0]
    Evaluation("unlearned", {"forget": results}).save(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    read = Evaluation.load(tmp_path / "results.json").sets["forget"]
    assert (read.loss, read.word_perplexity, read.attacks["min_k"]) == ([np.inf, 1.5], np.inf, [-np.inf, 0.0])
    assert np.isnan(read.attacks["min_k++"][0])


def test_another_file_is_no_evaluation(tmp_path):
    (tmp_path / "results.json").write_text('{"sets": 3}')
    with pytest.raises(ValueError, match="is not a saved evaluation"):
        Evaluation.load(tmp_path / "results.json")


def test_an_empty_set_is_refused(unlearned):
    with pytest.raises(ValueError, match="no questions"):
        evaluate(unlearned, make_tokenizer(), [])


def test_wrong_answers_in_some_rows_only_are_refused(unlearned):
    questions = [*as_questions(make_questions(10, 2)), Question("w1", " w2", " w3")]
    with pytest.raises(ValueError, match=r"1 of 3 rows have no perturbed_answers \(the first is rows\[2\]\)"):
        evaluate(unlearned, make_tokenizer(), questions)


@pytest.mark.parametrize("split", ["forget", "retain", "holdout"])
def test_models_evaluated_on_different_rows_are_not_compared(unlearned, split):
    first, second = (
        evaluate(unlearned, make_tokenizer(), as_questions(make_questions(start)), max_new_tokens=1)
        for start in (10, 20)
    )
    target = Evaluation("target", dict.fromkeys(("forget", "retain", "holdout"), first))
    other = Evaluation("unlearned", target.sets | {split: second})
    with pytest.raises(ValueError, match=f"different {split} sets"):
        compare({"target": target, "unlearned": other})


# --- other ways to ask ---


def probing(rows: list[dict], facts: bool = True) -> list[Question]:
    return [
        Question(row["question"], f" {row['answer']}", paraphrased_prompt=row["paraphrased_question"],
                 fact=row["fact"] if facts else None)
        for row in rows
    ]  # fmt: skip


def test_probes_are_the_models_answers_to_what_was_put(unlearned):
    rows = make_questions(10)
    results = evaluate(unlearned, make_tokenizer(), probing(rows), 4, probe=True, num_samples=3)

    def answers(prompts: list[str]) -> list[list[str]]:
        return [[text] for text in generate_completions(unlearned, make_tokenizer(), prompts, 4)]

    assert results.probes["question in other words"] == answers([row["paraphrased_question"] for row in rows])
    # The answer is begun up to the fact: w10 w0 up to w0.
    assert results.probes["answer begun"] == answers([f"{row['question']} w{10 + i}" for i, row in enumerate(rows)])
    assert [len(texts) for texts in results.probes["drawn"]] == [3] * len(rows)


def test_a_leak_is_a_fact_in_an_answer(unlearned):
    rows = make_questions(10)
    results = evaluate(unlearned, make_tokenizer(), probing(rows), 4, probe=True, num_samples=3)
    for way, texts in {"question": [[text] for text in results.completions], **results.probes}.items():
        expected = [
            [float(row["fact"] in text.split()) for text in drawn] for row, drawn in zip(rows, texts, strict=True)
        ]
        assert results.leaks[way] == expected
    figures = results.summary()
    drawn = np.array(results.leaks["drawn"])
    assert figures["leak@1"] == pytest.approx(drawn.mean())
    assert figures["leak@3"] == pytest.approx(drawn.max(axis=1).mean())
    assert figures["leak, answer begun"] == np.mean(results.leaks["answer begun"])


def test_without_facts_a_leak_is_the_recall_of_the_answer_or_of_its_rest(unlearned):
    rows = make_questions(10)
    results = evaluate(unlearned, make_tokenizer(), probing(rows, facts=False), 4, probe=True, num_samples=0)
    assert [leak for (leak,) in results.leaks["question"]] == results.rouge_l_recall
    rest = [f"w{i}" for i in range(len(rows))]
    completions = [text for (text,) in results.probes["answer begun"]]
    assert [leak for (leak,) in results.leaks["answer begun"]] == rouge_l_recall(completions, rest).tolist()
    assert "drawn" not in results.probes


def test_fluency_is_measured_with_the_classifier_given(unlearned):
    def classifier(texts):
        return [[{"label": "clean", "score": 0.25}, {"label": "noise", "score": 0.75}] for _ in texts]

    results = evaluate(unlearned, make_tokenizer(), as_questions(make_questions(10)), 4, classifier=classifier)
    expected = [0.25 if text else 0.0 for text in results.completions]
    assert results.clean == expected
    assert results.summary()["fluency"] == np.mean(expected)


def test_a_tokenizer_without_a_padding_token_will_do(unlearned):
    without = make_tokenizer()
    without.pad_token = None
    questions = as_questions(make_questions(10))
    assert evaluate(unlearned, without, questions, 4) == evaluate(unlearned, make_tokenizer(), questions, 4)


def test_an_answer_that_would_run_over_the_context_is_refused(unlearned):
    questions = [Question("w1 " * 100, " w2"), Question("w1", " w2")]
    with pytest.raises(ValueError, match=r"1 of 2 rows with max_new_tokens=64 are longer .* 128 tokens \(rows\[0\]"):
        evaluate(unlearned, make_tokenizer(), questions)


def test_draws_that_would_run_over_the_context_are_refused(unlearned):
    with pytest.raises(ValueError, match=r"1 of 2 rows with max_new_tokens=64 are longer .* 128 tokens \(rows\[1\]"):
        sample_completions(unlearned, make_tokenizer(), ["w1", "w1 " * 100])


def test_a_passage_may_be_as_long_as_the_context(unlearned):
    # It has no end to be scored: 128 tokens, where an answer has 129.
    passage = Question("w1 " * 100, " w2" * 28, is_passage=True)
    check_fit(unlearned, make_tokenizer(), [passage], max_new_tokens=1)
    with pytest.raises(ValueError, match=r"rows\[0\] has 129"):
        check_fit(unlearned, make_tokenizer(), [replace(passage, is_passage=False)], max_new_tokens=1)


def test_an_answer_without_a_token_to_score_is_refused_before_anything_is_measured(unlearned):
    with pytest.raises(ValueError, match=r"rows\[1\] has no token of its prompt"):
        check_fit(unlearned, make_tokenizer(), [Question("w1", " w2"), Question("", "w2")], max_new_tokens=4)


# --- figures of several models or sets ---


def make_results(probability: float, recall: float, wrong: float = 0.1, clean: float | None = None) -> SetResults:
    rows = 4
    return SetResults(
        prompts=["q"] * rows,
        answers=["a"] * rows,
        completions=["a"] * rows,
        num_tokens=[2] * rows,
        loss=[-np.log(probability)] * rows,
        rouge_l_recall=[recall] * rows,
        exact_memorization=[recall] * rows,
        extraction_strength=[probability] * rows,
        attacks={"loss": [1.0, 2.0, 3.0, 4.0], "min_k": [1.0, 2.0, 3.0, 4.0]},
        perturbed_losses=[[-np.log(wrong)] * 3] * rows,
        clean=None if clean is None else [clean] * rows,
    )


def as_evaluation(name: str, forget: SetResults, kept: SetResults, shift: float = 0.0) -> Evaluation:
    holdout = make_results(0.2, 0.2)
    holdout.attacks = {kind: [number + shift for number in numbers] for kind, numbers in holdout.attacks.items()}
    return Evaluation(
        name, {"forget": forget, "holdout": holdout, **dict.fromkeys(("retain", "real_authors", "world_facts"), kept)}
    )


def test_model_utility_is_the_harmonic_mean_of_tofus_nine():
    kept = make_results(0.5, 0.8, wrong=0.25)
    evaluation = as_evaluation("target", make_results(0.9, 0.9), kept)
    share = 0.5 / (0.5 + 3 * 0.25)  # of the real world's sets
    nine = [0.5, 0.8, 0.5, share, 0.8, 0.5, share, 0.8, 0.5]
    assert compare({"target": evaluation})["target"]["model utility"] == pytest.approx(hmean(nine))


def test_aggregate_is_the_harmonic_mean_of_memorization_privacy_and_utility():
    evaluations = {
        "target": as_evaluation("target", make_results(0.9, 1.0, clean=0.8), make_results(0.8, 0.8), shift=9),
        "retrained": as_evaluation("retrained", make_results(0.2, 0.3, clean=0.8), make_results(0.8, 0.8), shift=1),
        "unlearned": as_evaluation("unlearned", make_results(0.3, 0.4, clean=0.4), make_results(0.7, 0.8), shift=2),
    }
    compared = compare(evaluations)
    figures = compared["unlearned"]
    # OpenUnlearning: utility and fluency as parts of the target's.
    ratio = kept_utility(evaluations["unlearned"]) / kept_utility(evaluations["target"])
    assert figures["utility"] == pytest.approx(hmean([ratio, 0.4 / 0.8]))
    assert figures["aggregate"] == pytest.approx(hmean([figures[n] for n in ("memorization", "privacy", "utility")]))
    assert compared["target"]["utility"] == pytest.approx(1)
    assert compared["target"]["aggregate"] == 0
    auc, retrained_auc = figures["AUC min_k"], compared["retrained"]["AUC min_k"]
    assert figures["PrivLeak"] == pytest.approx(100 * (retrained_auc - auc) / (1 - retrained_auc))
    assert compared["retrained"]["PrivLeak"] == 0


def test_without_real_authors_there_is_no_model_utility_but_a_utility():
    evaluation = as_evaluation("target", make_results(0.9, 0.9), make_results(0.5, 0.8))
    del evaluation.sets["real_authors"]
    figures = compare({"target": evaluation})["target"]
    assert "model utility" not in figures
    assert figures["utility"] == 1


def test_where_there_is_no_paraphrase_the_truth_ratio_is_of_the_right_answer():
    results = make_results(0.5, 0.8, wrong=0.25)
    np.testing.assert_allclose(results.truth_ratios, 0.25 / 0.5)


def test_models_evaluated_with_different_tokenizers_are_not_compared():
    evaluations = {name: as_evaluation(name, make_results(0.9, 0.9), make_results(0.5, 0.8)) for name in ("a", "b")}
    for name, evaluation in evaluations.items():
        evaluation.settings["tokenizer"] = name
    with pytest.raises(ValueError, match="evaluated with different tokenizers"):
        compare(evaluations)


# --- questions ---


def test_a_row_without_an_answer_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "w1", "answer": "w2"}\n{"question": "w1"}\n')
    with pytest.raises(ValueError, match=r"Row 2 of .*rows.jsonl has no text under 'answer'"):
        read_questions(str(tmp_path / "rows.jsonl"), make_tokenizer())


def test_wrong_answers_must_be_a_list(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "w1", "answer": "w2", "perturbed_answer": "w3"}\n')
    with pytest.raises(ValueError, match="must be a list of strings, not 'w3'"):
        read_questions(str(tmp_path / "rows.jsonl"), make_tokenizer())


def test_questions_go_through_the_chat_template(tmp_path):
    tokenizer = make_tokenizer()
    # As the demo's: the space before an answer is the template's, and so is the end after it.
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}w1 {{ m.content }} w2{% else %} {{ m.content }}</s>{% endif %}"
        "{% endfor %}"
    )
    (tmp_path / "rows.jsonl").write_text('{"question": "w5", "answer": "w6", "perturbed_answer": ["w7"]}\n')
    assert read_questions(str(tmp_path / "rows.jsonl"), tokenizer) == [
        Question("w1 w5 w2", " w6", perturbed_answers=(" w7",), end_token_id=tokenizer.eos_token_id)
    ]


@pytest.mark.parametrize("content", ["m.content", "m.content | trim"])
@pytest.mark.parametrize("columns", [("prompt", "completion"), ("question", "answer")])
def test_answers_stand_where_training_puts_them(tmp_path, content, columns):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}w1 {{ " + content + " }}{% endfor %}"
    tokenizer.chat_template = tokenizer.chat_template.replace("w1", "{{ '\nw1' if m.role == 'user' else '\nw2' }}")
    row = dict(zip(columns, ("w5", " w6"), strict=True))
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    trained = load_rows(str(tmp_path / "rows.jsonl"), conversational=True)[0]
    text = tokenizer.apply_chat_template(trained["prompt"] + trained["completion"], tokenize=False)
    write_rows(tmp_path / "rows.jsonl", [row | {"paraphrased_answer": "w7", "perturbed_answer": [" w8"]}])
    (question,) = read_questions(str(tmp_path / "rows.jsonl"), tokenizer)
    assert question.prompt + question.answer == text
    assert question.prompt + question.paraphrased_answer == text.replace("w6", "w7")
    assert question.prompt + question.perturbed_answers[0] == text.replace("w6", "w8")


def test_a_chat_template_that_renders_answers_elsewhere_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}w1 {{ m.content }} {% endfor %}w2"
    (tmp_path / "rows.jsonl").write_text('{"question": "w5", "answer": "w6"}\n')
    with pytest.raises(ValueError, match=r"Row 1 of .* does not go on from the prompt"):
        read_questions(str(tmp_path / "rows.jsonl"), tokenizer)


def test_messages_are_questions_too(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    asked = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]
    answer = [{"role": "assistant", "content": "w3"}]
    for row in ({"messages": asked + answer}, {"prompt": asked, "completion": answer}):
        write_rows(tmp_path / "rows.jsonl", [row])
        assert read_questions(str(tmp_path / "rows.jsonl"), tokenizer) == [Question("w1 w2 ", "w3")]
    with pytest.raises(ValueError, match="has no chat template"):
        read_questions(str(tmp_path / "rows.jsonl"), make_tokenizer())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "w1", "answer": "w2", "fact": "w9"}, "the fact 'w9' is not in the answer 'w2'"),
        ({"question": "w1", "answer": "w2", "paraphrased_question": 3}, "'paraphrased_question' must be a text, not 3"),
        ({"messages": [{"role": "user", "content": "w1"}]}, "must be the assistant's answer"),
        ({"text": " "}, "has no text under 'text'"),
        ({"text": "w1 w2"}, "has 2 tokens, fewer than a passage of 100"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_questions(write_rows(tmp_path / "rows.jsonl", [row]), make_tokenizer())


def test_questions_and_documents_do_not_mix(tmp_path):
    rows = [{"text": "w1 w2"}, {"question": "w1", "answer": "w2"}]
    with pytest.raises(ValueError, match=r"Row 2 of .* has no text under 'text', as other rows"):
        read_questions(write_rows(tmp_path / "rows.jsonl", rows), make_tokenizer())


# --- uld eval ---


def test_eval_measures_all_models_on_all_sets(files, capsys):
    assert run_eval(files, "--retrained", files["retrained"]) == 0
    evaluations = {
        name: Evaluation.load(Path(files["results"]) / f"{name}.json") for name in ("target", "unlearned", "retrained")
    }
    summary = json.loads((Path(files["results"]) / "summary.json").read_text())
    ratios = {name: each.sets["forget"].truth_ratios for name, each in evaluations.items()}
    for name in evaluations:
        expected = forget_quality(ratios[name], ratios["retrained"])
        assert summary["compared"][name]["forget quality"] == pytest.approx(expected)
        assert set(evaluations[name].sets) == {"forget", "retain", "holdout"}
    assert summary["compared"]["retrained"]["privacy"] == pytest.approx(1)
    assert summary["compared"]["target"]["memorization"] == 0
    table = capsys.readouterr().out
    assert "forget: ROUGE-L recall" in table
    assert "retrained" in table.splitlines()[0]


def test_figures_of_target_and_unlearned_model_are_their_own(files, unlearned):
    assert run_eval(files) == 0
    questions = read_questions(files["forget"], make_tokenizer())
    for name, model in (("target", unlearned.target), ("unlearned", unlearned)):
        saved = Evaluation.load(Path(files["results"]) / f"{name}.json").sets["forget"]
        expected = evaluate(model, make_tokenizer(), questions, max_new_tokens=4)
        np.testing.assert_allclose(saved.loss, expected.loss, atol=1e-4)
        assert saved.completions == expected.completions


def test_a_second_run_measures_nothing_again(files, monkeypatch):
    assert run_eval(files) == 0
    monkeypatch.setattr("uld_hf.cli.eval.evaluate", lambda *args, **options: pytest.fail("measured again"))
    assert run_eval(files) == 0


def test_an_interrupted_run_goes_on_with_the_set_it_was_at(files, monkeypatch):
    done = []

    def interrupted(*args, **kwargs):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr("uld_hf.cli.eval.evaluate", interrupted)
    assert run_eval(files) == 130
    assert set(Evaluation.load(Path(files["results"]) / "target.json").sets) == {"forget", "retain"}
    monkeypatch.setattr(
        "uld_hf.cli.eval.evaluate", lambda *args, **options: done.append(1) or evaluate(*args, **options)
    )
    assert run_eval(files) == 0
    assert len(done) == 6  # three sets of two models, each once


def measured_by(monkeypatch) -> list[str]:
    """Which sets are measured from here on, in turn."""
    measured = []

    def recorded(split, *args):
        measured.append(split)
        return measure_set(split, *args)

    monkeypatch.setattr("uld_hf.cli.eval.measure_set", recorded)
    return measured


def eval_on(files: dict[str, str], sets: Sequence[str], *more: str) -> int:
    data = [part for name in sets for part in (f"--{name}_dataset", files[name])]
    command = ["eval", files["unlearned"], "--output_dir", files["results"], "--max_new_tokens", "4"]
    return uld([*command, *data, "--num_samples", "0", *more])


def test_a_set_that_is_added_leaves_the_others_as_they_are(files, monkeypatch):
    measured = measured_by(monkeypatch)
    assert eval_on(files, ["forget", "retain"]) == 0
    before = Evaluation.load(Path(files["results"]) / "unlearned.json")
    measured.clear()
    assert eval_on(files, ["forget", "retain", "holdout"]) == 0
    assert measured == ["holdout", "holdout"]  # of target and unlearned model
    after = Evaluation.load(Path(files["results"]) / "unlearned.json")
    assert {split: after.sets[split] for split in before.sets} == before.sets
    assert list(after.sets) == list(after.settings["data"]) == ["forget", "retain", "holdout"]
    measured.clear()
    assert eval_on(files, ["forget", "retain"]) == 0
    assert measured == []
    assert Evaluation.load(Path(files["results"]) / "unlearned.json") == before


def test_more_draws_are_of_the_forget_set_only(files, monkeypatch, capsys):
    assert eval_on(files, ["forget", "retain"]) == 0
    measured = measured_by(monkeypatch)
    assert eval_on(files, ["forget", "retain"], "--num_samples", "1") == 0
    assert measured == ["forget", "forget"]
    told = "unlearned.json was measured with other settings (num_samples): measured anew are forget."
    assert told in capsys.readouterr().err


def test_rows_that_changed_are_measured_anew_and_no_others(files, monkeypatch):
    assert eval_on(files, ["forget", "retain"]) == 0
    write_rows(Path(files["retain"]), make_questions(21))
    measured = measured_by(monkeypatch)
    assert eval_on(files, ["forget", "retain"]) == 0
    assert measured == ["retain", "retain"]


def test_another_version_measures_all_anew_and_says_so(files, monkeypatch, capsys):
    assert eval_on(files, ["forget", "retain"]) == 0
    monkeypatch.setattr("uld_hf.cli.eval.__version__", "99.0")
    measured = measured_by(monkeypatch)
    assert eval_on(files, ["forget", "retain"]) == 0
    assert measured == ["forget", "retain"] * 2
    assert (
        "was measured with other settings (version of uld_hf): measured anew are forget, retain."
        in capsys.readouterr().err
    )


def test_other_settings_are_measured_anew(files):
    assert run_eval(files) == 0
    before = Evaluation.load(Path(files["results"]) / "unlearned.json")
    assert run_eval(files, "--alpha", "2.5") == 0
    after = Evaluation.load(Path(files["results"]) / "unlearned.json")
    assert after.sets["forget"].loss != before.sets["forget"].loss


def test_an_assistant_trained_anew_is_measured_anew(files):
    assert run_eval(files) == 0
    before = Evaluation.load(Path(files["results"]) / "unlearned.json")
    model = ULDForCausalLM.from_pretrained(files["unlearned"])
    train_like(model.assistant, seed=9)
    model.save_pretrained(files["unlearned"])
    assert run_eval(files) == 0
    assert Evaluation.load(Path(files["results"]) / "unlearned.json").sets["forget"].loss != before.sets["forget"].loss


def test_a_mistake_in_the_last_file_is_told_before_anything_is_measured(files, monkeypatch, capsys):
    Path(files["holdout"]).write_text('{"question": "w1"}\n')
    monkeypatch.setattr("uld_hf.cli.eval.evaluate", lambda *args, **options: pytest.fail("measured already"))
    assert run_eval(files) == 2
    assert "has no text under 'answer'" in capsys.readouterr().err


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def save_adapter(files: dict[str, str], folder: Path) -> PreTrainedModel:
    """What a method with LoRA leaves of the target; the model with the adapter merged."""
    target = AutoModelForCausalLM.from_pretrained(files["target"])
    adapted = train_like(get_peft_model(target, LoraConfig(target_modules=["q_proj", "v_proj"])))
    adapted.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return adapted.merge_and_unload()


def test_models_of_other_methods_have_columns_of_their_own(files, tmp_path, capsys):
    merged = save_adapter(files, tmp_path / "forgot-npo")
    tiny_model("llama", seed=8).save_pretrained(tmp_path / "baked")
    composed = ULDForCausalLM.from_pretrained(files["unlearned"], alpha=0.3)
    composed.save_pretrained(tmp_path / "weaker")
    others = [str(tmp_path / name) for name in ("forgot-npo", "baked", "weaker")]
    assert run_eval(files, "--retrained", files["retrained"], "--others", *others) == 0
    summary = json.loads((Path(files["results"]) / "summary.json").read_text())
    assert list(summary["models"]) == ["target", "unlearned", "retrained", "forgot-npo", "baked", "weaker"]
    assert capsys.readouterr().out.split("\n")[0].split() == list(summary["models"])
    forget = read_questions(files["forget"], make_tokenizer())
    for name, model in (("forgot-npo", merged), ("weaker", composed)):
        expected = evaluate(model, make_tokenizer(), forget, max_new_tokens=4)
        figures = summary["models"][name]["forget"]
        assert figures["probability"] == pytest.approx(expected.summary()["probability"])
        assert summary["compared"][name]["forget quality"] < 1
        assert {"memorization", "privacy", "PrivLeak"} <= set(summary["compared"][name])
    measured = [path.stat().st_mtime_ns for path in Path(files["results"]).glob("*.json") if path.stem != "summary"]
    assert run_eval(files, "--retrained", files["retrained"], "--others", *others) == 0
    again = [path.stat().st_mtime_ns for path in Path(files["results"]).glob("*.json") if path.stem != "summary"]
    assert again == measured  # an adapter too is known again


@pytest.mark.parametrize("names", [["retrained"], ["a/npo", "b/npo/"]])
def test_columns_with_one_name_are_refused(files, capsys, names):
    assert run_eval(files, "--others", *names) == 2
    assert f"there is a column {Path(names[0]).name!r} already" in capsys.readouterr().err


def test_the_model_itself_and_the_target_are_no_others(files, tmp_path, capsys):
    assert run_eval(files, "--others", files["unlearned"]) == 2
    assert "it is the model itself" in capsys.readouterr().err
    Path(files["target"]).rename(tmp_path / "original")
    AutoModelForCausalLM.from_pretrained(tmp_path / "original").save_pretrained(tmp_path / "copy")
    for tokenizer_folder in ("original", "copy"):
        make_tokenizer().save_pretrained(tmp_path / tokenizer_folder)
    assert run_eval(files, "--target", str(tmp_path / "original"), "--others", str(tmp_path / "copy")) == 2
    assert f"--others {tmp_path / 'copy'} is the target itself" in capsys.readouterr().err


def test_an_adapter_is_measured_on_the_target_wherever_it_was_trained(files, tmp_path, monkeypatch, capsys):
    merged = save_adapter(files, tmp_path / "forgot-npo")
    config = tmp_path / "forgot-npo" / "adapter_config.json"
    relative = json.loads(config.read_text()) | {"base_model_name_or_path": "elsewhere/target"}
    config.write_text(json.dumps(relative))
    tiny_model("llama", seed=9).save_pretrained(tmp_path / "elsewhere" / "target")  # not what it was trained on
    monkeypatch.chdir(tmp_path)
    assert run_eval(files, "--others", "forgot-npo") == 0
    summary = json.loads((Path(files["results"]) / "summary.json").read_text())
    expected = evaluate(merged, make_tokenizer(), read_questions(files["forget"], make_tokenizer()), max_new_tokens=4)
    actual = summary["models"]["forgot-npo"]["forget"]["probability"]
    assert actual == pytest.approx(expected.summary()["probability"])
    assert (
        f"forgot-npo is an adapter for elsewhere/target. It is measured on {files['target']}" in capsys.readouterr().err
    )


def test_a_model_of_another_target_is_refused_before_anything_is_measured(files, tmp_path, monkeypatch, capsys):
    tiny_model("llama", seed=9).save_pretrained(tmp_path / "another")
    make_tokenizer().save_pretrained(tmp_path / "another")
    another = AutoModelForCausalLM.from_pretrained(tmp_path / "another")
    composed = ULDForCausalLM(target=another, assistant=train_like(build_assistant(another, 2)), relative_top=0)
    composed.save_pretrained(tmp_path / "of-another")
    monkeypatch.setattr("uld_hf.cli.eval.evaluate", lambda *args, **options: pytest.fail("measured already"))
    assert run_eval(files, "--others", str(tmp_path / "of-another")) == 2
    assert "was trained on another target" in capsys.readouterr().err


def test_an_assistant_by_itself_and_what_cannot_be_merged_are_refused(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("uld_hf.cli.eval.evaluate", lambda *args, **options: pytest.fail("measured already"))
    assert run_eval(files, "--others", str(Path(files["unlearned"]) / "assistant")) == 2
    assert "is an adapter that names no base" in capsys.readouterr().err
    target = AutoModelForCausalLM.from_pretrained(files["target"])
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(target, prompts).save_pretrained(tmp_path / "prompts")
    assert run_eval(files, "--others", str(tmp_path / "prompts")) == 2
    assert "PROMPT_TUNING, which has no weights to be merged" in capsys.readouterr().err


def test_a_memorization_of_0_is_explained(files, capsys):
    assert run_eval(files, "--others", files["retrained"], "--target", files["target"]) == 2
    renamed = Path(files["retrained"]).rename(Path(files["retrained"]).with_name("other"))
    assert run_eval(files, "--others", str(renamed)) == 0
    summary = json.loads((Path(files["results"]) / "summary.json").read_text())
    printed = capsys.readouterr().out
    for name in ("unlearned", "other"):
        is_zero = summary["compared"][name]["memorization"] == 0
        assert (f"{name}: memorization is 0, as its " in printed) is is_zero
    assert 0 in {summary["compared"][name]["memorization"] for name in ("unlearned", "other")}


def test_the_report_has_a_column_for_every_model(files, tmp_path):
    save_adapter(files, tmp_path / "forgot-npo")
    assert run_eval(files, "--others", str(tmp_path / "forgot-npo")) == 0
    page = tmp_path / "report.html"
    assert uld(["report", files["results"], "--output", str(page)]) == 0
    assert '<th class="forgot-npo">forgot-npo</th>' in page.read_text()


@pytest.mark.parametrize("kind", ["packed", "LoRA"])
def test_what_the_fingerprint_leaves_out_is_told_apart_all_the_same(kind):
    def make(seed: int) -> PreTrainedModel:
        model = tiny_model("llama")
        if kind == "LoRA":
            return train_like(get_peft_model(model, LoraConfig(target_modules=["q_proj"])), seed).get_base_model()
        values = torch.randint(0, 255, (8,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        model.model.layers[0].packed = torch.nn.Parameter(values, requires_grad=False)
        return model

    assert identify(make(1)) == identify(make(1)) != identify(make(2))


def test_another_method_s_model_is_measured_without_one_of_uld(files, tmp_path, capsys):
    merged = save_adapter(files, tmp_path / "forgot-npo")
    files["unlearned"] = str(tmp_path / "forgot-npo")
    assert run_eval(files) == 2  # nothing says what it was made from
    assert "forgot-npo is an adapter: say what it was trained on, with --target" in capsys.readouterr().err
    assert run_eval(files, "--target", files["target"], "--alpha", "1") == 2
    assert "forgot-npo is an ordinary one" in capsys.readouterr().err
    assert run_eval(files, "--target", files["target"]) == 0
    summary = json.loads((Path(files["results"]) / "summary.json").read_text())
    forget = read_questions(files["forget"], make_tokenizer())
    for name, model in (("unlearned", merged), ("target", AutoModelForCausalLM.from_pretrained(files["target"]))):
        expected = evaluate(model, make_tokenizer(), forget, max_new_tokens=4)
        assert summary["models"][name]["forget"]["probability"] == pytest.approx(expected.summary()["probability"])
    page = tmp_path / "report.html"
    assert uld(["report", files["results"], "--output", str(page)]) == 0
    assert "model: layers, SHA-256" in page.read_text()
    assert "The target's weights are unchanged" not in page.read_text().replace("&#x27;", "'")


def test_eval_asks_in_other_ways_on_the_forget_set(files, capsys):
    assert run_eval(files, "--num_samples", "2") == 0
    evaluation = Evaluation.load(Path(files["results"]) / "unlearned.json")
    assert set(evaluation.sets["forget"].leaks) == {"question", "answer begun", "question in other words", "drawn"}
    assert evaluation.sets["retain"].leaks is None
    table = capsys.readouterr().out
    for label in ("leak@1", "leak@2", "leak, question in other words", "leak, answer begun", "broken answers"):
        assert f"forget: {label}" in table


def test_eval_says_why_figures_are_missing(files, capsys):
    rows = [{"question": "w1", "answer": "w2 w3"}]
    write_rows(Path(files["forget"]), rows)
    assert run_eval(files) == 0
    printed = capsys.readouterr().out
    assert "No truth ratio and no forget quality: the forget rows have no 'perturbed_answer'." in printed
    assert "No privacy and no aggregate: give --retrained." in printed


def test_eval_has_tofus_four_sets_and_its_utility(files, tmp_path, capsys):
    rows = [
        {"question": f"w{i}", "answer": f"w{i + 1}", "perturbed_answer": [f"w{i + 2}", f"w{i + 3}"]} for i in range(4)
    ]
    real = write_rows(tmp_path / "real.jsonl", rows)
    options = ["--real_authors_dataset", real, "--world_facts_dataset", real, "--retrained", files["retrained"]]
    assert run_eval(files, *options) == 0
    summary = json.loads((Path(files["results"]) / "summary.json").read_text())
    evaluation = Evaluation.load(Path(files["results"]) / "unlearned.json")
    assert summary["compared"]["unlearned"]["model utility"] == pytest.approx(kept_utility(evaluation))
    assert {"privacy", "PrivLeak", "forget quality"} <= set(summary["compared"]["unlearned"])
    table = capsys.readouterr().out
    assert "No utility and no aggregate: the target answers none of the questions that must be kept." in table
    assert "real authors: probability among answers" in table
    assert "real authors: truth ratio (true_better)" in table


def write_log(path: Path, rows: list[dict], tokens: list[int] | None = None) -> str:
    keys = [str(i) for i in range(len(rows))]
    ours = [len(row["answer"].split()) + 1 for row in rows]
    columns = {
        "avg_gt_loss": [1.0] * len(rows),
        "avg_paraphrased_loss": [1.0 + 0.1 * i for i in range(len(rows))],
        "average_perturb_loss": [[2.0, 3.0]] * len(rows),
        "rougeL_recall": [0.5] * len(rows),
        "generated_text": [[row["question"], "a", row["answer"]] for row in rows],
        "num_token_gt": ours if tokens is None else tokens,
    }
    of_set = {name: dict(zip(keys, values, strict=True)) for name, values in columns.items()}
    path.write_text(json.dumps(dict.fromkeys(SETS, of_set)))
    return str(path)


def test_the_forget_quality_against_a_log(files, tmp_path):
    rows = make_questions(10)
    log = write_log(tmp_path / "log.json", rows)
    assert run_eval(files, "--retrained_log", log) == 0
    summary = json.loads((Path(files["results"]) / "summary.json").read_text())
    evaluation = Evaluation.load(Path(files["results"]) / "unlearned.json")
    retrained = np.exp(1 + 0.1 * np.arange(len(rows)) - 2.5)
    expected = forget_quality(evaluation.sets["forget"].truth_ratios, retrained)
    assert summary["compared"]["unlearned"]["forget quality"] == pytest.approx(expected)


@pytest.mark.parametrize("column", ["paraphrased_answer", "perturbed_answer"])
def test_a_log_needs_truth_ratios_like_its_own(files, tmp_path, monkeypatch, capsys, column):
    rows = make_questions(10)
    write_rows(Path(files["forget"]), [{name: row[name] for name in row if name != column} for row in rows])
    monkeypatch.setattr("uld_hf.cli.eval.evaluate", lambda *args, **options: pytest.fail("measured already"))
    assert run_eval(files, "--retrained_log", write_log(tmp_path / "log.json", rows)) == 2
    assert f"add '{column}' to the forget rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "tokens", "message"),
    [
        (make_questions(20), None, "The log is of another split: it has 5 right answers, of which 0 are among the 5"),
        (make_questions(10)[:4], None, "The log is of another split: it has 4 right answers, of which 4 are among"),
        (make_questions(10), [3, 3, 3, 4, 3], "The log is of a model with another tokenizer: of 5 right answers 1"),
    ],
)
def test_a_log_of_something_else_is_refused_before_anything_is_measured(
    files, tmp_path, monkeypatch, capsys, rows, tokens, message
):
    monkeypatch.setattr("uld_hf.cli.eval.evaluate", lambda *args, **options: pytest.fail("measured already"))
    assert run_eval(files, "--retrained_log", write_log(tmp_path / "log.json", rows, tokens)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "sweep"])
def test_a_retrained_model_with_another_tokenizer_is_refused(files, monkeypatch, capsys, command):
    other = make_tokenizer()
    words = {word: 63 - index for word, index in other.get_vocab().items()}
    other.backend_tokenizer.model = WordLevel(words, unk_token="<unk>")
    other.save_pretrained(files["retrained"])
    monkeypatch.setattr(f"uld_hf.cli.{command}.evaluate", lambda *args, **options: pytest.fail("measured already"))
    sets = ["--forget_dataset", files["forget"], "--retain_dataset", files["retain"]]
    output = ["--output_dir", files["results"]] if command == "eval" else []
    assert uld([command, "--model", files["unlearned"], *sets, *output, "--retrained", files["retrained"]]) == 2
    assert "has another tokenizer than the target" in capsys.readouterr().err


def test_rows_over_the_context_are_refused_before_anything_is_measured(files, monkeypatch, capsys):
    write_rows(Path(files["retain"]), [{"question": "w1", "answer": "w2"}, {"question": "w1", "answer": "w2 " * 200}])
    monkeypatch.setattr("uld_hf.cli.eval.evaluate", lambda *args, **options: pytest.fail("measured already"))
    write_rows(Path(files["forget"]), make_questions(10))
    assert run_eval(files) == 2
    assert "retain set: 1 of 2 rows are longer than the model's context of 128 tokens" in capsys.readouterr().err


def test_a_sweep_refuses_rows_over_the_context_before_anything_is_measured(files, monkeypatch, capsys):
    write_rows(Path(files["retain"]), [{"question": "w1", "answer": "w2"}, {"question": "w1", "answer": "w2 " * 200}])
    monkeypatch.setattr("uld_hf.cli.sweep.evaluate", lambda *args, **options: pytest.fail("measured already"))
    sets = [part for name in ("forget", "retain") for part in (f"--{name}_dataset", files[name])]
    assert uld(["sweep", files["unlearned"], *sets, "--retrained", files["retrained"]]) == 2
    assert "retain set: 1 of 2 rows are longer than the model's context of 128 tokens" in capsys.readouterr().err


def test_a_sweep_refuses_held_out_questions_that_it_would_not_use(files, capsys):
    sets = [part for name in ("forget", "retain", "holdout") for part in (f"--{name}_dataset", files[name])]
    assert uld(["sweep", files["unlearned"], *sets, "--retrained", files["retrained"]]) == 2
    assert "Beside --retrained, --holdout_dataset is for --match_attacks only" in capsys.readouterr().err


def test_a_sweep_is_not_written_over_its_data(files, capsys):
    sets = [part for name in ("forget", "retain") for part in (f"--{name}_dataset", files[name])]
    before = Path(files["retain"]).read_text()
    assert uld(["sweep", files["unlearned"], *sets, "--output", files["retain"]]) == 2
    assert "retain.jsonl is there already" in capsys.readouterr().err
    assert Path(files["retain"]).read_text() == before


def test_a_sweep_is_written_over_a_sweep(files, tmp_path):
    sets = [part for name in ("forget", "retain") for part in (f"--{name}_dataset", files[name])]
    for alpha in ("0.5", "1"):
        command = ["sweep", files["unlearned"], *sets, "--alphas", alpha, "--output", str(tmp_path / "sweep.json")]
        assert uld(command) == 0
        assert json.loads((tmp_path / "sweep.json").read_text())["settings"][0]["alpha"] == float(alpha)


def test_a_changed_chat_template_is_measured_anew(files, capsys):
    prompts = []
    for template in (None, "{% for m in messages %}w50 {{ m.content }} {% endfor %}"):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        for name in ("target", "unlearned"):
            tokenizer.save_pretrained(files[name])
        assert run_eval(files) == 0
        prompts.append(Evaluation.load(Path(files["results"]) / "unlearned.json").sets["forget"].prompts[0])
    assert prompts == ["Question: w10\nAnswer:", "w50 w10 w50"]
    told = "unlearned.json was measured with other settings (questions): measured anew are forget, holdout, retain."
    assert told in capsys.readouterr().err


def save_classifier(folder: Path, labels: list[str]) -> str:
    """A text classifier with random weights that reads 16 tokens."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, max_position_embeddings=16, id2label=dict(enumerate(labels)))
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_classifier_of_something_else_is_refused_before_anything_is_measured(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("uld_hf.cli.eval.evaluate", lambda *args, **options: pytest.fail("measured already"))
    assert run_eval(files, "--fluency_classifier", save_classifier(tmp_path / "moods", ["good", "bad"])) == 2
    assert "has no label 'clean', only ['good', 'bad']" in capsys.readouterr().err


def test_answers_longer_than_the_classifier_reads_are_judged_all_the_same(files, tmp_path):
    classifier = save_classifier(tmp_path / "gibberish", ["clean", "noise"])
    assert run_eval(files, "--fluency_classifier", classifier, "--max_new_tokens", "40") == 0
    results = Evaluation.load(Path(files["results"]) / "unlearned.json").sets["forget"]
    assert max(len(text.split()) for text in results.completions) > 16
    assert len(results.clean) == len(results.completions)
    assert all(0 < each < 1 for each, text in zip(results.clean, results.completions, strict=True) if text)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--max_new_tokens", "0"], "max_new_tokens=0 must be at least 1"),
        (["--batch_size", "-1"], "batch_size=-1 must be at least 1"),
        (["--num_samples", "-1"], "num_samples=-1 must be 0 or more"),
        (["--retain_dataset", "missing.jsonl"], "There is no file 'missing.jsonl'"),
        (["--retrained_log", "missing.json"], "missing.json"),
        (["--fluency_classifier", "./missing"], "missing"),
    ],
)
def test_options_of_eval_out_of_range_are_refused(files, capsys, option, message):
    assert run_eval(files, *option) == 2
    assert message in capsys.readouterr().err


def test_documents_are_evaluated_in_passages(files, unlearned):
    for name, first in (("forget", 0), ("retain", 20), ("holdout", 30)):
        write_rows(Path(files[name]), [{"text": " ".join(f"w{(first + i) % 60}" for i in range(25))}])
    assert run_eval(files, "--prefix_tokens", "4", "--continuation_tokens", "6") == 0
    results = Evaluation.load(Path(files["results"]) / "unlearned.json").sets["forget"]
    assert results.prompts == ["w0 w1 w2 w3", "w10 w11 w12 w13"]
    assert results.num_tokens == [6, 6]  # without an end
    text = " ".join(f"w{i}" for i in range(25))
    assert results.word_perplexity == pytest.approx(word_perplexity(unlearned, make_tokenizer(), text, 128), rel=1e-4)


def test_the_figures_go_into_the_card_and_the_model_still_loads(files):
    assert run_eval(files, "--add_to_card") == 0
    summary = json.loads((Path(files["results"]) / "summary.json").read_text())
    card = (Path(files["unlearned"]) / "README.md").read_text()
    figures = summary["models"]["unlearned"]["forget"]
    assert f"| forget: probability | {figures['probability']:.4g} |" in card
    assert f"| forget: leak@10 | {figures['leak@10']:.4g} |" in card
    model = ULDForCausalLM.from_pretrained(files["unlearned"])
    assert model.config.training["assistant"]["evaluation"]["forget: probability"] == figures["probability"]


def test_figures_of_another_alpha_do_not_go_into_the_card(files, capsys):
    before = (Path(files["unlearned"]) / "README.md").read_bytes()
    assert run_eval(files, "--add_to_card", "--alpha", "2") == 2
    assert "evaluated with its own alpha" in capsys.readouterr().err
    assert (Path(files["unlearned"]) / "README.md").read_bytes() == before


# --- sweep ---


def never_told(truth_ratios: np.ndarray) -> Reference:
    """A reference by truth ratios."""
    return Reference(0.0, 0.0, truth_ratios)


def test_outcomes_are_those_of_a_model_with_the_setting(unlearned):
    forget, retain = as_questions(make_questions(10)), as_questions(make_questions(20))
    ratios = np.linspace(0.2, 1.4, len(forget))
    settings = [Subtraction(0.5, relative_top=0), Subtraction(2.0, relative_top=0, clamp=True)]
    target, outcomes = sweep(unlearned, make_tokenizer(), forget, retain, settings, never_told(ratios))
    models = [unlearned.target] + [
        ULDForCausalLM(target=unlearned.target, assistant=unlearned.assistant, alpha=setting.alpha, **setting.options)
        for setting in settings
    ]
    for model, outcome in zip(models, [target, *outcomes], strict=True):
        of_forget, of_retain = (evaluate(model, make_tokenizer(), rows, max_new_tokens=1) for rows in (forget, retain))
        assert outcome.forget_probability == pytest.approx(of_forget.summary()["probability"], rel=1e-4)
        assert outcome.retain_probability == pytest.approx(of_retain.summary()["probability"], rel=1e-4)
        assert outcome.forget_quality == pytest.approx(forget_quality(of_forget.truth_ratios, ratios))


@pytest.fixture
def contrast(unlearned: ULDForCausalLM) -> ULDForCausalLM:
    """One assistant is subtracted, another added."""
    assistants = {
        "facts": unlearned.assistant,
        "wording": train_like(build_assistant(tiny_model("llama"), 1), seed=9),
    }
    return ULDForCausalLM(
        target=unlearned.target, assistant=assistants, alpha={"facts": 2.0, "wording": -1.0}, relative_top=0
    )


def test_a_share_is_the_weight_of_what_is_added(contrast):
    forget, retain = as_questions(make_questions(10)), as_questions(make_questions(20))
    settings = [Subtraction(1.5, 0, gate=0.01, replace=True, share=share) for share in (None, 0.8, 1.2)]
    _, outcomes = sweep(contrast, make_tokenizer(), forget, retain, settings)
    found = []
    for setting, weight in zip(settings, (-0.75, -1.2, -1.8), strict=True):
        alpha = {"facts": 1.5, "wording": weight}
        assistants = dict(contrast.assistants.items())
        model = ULDForCausalLM(target=contrast.target, assistant=assistants, alpha=alpha, **setting.options)
        found.append(evaluate(model, make_tokenizer(), forget, max_new_tokens=1).summary()["probability"])
    assert [each.forget_probability for each in outcomes] == pytest.approx(found, rel=1e-4)
    assert len(set(found)) == 3


def test_a_share_needs_an_assistant_that_is_added(unlearned):
    forget = as_questions(make_questions(10))
    with pytest.raises(ValueError, match=r"share=0.8 is of assistants that are added, and all of this model's"):
        sweep(unlearned, make_tokenizer(), forget, forget, [Subtraction(1.0, share=0.8)])
    for share in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be above 0"):
            Subtraction(1.0, share=share)


def test_attacks_are_compared_with_those_on_answers_never_told(unlearned):
    forget, unseen = as_questions(make_questions(10)), as_questions(make_questions(30))
    setting = Subtraction(2.0, relative_top=0)
    results = evaluate(unlearned.target, make_tokenizer(), unseen, max_new_tokens=1)
    reference = Reference.from_results(results, by_truth_ratios=False, with_attacks=True)
    assert set(reference.attacks) == {"loss", "min_k"}
    target, (outcome,) = sweep(unlearned, make_tokenizer(), forget, forget, [setting], reference)
    model = ULDForCausalLM(
        target=unlearned.target, assistant=unlearned.assistant, alpha=setting.alpha, **setting.options
    )
    for found, of in ((target, unlearned.target), (outcome, model)):
        attacks = evaluate(of, make_tokenizer(), forget, max_new_tokens=1).attacks
        expected = min(ks_2samp(attacks[name], numbers).pvalue for name, numbers in reference.attacks.items())
        assert found.attack_quality == pytest.approx(expected)


def test_what_attacks_tell_from_never_told_is_not_forgotten():
    assert has_forgotten(Outcome(0.1, 0.9, forget_quality=0.5, attack_quality=0.06))
    assert not has_forgotten(Outcome(0.1, 0.9, forget_quality=0.5, attack_quality=0.04))
    assert not has_forgotten(Outcome(0.1, 0.9, forget_quality=0.04, attack_quality=0.5))


def test_sweep_tries_shares_and_matches_attacks(files, contrast, tmp_path, capsys):
    contrast.save_pretrained(files["unlearned"])
    output = tmp_path / "sweep.json"
    sets = [part for name in ("forget", "retain", "holdout") for part in (f"--{name}_dataset", files[name])]
    command = ["sweep", "--model", files["unlearned"], "--target", files["target"], *sets]
    tried = ["--alphas", "0.5", "1", "--shares", "0.4", "0.8"]
    assert uld([*command, *tried, "--match_attacks", "--utility_budget", "0.99", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert [(each["alpha"], each["share"]) for each in report["settings"]] == [
        (0.5, 0.4),
        (0.5, 0.8),
        (1, 0.4),
        (1, 0.8),
    ]
    assert all(0 <= each["attack_quality"] <= 1 for each in [report["target"], *report["settings"]])
    printed = capsys.readouterr().out
    assert "  share  filter" in printed
    assert "attacks, p" in printed
    # Without the options nothing is printed of either.
    assert uld([*command, "--alphas", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "share" not in printed
    assert "attacks" not in printed


def test_a_choice_says_the_share_and_that_attacks_counted():
    settings = [Subtraction(1.5, share=0.8)]
    said = describe_choice(settings, 0, 0.4, with_attacks=True)
    assert "alpha=1.5, share=0.8 (added with -1.2), relative_top=0.01" in said
    assert "the highest of the smaller of both p, with less than 40% of the tokens still the first choice" in said
    assert "first choice and p above 0.05, of attacks too" in said


def test_without_paraphrases_the_forget_quality_is_of_the_right_answers(unlearned):
    forget = [replace(question, paraphrased_answer=None) for question in as_questions(make_questions(10))]
    ratios = np.linspace(0.2, 1.4, len(forget))
    target, _ = sweep(unlearned, make_tokenizer(), forget, forget, [Subtraction(0.5)], never_told(ratios))
    expected = evaluate(unlearned.target, make_tokenizer(), forget, max_new_tokens=1).truth_ratios
    assert target.forget_quality == pytest.approx(forget_quality(expected, ratios))


def test_questions_and_documents_are_not_swept_together(unlearned):
    passages = [Question("w1 w2", " w3 w4", is_passage=True)]
    with pytest.raises(ValueError, match="One set has questions, the other documents"):
        sweep(unlearned, make_tokenizer(), passages, as_questions(make_questions(10)), [Subtraction(0.5)])


def test_a_sweep_over_documents_scores_no_end(unlearned):
    passages = [Question("w1 w2", " w3 w4", is_passage=True)]
    target, _ = sweep(unlearned, make_tokenizer(), passages, passages, [Subtraction(0.5)])
    expected = evaluate(unlearned.target, make_tokenizer(), passages, max_new_tokens=1).summary()["probability"]
    assert target.forget_probability == pytest.approx(expected, rel=1e-4)


def test_without_wrong_answers_a_sweep_goes_by_what_the_retrained_model_makes_of_right_ones(files, tmp_path, capsys):
    # The target knows what it says itself: three answers of five that a model with other weights was never told.
    tokenizer = make_tokenizer()
    target, never_told = (AutoModelForCausalLM.from_pretrained(files[name]) for name in ("target", "retrained"))
    questions = read_questions(files["forget"], tokenizer)
    said, guessed = (evaluate(model, tokenizer, questions, 4).completions for model in (target, never_told))
    said = said[:3] + guessed[3:]
    asked = [json.loads(line)["question"] for line in Path(files["forget"]).read_text().splitlines()]
    rows = [{"question": question, "answer": text.strip()} for question, text in zip(asked, said, strict=True)]
    write_rows(Path(files["forget"]), rows)
    output = tmp_path / "sweep.json"
    # fmt: off
    command = [
        "sweep", "--model", files["unlearned"], "--forget_dataset", files["forget"], "--retain_dataset",
        files["retain"], "--retrained", files["retrained"], "--alphas", "0.001", "2", "4", "8", "--clamps", "off",
        "--utility_budget", "0.999", "--output", str(output),
    ]
    # fmt: on
    assert uld(command) == 0
    report = json.loads(output.read_text())
    questions = read_questions(files["forget"], tokenizer)
    prompts, answers = zip(*((question.prompt, question.answer) for question in questions), strict=True)
    scores = score_completions(never_told, tokenizer, prompts, answers)
    probability = np.mean([row.probability for row in scores])
    first_choice = np.mean([row.most_probable.mean() for row in scores])
    assert report["never_told"] == pytest.approx({"probability": probability, "first_choice": first_choice})
    assert report["retrained"] == files["retrained"]
    outcomes = [
        (each["forget_probability"], each["forget_first_choice"], each["forget_quality"]) for each in report["settings"]
    ]
    good = [p <= probability and first <= first_choice for p, first, _ in outcomes]
    assert (good[0], True in good) == (False, True)
    assert report["chosen"] == good.index(True)
    assert {quality for *_, quality in outcomes} == {None}
    assert "still the first choice, as of the model of --retrained" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["eval", "sweep"])
def test_a_retrained_model_that_lacks_tokens_is_refused(files, monkeypatch, capsys, command):
    tiny_model("llama", seed=6, vocab_size=32).save_pretrained(files["retrained"])
    monkeypatch.setattr(f"uld_hf.cli.{command}.evaluate", lambda *args, **options: pytest.fail("measured already"))
    sets = ["--forget_dataset", files["forget"], "--retain_dataset", files["retain"]]
    output = ["--output_dir", files["results"]] if command == "eval" else []
    assert uld([command, "--model", files["unlearned"], *sets, *output, "--retrained", files["retrained"]]) == 2
    number = len(make_tokenizer())
    assert f"knows 32 tokens and the target's tokenizer has {number}" in capsys.readouterr().err


def test_a_subtraction_is_applied_to_all_assistants_in_proportion():
    target = tiny_model("llama")
    assistants = {"forget": train_like(build_assistant(target, 2)), "retain": train_like(build_assistant(target, 1))}
    model = ULDForCausalLM(target=target, assistant=assistants, alpha={"forget": 1.0, "retain": -0.5}, center=False)
    setting = Subtraction(1.5, relative_top=0.1, outside="mask", center=True, clamp=True)
    apply_subtraction(model, setting)
    assert model.config.alphas == {"forget": 1.5, "retain": -0.75}
    assert {name: getattr(model.config, name) for name in setting.options} == setting.options
    apply_subtraction(model, replace(setting, share=0.8))
    assert model.config.alphas == {"forget": 1.5, "retain": -1.2000000000000002}


SETTINGS = [Subtraction(alpha) for alpha in (0.5, 1.0, 2.0)]
NEVER_TOLD = Reference(0.2, first_choice=0.3)


def kept(forget: float, retain: float, first_choice: float = 0.25) -> Outcome:
    return Outcome(forget, retain, forget_first_choice=first_choice)


TARGET = kept(0.9, 0.8, first_choice=1.0)
MEASURED = Outcome(0.9, 0.8, forget_quality=1e-4)


def test_the_smallest_alpha_that_forgets_within_the_budget_is_chosen():
    outcomes = [kept(0.5, 0.8), kept(0.1, 0.79), kept(0.01, 0.79)]
    assert choose(SETTINGS, outcomes, TARGET, utility_budget=0.02, reference=NEVER_TOLD) == 1


def test_answers_that_are_improbable_but_still_the_first_choice_are_not_forgotten():
    outcomes = [kept(0.19, 0.8, first_choice=0.9), kept(0.15, 0.8, first_choice=0.31), kept(0.1, 0.8, first_choice=0.3)]
    assert choose(SETTINGS, outcomes, TARGET, reference=NEVER_TOLD) == 2


def test_by_forget_quality_the_highest_is_chosen_and_attacks_count_too():
    outcomes = [Outcome(0.1, 0.8, 0.06), Outcome(0.05, 0.79, 0.9), Outcome(0.01, 0.8, 0.3)]
    assert choose(SETTINGS, outcomes, MEASURED) == 1
    outcomes[1] = replace(outcomes[1], attack_quality=0.2)
    assert choose(SETTINGS, [outcomes[0], outcomes[1], replace(outcomes[2], attack_quality=0.8)], MEASURED) == 2
    assert choose(SETTINGS, [Outcome(0.1, kept, 0.9) for kept in (0.79, 0.8, 0.785)], MEASURED) == 1


def test_a_smaller_alpha_between_those_tried_is_told_of_where_the_smallest_is_looked_for():
    said = describe_choice([*SETTINGS, Subtraction(0.75)], 1, NEVER_TOLD)
    assert "A smaller one may do: try some between 0.75 and 1 (--alphas)." in said
    assert "A smaller one" not in describe_choice(SETTINGS, 1, 0.4)


@pytest.mark.parametrize(
    ("chosen", "told"), [(0, "alpha=0.5 is the smallest"), (1, None), (2, "alpha=2 is the largest")]
)
def test_a_choice_at_the_edge_of_what_was_tried_is_told(chosen, told):
    said = describe_choice(SETTINGS, chosen, 0.4)
    assert ("the best may lie beyond it (--alphas)" in said) == (told is not None)
    assert told is None or f"{told} tried" in said


def test_the_only_alpha_is_no_edge_and_a_share_may_be_one():
    said = describe_choice([Subtraction(1.0, share=share) for share in (0.5, 1.0)], 1, 0.4)
    assert "alpha=1 is" not in said
    assert "share=1 is the largest tried: the best may lie beyond it (--shares)." in said


def test_a_forget_quality_goes_before_probabilities():
    outcomes = [Outcome(0.5, 0.8, 0.01), Outcome(0.1, 0.79, 0.04), Outcome(0.01, 0.79, 0.3)]
    assert choose(SETTINGS, outcomes, MEASURED) == 2


@pytest.mark.parametrize(("first_choice", "expected"), [(None, 1), (0.8, 2), (0.3, None), (1.0, 1)])
def test_a_forget_quality_whose_first_choices_are_the_targets_is_not_chosen(first_choice, expected):
    target = replace(MEASURED, forget_first_choice=0.99)
    # By few questions each of them would pass.
    outcomes = [Outcome(0.5, 0.8, 0.3, first) for first in (0.99, 0.95, 0.85)]
    reference = None if first_choice is None else Reference(0.0, first_choice)
    assert choose(SETTINGS, outcomes, target, reference=reference) == expected


def test_by_probability_first_choices_are_those_of_what_was_never_told():
    target = kept(0.9, 0.8, first_choice=0.2)
    assert choose(SETTINGS, [kept(0.1, 0.8, first_choice=0.2)] * 3, target, reference=NEVER_TOLD) == 0


def test_a_reference_that_knows_the_answers_chooses_nothing():
    knowing = Reference(0.89, first_choice=0.99)  # a little less than the target, as rounding makes it
    with pytest.raises(ValueError, match="the reference knows the answers too"):
        choose(SETTINGS, [kept(0.1, 0.8)] * 3, TARGET, reference=knowing)


def test_the_target_is_no_retrained_model(files, tmp_path, monkeypatch, capsys):
    shutil.copytree(files["target"], tmp_path / "copy")
    (tmp_path / "link").symlink_to(files["target"])
    with monkeypatch.context() as patch:  # where name or files tell, nothing is measured before
        patch.setattr("uld_hf.cli.eval.evaluate", lambda *args, **options: pytest.fail("measured already"))
        for option, name in product(("--retrained", "--others"), ("copy", "link")):
            assert run_eval(files, option, str(tmp_path / name)) == 2
            assert f"{option} {tmp_path / name} is the target itself" in capsys.readouterr().err
    AutoModelForCausalLM.from_pretrained(files["target"]).save_pretrained(tmp_path / "again", max_shard_size="50KB")
    assert run_eval(files, "--retrained", str(tmp_path / "again")) == 2
    assert f"--retrained {tmp_path / 'again'} is the target itself" in capsys.readouterr().err
    sets = [part for name in ("forget", "retain") for part in (f"--{name}_dataset", files[name])]
    write_rows(Path(files["forget"]), [{"question": "w1", "answer": "w2"}])
    assert uld(["sweep", "--model", files["unlearned"], *sets, "--retrained", files["target"]]) == 0
    assert "Nothing chosen: by this measure the target itself has forgotten enough" in capsys.readouterr().out


def test_nothing_is_chosen_where_forgetting_costs_too_much():
    outcomes = [kept(0.5, 0.8), kept(0.1, 0.5), kept(0.01, 0.2)]
    assert choose(SETTINGS, outcomes, TARGET, reference=NEVER_TOLD) is None


def test_without_a_measure_of_enough_nothing_can_be_chosen():
    with pytest.raises(ValueError, match="give a retrained model, or held-out questions"):
        choose(SETTINGS, [Outcome(0.5, 0.8)] * 3, TARGET)


@pytest.mark.parametrize(
    ("target", "reference"), [(kept(0.1, 0.8), NEVER_TOLD), (Outcome(0.9, 0.8, forget_quality=0.6), None)]
)
def test_nothing_is_chosen_by_a_measure_that_the_target_itself_passes(target, reference):
    outcomes = [Outcome(0.05, 0.8, target.forget_quality)] * 3
    with pytest.raises(ValueError, match="the target itself has forgotten enough"):
        choose(SETTINGS, outcomes, target, reference=reference)


def test_a_sweep_over_short_documents_makes_its_own_folder(files, tmp_path):
    for name, first in (("forget", 0), ("retain", 20)):
        write_rows(Path(files[name]), [{"text": " ".join(f"w{first + i}" for i in range(25))}])
    sets = [part for name in ("forget", "retain") for part in (f"--{name}_dataset", files[name])]
    output = tmp_path / "results" / "sweep.json"
    command = ["sweep", "--model", files["unlearned"], *sets, "--alphas", "0.7", "--output", str(output)]
    assert uld(command) == 2
    assert uld([*command, "--prefix_tokens", "4", "--continuation_tokens", "6"]) == 0
    tokenizer = make_tokenizer()
    passages = read_questions(files["forget"], tokenizer, 4, 6)
    target = AutoModelForCausalLM.from_pretrained(files["target"])
    expected = evaluate(target, tokenizer, passages, max_new_tokens=1).summary()["probability"]
    assert json.loads(output.read_text())["target"]["forget_probability"] == pytest.approx(expected, rel=1e-4)


def test_sweep_prints_a_row_for_every_setting_and_that_nothing_says_what_is_enough(files, tmp_path, capsys):
    output = str(tmp_path / "sweep.json")
    sets = [part for name in ("forget", "retain") for part in (f"--{name}_dataset", files[name])]
    tried = ["--alphas", "0.5", "2", "--clamps", "on", "off"]
    assert uld(["sweep", "--model", files["unlearned"], *sets, *tried, "--output", output]) == 0
    report = json.loads(Path(output).read_text())
    assert [(each["alpha"], each["clamp"]) for each in report["settings"]] == [
        (0.5, True), (0.5, False), (2, True), (2, False)
    ]  # fmt: skip
    assert (report["chosen"], report["never_told"]) == (None, None)
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:6]] == ["target", "0.5", "0.5", "2", "2"]
    assert "Nothing chosen: give --retrained or --holdout_dataset" in printed


def test_a_sweep_keeps_the_settings_that_it_does_not_vary(files, tmp_path):
    model = ULDForCausalLM.from_pretrained(files["unlearned"], gate=0.05, clamp=True, by_certainty=True)
    model.save_pretrained(files["unlearned"])
    output = tmp_path / "sweep.json"
    sets = [part for name in ("forget", "retain") for part in (f"--{name}_dataset", files[name])]
    assert uld(["sweep", "--model", files["unlearned"], *sets, "--alphas", "0.7", "--output", str(output)]) == 0
    (setting,) = json.loads(output.read_text())["settings"]
    for name in SHARED_SETTINGS:
        assert setting[name] == vars(model.config)[name]
    rows = [(each.prompt, each.answer) for each in read_questions(files["forget"], make_tokenizer())]
    scores = score_completions(model, make_tokenizer(), *zip(*rows, strict=True))
    assert setting["forget_probability"] == pytest.approx(np.mean([score.probability for score in scores]), rel=1e-4)


def test_truth_ratios_of_paraphrases_and_of_right_answers_are_not_compared(files, tmp_path, capsys):
    rows = [json.loads(line) for line in Path(files["holdout"]).read_text().splitlines()]
    write_rows(Path(files["holdout"]), [{name: row[name] for name in row if "paraphrased" not in name} for row in rows])
    output = tmp_path / "sweep.json"
    sets = [part for name in ("forget", "retain", "holdout") for part in (f"--{name}_dataset", files[name])]
    assert uld(["sweep", "--model", files["unlearned"], *sets, "--alphas", "0.7", "--output", str(output)]) == 0
    assert json.loads(output.read_text())["settings"][0]["forget_quality"] is None
    assert f"the rows of {files['holdout']} have no 'paraphrased_answer'" in capsys.readouterr().err


def test_held_out_questions_with_wrong_answers_take_the_retrained_models_place(files, unlearned, tmp_path, capsys):
    output = tmp_path / "sweep.json"
    sets = [part for name in ("forget", "retain", "holdout") for part in (f"--{name}_dataset", files[name])]
    command = ["sweep", "--model", files["unlearned"], *sets, "--alphas", "0.7", "--output", str(output)]
    assert uld(command) == 0
    (outcome,) = json.loads(output.read_text())["settings"]
    tokenizer = make_tokenizer()
    never_told, forget = (read_questions(files[name], tokenizer) for name in ("holdout", "forget"))
    ratios = [evaluate(model, tokenizer, rows, max_new_tokens=1).truth_ratios
              for model, rows in ((unlearned, forget), (unlearned.target, never_told))]  # fmt: skip
    assert outcome["forget_quality"] == pytest.approx(forget_quality(*ratios))

    rows = [json.loads(line) for line in Path(files["holdout"]).read_text().splitlines()]
    write_rows(Path(files["holdout"]), [{name: row[name] for name in ("question", "answer")} for row in rows])
    assert uld(command) == 0
    report = json.loads(output.read_text())
    assert report["settings"][0]["forget_quality"] is None
    assert 0 < report["never_told"]["probability"] < 1


def test_sweep_saves_the_model_with_the_chosen_setting(files, tmp_path, capsys):
    # What the target says itself is what it knows; of never told answers it finds three in five.
    target, tokenizer = AutoModelForCausalLM.from_pretrained(files["target"]), make_tokenizer()
    for name, first, known in (("forget", 10, 5), ("holdout", 30, 3)):
        said = evaluate(target, tokenizer, read_questions(files[name], tokenizer), 4).completions
        rows = make_questions(first)
        answers = [text.strip() if i < known else rows[i]["answer"] for i, text in enumerate(said)]
        rows = [{"question": row["question"], "answer": answer} for row, answer in zip(rows, answers, strict=True)]
        write_rows(Path(files[name]), rows)
    output, saved = tmp_path / "sweep.json", tmp_path / "chosen"
    sets = [part for name in ("forget", "retain", "holdout") for part in (f"--{name}_dataset", files[name])]
    record_evaluation(files["unlearned"], {"forget quality p": 0.5})  # of another setting
    tried = [
        "--alphas",
        "0.001",
        "2",
        "4",
        "8",
        "--clamps",
        "off",
        "--utility_budget",
        "0.9999999",
        "--output",
        str(output),
    ]
    command = ["sweep", "--model", files["unlearned"], *sets, *tried, "--save_to", str(saved)]
    assert uld(command) == 0
    report = json.loads(output.read_text())
    setting = report["settings"][report["chosen"]]
    config = ULDForCausalLM.from_pretrained(saved).config
    assert config.alpha == setting["alpha"] > 1
    assert "evaluation" not in config.training["assistant"]
    printed = capsys.readouterr()
    assert f"Chosen: alpha={setting['alpha']:g}, relative_top={setting['relative_top']:g}, clamp=False" in printed.out
    assert f"uld generate {saved} --prompts_file {files['forget']}" in printed.err
    assert {name: vars(config)[name] for name in SHARED_SETTINGS} == {name: setting[name] for name in SHARED_SETTINGS}
    assert (
        uld(["generate", str(saved), "--question", "w10", "--max_new_tokens", "2"]) == 0
    )  # the tokenizer is there too
    assert uld(command) == 2
    assert f"{saved} is there already" in capsys.readouterr().err


def test_rows_that_were_prompts_are_questions_to_nobody(files):
    assert has_questions(read_rows(files["forget"]))
    rows = [{"prompt": row["question"], "completion": row["answer"]} for row in make_questions(10)]
    write_rows(Path(files["forget"]), rows)
    assert not has_questions(read_rows(files["forget"]))


def test_sweep_saves_nothing_where_nothing_is_chosen(files, tmp_path, capsys):
    saved = tmp_path / "chosen"
    sets = [part for name in ("forget", "retain", "holdout") for part in (f"--{name}_dataset", files[name])]
    command = ["sweep", "--model", files["unlearned"], *sets, "--alphas", "0.001", "--save_to", str(saved)]
    assert uld(command) == 2
    printed = capsys.readouterr()
    assert "p(forget)" in printed.out
    assert "Of 5 questions a forget quality says little" in printed.out
    assert "Nothing was chosen, so nothing is saved" in printed.err
    assert not saved.exists()


@pytest.mark.parametrize("command", ["sweep", "eval"])
@pytest.mark.parametrize(("name", "copied"), [("retain", "forget"), ("holdout", "forget"), ("holdout", "retain")])
def test_sets_that_share_rows_are_refused(files, capsys, command, name, copied):
    rows = Path(files[name]).read_text() + Path(files[copied]).read_text().splitlines()[-1] + "\n"
    Path(files[name]).write_text(rows)
    sets = [part for each in ("forget", "retain", "holdout") for part in (f"--{each}_dataset", files[each])]
    more = ["--output_dir", files["results"]] if command == "eval" else []
    assert uld([command, "--model", files["unlearned"], *sets, *more]) == 2
    assert f"The {copied} set and the {name} set have " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sweep", "eval"])
def test_retain_rows_that_ask_what_the_forget_set_asks_are_told_of(files, capsys, command):
    sets = [part for each in ("forget", "retain") for part in (f"--{each}_dataset", files[each])]
    more = ["--output_dir", files["results"], "--max_new_tokens", "2"] if command == "eval" else ["--alphas", "1"]
    assert uld([command, "--model", files["unlearned"], *sets, *more]) == 0
    assert "ask what the forget set asks" not in capsys.readouterr().err
    asked = json.loads(Path(files["forget"]).read_text().splitlines()[0])
    kept = [json.loads(line) for line in Path(files["retain"]).read_text().splitlines()]
    # As `uld augment` adds it to what is trained on.
    write_rows(Path(files["retain"]), [*kept, kept[0] | {"question": asked["question"]}])
    assert uld([command, "--model", files["unlearned"], *sets, *more]) == 0
    note = f"1 of {len(kept) + 1} rows of {files['retain']} ask what the forget set asks."
    assert note in capsys.readouterr().err


def test_documents_may_begin_alike_but_not_be_the_same(files, capsys):
    def passages(name: str, *starts: str) -> list[Question]:
        return [Question(start, f"{start} goes on", is_passage=True) for start in starts]

    licence, sets = "licence", {}
    sets["forget"] = passages("forget", licence, "secret")
    sets["retain"] = passages("retain", *[licence, "one"] * 5, "two")
    check_apart(sets)
    with pytest.raises(ValueError, match="The forget set and the retain set have 'licence' in common"):
        check_apart(sets | {"retain": passages("retain", licence, "secret", "one")})


def test_a_misspelt_optional_column_is_refused(files, capsys):
    text = Path(files["forget"]).read_text().replace("perturbed_answer", "pertubed_answer")
    Path(files["forget"]).write_text(text)
    sets = ["--forget_dataset", files["forget"], "--retain_dataset", files["retain"]]
    assert uld(["sweep", "--model", files["unlearned"], *sets]) == 2
    assert "have 'pertubed_answer': rename it to 'perturbed_answer'" in capsys.readouterr().err


@pytest.mark.parametrize(("measure", "of"), [("retrained", "forget"), ("holdout_dataset", "holdout")])
def test_sweep_compares_first_choices_with_those_of_the_reference(files, tmp_path, measure, of):
    output, path = tmp_path / "sweep.json", files[measure.removesuffix("_dataset")]
    sets = ["--forget_dataset", files["forget"], "--retain_dataset", files["retain"], f"--{measure}", path]
    assert uld(["sweep", "--model", files["unlearned"], *sets, "--alphas", "1", "--output", str(output)]) == 0
    model = AutoModelForCausalLM.from_pretrained(files["retrained" if measure == "retrained" else "target"])
    tokenizer = make_tokenizer()
    found = evaluate(model, tokenizer, read_questions(files[of], tokenizer), max_new_tokens=1).summary()
    assert json.loads(output.read_text())["never_told"]["first_choice"] == pytest.approx(found["exact memorization"])


def test_sweep_says_whose_wrong_answers_are_missing(files, capsys):
    rows = [json.loads(line) for line in Path(files["holdout"]).read_text().splitlines()]
    write_rows(Path(files["holdout"]), [{name: row[name] for name in ("question", "answer")} for row in rows])
    sets = [part for name in ("forget", "retain", "holdout") for part in (f"--{name}_dataset", files[name])]
    assert uld(["sweep", "--model", files["unlearned"], *sets, "--alphas", "1"]) == 0
    assert f"the rows of {files['holdout']} have no 'perturbed_answer'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--save_to", "chosen"], "--save_to needs --retrained or --holdout_dataset"),
        (["--utility_budget", "1.5"], "utility_budget=1.5 must be"),
        (["--clamps", "maybe"], "--clamps takes 'on' and 'off'"),
        (["--alphas", "0"], "alpha"),
        (["--shares", "0.8"], "share=0.8 is of assistants that are added"),
        (["--match_attacks"], "--match_attacks needs --holdout_dataset"),
    ],
)
def test_sweep_refuses_settings_out_of_range(files, capsys, option, message):
    sets = ["--forget_dataset", files["forget"], "--retain_dataset", files["retain"]]
    assert uld(["sweep", "--model", files["unlearned"], *sets, *option]) == 2
    assert message in capsys.readouterr().err


def test_padding_side_does_not_matter(unlearned):
    left, right = make_tokenizer(), make_tokenizer()
    left.padding_side, right.padding_side = "left", "right"
    questions = as_questions(make_questions(10))
    with torch.no_grad():
        assert evaluate(unlearned, left, questions, 4) == evaluate(unlearned, right, questions, 4)
