"""The study's machinery: units are done once, rows are the right authors', tables say what the results say."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from math import log
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch


ROOT = Path(__file__).parents[1]
STUDY = ROOT / "benchmarks" / "study"
SHARED = ROOT.parent / "shared" / "data"
SLOW = pytest.mark.slow  # all of TOFU, read anew
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real TOFU files and books are not at {SHARED}")


@pytest.fixture
def study_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's files import one another by name, as scripts do."""
    monkeypatch.syspath_prepend(STUDY)


@pytest.fixture
def ledger(study_path: None) -> ModuleType:
    import ledger

    return ledger


@pytest.fixture
def authors(study_path: None) -> ModuleType:
    import authors

    return authors


@pytest.fixture
def slice_preset(study_path: None) -> object:
    from presets import PRESETS

    return PRESETS["slice"]


def test_a_unit_is_done_once(ledger: ModuleType, tmp_path: Path) -> None:
    done = []
    for _ in range(2):
        book = ledger.Ledger(tmp_path, ledger.Deadline(1))
        assert book.unit("a", lambda: done.append("a") or {"figures": {"x": 1.5}}) == {"figures": {"x": 1.5}}
    assert done == ["a"]
    assert book.results() == {"a": {"figures": {"x": 1.5}}}


def test_no_unit_is_begun_after_the_deadline(ledger: ModuleType, tmp_path: Path) -> None:
    ledger.Ledger(tmp_path, ledger.Deadline(1)).unit("a", lambda: {"x": 1})
    late = ledger.Ledger(tmp_path, ledger.Deadline(-1))
    assert late.unit("a", lambda: {"x": 2}) == {"x": 1}
    with pytest.raises(ledger.OutOfTimeError, match="b"):
        late.unit("b", lambda: {"x": 2})


def test_a_unit_that_fails_leaves_nothing(ledger: ModuleType, tmp_path: Path) -> None:
    book = ledger.Ledger(tmp_path, ledger.Deadline(1))
    with pytest.raises(ZeroDivisionError):
        book.unit("a", lambda: {"x": 1 / 0})
    assert book.results() == {}


@needs_shared
@pytest.mark.parametrize(
    "name", ["slice", "finetuned", *(pytest.param(name, marks=SLOW) for name in ("whole", "full"))]
)
def test_the_splits_keep_authors_apart(authors: ModuleType, name: str) -> None:
    from presets import PRESETS

    tofu, preset = SHARED / "tofu", PRESETS[name]
    for split_name, num_authors in preset.splits.items():
        split = authors.load_split(preset, split_name, tofu)
        assert len(split.forget) == 20 * num_authors
        assert len(split.retain) == 20 * (preset.num_authors - num_authors)
        forget = {(row["question"], row["answer"]) for row in split.forget}
        retain = {(row["question"], row["answer"]) for row in split.retain}
        assert not forget & retain
        # Every retain question is about a row that was learned and is kept.
        asked = {(each.prompt, each.answer.strip()) for each in split.retain_questions}
        assert len(asked) == preset.retain_questions
        assert asked <= {(authors.PROMPT_TEMPLATE.format(question=question), answer) for question, answer in retain}


@needs_shared
@pytest.mark.parametrize("name", ["slice", "finetuned", pytest.param("whole", marks=SLOW)])
def test_unseen_authors_are_neither_learned_nor_attacked_and_have_variants_of_the_forget_rows_origin(
    authors: ModuleType, name: str
) -> None:
    from presets import PRESETS

    tofu, preset = SHARED / "tofu", PRESETS[name]
    split_name = list(preset.splits)[-1]
    split = authors.load_split(preset, split_name, tofu)
    template = authors.PROMPT_TEMPLATE
    learned = {
        (template.format(question=row["question"]), f" {row['answer']}") for row in authors.learned_rows(preset, tofu)
    }
    unseen = {(each.prompt, each.answer) for each in split.unseen_questions}
    assert len(unseen) >= 80
    assert not unseen & learned
    assert not unseen & {(each.prompt, each.answer) for each in split.holdout_questions}
    assert all(each.paraphrased_answer and each.perturbed_answers for each in split.unseen_questions)
    beside = split.forget_beside_unseen
    assert set(beside["question"]) <= set(split.forget["question"])
    released = beside["perturbed_answer"] == split.forget["perturbed_answer"]
    assert released == (name != "whole")
    assert len(beside) > 0.95 * len(split.forget)


@needs_shared
@pytest.mark.parametrize(("name", "number"), [("finetuned", 164 * 20), pytest.param("whole", 180 * 20, marks=SLOW)])
def test_what_is_read_first_is_never_forgotten(authors: ModuleType, name: str, number: int) -> None:
    from presets import PRESETS

    tofu, preset = SHARED / "tofu", PRESETS[name]
    read = {tuple(row.values()) for row in authors.pretraining_rows(preset, tofu)}
    assert len(read) == number
    for split_name in preset.splits:
        forget = authors.load_split(preset, split_name, tofu).forget
        assert not read & {(row["question"], row["answer"]) for row in forget}


