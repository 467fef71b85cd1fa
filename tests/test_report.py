"""The report page: what it shows, what it escapes, what it calls failed."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from uld_hf.cli.main import main as uld
from uld_hf.evaluation.comparison import compare
from uld_hf.evaluation.evaluation import Evaluation, SetResults
from uld_hf.evaluation.report import mark_differences, plot_truth_ratios, run_checks


SETTINGS = {
    "data": {"forget": "aa11", "retain": "bb22"},
    "max_new_tokens": 64,
    "num_samples": 10,
    "tokenizer": "ee55",
    "target": {"layers": "cc33"},
    "lora": {"assistant": "dd44"},
    "assistants": {"assistant": {"num_layers": 2, "alpha": 0.75}},
    "relative_top": 0.01,
    "outside": "keep",
    "center": True,
    "clamp": False,
}


def results(probability: float, completion: str = "a <b>bold</b> answer", rows: int = 40) -> SetResults:
    losses = (-np.log(probability) + np.linspace(0, 0.1, rows)).tolist()
    return SetResults(
        prompts=[f"question {i} & more" for i in range(rows)],
        answers=["right"] * rows,
        completions=[completion] * rows,
        num_tokens=[5] * rows,
        loss=losses,
        rouge_l_recall=[probability] * rows,
        exact_memorization=[probability] * rows,
        extraction_strength=[probability] * rows,
        attacks={"loss": losses, "min_k": losses},
        paraphrased_loss=losses,
        perturbed_losses=[[1.0, 2.0]] * rows,
    )


def evaluations(
    forget: float = 0.1, retain: float = 0.9, broken: bool = False, before: float = 0.95
) -> dict[str, Evaluation]:
    after = results(forget, "so so so so") if broken else results(forget, "another answer")
    return {
        "target": Evaluation("target", {"forget": results(before), "retain": results(0.9)}, SETTINGS),
        "retrained": Evaluation("retrained", {"forget": results(0.1), "retain": results(0.9)}, SETTINGS),
        "unlearned": Evaluation("unlearned", {"forget": after, "retain": results(retain)}, SETTINGS),
    }


def write(folder: Path, **changes) -> list[str]:
    """Saves evaluations; gives the command that reports on them."""
    (folder / "results").mkdir(exist_ok=True)
    for name, evaluation in evaluations(**changes).items():
        evaluation.save(folder / "results" / f"{name}.json")
    return ["report", "--results", str(folder / "results"), "--output", str(folder / "report.html"), "--title", "A & B"]


class Outline(HTMLParser):
    """Text of a page, and whether its tags are balanced."""

    VOID = ("meta", "br", "line")

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.failed: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        assert tag not in ("script", "link", "img"), "the page must need nothing else"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else(tmp_path, capsys):
    assert uld(write(tmp_path)) == 0
    assert "All checks passed" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    outline = Outline(page)
    assert outline.open == []
    text = " ".join(outline.text)
    assert len(set(re.findall(r"question (\d+) & more", text))) == 10
    for shown in ("A & B", "<b>bold</b>", "forget quality", "dd44", "aa11", "Limits"):
        assert shown in text, shown
    assert page.count("<svg") == 1


def test_a_retrained_model_that_knows_the_answers_is_told_of():
    knowing = evaluations()
    knowing["retrained"].sets["forget"] = results(0.9)
    statement = "The retrained model, by which all this is judged, does not know the answers itself"
    for of, passed in ((evaluations(), True), (knowing, False)):
        assert [check.passed for check in run_checks(of) if check.statement.startswith(statement)] == [passed]


def test_what_was_asked_is_shown_at_length(tmp_path):
    assert uld([*write(tmp_path), "--request", "By <letter> of May 5"]) == 0
    assert "By &lt;letter&gt; of May 5" in (tmp_path / "report.html").read_text()


def test_a_page_is_written_over_a_page_and_over_nothing_else(tmp_path, capsys):
    page = tmp_path / "report.html"
    for _ in range(2):
        assert uld(write(tmp_path)) == 0
    page.write_text('{"question": "w1"}\n')
    assert uld(write(tmp_path)) == 2
    assert f"{page} is there already" in capsys.readouterr().err
    assert page.read_text() == '{"question": "w1"}\n'


def test_only_the_figures_of_the_page_are_explained(tmp_path):
    assert uld(write(tmp_path)) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<dt>exact memorization</dt>" in page
    assert "<dt>word perplexity</dt>" not in page


@pytest.mark.parametrize(("told", "passed"), [(0.0, True), (0.4, True), (0.5, False), (1.0, False)])
def test_without_a_retrained_model_it_must_give_away_less_than_half_of_before(told, passed):
    measured = evaluations()
    del measured["retrained"]
    for name, rate in (("target", 1.0), ("unlearned", told)):
        measured[name].sets["forget"].leaks = {"question": [[rate]] * 40}
    (check,) = (check for check in run_checks(measured) if "gives away" in check.statement)
    assert check.passed == passed


def test_a_page_with_no_question_that_the_target_answers_does_not_pass():
    measured = evaluations()
    del measured["retrained"]
    failed = [check.statement for check in run_checks(measured) if not check.passed]
    assert any("none was" in statement for statement in failed)


@pytest.mark.parametrize(("drawn", "passed"), [(0.0, True), (0.2, False)])
def test_it_must_give_away_no_more_than_the_retrained_model(drawn, passed):
    measured = evaluations()
    for name, evaluation in measured.items():
        rate = {"target": 1.0, "retrained": 0.0, "unlearned": drawn}[name]
        evaluation.sets["forget"].leaks = {"question": [[0.0]] * 40, "drawn": [[rate] * 3] * 40}
    (check,) = (check for check in run_checks(measured) if "gives away" in check.statement)
    assert check.passed == passed
    if not passed:
        assert "leak@1 0.2 against 0 (at most 0.05 more)" in check.statement


def test_nothing_given_away_of_nothing_that_the_target_gives_away_does_not_pass():
    measured = evaluations()
    for evaluation in measured.values():
        evaluation.sets["forget"].leaks = {"question": [[0.0]] * 40}
    failed = [check.statement for check in run_checks(measured) if not check.passed]
    assert any("none was" in statement for statement in failed)


def test_nothing_kept_of_nothing_does_not_pass():
    measured = evaluations()
    for evaluation in measured.values():
        evaluation.sets["retain"].rouge_l_recall = [0.0] * 40
    failed = [check.statement for check in run_checks(measured) if not check.passed]
    assert any("ROUGE-L recall is 0, of 0 before" in statement for statement in failed)


def test_a_page_without_other_ways_to_ask_says_so(tmp_path):
    assert uld(write(tmp_path)) == 0
    assert "Only greedy answers were looked at" in (tmp_path / "report.html").read_text()


def test_a_page_without_draws_says_so(tmp_path):
    command = write(tmp_path)
    for name, evaluation in evaluations().items():
        evaluation.sets["forget"].leaks = {"question": [[0.0]] * 40}
        evaluation.save(tmp_path / "results" / f"{name}.json")
    assert uld(command) == 0
    assert "No answers were drawn" in (tmp_path / "report.html").read_text()


def test_tokens_that_were_ruled_out_are_at_the_end_of_the_axis():
    measured = evaluations()
    measured["unlearned"].sets["forget"].paraphrased_loss = [np.inf] * 40
    plot = plot_truth_ratios(measured)
    assert "nan" not in plot
    assert plot_truth_ratios(evaluations()) != plot


def test_a_figure_that_was_asked_for_is_computed_anew_when_its_rows_change():
    of_set = results(0.5)
    assert of_set.summary()["ROUGE-L recall"] == pytest.approx(0.5)
    of_set.rouge_l_recall = [1.0] * 40
    assert of_set.summary()["ROUGE-L recall"] == 1.0
    of_set.summary().clear()
    assert of_set.summary()["ROUGE-L recall"] == 1.0


def test_both_answers_have_their_differences_marked(tmp_path):
    assert uld(write(tmp_path)) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<mark>a &lt;b&gt;bold&lt;/b&gt;</mark> answer" in page
    assert "<mark>another</mark> answer" in page


def test_examples_can_be_left_out(tmp_path):
    assert uld([*write(tmp_path), "--num_examples", "0"]) == 0
    assert "question 0" not in (tmp_path / "report.html").read_text()


def write_sweep(folder: Path, forgotten: float = 0.9, **measured) -> list[str]:
    """Saves a sweep of two settings; gives the option that names it."""
    points = [
        {"alpha": alpha, "relative_top": 0.0, "clamp": True, "forget_probability": 0.1, "retain_probability": 0.8}
        for alpha in (0.5, 1.0)
    ]
    identity = {name: SETTINGS[name] for name in ("data", "target", "lora")} | measured
    target = {"forget_probability": forgotten, "retain_probability": 0.9}
    sweep = {"settings": points, "target": target, "chosen": 1, "measured": identity}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return ["--sweep", str(folder / "sweep.json")]


def test_a_sweep_is_plotted_with_its_choice_ringed(tmp_path):
    assert uld([*write(tmp_path), *write_sweep(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    Outline(page)
    assert page.count("<circle") == 3
    assert page.count('stroke-width="2"><title>alpha 1,') == 1


def test_of_points_at_one_place_the_choice_is_labelled(tmp_path):
    assert uld([*write(tmp_path), *write_sweep(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count('font-size="11">1</text>') == 1
    assert 'font-size="11">0.5</text>' not in page


@pytest.mark.parametrize("forgotten", [0.9, 0.02])
def test_the_target_is_within_the_frame_of_the_plot_whatever_the_scale(tmp_path, forgotten):
    assert uld([*write(tmp_path), *write_sweep(tmp_path, forgotten)]) == 0
    places = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', (tmp_path / "report.html").read_text())
    assert all(60 < float(x) < 580 and 20 < float(y) < 300 for x, y in places)
    assert max(float(x) for x, _ in places) > 500


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({"lora": {"assistant": "other"}}, "with another 'lora'"),
        ({"target": {"layers": "other"}}, "with another 'target'"),
        ({"data": {"forget": "aa11", "retain": "other"}}, "on another retain set"),
    ],
)
def test_a_sweep_of_something_else_is_refused(tmp_path, capsys, measured, message):
    assert uld([*write(tmp_path), *write_sweep(tmp_path, **measured)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("retrained", {"data": {"forget": "aa11", "retain": "other"}}),
        ("target", {"target": {"layers": "other"}}),
        ("target", {"max_new_tokens": 8}),
        ("target", {"version of uld_hf": "0.0.1"}),
    ],
)
def test_results_that_do_not_belong_together_are_refused(tmp_path, capsys, name, changed):
    command = write(tmp_path)
    other = evaluations()[name]
    other.settings = SETTINGS | changed
    other.save(tmp_path / "results" / f"{name}.json")
    assert uld(command) == 2
    assert f"{name!r} and 'unlearned' were evaluated with different" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "statement"),
    [
        ({"forget": 0.96}, "less probable than before"),
        ({"forget": 0.5}, "cannot be told from a model that never saw"),
        ({"retain": 0.7}, "On the retain set probability is"),
        ({"before": 0.1}, "The same test does tell the target from that model: p = 1"),
        ({"broken": True}, "No more broken answers than before: 40"),
    ],
)
def test_what_does_not_hold_is_failed(tmp_path, capsys, changes, statement):
    assert uld(write(tmp_path, **changes)) == 0
    failed = [check.statement for check in run_checks(evaluations(**changes)) if not check.passed]
    assert any(statement in each for each in failed)
    assert statement in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert page.count("<b>FAILED</b>") == len(failed)


# As improbable as nothing else is tells as much as being probable does.
@pytest.mark.parametrize(("forget", "passed"), [(0.9, False), (0.1, True), (1e-4, False)])
def test_attacks_must_do_no_better_than_with_the_retrained_model(forget, passed):
    measured = evaluations(forget=forget)
    for evaluation in measured.values():
        evaluation.sets["holdout"] = results(0.1)
    (check,) = (check for check in run_checks(measured) if "No attack" in check.statement)
    assert check.passed == passed
    auc = compare(measured)["unlearned"]["AUC loss"]
    assert f"AUC loss {auc:.3g} against " in check.statement


def test_an_interrupted_evaluation_is_refused(tmp_path, capsys):
    command = write(tmp_path)
    Evaluation("unlearned", {"forget": results(0.1)}, SETTINGS).save(tmp_path / "results" / "unlearned.json")
    assert uld(command) == 2
    assert "lacks ['retain']: uld eval was interrupted" in capsys.readouterr().err


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    assert uld(["report", "--results", str(tmp_path), "--output", str(tmp_path / "report.html")]) == 2
    assert "has no target.json: run uld eval" in capsys.readouterr().err


def test_words_that_differ_are_marked():
    assert mark_differences("born in Rome today", "born in <Oslo> today") == "born in <mark>&lt;Oslo&gt;</mark> today"
    assert mark_differences("all the same", "all the same") == "all the same"
