"""The study's units: targets, trials, final runs, ablations. Each is one JSON result, and is done once."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from authors import Split, load_split, training_rows
from drawn import retain_and_drawn
from filelock import FileLock
from grids import grid
from ledger import Ledger
from measure import (
    best_subtraction,
    evaluate_model,
    figures,
    outcome_of,
    rank,
    reference_by,
    retrained_reference,
)
from methods import METHODS, ROBUST_METHODS, TEACHERS, ULD_LINES, Method
from presets import Preset
from recipes import Job, costs, folder_name, train
from targets import base_folder, load_model, retrained_folder, study_tokenizer, target_folder
from training import read_cost

from uld_hf import ULDForCausalLM
from uld_hf.evaluation.evaluation import Evaluation
from uld_hf.evaluation.scoring import Subtraction
from uld_hf.evaluation.sweep import Outcome, Reference, apply_subtraction, as_rows, sweep


class Study:
    """
    One study of one size.

    Args:
        preset ([`Preset`]):
            Its size.
        tofu (`Path`):
            Folder of TOFU's files, with `uld_aug/`.
        work (`Path`):
            Folder for models and the values of every row.
        ledger ([`Ledger`]):
            The results, and the time.
    """

    def __init__(self, preset: Preset, tofu: Path, work: Path, ledger: Ledger):
        self.preset, self.tofu, self.work, self.ledger = preset, tofu, work, ledger
        # Two processes want the same targets and retrained models: one trains them, the other waits.
        work.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(work / "references.lock")
        self.tokenizer = study_tokenizer(preset, tofu, work / "tokenizer")
        # Parts of units that take longer than a run may.
        self.parts = Ledger(work / "parts", ledger.deadline)
        self._splits: dict[str, Split] = {}

    def split(self, name: str) -> Split:
        """A forget set and what belongs to it."""
        if name not in self._splits:
            self._splits[name] = load_split(self.preset, name, self.tofu)
        return self._splits[name]

    def base(self) -> Path:
        """Folder of the model that target and retrained models were finetuned from."""
        with self.lock:
            folder = base_folder(self.preset, self.tofu, self.work, self.tokenizer, self.ledger.deadline)
        if folder is None:
            raise ValueError(f"The targets of {self.preset.name!r} begin with random weights: there is no base model.")
        return folder

    def target(self, seed: int) -> Path:
        """Folder of the trained target."""
        with self.lock:
            return target_folder(self.preset, self.tofu, self.work, self.tokenizer, seed, self.ledger.deadline)

    def retrained(self, split: str, seed: int) -> Path:
        """Folder of the retrained model."""
        with self.lock:
            return retrained_folder(
                self.preset, self.tofu, self.work, self.tokenizer, split, seed, self.ledger.deadline
            )

    def references(self, split: str, seed: int) -> tuple[Evaluation, Evaluation]:
        """
        Evaluations of target and retrained model on a split, made if they were not; both are results too.

        Raises:
            ValueError: If there are results of other models than these, or the target has not learned its rows.
        """
        with self.lock:
            return self._make_references(split, seed)

    def _make_references(self, split: str, seed: int) -> tuple[Evaluation, Evaluation]:
        made = []
        for name, train_model in (("target", self.target), ("retrained", lambda seed: self.retrained(split, seed))):
            file = self.work / "evaluations" / f"{name}.{split}.s{seed}.json"
            if not file.exists():
                model = load_model(train_model(seed))
                evaluate_model(name, model, self.tokenizer, self.split(split), file)
            made.append(Evaluation.load(file))
        for name, folder, evaluation in zip(
            ("target", "retrained"), (self.target(seed), self.retrained(split, seed)), made, strict=True
        ):
            found = figures(evaluation, *made)
            if name == "target" and found["forget ROUGE"] < self.preset.least_recall:
                raise ValueError(
                    f"The target of seed {seed} answers with a forget ROUGE of {found['forget ROUGE']:.3f} on {split}, "
                    f"below {self.preset.least_recall}: what it never learned cannot be forgotten. Train it for longer."
                )
            result = self.ledger.unit(
                f"final.{name}.{split}.s{seed}",
                lambda found=found, folder=folder: {"figures": found, "cost": read_cost(folder)},
            )
            differ = [key for key, value in result["figures"].items() if abs(found[key] - value) > 1e-6]
            if differ:
                raise ValueError(
                    f"{folder} is another model than the one that the results in {self.ledger.folder} are of: its "
                    f"{differ[0]} is {found[differ[0]]}, not {result['figures'][differ[0]]}. Keep --work and --output "
                    "together, or give another --output; on another kind of CPU the same training ends elsewhere."
                )
        return made[0], made[1]

    def reference_results(self, split: str, seed: int) -> None:
        """Results of target and retrained model, as far as they are not there."""
        if not all(self.ledger.has(f"final.{name}.{split}.s{seed}") for name in ("target", "retrained")):
            self.references(split, seed)

    def job(
        self,
        recipe: str,
        number: int,
        split: Split,
        seed: int,
        augmented: bool = True,
        folder: str | None = None,
        **rows: Any,
    ) -> Job:
        """The training of a recipe's setting on a split; in a folder of its own if the rows or options are others."""
        if augmented:
            rows = {"augmentation": "rules" if recipe == "uld_rules" else "released", **rows}
        else:
            rows = {"augmentation": "none", **rows}
        forget, retain = training_rows(split, self.tofu, **rows)
        return Job(
            target=self.target(seed),
            tokenizer=self.tokenizer,
            forget=forget,
            retain=retain,
            folder=self.work / (folder or self.run_folder(folder_name(recipe, augmented), number, split.name, seed)),
            assistant=self.work / self.run_folder("uld", number, split.name, seed),
            seed=seed,
            preset=self.preset,
            deadline=self.ledger.deadline,
            teacher=lambda: self.composed(TEACHERS[recipe], split.name, seed)[0],
            drawn=lambda: retain_and_drawn(split, load_model(self.target(seed)), self.tokenizer, seed),
        )

    def composed(self, key: str, split_name: str, seed: int) -> tuple[ULDForCausalLM, dict[str, Any]]:
        """The model of a line whose composition is fixed or chosen on the forget set at hand, and that composition."""
        method, split = METHODS[key], self.split(split_name)
        number, best = self.chosen(method.tuned_as)
        model = train(method.recipe, self.job(method.recipe, number, split, seed, method.augmented), best["setting"])
        tried = method.tried_after(best, self.preset)

        def choose() -> dict[str, Any]:
            reference, beside = self.reference_for(method, split, seed)
            return best_subtraction(model, self.tokenizer, beside, reference, tried, method.ratios)

        if method.is_fixed:
            chosen = {"subtraction": asdict(tried[0]), "ratio": method.ratios[0]}
        else:
            name = f"{method.stand_in}.{key.removesuffix(f'_{method.stand_in}')}.{split_name}.s{seed}"
            chosen = self.ledger.unit(name, choose)
        self.apply(model, chosen)
        return model, chosen

    def reference_for(self, method: Method, split: Split, seed: int) -> tuple[Reference, Split]:
        """What is to be reached where there is no retrained model, and the split with the rows that are held beside."""
        if method.stand_in == "unseen":
            target, with_attacks = load_model(self.target(seed)), len(method.ratios) > 1
            reference = reference_by(target, self.tokenizer, split.unseen_questions, with_attacks=with_attacks)
            return reference, replace(split, forget=split.forget_beside_unseen)
        base, by_truth_ratios = load_model(self.base()), method.stand_in == "base"
        return reference_by(base, self.tokenizer, split.forget_questions, by_truth_ratios=by_truth_ratios), split

    def apply(self, model: ULDForCausalLM, chosen: dict[str, Any]) -> None:
        """Set a model to a composition of [`best_subtraction`]."""
        share = chosen.get("ratio", 1.0) if len(model.config.alphas) > 1 else None
        apply_subtraction(model, replace(Subtraction(**chosen["subtraction"]), share=share))

    def trial(self, key: str, number: int) -> dict[str, Any]:
        """One setting of a method on the split for tuning, with the first seed."""
        method, seed, name = METHODS[key], self.preset.seeds[0], self.preset.tune_on

        def compute() -> dict[str, Any]:
            split, setting = self.split(name), grid(method.recipe, self.preset)[number]
            target, retrained = self.references(name, seed)
            job = self.job(method.recipe, number, split, seed, method.augmented)
            try:
                model = train(method.recipe, job, setting)
            except FloatingPointError as error:
                # A setting like another, and the worst.
                return {
                    "setting": setting,
                    "costs": [],
                    "failed": str(error),
                    "outcome": asdict(Outcome(0.0, 0.0, 0.0)),
                }
            result: dict[str, Any] = {"setting": setting, "costs": costs(method.recipe, job)}
            if method.subtractions:
                reference = retrained_reference(retrained)
                options = (method.tried(self.preset), method.ratios)
                return result | best_subtraction(model, self.tokenizer, split, reference, *options)
            evaluation = evaluate_model(
                key, model, self.tokenizer, split, self.work / "evaluations" / f"trial.{key}.{number}.json"
            )
            return result | {"outcome": asdict(outcome_of(figures(evaluation, target, retrained)))}

        result = self.ledger.unit(f"trial.{key}.{number}", compute)
        if result["setting"] != (setting := grid(method.recipe, self.preset)[number]):
            raise ValueError(
                f"trial.{key}.{number} in {self.ledger.folder} is of {result['setting']}, and the grid has {setting} "
                "there now: remove it, and what was made after it, or keep the grid."
            )
        return result

    def chosen(self, key: str) -> tuple[int, dict[str, Any]]:
        """Number and result of a method's best trial."""
        results = [self.trial(key, number) for number in range(len(grid(METHODS[key].recipe, self.preset)))]
        split_name, seed = self.preset.tune_on, self.preset.seeds[0]
        self.reference_results(split_name, seed)
        target = outcome_of(self.ledger.read(f"final.target.{split_name}.s{seed}")["figures"])
        number = max(range(len(results)), key=lambda index: rank(Outcome(**results[index]["outcome"]), target))
        return number, results[number]

    def run_folder(self, name: str, number: int, split_name: str, seed: int) -> str:
        """Folder of a final run: the trial itself, where settings were chosen on this split with this seed."""
        if split_name == self.preset.tune_on and seed == self.preset.seeds[0]:
            return f"trials/{name}.{number}"
        return f"finals/{name}.{number}.{split_name}.s{seed}"

    def final(self, key: str, split_name: str, seed: int) -> dict[str, Any]:
        """A method with its best setting, on a split."""
        method = METHODS[key]

        def compute() -> dict[str, Any]:
            number, best = self.chosen(method.tuned_as or key)
            split = self.split(split_name)
            references = self.references(split_name, seed)
            job = self.job(method.recipe, number, split, seed, method.augmented)
            composition = best
            try:
                if method.tuned_as is None or method.recipe in TEACHERS:
                    model = train(method.recipe, job, best["setting"])
                    if method.subtractions:
                        self.apply(model, best)
                else:
                    model, composition = self.composed(key, split_name, seed)
            except FloatingPointError as error:
                return {"setting": best["setting"], "failed": str(error)}
            file = self.work / "evaluations" / f"{key}.{split_name}.s{seed}.json"
            evaluation = evaluate_model(key, model, self.tokenizer, split, file)
            return {
                "setting": best["setting"],
                "subtraction": composition.get("subtraction"),
                "ratio": composition.get("ratio"),
                "figures": figures(evaluation, *references),
                "costs": costs(method.recipe, job),
                "answers": examples(evaluation),
            }

        result = self.ledger.unit(f"final.{key}.{split_name}.s{seed}", compute)
        self.check_is_chosen(f"final.{key}.{split_name}.s{seed}", result, method.tuned_as or key)
        if method.changes_weights and not self.preset.keeps_models:
            self.discard(key, split_name, seed)
        return result

    def check_is_chosen(self, name: str, result: dict[str, Any], tuned_as: str) -> None:
        """
        Refuse a final run from before trials that choose another setting by now.

        Args:
            name (`str`):
                Name of the run.
            result (`dict`):
                What came of it.
            tuned_as (`str`):
                Key of the line whose trials choose its setting. While some are missing nobody knows what they choose.

        Raises:
            ValueError: If it has another setting.
        """
        trials = range(len(grid(METHODS[tuned_as].recipe, self.preset)))
        if not all(self.ledger.has(f"trial.{tuned_as}.{number}") for number in trials):
            return
        _, best = self.chosen(tuned_as)
        if result["setting"] != best["setting"]:
            raise ValueError(
                f"{name} in {self.ledger.folder} was run with {result['setting']}, and the trials choose "
                f"{best['setting']} by now: remove it, to run it again."
            )

    def discard(self, key: str, split_name: str, seed: int) -> None:
        """Remove the models of a final run and of its trials, but the one whose weights will be attacked."""
        method, kept = METHODS[key], None
        if key in ROBUST_METHODS and split_name == self.preset.tune_on:
            kept, _ = self.chosen(method.tuned_as or key)
        for number in range(len(grid(method.recipe, self.preset))):
            name = folder_name(method.recipe, method.augmented)
            folder = self.work / self.run_folder(name, number, split_name, seed)
            if folder.exists() and number != kept:
                shutil.rmtree(folder)

    def ablation(self, name: str, change: dict[str, Any], rows: dict[str, Any] | None = None) -> dict[str, Any]:
        """
        ULD with one change, on the split for tuning: the best subtraction of every ULD line of the tables.

        Args:
            name (`str`):
                Name of the change.
            change (`dict`):
                Options of the training that differ from those chosen for `"uld_clamped"`.
            rows (`dict`, *optional*):
                What differs in the rows, see [`training_rows`].
        """
        seed, split_name = self.preset.seeds[0], self.preset.tune_on

        def compute() -> dict[str, Any]:
            number, best = self.chosen("uld_clamped")
            split = self.split(split_name)
            _, retrained = self.references(split_name, seed)
            setting = best["setting"] | change
            # A change to what it was is the chosen training.
            is_chosen = LORA_RANK | setting == LORA_RANK | best["setting"] and ALL_ROWS | (rows or {}) == ALL_ROWS
            folder = None if is_chosen else f"ablations/{name}"
            job = self.job("uld", number, split, seed, folder=folder, **(rows or {}))
            result: dict[str, Any] = {"setting": setting, "rows": rows or {}}
            try:
                model = train("uld", job, setting)
            except FloatingPointError as error:
                return result | {"failed": str(error)}
            result["costs"] = costs("uld", job)
            reference = retrained_reference(retrained)
            for key, method in ULD_LINES.items():
                tried = method.tried(self.preset)
                result[key] = best_subtraction(model, self.tokenizer, split, reference, tried)
            return result

        return self.ledger.unit(f"ablation.{name}", compute)

    def unlearned(self, split_name: str, seed: int, key: str = "uld_clamped") -> ULDForCausalLM:
        """The target with the assistant of a ULD line's final run, whose composition is left to the caller."""
        number, best = self.chosen(key)
        return train("uld", self.job("uld", number, self.split(split_name), seed), best["setting"])

    def sweep_chosen(
        self, split_name: str, seed: int, settings: Sequence[Subtraction], key: str = "uld_clamped"
    ) -> tuple[Outcome, list[Outcome]]:
        """Outcomes of the target, and of settings of the subtraction on the assistant of ULD's final run."""
        split = self.split(split_name)
        _, retrained = self.references(split_name, seed)
        model, reference = self.unlearned(split_name, seed, key), retrained_reference(retrained)
        return sweep(model, self.tokenizer, split.forget_questions, split.retain_questions, settings, reference)

    def ablate_subtraction(self) -> dict[str, Any]:
        """All settings of the subtraction on the best assistant, from one pass."""
        split_name, seed = self.preset.tune_on, self.preset.seeds[0]

        def compute() -> dict[str, Any]:
            settings = all_subtractions()
            target, outcomes = self.sweep_chosen(split_name, seed, settings)
            return {"target": asdict(target), "settings": as_rows(settings, outcomes)}

        return self.ledger.unit("ablation.subtraction", compute)

    def alphas(self, split_name: str, seed: int) -> dict[str, Any]:
        """How much alpha matters: every ULD line of the tables over alpha, on the chosen assistant of a final run."""

        def compute() -> dict[str, Any]:
            settings = [setting for method in ULD_LINES.values() for setting in method.subtractions]
            target, outcomes = self.sweep_chosen(split_name, seed, settings)
            left = iter(outcomes)
            return {
                "target": asdict(target),
                "lines": {
                    key: [{"alpha": setting.alpha} | asdict(next(left)) for setting in method.subtractions]
                    for key, method in ULD_LINES.items()
                },
            }

        return self.ledger.unit(f"alphas.{split_name}.s{seed}", compute)

    def gates(self, split_name: str, seed: int) -> dict[str, Any]:
        """How much the gate matters, over alpha, on the chosen assistant of the gated line's final run."""

        def compute() -> dict[str, Any]:
            some = [setting for setting in METHODS["uld_gated"].subtractions if 0.75 <= setting.alpha <= 2]
            settings = [replace(setting, gate=gate) for gate in GATES for setting in some]
            target, outcomes = self.sweep_chosen(split_name, seed, settings, "uld_gated")
            return {"target": asdict(target), "settings": as_rows(settings, outcomes)}

        return self.ledger.unit(f"gates.{split_name}.s{seed}", compute)

    def ablations(self) -> None:
        """All ablations, one at a time."""
        self.ablate_subtraction()
        for layers in self.preset.other_layers:
            self.ablation(f"layers={layers}", {"num_assistant_layers": layers})
        for weight in (0.5, 1.0, 3.0, 6.5, 20.0):
            self.ablation(f"retain_weight={weight:g}", {"retain_weight": weight})
        for lora_rank in (2, 8, 32, 128):
            self.ablation(f"rank={lora_rank}", {"lora_rank": lora_rank})
        for share in (1.0, 0.5, 0.25, 0.125):
            self.ablation(f"retain_rows={share:g}", {}, {"retain_share": share})
        for label, rows in AUGMENTATION_PARTS.items():
            self.ablation(f"augmentation={label}", {}, rows)


