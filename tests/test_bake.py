"""`ULDBakeTrainer` at work: what the student learns, what stays as it is, what is saved, what is refused."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model, train_like
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, PromptTuningConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments

from uld_hf import ULDBakeConfig, ULDBakeTrainer, ULDForCausalLM, build_assistant
from uld_hf.bake import bake_trainer
from uld_hf.bake.sampling import draw_answers, prompt_of
from uld_hf.bake.saving import check_output_folder
from uld_hf.training.forget_retain_trainer import count_tokens


LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
EOS = 2


def make_rows(number: int, seed: int) -> Dataset:
    """Questions and answers of random words, of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def words(least: int, most: int) -> str:
        length = int(torch.randint(least, most + 1, (1,), generator=generator))
        return " ".join(f"w{int(token)}" for token in torch.randint(50, (length,), generator=generator))

    return Dataset.from_list([{"prompt": words(2, 6), "completion": f" {words(1, 8)}"} for _ in range(number)])


FORGET, RETAIN = make_rows(8, seed=0), make_rows(16, seed=1)


@pytest.fixture
def teacher(tmp_path: Path) -> ULDForCausalLM:
    """An unlearned model whose target was saved with tokenizer, licence and generation defaults of its own."""
    folder = tmp_path / "target"
    model = tiny_model("llama")
    model.generation_config.repetition_penalty = 1.25
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: ours\n---\n")
    (folder / "LICENSE").write_text("Ours.")
    target = AutoModelForCausalLM.from_pretrained(folder)
    return ULDForCausalLM(
        target=target, assistant=train_like(build_assistant(target, 2)), alpha=1.0, relative_top=0.0, clamp=False
    )