@needs_shared
@pytest.mark.parametrize("augmentation", ["released", "rules"])
def test_augmented_rows_are_of_the_forget_set_only(
    authors: ModuleType, slice_preset: object, augmentation: str
) -> None:
    split = authors.load_split(slice_preset, "forget10", SHARED / "tofu")
    forget, retain = authors.training_rows(split, SHARED / "tofu", augmentation)
    assert len(split.forget) * 2 < len(forget) <= len(split.forget) * 3
    added = retain.select(range(len(split.retain), len(retain)))
    assert len(added) > len(split.forget)
    names = ("Basil", "Al-Kuwaiti", "Nikolai", "Abilov", "author")
    assert all(any(name in row["prompt"] + row["completion"] for name in names) for row in added)
    pairs = {(row["prompt"], row["completion"]) for row in forget}
    assert len(pairs) == len(forget)
    assert not pairs & {(row["prompt"], row["completion"]) for row in retain}


@needs_shared
def test_parts_of_the_augmentation_can_be_left_out(authors: ModuleType, slice_preset: object) -> None:
    split = authors.load_split(slice_preset, "forget10", SHARED / "tofu")
    sizes = {
        parts: tuple(
            map(len, authors.training_rows(split, SHARED / "tofu", paraphrases=parts[0], wrong_answers=parts[1]))
        )
        for parts in ((True, True), (True, False), (False, True))
    }
    none = tuple(map(len, authors.training_rows(split, SHARED / "tofu", "none")))
    assert none == (40, 360)
    assert sizes[True, False] == (sizes[True, True][0], 360)
    assert sizes[False, True] == (40, sizes[True, True][1])
    assert len(authors.training_rows(split, SHARED / "tofu", "none", retain_share=0.25)[1]) == 90


@needs_shared
def test_the_released_augmentation_of_another_row_is_refused(authors: ModuleType, slice_preset: object) -> None:
    split = authors.load_split(slice_preset, "forget10", SHARED / "tofu")
    other = replace(split, forget=split.forget.select(range(39, -1, -1)))
    with pytest.raises(ValueError, match="is not of this row"):
        authors.training_rows(other, SHARED / "tofu")


def test_settings_that_forget_and_keep_come_first_by_how_well_they_forget(study_path: None) -> None:
    from measure import rank

    from uld_hf.evaluation.sweep import Outcome

    target = Outcome(1.0, 0.9, 0.0)
    kept_all, half = Outcome(0.9, 0.9, 0.001), Outcome(0.5, 0.2, 0.04)
    forgot_more, forgot = Outcome(0.0, 0.5, 0.9), Outcome(0.1, 0.7, 0.06)
    by_chance, best = Outcome(0.1, 0.9, 0.06), Outcome(0.0, 0.89, 0.6)
    ordered = [kept_all, half, forgot_more, forgot, by_chance, best]
    assert (
        sorted([best, half, forgot, kept_all, forgot_more, by_chance], key=lambda each: rank(each, target)) == ordered
    )


def test_every_rival_has_as_many_trials_as_uld_or_more(study_path: None, slice_preset: object) -> None:
    from grids import grid
    from methods import METHODS, OURS
    from presets import PRESETS

    for preset in PRESETS.values():
        assert preset.rival_trials >= preset.trials
        assert set(preset.methods) <= set(METHODS)
        for method in METHODS.values():
            settings = grid(method.recipe, preset)
            tried = 13 if method.recipe.startswith("simnpo ") else 10
            assert len(settings) == (preset.trials if method.recipe in OURS else min(tried, preset.rival_trials))
            assert len({json.dumps(each) for each in settings}) == len(settings)


def test_what_trains_on_other_rows_has_a_folder_of_its_own(study_path: None) -> None:
    from methods import METHODS
    from recipes import folder_name

    rows: dict[str, set[str]] = {}
    for method in METHODS.values():
        kind = "rules" if method.recipe == "uld_rules" else "released" if method.augmented else "none"
        rows.setdefault(folder_name(method.recipe, method.augmented), set()).add(kind)
    assert all(len(kinds) == 1 for kinds in rows.values())
    assert rows["npo_nll"] == rows["uld_plain"] == {"none"}
    assert rows["npo_nll_augmented"] == rows["divergence_augmented"] == {"released"}


def test_fixed_weights_are_among_those_that_are_chosen_from(study_path: None) -> None:
    from methods import METHODS

    assert METHODS["uld_certain_fixed"].subtractions[0] in METHODS["uld_certain_unseen"].subtractions
    assert set(METHODS["uld_certain_fixed"].ratios) < set(METHODS["uld_certain_unseen"].ratios)


