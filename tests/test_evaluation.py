"""`evaluate`, `uld eval` and `uld sweep`: figures of whole sets, kept row by row, resumed, compared and chosen from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from families import make_tokenizer, tiny_model, train_like
from transformers import AutoModelForCausalLM

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.cli.main import main as uld
from uld_hf.cli.questions import read_questions
from uld_hf.evaluation.comparison import compare
from uld_hf.evaluation.evaluation import Evaluation, Question, evaluate
from uld_hf.evaluation.scoring import Subtraction, score_completions
from uld_hf.evaluation.sweep import Outcome, choose, sweep
from uld_hf.evaluation.tofu import forget_quality, truth_ratio


def make_questions(first: int, number: int = 5) -> list[dict]:
    return [
        {
            "question": f"w{first + i}",
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


def test_another_file_is_no_evaluation(tmp_path):
    (tmp_path / "results.json").write_text('{"sets": 3}')
    with pytest.raises(ValueError, match="is not a saved evaluation"):
        Evaluation.load(tmp_path / "results.json")


def test_an_empty_set_is_refused(unlearned):
    with pytest.raises(ValueError, match="no questions"):
        evaluate(unlearned, make_tokenizer(), [])


def test_wrong_answers_in_some_rows_only_are_refused(unlearned):
    questions = [*as_questions(make_questions(10, 2)), Question("w1", " w2", " w3")]
    with pytest.raises(ValueError, match=r"1 of 3 rows have no perturbed_answers \(the first is row 2\)"):
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
        Question("w1 w5 w2", " w6", perturbed_answers=(" w7",))
    ]


def test_a_chat_template_that_renders_answers_elsewhere_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}w1 {{ m.content }} {% endfor %}w2"
    (tmp_path / "rows.jsonl").write_text('{"question": "w5", "answer": "w6"}\n')
    with pytest.raises(ValueError, match=r"Row 1 of .* does not go on from the prompt"):
        read_questions(str(tmp_path / "rows.jsonl"), tokenizer)


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


# --- sweep ---


def test_outcomes_are_those_of_a_model_with_the_setting(unlearned):
    forget, retain = as_questions(make_questions(10)), as_questions(make_questions(20))
    ratios = np.linspace(0.2, 1.4, len(forget))
    settings = [Subtraction(0.5, relative_top=0), Subtraction(2.0, relative_top=0, clamp=True)]
    target, outcomes = sweep(unlearned, make_tokenizer(), forget, retain, settings, ratios)
    models = [unlearned.target] + [
        ULDForCausalLM(target=unlearned.target, assistant=unlearned.assistant, **vars(setting)) for setting in settings
    ]
    for model, outcome in zip(models, [target, *outcomes], strict=True):
        of_forget, of_retain = (evaluate(model, make_tokenizer(), rows, max_new_tokens=1) for rows in (forget, retain))
        assert outcome.forget_probability == pytest.approx(of_forget.summary()["probability"], rel=1e-4)
        assert outcome.retain_probability == pytest.approx(of_retain.summary()["probability"], rel=1e-4)
        assert outcome.forget_quality == pytest.approx(forget_quality(of_forget.truth_ratios, ratios))


SETTINGS = [Subtraction(alpha) for alpha in (0.5, 1.0, 2.0)]
TARGET = Outcome(0.9, 0.8)
MEASURED = Outcome(0.9, 0.8, forget_quality=1e-4)


def test_the_smallest_alpha_that_forgets_within_the_budget_is_chosen():
    outcomes = [Outcome(0.5, 0.8), Outcome(0.1, 0.79), Outcome(0.01, 0.79)]
    assert choose(SETTINGS, outcomes, TARGET, utility_budget=0.02, unknown_probability=0.2) == 1


def test_a_forget_quality_goes_before_probabilities():
    outcomes = [Outcome(0.5, 0.8, 0.01), Outcome(0.1, 0.79, 0.04), Outcome(0.01, 0.79, 0.3)]
    assert choose(SETTINGS, outcomes, MEASURED) == 2


def test_nothing_is_chosen_where_forgetting_costs_too_much():
    outcomes = [Outcome(0.5, 0.8), Outcome(0.1, 0.5), Outcome(0.01, 0.2)]
    assert choose(SETTINGS, outcomes, TARGET, unknown_probability=0.2) is None


def test_without_a_measure_of_enough_nothing_can_be_chosen():
    with pytest.raises(ValueError, match="give a retrained model, or held-out questions"):
        choose(SETTINGS, [Outcome(0.5, 0.8)] * 3, TARGET)


@pytest.mark.parametrize(
    ("target", "unknown"), [(Outcome(0.1, 0.8), 0.2), (Outcome(0.9, 0.8, forget_quality=0.6), None)]
)
def test_nothing_is_chosen_by_a_measure_that_the_target_itself_passes(target, unknown):
    outcomes = [Outcome(0.05, 0.8, target.forget_quality)] * 3
    with pytest.raises(ValueError, match="the target itself has forgotten enough"):
        choose(SETTINGS, outcomes, target, unknown_probability=unknown)


@pytest.mark.parametrize("measure", ["retrained", "holdout", "neither"])
def test_sweep_prints_a_row_for_every_setting_and_the_choice(files, tmp_path, capsys, measure):
    given = {"retrained": ["--retrained", files["retrained"]], "holdout": ["--holdout_dataset", files["holdout"]]}
    output = str(tmp_path / "sweep.json")
    status = uld(["sweep", "--model", files["unlearned"], "--forget_dataset", files["forget"], "--retain_dataset",
                  files["retain"], "--alphas", "0.5", "2", "--clamps", "on", "off", "--utility_budget", "0.9",
                  "--output", output, *given.get(measure, [])])  # fmt: skip
    assert status == 0
    report = json.loads(Path(output).read_text())
    assert len(report["settings"]) == 4
    printed = capsys.readouterr().out
    assert printed.count("    on") == 2
    if measure == "neither":
        assert "Nothing chosen: give --retrained" in printed
    elif report["chosen"] is None:
        assert "No setting reaches" in printed or "the target itself has forgotten" in printed
    else:
        assert f"Chosen: alpha={report['settings'][report['chosen']]['alpha']:g}" in printed


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--utility_budget", "1.5"], "utility_budget=1.5 must be"),
        (["--clamps", "maybe"], "--clamps takes 'on' and 'off'"),
        (["--alphas", "0"], "alpha"),
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