def make_trainer(
    teacher: Any,
    output_dir: Path,
    forget: Dataset = FORGET,
    retain: Dataset = RETAIN,
    general: Dataset | None = None,
    student: Any = None,
    peft_config: Any = None,
    callbacks: list[TrainerCallback] | None = None,
    processing_class: Any = None,
    **settings: Any,
) -> ULDBakeTrainer:
    """A trainer of a tiny student, 4 rows to a step."""
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "teacher_answers": 1,
        "max_new_tokens": 6,
        "gradient_checkpointing": None,
    }
    return ULDBakeTrainer(
        teacher,
        ULDBakeConfig(str(output_dir), **(defaults | settings)),
        forget_dataset=forget,
        retain_dataset=retain,
        general_dataset=general,
        student=student,
        processing_class=processing_class,
        peft_config=peft_config,
        callbacks=callbacks,
    )


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def logged(trainer: ULDBakeTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


STUDENTS = pytest.mark.parametrize("peft_config", [None, LORA], ids=["all weights", "LoRA"])
INPUTS = torch.tensor([[5, 9, 33, 7, 21, 40]])


# --- what it says of itself ---


def test_closing_figures_are_of_the_last_batches(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path / "out", max_steps=20, learning_rate=1e-2, logging_steps=1)
    trainer.train()
    figures = trainer._describe_training()["metrics"]
    assert set(figures) == {f"{part}_{kind}" for part in ("forget", "retain") for kind in ("divergence", "agreement")}
    last = logged(trainer, "forget_divergence")[-10:]
    assert min(last) <= figures["forget_divergence"] <= max(last)
    # Averages over tokens, which batches have about as many of.
    assert figures["forget_divergence"] == pytest.approx(np.mean(last), rel=0.1)
    assert figures["forget_divergence"] != pytest.approx(np.mean(logged(trainer, "forget_divergence")), rel=1e-3)


def test_closing_figures_need_no_log(
    teacher: ULDForCausalLM, tmp_path: Path, caplog: pytest.LogCaptureFixture, transformers_log: None
) -> None:
    trainer = make_trainer(teacher, tmp_path / "out", max_steps=2, learning_rate=1e-6, logging_strategy="no")
    trainer.train()
    assert "On the forget rows the student is" in caplog.text
    assert trainer._describe_training()["metrics"]["forget_divergence"] > 0.1


# --- what it learns, and what it leaves alone ---


@STUDENTS
def test_the_student_becomes_like_its_teacher(teacher: ULDForCausalLM, tmp_path: Path, peft_config: Any) -> None:
    trainer = make_trainer(teacher, tmp_path / "out", peft_config=peft_config, max_steps=60, learning_rate=1e-2)
    trainer.train()
    for part in ("forget", "retain"):
        values = logged(trainer, f"{part}_divergence")
        assert np.mean(values[-5:]) < 0.5 * values[0], part
    assert np.mean(logged(trainer, "forget_agreement")[-5:]) > np.mean(logged(trainer, "forget_agreement")[:5])


@STUDENTS
@pytest.mark.parametrize("execution", ["two passes", "lockstep"])
def test_teacher_and_target_are_not_changed(
    teacher: ULDForCausalLM, tmp_path: Path, peft_config: Any, execution: str
) -> None:
    teacher.execution = execution
    before, logits = weights(teacher), teacher(INPUTS).logits
    target_logits = teacher.target(INPUTS).logits
    trainer = make_trainer(teacher, tmp_path / "out", peft_config=peft_config, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    assert_same(weights(teacher), before)
    assert_same(teacher(INPUTS).logits, logits)
    assert_same(teacher.target(INPUTS).logits, target_logits)
    assert not torch.equal(trainer.baked_model()(INPUTS).logits, target_logits)


def test_a_lora_student_shares_the_frozen_tensors(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path / "out", peft_config=LORA)
    owned = {id(parameter) for parameter in teacher.target.parameters()}
    frozen = [parameter for name, parameter in trainer.model.named_parameters() if "lora_" not in name]
    assert frozen
    assert all(id(parameter) in owned and not parameter.requires_grad for parameter in frozen)
    assert not any("lora_" in name for name, _ in teacher.target.named_parameters())


def test_all_weights_are_a_copy_and_all_are_trained(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path / "out")
    owned = {id(parameter) for parameter in teacher.target.parameters()}
    assert all(id(parameter) not in owned and parameter.requires_grad for parameter in trainer.model.parameters())
    assert_same(weights(trainer.model), weights(teacher.target))


@STUDENTS
def test_the_baked_model_is_the_trained_student(teacher: ULDForCausalLM, tmp_path: Path, peft_config: Any) -> None:
    trainer = make_trainer(teacher, tmp_path / "out", peft_config=peft_config, learning_rate=1e-2)
    trainer.train()
    trainer.model.eval()
    baked = trainer.baked_model()
    torch.testing.assert_close(baked(INPUTS).logits, trainer.model(INPUTS).logits, rtol=1e-4, atol=1e-4)
    assert type(baked) is type(teacher.target)
    assert isinstance(trainer.model, PeftModel) == (peft_config is not None)  # it was not taken apart


@pytest.mark.parametrize("top_k", [{}, {"teacher_top_k": 63}], ids=str)
def test_the_settings_of_the_loss_are_those_of_the_configuration(
    teacher: ULDForCausalLM, tmp_path: Path, top_k: dict[str, int]
) -> None:
    settings = {"divergence": "js", "temperature": 1.5, "likelihood_weight": 0.3, "retain_weight": 2.5}
    settings |= {"teacher_answers": 0, "max_steps": 1, **top_k}
    trainer = make_trainer(teacher, tmp_path / "out", **settings)
    trainer.train()
    batch = next(iter(make_trainer(teacher, tmp_path / "same", **settings).get_train_dataloader()))

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = [model(**inputs).logits[:, :-1].double() for model in (teacher.target, teacher)]
    student, expected = ((each / 1.5).log_softmax(dim=-1) for each in logits)
    tokens = batch["input_ids"][:, 1:, None]
    of_student, of_teacher = (each.log_softmax(dim=-1).gather(-1, tokens)[..., 0] for each in logits)
    gap = (of_student - of_teacher).abs()
    gap = torch.where(gap < 1, gap.square() / 2, gap - 0.5)
    mixture = torch.logaddexp(student, expected) - np.log(2)
    divergence = sum((p.exp() * (p - mixture)).sum(-1) for p in (student, expected)) / 2
    counted, retain = batch["labels"][:, 1:] != -100, batch["retain_mask"][:, 1:]
    forget, kept = ((divergence + 0.3 * gap)[counted & part].mean() for part in (~retain, retain))
    assert logged(trainer, "loss") == pytest.approx([(forget + 2.5 * kept).item()], abs=1e-4)


def test_a_gated_contrast_can_be_baked(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    teacher.add_assistant(train_like(build_assistant(teacher.target, 2), seed=2), name="wording", alpha=-0.8)
    teacher.config.gate = 0.05
    settings = {"max_steps": 60, "learning_rate": 1e-2, "teacher_top_k": 60, "noise": 0.2}
    trainer = make_trainer(teacher, tmp_path / "out", **settings)
    trainer.train()
    values = logged(trainer, "forget_divergence")
    assert np.mean(values[-5:]) < 0.5 * values[0]
    trainer.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded(INPUTS).logits, trainer.baked_model()(INPUTS).logits)


def test_more_micro_batches_have_the_loss_of_one_batch(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    losses = []
    for size, steps in ((4, 1), (1, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "teacher_answers": 0}
        trainer = make_trainer(teacher, tmp_path / f"out-{size}", **settings, optim="sgd", max_grad_norm=0.0)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_general_text_joins_what_is_kept(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    general = Dataset.from_list([{"text": "w1 w2 w3 w4"}, {"text": "w5 w6 w7"}])
    trainer = make_trainer(teacher, tmp_path / "out", general=general)
    rows = trainer.train_dataset
    assert rows["is_retain"] == [False] * 8 + [True] * 18
    assert -100 not in rows[-1]["labels"]


@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
def test_noise_mixes_in_fresh_weights(teacher: ULDForCausalLM, tmp_path: Path, noise: float) -> None:
    student = make_trainer(teacher, tmp_path / "out", noise=noise, seed=5).model
    torch.manual_seed(5)
    beginning = AutoModelForCausalLM.from_config(teacher.target.config)  # of a target trained with this seed
    torch.manual_seed(5)
    torch.manual_seed(int(torch.randint(2**31, ())))
    fresh = AutoModelForCausalLM.from_config(teacher.target.config)
    assert not torch.equal(fresh.lm_head.weight, beginning.lm_head.weight)
    for name, parameter in fresh.named_parameters():
        expected = (1 - noise) * teacher.target.get_parameter(name) + noise * parameter
        torch.testing.assert_close(student.get_parameter(name), expected, rtol=1e-5, atol=1e-6)


# --- text that is drawn ---


def test_a_prompt_is_what_precedes_the_answer_or_half_of_a_text() -> None:
    assert prompt_of([5, 6, 7, 8], [-100, -100, 7, 8]) == [5, 6]
    assert prompt_of([5, 6, 7, 8, 9], [5, 6, 7, 8, 9]) == [5, 6]
    assert prompt_of([5], [5]) == [5]


def test_answers_are_drawn_from_the_models_own_distribution(teacher: ULDForCausalLM) -> None:
    torch.manual_seed(0)
    prompt = [5, 9, 33]
    drawn = [answer[0] for answer in draw_answers(teacher, [prompt] * 3000, [EOS], 0, 1, 1.0, 1000)]
    expected = teacher(torch.tensor([prompt])).logits[0, -1].softmax(dim=-1)  # no repetition penalty of its defaults
    shares = torch.bincount(torch.tensor(drawn), minlength=64) / len(drawn)
    assert (shares - expected).abs().max() < 0.03


@pytest.mark.parametrize(
    "default", [{"no_repeat_ngram_size": 1}, {"min_p": 0.9}, {"bad_words_ids": [[5], [9]]}, {"num_beams": 3}], ids=str
)
def test_answers_are_not_bent_by_what_a_generation_config_may_hold(teacher: ULDForCausalLM, default: dict) -> None:
    prompts = [[5, 9, 33], [7, 8]] * 4
    drawn = []
    for defaults in ({}, default):
        teacher.generation_config.update(**defaults)
        before = teacher.generation_config.to_dict()
        torch.manual_seed(0)
        drawn.append(list(draw_answers(teacher, prompts, [EOS], 0, 12, 1.0, 4)))
        assert teacher.generation_config.to_dict() == before
    assert drawn[0] == drawn[1]


def test_answers_belong_to_their_prompts_where_a_model_returns_several(teacher: ULDForCausalLM) -> None:
    teacher.generation_config.num_return_sequences = 2
    torch.manual_seed(0)
    answers = list(draw_answers(teacher, [[5, 9, 33], [7, 8]], [EOS], 0, 4, 1e-4, 2))
    firsts = [teacher(torch.tensor([prompt])).logits[0, -1].argmax().item() for prompt in ([5, 9, 33], [7, 8])]
    assert [answer[0] for answer in answers] == firsts


def test_answers_end_with_the_end_token_whatever_the_padding(teacher: ULDForCausalLM) -> None:
    torch.manual_seed(1)
    answers = list(draw_answers(teacher, [[5, 9], [7, 8, 9, 10, 11]] * 20, [EOS], 0, 30, 3.0, 7))
    assert len(answers) == 40
    assert any(answer[-1] == EOS and len(answer) < 30 for answer in answers)
    assert all(EOS not in answer[:-1] and 1 <= len(answer) <= 30 for answer in answers)


def test_answers_have_no_room_beyond_the_context(teacher: ULDForCausalLM) -> None:
    assert [len(answer) for answer in draw_answers(teacher, [[5] * 128], [], 0, 8, 1.0, 1)] == [0]
    assert [len(answer) for answer in draw_answers(teacher, [[5] * 125], [], 0, 8, 1.0, 1)] == [3]


def test_the_teachers_answers_join_the_forget_rows(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path / "out", teacher_answers=3)
    trainer.prepare_teacher()
    rows = list(trainer.train_dataset)
    given, drawn, kept = rows[:8], rows[8:-16], rows[-16:]
    assert len(drawn) > 8
    assert [row["is_retain"] for row in rows] == [False] * (8 + len(drawn)) + [True] * 16
    assert [row["row"] for row in rows] == list(range(len(rows)))
    prompts = {tuple(prompt_of(row["input_ids"], row["labels"])) for row in given}
    for row in drawn:
        prompt = prompt_of(row["input_ids"], row["labels"])
        assert tuple(prompt) in prompts
        assert row["labels"][len(prompt) :] == row["input_ids"][len(prompt) :]
    assert all(len(row["labels"]) == len(row["input_ids"]) for row in kept)


def test_the_teachers_answers_are_the_unlearned_models_own(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    # So cold that every draw is the first choice.
    trainer = make_trainer(teacher, tmp_path / "out", generation_temperature=1e-4)
    trainer.prepare_teacher()
    others = 0
    for row in list(trainer.train_dataset)[8:-16]:
        prompt = prompt_of(row["input_ids"], row["labels"])
        ids = list(prompt)
        for token in row["input_ids"][len(prompt) :]:
            target, *_ = teacher.component_logits(torch.tensor([ids]))
            assert token == teacher(torch.tensor([ids])).logits[0, -1].argmax()
            others += int(token != target[0, -1].argmax())
            ids.append(token)
    assert others > 4  # the target would have said something else


def test_the_same_seed_draws_the_same_answers(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    drawn = []
    for number, seed in enumerate((3, 3, 4)):
        trainer = make_trainer(teacher, tmp_path / f"out-{number}", seed=seed)
        trainer.prepare_teacher()
        drawn.append([row["input_ids"] for row in trainer.train_dataset])
    assert drawn[0] == drawn[1] != drawn[2]


def test_with_a_fraction_of_one_the_student_draws_every_answer(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path / "out", on_policy_fraction=1.0, gradient_accumulation_steps=2)
    given = {tuple(row["input_ids"]) for row in trainer.train_dataset}
    seen: list[dict[str, torch.Tensor]] = []
    compute_loss = trainer.compute_loss

    def record(model: Any, inputs: dict[str, torch.Tensor], **kwargs: Any) -> Any:
        seen.append(inputs | {"num_items": kwargs["num_items_in_batch"]})
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = record
    trainer.train()
    assert len(seen) == 6
    rows = [
        ids[mask.bool()].tolist()
        for batch in seen
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert not given & set(map(tuple, rows))
    for first, second in zip(seen[::2], seen[1::2], strict=True):  # counted after they were drawn
        counts = sum(count_tokens(batch) for batch in (first, second))
        assert first["num_items"].tolist() == second["num_items"].tolist() == counts.tolist()
    assert trainer.model.training


# --- what is kept of the teacher ---


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the teacher was asked")


def test_the_top_tokens_are_kept_and_the_teacher_is_not_asked_again(
    teacher: ULDForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = make_trainer(teacher, tmp_path / "first", teacher_top_k=5, teacher_cache_dir=str(cache))
    first.train()
    num_tokens = sum(label != -100 for row in first.train_dataset for label in row["labels"][1:])
    data = sum(np.load(cache / "top-k" / name).nbytes for name in ("tokens.npy", "log_probs.npy", "likelihoods.npy"))
    assert data == num_tokens * (8 * 5 + 8)
    assert first.teacher_cache_bytes == sum(file.stat().st_size for file in (cache / "top-k").iterdir())
    second = make_trainer(teacher, tmp_path / "second", teacher_top_k=5, teacher_cache_dir=str(cache))
    monkeypatch.setattr(bake_trainer, "composed_targets", refuse)
    monkeypatch.setattr(bake_trainer, "draw_answers", refuse)
    second.train()
    assert_same(weights(second.model), weights(first.model))


def test_the_top_tokens_are_those_of_the_teacher(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path / "out", teacher_top_k=4, temperature=2.0)
    trainer.prepare_teacher()
    row = trainer.train_dataset[9]
    targets = trainer._top_k.lookup([9], torch.device("cpu"))
    counted = [label != -100 for label in row["labels"][1:]]
    logits = teacher(torch.tensor([row["input_ids"]])).logits[0, :-1][torch.tensor(counted)]
    top = (logits / 2).log_softmax(dim=-1).topk(4, dim=-1)
    assert targets.tokens.tolist() == top.indices.tolist()
    torch.testing.assert_close(targets.top_log_probs, top.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(targets.rest.exp(), 1 - top.values.exp().sum(dim=-1), rtol=1e-3, atol=1e-5)
    given = torch.tensor(row["input_ids"][1:])[torch.tensor(counted)]
    likelihoods = logits.log_softmax(dim=-1).gather(-1, given[:, None])[:, 0]  # not tempered
    torch.testing.assert_close(targets.likelihoods, likelihoods, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("likelihood_weight", [0.0, 0.5])
def test_nearly_all_tokens_train_as_the_teacher_itself_does(
    teacher: ULDForCausalLM, tmp_path: Path, likelihood_weight: float
) -> None:
    settings = {"optim": "sgd", "likelihood_weight": likelihood_weight}
    whole = make_trainer(teacher, tmp_path / "whole", **settings)
    kept = make_trainer(teacher, tmp_path / "kept", teacher_top_k=63, **settings)
    for trainer in (whole, kept):
        trainer.train()
    assert logged(kept, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-4)


CHANGES = {
    "teacher": lambda teacher: setattr(teacher.config, "alpha", 0.5),
    "assistant": lambda teacher: next(p for n, p in teacher.assistant.named_parameters() if "lora_B" in n).data.add_(
        0.1
    ),
}


@pytest.mark.parametrize("change", [*CHANGES, "rows", "temperature", "teacher_top_k", "max_new_tokens"])
def test_a_stale_cache_is_refused(teacher: ULDForCausalLM, tmp_path: Path, change: str) -> None:
    settings: dict[str, Any] = {"teacher_top_k": 5, "teacher_cache_dir": str(tmp_path / "cache")}
    make_trainer(teacher, tmp_path / "first", **settings).prepare_teacher()
    if change in CHANGES:
        CHANGES[change](teacher)
    other = {
        "temperature": {"temperature": 2.0},
        "teacher_top_k": {"teacher_top_k": 6},
        "max_new_tokens": {"max_new_tokens": 5},
    }
    retain = make_rows(16, seed=7) if change == "rows" else RETAIN
    trainer = make_trainer(teacher, tmp_path / "second", retain=retain, **(settings | other.get(change, {})))
    with pytest.raises(ValueError, match="made with another teacher, other data or other settings"):
        trainer.train()


def test_a_cache_that_was_cut_off_is_no_cache(
    teacher: ULDForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    trainer = make_trainer(teacher, tmp_path / "out", teacher_top_k=5, teacher_cache_dir=str(cache))
    asked = bake_trainer.composed_targets
    calls = iter((asked, asked, refuse))
    monkeypatch.setattr(bake_trainer, "composed_targets", lambda *args: next(calls)(*args))
    with pytest.raises(AssertionError):
        trainer.prepare_teacher()
    assert [file.name for file in cache.iterdir()] == ["answers.json"]


# --- what is saved ---


def bake(teacher: ULDForCausalLM, folder: Path, **settings: Any) -> ULDBakeTrainer:
    trainer = make_trainer(teacher, folder, learning_rate=1e-2, **settings)
    trainer.train()
    trainer.save_model()
    return trainer


WITHOUT_US = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "uld_hf":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
try:
    import uld_hf
    sys.exit("uld_hf was imported")
except ImportError:
    pass
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer("w5 w9 w33", return_tensors="pt", return_token_type_ids=False)
print(json.dumps({
    "class": type(model).__name__, "dtype": str(model.dtype), "logits": model(**inputs).logits[0].tolist(),
    "answer": model.generate(**inputs, max_new_tokens=5, do_sample=False)[0].tolist(),
}))
"""


@STUDENTS
def test_the_folder_loads_where_uld_hf_cannot_be_imported(
    teacher: ULDForCausalLM, tmp_path: Path, peft_config: Any
) -> None:
    trainer = bake(teacher, tmp_path / "out", peft_config=peft_config)
    command = [sys.executable, "-c", WITHOUT_US, str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr[-2000:]
    loaded = json.loads(result.stdout.splitlines()[-1])
    baked = trainer.baked_model()
    inputs = make_tokenizer()("w5 w9 w33", return_tensors="pt", return_token_type_ids=False)
    assert loaded["class"] == "LlamaForCausalLM"
    torch.testing.assert_close(torch.tensor([loaded["logits"]]), baked(**inputs).logits, rtol=1e-5, atol=1e-5)
    assert loaded["answer"] == baked.generate(**inputs, max_new_tokens=5, do_sample=False)[0].tolist()


def test_files_of_the_tokenizer_that_others_read_are_kept(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    (tmp_path / "target" / "tokenizer.model").write_bytes(b"of sentencepiece")
    bake(teacher, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"of sentencepiece"


def test_a_template_that_the_tokenizer_does_not_have_is_not_copied(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    (tmp_path / "target" / "chat_template.jinja").write_text("{{ messages }}")
    bake(teacher, tmp_path / "out", processing_class=make_tokenizer())
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_what_came_into_the_folder_meanwhile_is_no_obstacle(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path / "out")
    trainer.train()
    (tmp_path / "out" / "runs").mkdir(parents=True)
    trainer.save_state()
    for _ in range(2):
        trainer.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded(INPUTS).logits, trainer.baked_model()(INPUTS).logits)


def test_another_folder_must_be_empty(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path / "out")
    trainer.train()
    foreign = tmp_path / "other" / "checkpoint-100" / "model.safetensors"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"of another training")
    with pytest.raises(ValueError, match=r"is not empty \(it holds checkpoint-100\)"):
        trainer.save_model(str(tmp_path / "other"))
    assert foreign.exists()


def test_nothing_but_a_plain_models_files_is_in_the_folder(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    bake(teacher, tmp_path / "out", save_strategy="steps", save_steps=1, teacher_top_k=3)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "LICENSE", "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_configuration_tokenizer_and_defaults_are_the_targets(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    bake(teacher, tmp_path / "out")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "LICENSE"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "target" / name).read_text(), name
    saved, own = (json.loads((tmp_path / part / "tokenizer_config.json").read_text()) for part in ("out", "target"))
    # Where it was loaded from, which transformers writes down.
    assert saved == own | {"is_local": True, "local_files_only": True}


@STUDENTS
def test_the_type_is_the_targets(teacher: ULDForCausalLM, tmp_path: Path, peft_config: Any) -> None:
    teacher.target.to(torch.bfloat16)
    bake(teacher, tmp_path / "out", peft_config=peft_config)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_tied_weights_stay_tied(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    target = tiny_model("llama", tie_word_embeddings=True)
    tied = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    trainer = bake(tied, tmp_path / "out", processing_class=make_tokenizer())
    baked, loaded = trainer.baked_model(), AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for model in (baked, loaded):
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert_same(loaded.lm_head.weight, baked.lm_head.weight)


def test_every_family_can_be_baked(family: str, tmp_path: Path) -> None:
    target = tiny_model(family)
    teacher = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)))
    for name, peft_config in (("all", None), ("lora", LORA)):
        trainer = bake(teacher, tmp_path / name, peft_config=peft_config, processing_class=make_tokenizer())
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        torch.testing.assert_close(loaded(INPUTS).logits, trainer.baked_model()(INPUTS).logits)


def test_the_card_says_what_was_done(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    bake(teacher, tmp_path / "out", divergence="js")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.license_name, card.data.library_name) == ("other", "ours", "transformers")
    assert "| `assistant` | 2 | 1.0 |" in card.text
    assert "| divergence | js |" in card.text
    assert "8 to forget" in card.text
    assert "16 to keep" in card.text
    assert str(tmp_path) not in card.text
    assert "w5" not in card.text


def test_another_student_keeps_its_own_shape(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    student = tiny_model("qwen3", num_layers=2).to(torch.bfloat16)
    bake(teacher, tmp_path / "out", student=student)
    assert "of another model, a local model, which they began as" in ModelCard.load(tmp_path / "out/README.md").text
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (loaded.config.model_type, loaded.config.num_hidden_layers, loaded.dtype) == ("qwen3", 2, torch.bfloat16)


# --- interruptions ---


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = control.should_save = state.global_step == self.step


@STUDENTS
@pytest.mark.parametrize("settings", [{}, {"on_policy_fraction": 0.5}, {"teacher_top_k": 4}], ids=str)
def test_a_resumed_bake_ends_as_one_that_was_not_cut_off(
    teacher: ULDForCausalLM, tmp_path: Path, peft_config: Any, settings: dict[str, Any]
) -> None:
    settings = settings | {"max_steps": 8, "peft_config": peft_config}
    whole = make_trainer(teacher, tmp_path / "whole", **settings)
    whole.train()
    make_trainer(teacher, tmp_path / "cut", callbacks=[StopAt(5)], **settings).train()
    resumed = make_trainer(teacher, tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert_same(weights(resumed.model), weights(whole.model))
    resumed.save_model()
    assert not list((tmp_path / "cut").glob("checkpoint-*"))


@STUDENTS
def test_a_bake_that_was_cut_off_does_not_load(teacher: ULDForCausalLM, tmp_path: Path, peft_config: Any) -> None:
    make_trainer(teacher, tmp_path / "cut", callbacks=[StopAt(2)], peft_config=peft_config).train()
    for folder in (tmp_path / "cut", tmp_path / "cut" / "checkpoint-2"):
        with pytest.raises((OSError, ValueError)):
            AutoModelForCausalLM.from_pretrained(folder)


class Interrupt(TrainerCallback):
    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def test_a_bake_that_was_cut_off_is_not_saved(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path / "cut", callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with pytest.raises(RuntimeError, match="cut off at step 1 of 3"):
        trainer.save_model()
    assert not (tmp_path / "cut" / "config.json").exists()


def test_a_bake_that_a_callback_ended_is_saved(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path / "out", callbacks=[StopAt(2)])
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("change", ["teacher", "rows", "divergence"])
def test_a_checkpoint_of_other_lessons_is_refused(teacher: ULDForCausalLM, tmp_path: Path, change: str) -> None:
    settings: dict[str, Any] = {"teacher_answers": 0}  # whose cache would be refused before
    make_trainer(teacher, tmp_path / "cut", callbacks=[StopAt(2)], **settings).train()
    if change == "teacher":
        teacher.config.alpha = 0.1
    settings |= {"teacher": {}, "rows": {"forget": make_rows(8, seed=9)}, "divergence": {"divergence": "js"}}[change]
    resumed = make_trainer(teacher, tmp_path / "cut", **settings)
    with pytest.raises(ValueError, match="another teacher, other rows or another divergence"):
        resumed.train(resume_from_checkpoint=True)


def test_a_save_that_was_cut_off_does_not_load_and_can_be_repeated(
    teacher: ULDForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(teacher, tmp_path / "out")
    trainer.train()
    replace, moved = os.replace, []

    def fail_at_config(source: Any, destination: Any) -> None:
        moved.append(Path(destination).name)
        if moved[-1] == "config.json":
            raise OSError("disk full")
        replace(source, destination)

    monkeypatch.setattr("uld_hf.saved_files.os.replace", fail_at_config)
    with pytest.raises(OSError, match="disk full"):
        trainer.save_model()
    assert "model.safetensors" in moved
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    monkeypatch.undo()
    trainer.save_model()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_beginning_anew_over_checkpoints_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    make_trainer(teacher, tmp_path / "cut", callbacks=[StopAt(2)]).train()
    with pytest.raises(ValueError, match="holds the checkpoints of an unfinished bake"):
        make_trainer(teacher, tmp_path / "cut").train()


def test_the_checkpoint_of_another_student_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    make_trainer(teacher, tmp_path / "cut", callbacks=[StopAt(2)]).train()
    with pytest.raises(ValueError, match="of a training with other trained parameters"):
        make_trainer(teacher, tmp_path / "cut", peft_config=LORA).train(resume_from_checkpoint=True)


def test_a_bake_does_not_go_on_with_another_beginning(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    settings = {"peft_config": LORA, "callbacks": [StopAt(2)]}
    make_trainer(teacher, tmp_path / "cut", student=tiny_model("llama", seed=3), **settings).train()
    again = make_trainer(teacher, tmp_path / "cut", student=tiny_model("llama", seed=4), **settings)
    with pytest.raises(ValueError, match="of a training with other target"):
        again.train(resume_from_checkpoint=True)


# --- refusals ---


def test_a_plain_model_is_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match="LlamaForCausalLM without an assistant: distilled, it would be the target again"
    ):
        make_trainer(tiny_model("llama"), tmp_path / "out", processing_class=make_tokenizer())
    with pytest.raises(TypeError, match="without an assistant"):
        ULDBakeTrainer(tiny_model("llama"))


def test_the_folder_of_a_plain_model_is_no_teacher(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an unlearned model"):
        make_trainer(str(tmp_path / "target"), tmp_path / "out")


def test_an_alpha_of_zero_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    teacher.config.assistants["assistant"]["alpha"] = 0.0
    with pytest.raises(ValueError, match=r"alpha=0\.0 would give the target's own output"):
        make_trainer(teacher, tmp_path / "out")


def test_an_alpha_that_becomes_zero_stops_the_training(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    class Zero(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            teacher.config.assistants["assistant"]["alpha"] = 0.0

    with pytest.raises(ValueError, match=r"alpha=0\.0"):
        make_trainer(teacher, tmp_path / "out", callbacks=[Zero()]).train()


def test_a_disabled_assistant_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    trainer = make_trainer(teacher, tmp_path / "out")
    teacher.assistant.base_model.disable_adapter_layers()
    with pytest.raises(RuntimeError, match="is disabled"):
        trainer.train()


def test_an_assistant_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    target = tiny_model("llama")
    teacher = ULDForCausalLM(target=target, assistant=build_assistant(target, 2))
    with pytest.raises(ValueError, match="were never trained"):
        make_trainer(teacher, tmp_path / "out", processing_class=make_tokenizer())


def test_a_student_of_another_vocabulary_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocabulary of 80 tokens, the teacher one of 64"):
        make_trainer(teacher, tmp_path / "out", student=tiny_model("llama", vocab_size=80))


def test_a_student_of_another_tokenizer_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    content = (tmp_path / "other" / "tokenizer.json").read_text()
    (tmp_path / "other" / "tokenizer.json").write_text(content.replace('"w7"', '"other"'))
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="has another tokenizer than the teacher"):
        make_trainer(teacher, tmp_path / "out", student=student)


def test_a_quantized_student_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    student = tiny_model("llama", seed=3)
    student.config.quantization_config = {"load_in_8bit": True}
    with pytest.raises(ValueError, match="The student is quantized"):
        make_trainer(teacher, tmp_path / "out", student=student)


@pytest.mark.parametrize(
    "peft_config",
    [
        LoraConfig(init_lora_weights="pissa", target_modules="all-linear"),
        LoraConfig(init_lora_weights="olora", target_modules="all-linear"),
        LoraConfig(bias="all", target_modules="all-linear"),
        LoraConfig(alora_invocation_tokens=[5], target_modules="all-linear"),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
    ids=["pissa", "olora", "biases", "alora", "prompts"],
)
def test_an_adapter_that_would_change_the_teacher_or_cannot_be_merged_is_refused(
    teacher: ULDForCausalLM, tmp_path: Path, peft_config: Any
) -> None:
    before = weights(teacher)
    with pytest.raises(ValueError, match="peft_config"):
        make_trainer(teacher, tmp_path / "out", peft_config=peft_config)
    assert_same(weights(teacher), before)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "lm_head in modules_to_save"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, "embed_tokens in modules_to_save"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens in target_modules"),
    ],
    ids=str,
)
def test_training_one_of_embeddings_and_head_that_are_tied_is_refused(
    tmp_path: Path, options: dict[str, Any], place: str
) -> None:
    target = tiny_model("llama", tie_word_embeddings=True)
    teacher = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), relative_top=0.0)
    lora = LoraConfig(task_type="CAUSAL_LM", **options)
    with pytest.raises(ValueError, match=rf"{place}: the model's embeddings and head are one tensor"):
        make_trainer(teacher, tmp_path / "out", peft_config=lora, processing_class=make_tokenizer())


def test_the_teachers_own_target_is_no_student(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds tensors of the teacher's own target"):
        make_trainer(teacher, tmp_path / "out", student=teacher.target)


def test_a_quantized_target_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    teacher.target.config.quantization_config = {"load_in_8bit": True}
    with pytest.raises(ValueError, match="The target is quantized"):
        make_trainer(teacher, tmp_path / "out")


def test_logs_of_an_unfinished_bake_do_not_keep_it_from_going_on(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    make_trainer(teacher, folder, save_strategy="steps", save_steps=1, max_steps=1).train()
    (folder / "runs").mkdir()  # TensorBoard's
    check_output_folder(folder, goes_on=True)
    with pytest.raises(ValueError, match=r"is not empty \(it holds runs\)"):
        check_output_folder(folder)
    (tmp_path / "logs" / "runs").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"is not empty \(it holds runs\)"):
        check_output_folder(tmp_path / "logs", goes_on=True)


def test_a_folder_that_is_not_empty_is_refused_first(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty \(it holds notes.txt\)"):
        make_trainer("nowhere", tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_what_was_not_trained_is_not_saved(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Nothing was trained"):
        make_trainer(teacher, tmp_path / "out").save_model()
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_reverse_kl_to_a_masked_teacher_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    teacher.config.outside, teacher.config.relative_top = "mask", 0.01
    with pytest.raises(ValueError, match="reverse_kl' is infinite"):
        make_trainer(teacher, tmp_path / "out", divergence="reverse_kl", likelihood_weight=0)


@pytest.mark.parametrize("settings", [{"outside": "mask", "relative_top": 0.01}, {"remove_top_k": 3}])
def test_likelihoods_of_a_masked_teacher_are_refused(
    teacher: ULDForCausalLM, tmp_path: Path, settings: dict[str, Any]
) -> None:
    for name, value in settings.items():
        setattr(teacher.config, name, value)
    with pytest.raises(ValueError, match="likelihood_weight has no meaning where"):
        make_trainer(teacher, tmp_path / "out", likelihood_weight=0.1)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_likelihood_weight_that_makes_no_sense_is_refused(tmp_path: Path, weight: float) -> None:
    with pytest.raises(ValueError, match=r"likelihood_weight=.* must be a finite number, at least 0"):
        ULDBakeConfig(str(tmp_path), likelihood_weight=weight)


def test_the_likelihood_of_given_text_comes_nearer_with_its_weight(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    apart = {}
    for weight in (0.0, 1.0):
        settings = {"max_steps": 40, "learning_rate": 1e-2, "likelihood_weight": weight}
        trainer = make_trainer(teacher, tmp_path / str(weight), **settings)
        trainer.train()
        batch = next(iter(trainer.get_train_dataloader()))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        counted = batch["labels"][:, 1:] != -100
        trainer.model.eval()
        with torch.no_grad():
            student, expected = (
                model(**inputs).logits[:, :-1].log_softmax(dim=-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
                for model in (trainer.model, teacher)
            )
        apart[weight] = (student - expected)[counted].abs().mean().item()
    assert apart[1.0] < 0.8 * apart[0.0]


def test_noise_with_lora_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"noise=0\.5 needs all weights"):
        make_trainer(teacher, tmp_path / "out", noise=0.5, peft_config=LORA)


def test_more_top_tokens_than_there_are_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="teacher_top_k=64 must be below the 64 tokens"):
        make_trainer(teacher, tmp_path / "out", teacher_top_k=64)


def test_a_row_that_is_both_is_refused(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is also forget_dataset\[0\]"):
        make_trainer(teacher, tmp_path / "out", general=copy.deepcopy(FORGET))


WRONG = [
    ("divergence", "kl"), ("temperature", 0.0), ("retain_weight", float("nan")), ("retain_per_forget", -1.0),
    ("on_policy_fraction", 1.5), ("noise", -0.1), ("teacher_answers", -1), ("max_new_tokens", 0), ("teacher_top_k", 0),
    ("generation_temperature", float("inf")), ("packing", True), ("padding_free", True),
    ("load_best_model_at_end", True), ("eval_strategy", "steps"), ("eval_on_start", True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_settings_are_named(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=name):
        ULDBakeConfig(str(tmp_path), use_cpu=True, save_strategy="no", **{name: value})


def test_the_trainer_does_not_evaluate_and_says_what_does(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=r"trainer\.baked_model\(\).*uld eval"):
        make_trainer(teacher, tmp_path / "out").evaluate(FORGET)


def test_a_teacher_in_a_folder_is_loaded_with_the_targets_tokenizer(teacher: ULDForCausalLM, tmp_path: Path) -> None:
    teacher.save_pretrained(tmp_path / "unlearned")
    bake(str(tmp_path / "unlearned"), tmp_path / "out")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(make_tokenizer())
