"""Our aggregation of the benchmark's published logs gives its published figures."""

import json
from pathlib import Path

import numpy as np
import pytest

from uld_hf.evaluation.tofu import normalized_probability, rouge_l_recall, summarize_truth_ratio, truth_ratio
from uld_hf.evaluation.tofu_logs import SETS, aggregate_tofu_log, check_same_rows, load_tofu_log


LOGS = Path(__file__).resolve().parents[2] / "shared" / "data" / "tofu_logs"
NAMES = ("llama2_full", "llama2_retain90", "llama2_retain90_uld")
needs_logs = pytest.mark.skipif(not LOGS.exists(), reason=f"the benchmark's published logs are not at {LOGS}")


def small_log() -> dict[str, dict]:
    """A log in the benchmark's schema, with numbers that can be checked by hand."""
    rows = {
        "avg_gt_loss": {"1": 0.0, "0": np.log(2)},
        "avg_paraphrased_loss": {"1": 0.0, "0": np.log(4)},
        "average_perturb_loss": {"1": [np.log(2), np.log(8)], "0": [np.log(2), np.log(2)]},
        "rougeL_recall": {"1": 1.0, "0": 0.5},
        "generated_text": {"1": ["q1", "a", "b"], "0": ["q0", "c", "d"]},
        "num_token_gt": {"1": 3, "0": 4},
    }
    return dict.fromkeys(SETS, rows)


def write(folder: Path, log: dict) -> Path:
    (folder / "log.json").write_text(json.dumps(log))
    return folder / "log.json"


@needs_logs
@pytest.mark.parametrize("name", NAMES)
def test_figures_are_the_published_ones(name):
    retrained = load_tofu_log(LOGS / "llama2_retain90.json") if name != "llama2_retain90_uld" else None
    figures = aggregate_tofu_log(load_tofu_log(LOGS / f"{name}.json"), retrained)
    expected = json.loads((LOGS / "expected.json").read_text())[name]
    assert len(expected) >= 13
    if name == "llama2_retain90_uld":
        # Its authors published the share among the options here, where the benchmark has the bare probability.
        forget = load_tofu_log(LOGS / f"{name}.json")["Forget"]
        share = normalized_probability(forget.loss, forget.perturbed_losses).mean()
        assert share == pytest.approx(expected.pop("Prob. Forget"), rel=1e-9)
    for figure, value in expected.items():
        assert figures[figure.removesuffix(" vs llama2_retain90")] == pytest.approx(value, rel=1e-9), figure


@needs_logs
@pytest.mark.parametrize("name", NAMES)
def test_rouge_of_the_logged_texts_is_the_logged_recall(name):
    for rows in load_tofu_log(LOGS / f"{name}.json").values():
        _, generated, right = zip(*rows.texts, strict=True)
        np.testing.assert_allclose(rouge_l_recall(generated, right), rows.rouge_l_recall, atol=1e-9)


def test_rows_are_taken_in_the_order_of_their_numbers(tmp_path):
    rows = load_tofu_log(write(tmp_path, small_log()))["Forget"]
    np.testing.assert_allclose(rows.loss, [np.log(2), 0.0])
    assert [text[0] for text in rows.texts] == ["q0", "q1"]


def test_figures_of_a_small_log_by_hand(tmp_path):
    figures = aggregate_tofu_log(load_tofu_log(write(tmp_path, small_log())))
    # Row 0: right 1/2, paraphrase 1/4, wrong 1/2 and 1/2: ratio 2. Row 1: right 1, paraphrase 1, wrong 1/4: ratio 1/4.
    assert figures["Prob. Retain"] == pytest.approx((0.5 + 1) / 2)
    assert figures["Prob. Real World"] == pytest.approx((0.5 / 1.5 + 1 / 1.625) / 2)
    assert figures["Truth Ratio Forget"] == pytest.approx((0.5 + 0.25) / 2)
    assert figures["Truth Ratio Retain"] == pytest.approx((0 + 0.75) / 2)
    assert figures["ROUGE Retain"] == 0.75