GATES = (0.0, 0.1, 0.15, 0.2, 0.3, 0.4)
# What a training has where nothing is said.
LORA_RANK = {"lora_rank": 32}
ALL_ROWS = {"augmentation": "released", "paraphrases": True, "wrong_answers": True, "retain_share": 1.0}
AUGMENTATION_PARTS: dict[str, dict[str, Any]] = {
    "none": {"augmentation": "none"},
    "released, paraphrases": {"wrong_answers": False},
    "released, wrong answers": {"paraphrases": False},
    "released": {},
    "rules": {"augmentation": "rules"},
    "rules, paraphrases": {"augmentation": "rules", "wrong_answers": False},
    "rules, wrong answers": {"augmentation": "rules", "paraphrases": False},
}


def all_subtractions() -> list[Subtraction]:
    """Every combination of alpha, filter, centring and clamp; the filter kept, masked and off."""
    filters = [(0.0, "keep")] + [(top, outside) for top in (0.001, 0.01, 0.1) for outside in ("keep", "mask")]
    base = [
        Subtraction(1.0, relative_top=top, outside=outside, center=center, clamp=clamp)
        for top, outside in filters
        for center, clamp in ((False, False), (True, False), (True, True))
    ]
    return [replace(each, alpha=alpha) for each in base for alpha in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)]


def examples(evaluation: Evaluation, number: int = 3) -> dict[str, list[Sequence[str]]]:
    """The first questions of each set with right and given answer: figures alone have deceived before."""
    return {
        name: list(zip(results.prompts, results.answers, results.completions, strict=True))[:number]
        for name, results in evaluation.sets.items()
        if name != "holdout"
    }