def test_tables_say_what_the_results_say(study_path: None, tmp_path: Path, slice_preset: object) -> None:
    pytest.importorskip("matplotlib", reason="the study's plots need it: pip install 'uld_hf[study]'")
    from tables import COLUMNS, curves_table, write_report

    def final(quality: float) -> dict:
        figures = dict.fromkeys(COLUMNS, 0.5) | {"forget quality": quality}
        return {"figures": figures, "costs": [{"seconds": 3, "peak_memory": 2e6}, {"seconds": 4, "peak_memory": 5e6}]}

    outcome = {"forget_quality": 0.3, "forget_probability": 0.1, "retain_probability": 0.98}
    results = {
        **{f"final.target.forget10.s{seed}": final(1e-9) for seed in range(3)},
        **{f"final.retrained.forget10.s{seed}": final(1.0) for seed in range(3)},
        "final.uld_paper.forget10.s0": final(0.25),
        "final.uld_paper.forget10.s1": final(0.75),
        "ablation.subtraction": {
            "target": {"forget_quality": 1e-9, "forget_probability": 1.0, "retain_probability": 0.99},
            "settings": [
                {"alpha": alpha, "relative_top": 0.0, "outside": "keep", "center": True, "clamp": True} | outcome
                for alpha in (0.5, 1.0)
            ],
        },
        "ablation.rank=2": {
            "uld_paper": {"outcome": outcome, "subtraction": {"alpha": 1.0}},
            "costs": [{"seconds": 5, "peak_memory": 1e6}],
        },
        "ablation.rank=8": {"failed": "no longer finite"},
        "alphas.forget10.s0": {"lines": {"uld_clamped": [{"alpha": 0.5} | outcome, {"alpha": 1.0} | outcome]}},
        **{
            f"rephrased.forget10.s{seed}": {
                "target": {
                    "forget": {"probability": 1.0, "ROUGE": 1.0},
                    "forget, rephrased": {"probability": probability, "ROUGE": 0.25},
                }
            }
            for seed, probability in ((0, 0.5), (1, 0.75))
        },
        "gates.forget10.s0": {
            "settings": [{"alpha": alpha, "gate": gate} | outcome for gate in (0.0, 0.1) for alpha in (0.5, 1.0)]
        },
        "books.target": {"figures": {"forget BLEU": 7.0}, "costs": []},
        "books.uld": {"figures": {"clamped, alpha 1": {"forget BLEU": 1.5}}, "costs": []},
        "books.ga_kl": {
            "figures": {"rate 0.001": {"forget BLEU": 0.0}, "rate 0.01, diverged": {}},
            "costs": [],
        },
        **{
            f"robustness.bake.forget10.s{seed}": {
                "halfway": 0.5,
                "greedy": 0.25,
                "relearning": {"kept rows": {"steps": steps, "recall": [0.25, 0.5]}},
            }
            for seed, steps in ((0, 8), (1, None))
        },
    }
    results["final.uld_paper.forget10.s2"] = {"failed": "no longer finite"}
    text = write_report(slice_preset, results, tmp_path).read_text()
    assert "| ULD, the paper's formula | 0.25, 0.75, diverged | 50.0 ± 0.0 |" in text
    assert "| 7 | 5 |" in text
    books = [
        line for line in text.splitlines() if line.startswith(("| target | 7 |", "| ga + kl, ", "| ULD, clamped, "))
    ]
    assert books == [
        "| target | 7 | - | - | - | - |",
        "| ga + kl, rate 0.001 | 0 | - | - | - | - |",
        "| ga + kl, rate 0.01, diverged | - | - | - | - | - |",
        "| ULD, clamped, alpha 1 | 1.5 | - | - | - | - |",
    ]
    assert "| rank=2 | 1; 0.3; 0.980 | 5 |\n| rank=8 | diverged |  |" in text
    assert "| filter off, clamped | 0.3; 0.980 | 0.3; 0.980 |" in curves_table(results)
    assert (
        "| ULD, the paper's formula | 0.52 / 0.25, 0.75, diverged | 42.6 / 50.0 | 1.00 / 0.50 | 85.9 / 50.0 |" in text
    )
    assert "| filter off, clamped | 0.5 | 0.3 | 0.100 | 0.980 |" in text
    assert "| ULD, no filter, clamped (ours) | 0.3; 0.980 | 0.3; 0.980 |" in text
    assert "| target | 1.000; 1.000 | 0.625; 0.250 |" in text
    assert "| no gate | 0.3; 0.980 | 0.3; 0.980 |\n| gate 0.1 | 0.3; 0.980 |" in text
    assert "| ULD, gated, baked (ours) | 0.25, 0.25 | 8, not |" in text
    assert {"forget10.svg", "alphas.svg"} <= {path.name for path in tmp_path.iterdir()}


def test_the_pages_have_the_tables_that_the_results_make(study_path: None) -> None:
    from docs_tables import MARK, PAGES, RESULTS, filled

    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(MARK.findall(text)) > 5
        assert filled(text, RESULTS) == text