def test_a_log_without_a_set_is_refused(tmp_path):
    log = small_log()
    del log["eval_log_forget.json"]
    with pytest.raises(ValueError, match=r"has no \['eval_log_forget.json'\]"):
        load_tofu_log(write(tmp_path, log))


def test_a_set_without_perturbed_answers_is_refused(tmp_path):
    log = small_log()
    log["eval_log.json"] = {key: value for key, value in log["eval_log.json"].items() if key != "average_perturb_loss"}
    with pytest.raises(ValueError, match=r"eval_log.json lacks \['average_perturb_loss'\]"):
        load_tofu_log(write(tmp_path, log))


def test_fields_of_different_lengths_are_refused(tmp_path):
    log = small_log()
    log["eval_log.json"] = {**log["eval_log.json"], "rougeL_recall": {"0": 1.0}}
    with pytest.raises(ValueError, match="different numbers of rows"):
        load_tofu_log(write(tmp_path, log))


def test_the_log_of_another_split_is_refused(tmp_path):
    log = load_tofu_log(write(tmp_path, small_log()))
    other = small_log()
    other["eval_log_forget.json"] = {
        **other["eval_log_forget.json"],
        "generated_text": {"0": ["q", "a", "x"], "1": ["q", "a", "y"]},
    }
    with pytest.raises(ValueError, match=r"of another split: it has 2 right answers, of which 0 are among the 2 rows"):
        aggregate_tofu_log(log, load_tofu_log(write(tmp_path, other)))


def test_the_log_of_a_model_with_another_tokenizer_is_refused(tmp_path):
    log = load_tofu_log(write(tmp_path, small_log()))
    other = small_log()
    other["eval_log_forget.json"] = {**other["eval_log_forget.json"], "num_token_gt": {"0": 4, "1": 7}}
    with pytest.raises(ValueError, match="a model with another tokenizer"):
        aggregate_tofu_log(log, load_tofu_log(write(tmp_path, other)))


def test_one_token_more_in_every_row_is_the_chat_templates(tmp_path):
    log = load_tofu_log(write(tmp_path, small_log()))
    check_same_rows(log["Forget"], [" d", " b"], [5, 4])
    with pytest.raises(ValueError, match="of 2 right answers 1 have another number of tokens"):
        check_same_rows(log["Forget"], [" d", " b"], [5, 3])


def test_rows_with_different_numbers_of_wrong_answers_are_refused(tmp_path):
    log = small_log()
    log["eval_log.json"] = {**log["eval_log.json"], "average_perturb_loss": {"0": [1.0], "1": [1.0, 2.0]}}
    with pytest.raises(ValueError, match="different numbers of wrong answers"):
        load_tofu_log(write(tmp_path, log))


def test_the_arithmetic_mean_can_be_asked_for(tmp_path):
    figures = aggregate_tofu_log(load_tofu_log(write(tmp_path, small_log())), mean="arithmetic")
    # Row 0: wrong 1/2 and 1/2 over 1/4: ratio 2. Row 1: (1/2 + 1/8) / 2 over 1.
    assert figures["Truth Ratio Forget"] == pytest.approx((0.5 + 0.3125) / 2)


def test_the_two_truth_ratios_differ_in_the_mean_of_the_wrong_answers():
    right, wrong = np.log([2.0]), np.log([[2.0, 8.0]])
    assert truth_ratio(right, wrong)[0] == pytest.approx(0.25 / 0.5)
    assert truth_ratio(right, wrong, mean="arithmetic")[0] == pytest.approx((0.5 + 0.125) / 2 / 0.5)
    with pytest.raises(ValueError, match="mean='harmonic' must be"):
        truth_ratio(right, wrong, mean="harmonic")


def test_summaries_of_truth_ratios_by_name():
    ratios = np.array([0.5, 2.0])
    assert summarize_truth_ratio(ratios, "closer_to_1_better") == 0.5
    assert summarize_truth_ratio(ratios, "true_better") == 0.25
    assert summarize_truth_ratio(ratios, "prob_mean") == 0.5
    with pytest.raises(ValueError, match="kind='mean'"):
        summarize_truth_ratio(ratios, "mean")