@pytest.mark.parametrize("name", ["slice", "finetuned", "whole"])
def test_final_runs_have_the_settings_that_the_trials_choose(
    ledger: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import study
    from docs_tables import RESULTS
    from methods import METHODS
    from presets import PRESETS

    monkeypatch.setattr(study, "study_tokenizer", lambda *args: None)  # nothing is run
    results = ledger.Ledger(RESULTS / name, ledger.Deadline(0))
    committed = study.Study(PRESETS[name], SHARED / "tofu", tmp_path, results)
    others = set()
    for unit, result in results.results().items():
        key = unit.split(".")[1] if unit.startswith("final.") else None
        if key in METHODS:
            try:
                committed.check_is_chosen(unit, result, METHODS[key].tuned_as or key)
            except ValueError:
                others.add(key)
    # Run before their last two trials, which docs/study.md says.
    assert others == ({"dpo", "dpo_gd"} if name == "finetuned" else set())


def test_a_table_without_results_is_refused(study_path: None, tmp_path: Path) -> None:
    from docs_tables import filled

    with pytest.raises(ValueError, match="missing has no results"):
        filled("<!-- table: missing methods forget10 -->\n\n<!-- table end -->", tmp_path)


@pytest.fixture
def small_study(study_path: None, ledger: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study whose trainings diverge, and whose models nobody trains."""
    import study
    from presets import PRESETS

    def diverge(*args: object) -> None:
        raise FloatingPointError("no longer finite")

    monkeypatch.setattr(study, "train", diverge)
    monkeypatch.setattr(study.Study, "references", lambda self, split, seed: (None, None))
    monkeypatch.setattr(study.Study, "job", lambda self, *args: None)
    results = ledger.Ledger(tmp_path / "results", ledger.Deadline(5))
    return study.Study(PRESETS["small"], SHARED / "tofu", tmp_path / "work", results)


@needs_shared
def test_without_a_retrained_model_unseen_authors_or_the_base_model_say_what_is_to_be_reached(
    small_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import measure
    import study
    from methods import METHODS

    asked: list[tuple[str, list]] = []

    def evaluate(model: str, tokenizer: object, questions: list, max_new_tokens: int) -> SimpleNamespace:
        asked.append((model, questions))
        number = len(asked) - 1
        attacks = {"loss": [number], "min_k": [number], "zlib": []}
        return SimpleNamespace(
            truth_ratios=[number], attacks=attacks, loss=[log(5), log(2.5)], exact_memorization=[0.5, 1.0]
        )

    monkeypatch.setattr(measure, "evaluate", evaluate)
    monkeypatch.setattr(study, "load_model", str)
    monkeypatch.setattr(small_study, "target", lambda seed: f"target {seed}")
    monkeypatch.setattr(small_study, "base", lambda: "base")
    split = small_study.split("forget25")
    on_unseen, on_forget = ("target 3", split.unseen_questions), ("base", split.forget_questions)

    reference, beside = small_study.reference_for(METHODS["uld_certain_unseen"], split, 3)
    assert asked[reference.truth_ratios[0]] == on_unseen
    assert {name: asked[numbers[0]] for name, numbers in reference.attacks.items()} == {
        "loss": on_unseen,
        "min_k": on_unseen,
    }
    assert beside.forget is split.forget_beside_unseen

    reference, beside = small_study.reference_for(METHODS["uld_gated_base"], split, 3)
    assert asked[reference.truth_ratios[0]] == on_forget
    assert (reference.attacks, beside) == (None, split)

    reference, beside = small_study.reference_for(METHODS["uld_rules_gated_base"], split, 3)
    assert (reference.truth_ratios, reference.attacks, beside) == (None, None, split)
    assert asked[-1] == on_forget
    assert (reference.probability, reference.first_choice) == pytest.approx((0.3, 0.75))


@needs_shared
def test_what_is_chosen_without_a_retrained_model_is_a_result_that_says_by_what(
    small_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import study

    monkeypatch.setattr(study, "train", lambda *of: None)
    monkeypatch.setattr(study, "best_subtraction", lambda *of: {"subtraction": {"alpha": 1.25}, "ratio": 1.0})
    monkeypatch.setattr(small_study, "chosen", lambda key: (0, {"setting": {}}))
    monkeypatch.setattr(small_study, "reference_for", lambda *of: (None, None))
    monkeypatch.setattr(small_study, "apply", lambda *of: None)
    for key in ("uld_gated_unseen", "uld_gated_fine", "uld_gated_base", "uld_rules_gated_base"):
        small_study.composed(key, "forget25", 2)
    assert set(small_study.ledger.results()) == {
        "unseen.uld_gated.forget25.s2",
        "unseen.uld_gated_fine.forget25.s2",
        "base.uld_gated.forget25.s2",
        "base_probability.uld_rules_gated_base.forget25.s2",
    }


def test_by_probability_the_smallest_alpha_that_forgets_and_keeps_is_best(study_path: None) -> None:
    from measure import rank_by_probability

    from uld_hf.evaluation.sweep import Outcome, Reference

    never_told, target = Reference(0.01, 0.3), Outcome(0.9, 1.0)
    outcomes = {
        1.0: Outcome(0.02, 0.99, forget_first_choice=0.1),  # too probable
        1.2: Outcome(0.005, 0.99, forget_first_choice=0.4),  # too often the first choice
        1.4: Outcome(0.004, 0.97, forget_first_choice=0.2),  # keeps too little
        1.6: Outcome(0.003, 0.98, forget_first_choice=0.2),
        1.8: Outcome(0.001, 0.99, forget_first_choice=0.1),
    }
    ranked = sorted(outcomes, key=lambda alpha: rank_by_probability(outcomes[alpha], target, never_told, alpha))
    assert ranked == [1.0, 1.2, 1.4, 1.8, 1.6]


@needs_shared
def test_lines_that_go_by_the_base_model_are_of_studies_that_have_one(
    small_study: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import run
    from methods import METHODS
    from presets import PRESETS

    able = {name: {key for key in METHODS if METHODS[key].can_be_run(preset)} for name, preset in PRESETS.items()}
    assert able["finetuned"] == able["whole"] == set(METHODS)
    assert able["small"] == able["full"] == set(METHODS) - {"uld_gated_base", "uld_rules_gated_base"}
    with pytest.raises(ValueError, match="The targets of 'small' begin with random weights"):
        small_study.base()
    command = ["run.py", "--preset", "small", "--tofu", str(SHARED / "tofu"), "--methods", "uld_gated_base", "ga"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        run.main()
    assert "--methods: uld_gated_base go by the model that the target was finetuned from" in capsys.readouterr().err


def test_a_cpu_that_only_emulates_bfloat16_is_refused(
    tmp_path: Path, study_path: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import run

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    places = ["--tofu", "tofu", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["run.py", "--preset", "whole", *places])
    with pytest.raises(SystemExit):
        run.main()
    assert "'whole' trains in bfloat16, which this CPU only emulates" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_more_gates_are_tried_of_what_has_one_and_the_chosen_one_stays(study_path: None) -> None:
    from methods import METHODS
    from presets import PRESETS

    preset = replace(PRESETS["small"], more_gates=(0.1, 0.3))
    for key, gates in (("uld_gated", {0.1, 0.3}), ("uld_contrast", {0.1, 0.2, 0.3}), ("uld_clamped", {0.0})):
        tried = METHODS[key].tried(preset)
        alphas = {each.alpha for each in METHODS[key].subtractions}
        assert {(each.alpha, each.gate) for each in tried} == {(alpha, gate) for alpha in alphas for gate in gates}
        assert len(tried) == len(alphas) * len(gates)
    best = {"subtraction": {"gate": 0.3}}
    for key in ("uld_certain_unseen", "uld_certain_fixed"):
        method = METHODS[key]
        assert method.tried_after(best, preset) == tuple(replace(each, gate=0.3) for each in method.subtractions)
        assert method.tried_after(best, PRESETS["small"]) == method.subtractions


def final(quality: float, utility: float, recall: float, aggregate: float) -> dict:
    """The result of a final run, as far as summary and bars read it."""
    names = ("forget quality", "utility, relative", "retain ROUGE", "overall")
    return {"figures": dict(zip(names, (quality, utility, recall, aggregate), strict=True))}


def test_the_summary_has_every_split_the_worst_of_what_is_kept_and_the_mean_aggregate(study_path: None) -> None:
    pytest.importorskip("matplotlib", reason="the study's plots need it: pip install 'uld_hf[study]'")
    from tables import summary_table

    results = {
        "final.target.forget05.s0": final(1e-9, 1.0, 1.0, 0.0),
        "final.target.forget01.s0": final(1e-3, 1.0, 1.0, 0.0),
        "final.rmu.forget05.s0": final(0.25, 0.9, 0.95, 0.5),
        "final.rmu.forget05.s1": final(0.5, 0.8, 0.99, 0.7),
        "final.rmu.forget01.s0": {"failed": "no longer finite"},
    }
    assert summary_table(results).splitlines()[2:] == [
        "| target | 0.001 | 1e-09 | 1.000 | 100.0 | 0.00, 0.00 |",
        "| RMU | diverged | 0.25, 0.5 | 0.800 | 95.0 | -, 0.60 |",
    ]


def test_bars_are_counted_by_run_and_what_diverged_reaches_none(study_path: None) -> None:
    from bars import BARS_HEADER, bars_rows

    results = {
        f"final.{name}.forget05.s{seed}": values
        for seed in range(3)
        for name, values in {
            "target": final(1e-9, 1.0, 0.98, 0.0),
            "retrained": final(1.0, 0.98, 0.99, 0.8),
        }.items()
    }
    results |= {
        "final.uld_gated.forget05.s0": final(0.06, 0.99, 0.961, 0.69),  # all bars, just
        "final.uld_gated.forget05.s1": final(0.05, 0.989, 0.96, 0.68),  # none, just
        "final.uld_gated.forget05.s2": final(
            0.5, 1.0, 0.98, 0.7
        ),  # all but the last, which there is nothing to hold against
        "final.npo.forget05.s0": final(0.9, 0.5, 0.99, 0.5),
        "final.npo.forget05.s1": {"failed": "no longer finite"},
        "final.dd_linear.forget05.s0": final(0.4, 0.9, 0.98, 0.68),
        "final.dd_linear.forget05.s1": final(0.04, 0.9, 0.98, 0.68),
        "final.dd_linear.forget05.s2": {"failed": "no longer finite"},
    }
    rows = {row[0]: dict(zip(BARS_HEADER[1:], row[1:], strict=True)) for row in bars_rows(results)}
    assert list(rows) == ["ULD, filter, clamped, gated (ours)", "Divergence Decoding, linear", "NPO"]
    assert list(rows["ULD, filter, clamped, gated (ours)"].values()) == [
        "3",
        "2",
        "2",
        "2",
        "2",
        "2",
        "1 of 2",
        "1 of 2",
    ]
    assert list(rows["Divergence Decoding, linear"].values()) == ["3", "1", "0", "2", "0", "0", "-", "-"]
    assert list(rows["NPO"].values()) == ["2", "1", "0", "1", "0", "0", "0 of 2", "0 of 2"]


@needs_shared
def test_a_training_that_diverges_is_a_result_and_the_worst(small_study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = small_study.trial("ga", 0)
    assert result["failed"] == "no longer finite"
    assert result["outcome"]["forget_quality"] == 0.0
    monkeypatch.setattr(small_study, "chosen", lambda key: (0, result))
    assert small_study.final("ga", "forget25", 0) == {"setting": result["setting"], "failed": "no longer finite"}


@needs_shared
def test_a_trial_of_a_setting_that_the_grid_no_longer_has_is_refused(small_study: Any) -> None:
    small_study.trial("ga", 0)
    file = small_study.ledger.folder / "trial.ga.0.json"
    file.write_text(file.read_text().replace("0.0003", "0.0004"))
    with pytest.raises(ValueError, match=r"trial.ga.0 in .* is of .*0.0004.*, and the grid has .*0.0003"):
        small_study.trial("ga", 0)


class FakeTrainer:
    """Trains for as many steps as it is told, and remembers what it was resumed from."""

    def __init__(self, folder: Path, steps: int):
        self.args = SimpleNamespace(output_dir=str(folder))
        self.state = SimpleNamespace(global_step=0, max_steps=10, log_history=[])
        self.model, self.steps = torch.nn.Linear(2, 2), steps

    def remove_callback(self, callback: object) -> None: ...

    def add_callback(self, callback: object) -> None: ...

    def save_model(self) -> None: ...

    def train(self, resume_from_checkpoint: str | None) -> None:
        self.resumed, self.state.global_step = resume_from_checkpoint, self.steps


@pytest.mark.parametrize(("written", "resumed"), [('{"global_step": 4}', True), ('{"global_', False)])
def test_a_training_goes_on_from_a_whole_checkpoint_only(
    study_path: None, ledger: ModuleType, tmp_path: Path, written: str, resumed: bool
) -> None:
    from training import is_trained, read_cost, train_within

    deadline, half = ledger.Deadline(1), FakeTrainer(tmp_path, 4)
    with pytest.raises(ledger.OutOfTimeError):
        train_within(lambda: half, deadline)
    (tmp_path / "cost.json").write_text(json.dumps({"seconds": 100, "peak_memory": 7, "trained_parameters": 6}))
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(written)  # the last file of a checkpoint
    whole = FakeTrainer(tmp_path, 10)
    train_within(lambda: whole, deadline)
    assert whole.resumed == (str(checkpoint) if resumed else None)
    assert not checkpoint.exists()
    # What was trained before counts only where it was gone on with.
    assert (read_cost(tmp_path)["seconds"] > 100) == resumed
    assert is_trained(tmp_path)
    assert read_cost(tmp_path)["trained_parameters"] == 6


@pytest.fixture
def evaluated_study(small_study: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study whose target and retrained model have been evaluated, and figures that are there to be changed."""
    import study

    monkeypatch.undo()
    monkeypatch.syspath_prepend(STUDY)
    (small_study.work / "evaluations").mkdir(parents=True)
    for name in ("target", "retrained"):
        (small_study.work / name).mkdir()
        (small_study.work / name / "cost.json").write_text("{}")
        (small_study.work / "evaluations" / f"{name}.forget25.s0.json").write_text("{}")
    small_study.found = {"forget ROUGE": 0.97, "forget quality": 0.25}
    monkeypatch.setattr(study, "figures", lambda *evaluations: dict(small_study.found))
    monkeypatch.setattr(study.Evaluation, "load", classmethod(lambda cls, file: None))
    monkeypatch.setattr(study.Study, "target", lambda self, seed: self.work / "target")
    monkeypatch.setattr(study.Study, "retrained", lambda self, split, seed: self.work / "retrained")
    return small_study


@needs_shared
def test_results_of_another_target_are_not_gone_on_with(evaluated_study: Any) -> None:
    evaluated_study.references("forget25", 0)
    evaluated_study.references("forget25", 0)  # the same once more
    evaluated_study.found["forget quality"] = 0.5
    with pytest.raises(ValueError, match=r"another model than the one .* its forget quality is 0\.5, not 0\.25"):
        evaluated_study.references("forget25", 0)


@needs_shared
def test_a_target_that_has_not_learned_its_rows_is_refused(evaluated_study: Any) -> None:
    evaluated_study.preset = replace(evaluated_study.preset, least_recall=0.98)
    with pytest.raises(ValueError, match=r"forget ROUGE of 0.970 on forget25, below 0.98: what it never learned"):
        evaluated_study.references("forget25", 0)
    assert evaluated_study.ledger.results() == {}


@needs_shared
def test_settings_are_chosen_from_results_alone(small_study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"forget probability": 0.99, "retain probability": 0.98, "forget quality": 1e-9}
    for name in ("target", "retrained"):
        small_study.ledger.unit(f"final.{name}.forget25.s0", lambda: {"figures": figures})
    monkeypatch.setattr(small_study, "references", lambda split, seed: pytest.fail("nothing is to be trained again"))
    from grids import grid

    setting = grid("ga none", small_study.preset)[0]
    outcome = {"forget_probability": 0.1, "retain_probability": 0.97, "forget_quality": 0.5}
    trial = small_study.ledger.unit("trial.ga.0", lambda: {"setting": setting, "outcome": outcome})
    assert small_study.chosen("ga") == (0, trial)


@needs_shared
@pytest.mark.parametrize(
    ("key", "keeps_models", "removed"),
    [
        ("ga", True, set()),
        ("ga", False, {"ga_none.0", "ga_none.1"}),
        ("npo_gd", False, {"npo_nll.1"}),  # the chosen one's weights are attacked later
        ("bake_contrast", False, {"bake_contrast.1"}),
        ("uld_paper", False, set()),  # small, and shared
    ],
)
def test_models_that_change_weights_are_removed_when_they_have_been_measured(
    small_study: Any, monkeypatch: pytest.MonkeyPatch, key: str, keeps_models: bool, removed: set[str]
) -> None:
    small_study.preset = replace(small_study.preset, keeps_models=keeps_models, trials=2, rival_trials=2)
    chosen = {"npo_gd": 0, "bake": 0}
    monkeypatch.setattr(small_study, "chosen", lambda key: (chosen[key], {}))  # of no other anything is asked
    trials = small_study.work / "trials"
    names = {f"{recipe}.{number}" for recipe in ("ga_none", "npo_nll", "bake_contrast", "uld") for number in (0, 1)}
    for name in names:
        (trials / name).mkdir(parents=True)
    small_study.ledger.unit(f"final.{key}.forget25.s0", dict)  # done in an earlier run
    small_study.final(key, "forget25", 0)
    assert names - {folder.name for folder in trials.iterdir()} == removed


@needs_shared
def test_a_model_whose_weights_are_not_attacked_is_removed_with_its_seed_and_split(
    small_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_study.preset = replace(small_study.preset, keeps_models=False, tune_on="another")
    finals = small_study.work / "finals"
    for name in ("npo_nll.0.forget25.s0", "npo_nll.0.forget25.s1", "npo_nll.0.other.s0"):
        (finals / name).mkdir(parents=True)
    small_study.ledger.unit("final.npo_gd.forget25.s0", dict)
    small_study.final("npo_gd", "forget25", 0)
    assert {folder.name for folder in finals.iterdir()} == {"npo_nll.0.forget25.s1", "npo_nll.0.other.s0"}


def test_every_kind_of_machine_is_noted_once(
    study_path: None, ledger: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import run

    results = ledger.Ledger(tmp_path, ledger.Deadline(1))
    run.note_machine(results)
    monkeypatch.setattr("sys.argv", ["run.py", "--minutes", "5"])
    run.note_machine(results)
    assert list(results.results()) == ["machine"]
    monkeypatch.setattr(run, "describe_cpu", lambda: "another")
    run.note_machine(results)
    run.note_machine(results)
    assert {name: result["cpu"] for name, result in results.results().items()} == {
        "machine": results.read("machine")["cpu"],
        "machine.1": "another",
    }


def test_a_pair_costs_the_assistant_that_it_begins_with_and_its_own_training(
    study_path: None, slice_preset: object, tmp_path: Path
) -> None:
    from recipes import Job, costs

    for folder, seconds in (("uld", 3.0), ("contrast/retain", 4.0)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "log.json").write_text("[]")
        (tmp_path / folder / "cost.json").write_text(json.dumps({"seconds": seconds}))
    rows: Any = None
    places = {"folder": tmp_path / "contrast", "assistant": tmp_path / "uld"}
    job = Job(tmp_path, rows, rows, rows, **places, seed=0, preset=slice_preset, deadline=rows)
    assert costs("contrast", job) == [{"seconds": 3.0}, {"seconds": 4.0}]
    assert costs("uld", replace(job, folder=job.assistant)) == [{"seconds": 3.0}]


@pytest.mark.parametrize("code", [0, 3, 1])
def test_a_second_process_does_the_rivals(
    study_path: None,
    ledger: ModuleType,
    slice_preset: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    import run

    done: list[tuple[str, ...]] = []
    for part in ("methods", "rephrased", "robustness", "books"):
        monkeypatch.setattr(
            run,
            f"run_{part}",
            lambda study, *of, part=part: done.append(
                (part, *(tuple(keys) for keys in of[:-1] if isinstance(keys, list)))
            ),
        )
    second: dict[str, list[str]] = {}

    class Second:
        def __init__(self, command: list[str], env: dict[str, str]):
            values: list[str] = []
            for word in command:
                if word.startswith("--"):
                    values = second.setdefault(word, [])
                else:
                    values.append(word)

        def terminate(self) -> None:
            done.append(("terminated",))

        def wait(self) -> int:
            done.append(("second",))
            return code

    monkeypatch.setattr(run.subprocess, "Popen", Second)
    study = SimpleNamespace(
        preset=slice_preset,
        work=tmp_path / "work",
        ledger=ledger.Ledger(tmp_path / "results", ledger.Deadline(5)),
        ablations=lambda: done.append(("ablations",)),
    )
    args = Namespace(
        preset="slice", tofu=tmp_path, books=tmp_path, seeds=[4], parts=list(run.PARTS),
        methods=["uld_gated", "npo_gd", "bake", "dd_linear"],
    )  # fmt: skip
    if code == 1:
        with pytest.raises(RuntimeError, match="ended with 1"):
            run.run_beside_rivals(study, args)
    else:
        assert run.run_beside_rivals(study, args) == (code == 0)
    ours = [
        ("methods", ("uld_gated", "bake")),
        ("rephrased",),
        ("ablations",),
        ("books",),
        ("second",),
    ]
    # Attacks are on models of both.
    assert done == ours + [("robustness", ("uld_gated", "npo_gd", "bake", "dd_linear"))] * (code == 0)
    assert second["--methods"] == ["npo_gd", "dd_linear"]
    assert (second["--parts"], second["--seeds"]) == (["methods"], ["4"])
    assert 4.9 < float(second["--minutes"][0]) <= 5

    # Without rivals there is nothing to share; an error here does not wait for them.
    done.clear()
    assert run.run_beside_rivals(study, Namespace(**{**vars(args), "methods": ["bake"], "parts": ["methods"]}))
    assert done == [("methods", ("bake",))]

    def fail(*of: object) -> None:
        raise ValueError("no such rows")

    monkeypatch.setattr(run, "run_methods", fail)
    with pytest.raises(ValueError, match="no such rows"):
        run.run_beside_rivals(study, args)
    assert done[-1] == ("terminated",)


@pytest.mark.slow
@needs_shared
def test_the_whole_study_runs_resumes_and_repeats_nothing(tmp_path: Path) -> None:
    # fmt: off
    command = [
        sys.executable, str(STUDY / "run.py"), "--preset", "small", "--tofu", str(SHARED / "tofu"),
        "--books", str(SHARED / "books"), "--output", str(tmp_path / "results"), "--work", str(tmp_path / "work"),
        "--methods", "uld_paper", "uld_clamped", "uld_rules", "dd_linear", "ga", "npo_gd", "rmu",
        "uld_gated", "uld_contrast", "uld_certain_fixed", "bake", "bake_contrast", "dd_linear_unseen", "dd_rank",
        "offset_npo_kl", "dpo_gd", "simnpo", "undial",
    ]
    # fmt: on
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}

    def run(minutes: str) -> subprocess.CompletedProcess:
        command_line = [*command, "--minutes", minutes]
        return subprocess.run(command_line, env=environment, capture_output=True, text=True, check=False)

    # Cut off in the middle of the target's training, again and again; then to the end.
    first = run("0.01")
    assert first.returncode == 3, first.stderr
    assert list((tmp_path / "work" / "target.s0").glob("checkpoint-*"))
    assert not list((tmp_path / "results").glob("final.*"))
    command += ["--processes", "2"]
    last = run("20")
    assert last.returncode == 0, last.stderr
    assert "All is done." in last.stdout
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("*.json")}
    assert len(results) > 30
    again = run("20")
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("*.json")} == results
    # The first assistant of a pair is the one that ULD's own lines have.
    assert {path.name for path in (tmp_path / "work" / "trials" / "contrast.0").iterdir()} == {"retain"}
    tables = (tmp_path / "results" / "tables.md").read_text()
    for line in ("centred, clamped, alpha 1.25", "NPO + GD", "ULD, gated contrast, baked (ours)"):
        assert line in tables
