"""`ULDTrainer` at work: what it learns, what it leaves alone, what it saves, what it refuses."""

import ast
import copy
import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import ParallelismConfig
from all_families import any_model
from datasets import Dataset
from families import make_tokenizer, tiny_model
from peft import LoraConfig, PromptTuningConfig
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig

from uld_hf import ULDConfig, ULDForCausalLM, ULDModelConfig, ULDTrainer, build_assistant
from uld_hf.evaluation.scoring import Subtraction
from uld_hf.training import padding_free
from uld_hf.training.forget_retain_trainer import check_finite


VOCAB_SIZE = 64
PLAIN = {"padding_free": False, "train_sampling_strategy": "random"}  # padded batches, in the order of chance


def make_rows(number: int, seed: int) -> Dataset:
    """Questions and answers of random words, of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def words(least: int, most: int) -> str:
        length = int(torch.randint(least, most + 1, (1,), generator=generator))
        return " ".join(f"w{int(token)}" for token in torch.randint(50, (length,), generator=generator))

    return Dataset.from_list([{"prompt": words(2, 6), "completion": f" {words(1, 8)}"} for _ in range(number)])


FORGET, RETAIN = make_rows(12, seed=0), make_rows(30, seed=1)


def make_trainer(
    output_dir: Path,
    model: str | PreTrainedModel | None = None,
    forget: Dataset | None = FORGET,
    retain: Dataset | None = RETAIN,
    peft_config: Any = None,
    callbacks: list[TrainerCallback] | None = None,
    processing_class: Any = None,
    **settings: Any,
) -> ULDTrainer:
    """A trainer of a 2-layer assistant of a tiny llama, 3 steps of 8 rows to an epoch."""
    defaults = {
        "num_assistant_layers": 2,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return ULDTrainer(
        tiny_model("llama") if model is None else model,
        ULDConfig(str(output_dir), **(defaults | settings)),
        forget_dataset=forget,
        retain_dataset=retain,
        processing_class=processing_class or make_tokenizer(),
        peft_config=peft_config,
        callbacks=callbacks,
    )


def train(*args: Any, **settings: Any) -> ULDTrainer:
    """A trainer that has trained."""
    trainer = make_trainer(*args, **settings)
    trainer.train()
    return trainer


def lora_weights(trainer: ULDTrainer) -> dict[str, torch.Tensor]:
    """A copy of the assistant's own weights."""
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters() if "lora_" in name}


def logged(trainer: ULDTrainer, name: str) -> list[float]:
    """The values of a metric, step by step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_same_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance: float) -> None:
    """Two assistants are the same; exactly, unless a tolerance is given."""
    torch.testing.assert_close(actual, expected, **({"rtol": 0, "atol": 0} | tolerance))


def first_batch(trainer: ULDTrainer) -> dict[str, torch.Tensor]:
    """The batch of the first step."""
    return next(iter(trainer.get_train_dataloader()))


def plain_metrics(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Number of tokens, mean losses and accuracy of a batch, token by token."""
    log_probs = logits.double().log_softmax(dim=-1)
    forget, retain, correct = [], [], []
    for row, labels in enumerate(batch["labels"].tolist()):
        for position, label in enumerate(labels):
            if position == 0 or label == -100:
                continue
            prediction = log_probs[row, position - 1]
            if batch["retain_mask"][row, position]:
                retain.append(-prediction.mean().item() - math.log(VOCAB_SIZE))
            else:
                forget.append(-prediction[label].item())
                correct.append(prediction.argmax().item() == label)
    return {
        "num_forget": len(forget),
        "num_retain": len(retain),
        "forget_loss": sum(forget) / len(forget),
        "forget_accuracy": sum(correct) / len(correct),
        "retain_kl": sum(retain) / len(retain),
    }


def expected_metrics(trainer: ULDTrainer, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """[`plain_metrics`] of the assistant's full logits."""
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return plain_metrics(logits, batch)


# What training does, on every family


class Trained:
    """A target before and after a training that learns its few rows by heart."""

    def __init__(self, family: str, output_dir: Path):
        self.target = tiny_model(family)
        for name, parameter in self.target.named_parameters():
            if "ln_" in name:  # GPT-2's random norms would not let it tell any two tokens apart
                torch.nn.init.constant_(parameter, float(name.endswith("weight")))
        self.tensors = dict([*self.target.named_parameters(), *self.target.named_buffers()])
        self.before = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.config = self.target.config.to_dict()
        self.generation_config = self.target.generation_config.to_dict()
        self.trainer = make_trainer(
            output_dir,
            self.target,
            forget=make_rows(8, seed=2),
            retain=make_rows(8, seed=3),
            num_train_epochs=40,
            per_device_train_batch_size=16,
            retain_weight=1.0,
        )
        self.untrained = lora_weights(self.trainer)
        self.trainer.train()


@pytest.fixture(scope="module")
def trained(family: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished training, shared by the tests of a family."""
    return Trained(family, tmp_path_factory.mktemp("out"))


def test_tensors_of_the_target_are_unchanged(trained: Trained):
    now = dict([*trained.target.named_parameters(), *trained.target.named_buffers()])
    assert all(now[name] is tensor for name, tensor in trained.tensors.items())
    assert all(torch.equal(now[name], tensor) for name, tensor in trained.before.items())


def test_config_of_the_target_is_unchanged(trained: Trained):
    assert trained.target.config.to_dict() == trained.config
    assert trained.target.generation_config.to_dict() == trained.generation_config


def test_every_lora_weight_is_trained(trained: Trained):
    assert not [name for name, value in lora_weights(trained.trainer).items() if value.equal(trained.untrained[name])]


def test_forget_set_is_learned(trained: Trained):
    losses = logged(trained.trainer, "forget_loss")
    assert losses[-1] < 0.6 * losses[0]
    assert logged(trained.trainer, "forget_accuracy")[-1] > 0.5


def test_retain_set_becomes_uniform(trained: Trained):
    divergences = logged(trained.trainer, "retain_kl")
    assert divergences[-1] < 0.5 * divergences[0]


# Batches


def test_every_batch_has_rows_of_both_sets(tmp_path: Path):
    for batch in make_trainer(tmp_path, padding_free=False).get_train_dataloader():
        assert batch["retain_mask"].any(dim=1).tolist().count(True) == 4
        assert len(batch["retain_mask"]) == 8


def test_batches_have_the_ratio_asked_for(tmp_path: Path):
    for batch in make_trainer(tmp_path, padding_free=False, retain_per_forget=3.0).get_train_dataloader():
        assert batch["retain_mask"].any(dim=1).tolist().count(True) == 6


class Rows(TrainerCallback):
    """Notes the rows that a trainer trains on, epoch by epoch."""

    def __init__(self):
        self.epochs: list[list[tuple[bool, tuple[int, ...]]]] = []

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.epochs.append([])

    def attach(self, trainer: ULDTrainer) -> None:
        collate = trainer.data_collator

        def spy(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            self.epochs[-1] += [(row["is_retain"], tuple(row["input_ids"])) for row in rows]
            return collate(rows)

        trainer.data_collator = spy
        trainer.add_callback(self)


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory: pytest.TempPathFactory) -> tuple[ULDTrainer, Rows]:
    """What a trainer saw in three epochs of 12 forget rows, of 36 retain rows."""
    trainer, rows = (
        make_trainer(tmp_path_factory.mktemp("out"), retain=make_rows(36, seed=4), num_train_epochs=3),
        Rows(),
    )
    rows.attach(trainer)
    trainer.train()
    return trainer, rows


def test_epoch_is_a_pass_over_the_forget_set(three_epochs: tuple[ULDTrainer, Rows]):
    trainer, rows = three_epochs
    expected = sorted(tuple(row["input_ids"]) for row in trainer.train_dataset if not row["is_retain"])
    assert [sorted(row for is_retain, row in epoch if not is_retain) for epoch in rows.epochs] == [expected] * 3


def test_epochs_go_through_the_retain_set(three_epochs: tuple[ULDTrainer, Rows]):
    trainer, rows = three_epochs
    expected = sorted(tuple(row["input_ids"]) for row in trainer.train_dataset if row["is_retain"])
    assert sorted(row for epoch in rows.epochs for is_retain, row in epoch if is_retain) == expected


def test_epochs_have_different_orders(three_epochs: tuple[ULDTrainer, Rows]):
    orders = [[row for is_retain, row in epoch if not is_retain] for epoch in three_epochs[1].epochs]
    assert orders[0] != orders[1]
    assert orders[1] != orders[2]


def test_data_seed_is_the_seed_of_the_order(tmp_path: Path):
    batches = [first_batch(make_trainer(tmp_path, seed=seed, data_seed=7))["input_ids"] for seed in (0, 1)]
    assert torch.equal(*batches)


def test_seed_is_the_seed_of_the_order(tmp_path: Path):
    first, second = (first_batch(make_trainer(tmp_path, seed=seed))["input_ids"] for seed in (0, 1))
    assert first.shape != second.shape or not torch.equal(first, second)


def test_evaluation_leaves_the_batches_alone(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    expected = first_batch(trainer)["input_ids"]
    trainer.evaluate(make_rows(2, seed=5))
    assert torch.equal(first_batch(trainer)["input_ids"], expected)


def test_evaluation_counts_the_answers_of_conversations_only(tmp_path: Path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    trainer = make_trainer(tmp_path, processing_class=tokenizer)
    user, assistant = {"role": "user", "content": "w1 w2 w3"}, {"role": "assistant", "content": "w4 w5"}
    forms = [{"prompt": [user], "completion": [assistant]}, {"messages": [user, assistant]}]
    losses = [trainer.evaluate(Dataset.from_list([row]))["eval_loss"] for row in forms]
    assert losses[0] == losses[1]


def test_rows_to_evaluate_are_looked_at_first(tmp_path: Path):
    with pytest.raises(ValueError, match=r"eval_dataset\[1\] has no answer"):
        make_trainer(tmp_path).evaluate(Dataset.from_dict({"prompt": ["w1", "w2"], "completion": [" w3", ""]}))


def test_the_trainer_does_not_predict_and_says_what_does(tmp_path: Path):
    with pytest.raises(NotImplementedError, match=r"ULDTrainer predicts nothing.*uld eval"):
        make_trainer(tmp_path).predict(make_rows(2, seed=5))


def test_lora_is_looked_at_before_anything_is_loaded(tmp_path: Path):
    lora = LoraConfig(task_type="CAUSAL_LM", bias="all", target_modules="all-linear")
    with pytest.raises(ValueError, match="must leave modules_to_save"):
        ULDTrainer("no/such-model", ULDConfig(str(tmp_path), use_cpu=True), peft_config=lora)


def test_sets_may_have_different_formats(tmp_path: Path):
    retain = Dataset.from_list([{"text": f"w{i} w{i + 1} w{i + 2}"} for i in range(20)])
    batch = first_batch(make_trainer(tmp_path, retain=retain, padding_free=False))
    counted = (batch["labels"] != -100) & batch["retain_mask"]
    assert torch.equal(counted, batch["retain_mask"])  # every token of a text counts
    is_forget = ~batch["retain_mask"].any(dim=1)
    assert (batch["labels"][is_forget, :2] == -100).all()  # no token of a prompt does


# The loss of a step


def test_items_are_the_counted_tokens_of_all_micro_batches(tmp_path: Path):
    trainer = make_trainer(tmp_path, padding_free=False)
    batches = list(trainer.get_train_dataloader())
    metrics = [expected_metrics(trainer, batch) for batch in batches]
    expected = [sum(metric[name] for metric in metrics) for name in ("num_forget", "num_retain")]
    assert trainer._get_num_items_in_batch(batches, torch.device("cpu")).tolist() == expected


def test_loss_of_a_batch_is_the_formula(tmp_path: Path):
    trainer = make_trainer(tmp_path, retain_weight=2.0, padding_free=False)
    batch = first_batch(trainer)
    metrics = expected_metrics(trainer, batch)
    expected = metrics["forget_loss"] + 2.0 * (metrics["retain_kl"] + math.log(VOCAB_SIZE))
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_loss_of_a_micro_batch_is_its_share_of_the_step(tmp_path: Path):
    trainer = make_trainer(tmp_path, retain_weight=2.0, padding_free=False)
    batch = first_batch(trainer)
    metrics = expected_metrics(trainer, batch)
    expected = (
        metrics["forget_loss"] * metrics["num_forget"] / 100
        + 2.0 * (metrics["retain_kl"] + math.log(VOCAB_SIZE)) * metrics["num_retain"] / 300
    )
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor([100, 300]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], dict[str, float]]:
    """What is logged on the first step, and what should be."""
    trainer = make_trainer(tmp_path_factory.mktemp("out"), max_steps=1, padding_free=False)
    expected = expected_metrics(trainer, first_batch(trainer))
    trainer.train()
    return trainer.state.log_history[0], expected


@pytest.mark.parametrize("name", ["forget_loss", "forget_accuracy", "retain_kl"])
def test_logged_value_is_the_mean_over_tokens(one_step: tuple[dict[str, float], dict[str, float]], name: str):
    actual, expected = one_step
    assert actual[name] == pytest.approx(expected[name], rel=1e-4)


def test_logged_loss_is_the_weighted_sum_of_its_terms(one_step: tuple[dict[str, float], dict[str, float]]):
    log = one_step[0]
    assert log["loss"] == pytest.approx(log["forget_loss"] + 6.5 * (log["retain_kl"] + math.log(VOCAB_SIZE)), rel=1e-5)


# The same training in other ways


# Plain gradient descent: unlike Adam, it does not blow up the last digits of a gradient.
DESCENT = {"optim": "sgd", "warmup_steps": 0, "max_grad_norm": 0.0}


def descend(*args: Any, **settings: Any) -> ULDTrainer:
    """A trainer that has trained by plain gradient descent."""
    return train(*args, **({"learning_rate": 0.1} | DESCENT | settings))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ULDTrainer:
    """An epoch of 3 steps of 8 rows, in plain padded batches."""
    return descend(tmp_path_factory.mktemp("out"), **PLAIN)


@pytest.mark.parametrize(("batch_size", "steps"), [(4, 2), (2, 4), (1, 8)])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    reference: ULDTrainer, tmp_path: Path, batch_size: int, steps: int
):
    trainer = descend(tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=steps)
    assert_same_weights(lora_weights(trainer), lora_weights(reference), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "steps"), [(4, 2), (1, 8)])
def test_loss_of_accumulated_batches_is_that_of_the_whole_batch(
    reference: ULDTrainer, tmp_path: Path, batch_size: int, steps: int
):
    trainer = descend(tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=steps)
    assert logged(trainer, "loss") == pytest.approx(logged(reference, "loss"), rel=1e-5)


def test_same_seed_gives_the_same_assistant(reference: ULDTrainer, tmp_path: Path):
    assert_same_weights(lora_weights(descend(tmp_path, **PLAIN)), lora_weights(reference))


def test_activation_checkpointing_changes_nothing(reference: ULDTrainer, tmp_path: Path):
    names = {field.name for field in fields(ULDConfig)}  # older transformers have the old name only
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    trainer = descend(tmp_path, **{name: True})
    assert any(getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules())
    assert_same_weights(lora_weights(trainer), lora_weights(reference), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("keep_products", [False, True])
@pytest.mark.parametrize("every_n_layers", [1, 2])
def test_activations_computed_again_are_the_same_to_the_last_bit(
    tmp_path: Path, every_n_layers: int, keep_products: bool
):
    again = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": every_n_layers}}
    again["keep_products"] = keep_products
    trainers = [descend(tmp_path, **settings) for settings in ({}, again)]
    checkpointed = [
        sum(vars(module).get("gradient_checkpointing", False) for module in trainer.model.get_base_model().model.layers)
        for trainer in trainers
    ]
    assert checkpointed == [0, 2 // every_n_layers]
    losses, expected = (logged(trainer, "loss") for trainer in trainers)
    assert losses == expected
    assert_same_weights(*(lora_weights(trainer) for trainer in trainers))


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_rows_without_padding_give_the_same_assistant(
    reference: ULDTrainer, tmp_path: Path, activation_checkpointing: bool
):
    trainer = descend(tmp_path, activation_checkpointing=activation_checkpointing)
    assert first_batch(trainer)["input_ids"].shape[0] == 1
    assert_same_weights(lora_weights(trainer), lora_weights(reference), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("settings", [PLAIN, {}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}])
def test_prompts_in_all_layers_give_the_same_assistant(reference: ULDTrainer, tmp_path: Path, settings: dict[str, Any]):
    trainer = make_trainer(tmp_path, **({"learning_rate": 0.1} | DESCENT | settings))
    assert len(trainer._answer_parts) == 3
    trainer._answer_parts = []
    trainer.train()
    assert_same_weights(lora_weights(trainer), lora_weights(reference), rtol=1e-3, atol=1e-5)


def test_compiled_models_compute_prompts_in_all_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")  # transformers sets it, for good
    assert make_trainer(tmp_path, torch_compile=True, torch_compile_backend="eager")._answer_parts == []


def test_prompts_do_not_go_through_the_last_mlp(tmp_path: Path):
    trainer = make_trainer(tmp_path, max_steps=1)
    batch, seen = first_batch(trainer), []
    trainer.model.get_base_model().model.layers[-1].mlp.up_proj.register_forward_pre_hook(
        lambda up_proj, args: seen.append(args[0].shape[1])
    )
    trainer.train()
    assert seen == [int((batch["labels"] != -100).sum())]
    assert seen[0] < batch["labels"].numel()


def test_attention_is_as_before_after_training(reference: ULDTrainer, tmp_path: Path):
    assert descend(tmp_path).model.config._attn_implementation == "sdpa"


def test_each_row_attends_to_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lengths = []
    attend = padding_free.sdpa_attention_forward

    def spy(module: torch.nn.Module, query: torch.Tensor, *args: Any, **kwargs: Any):
        lengths.append(tuple(query.shape[::2]))
        return attend(module, query, *args, **kwargs)

    trainer = make_trainer(tmp_path)
    batch = first_batch(trainer)
    monkeypatch.setattr(padding_free, "sdpa_attention_forward", spy)
    trainer.training_step(trainer.model, batch)
    assert lengths == [(8, batch["max_length_q"])] * 2  # 8 padded rows, and not one of all tokens, in both layers


def test_more_padding_gives_the_same_assistant(reference: ULDTrainer, tmp_path: Path):
    trainer = descend(tmp_path, pad_to_multiple_of=32, **PLAIN)
    assert first_batch(trainer)["input_ids"].shape == (8, 32)
    assert_same_weights(lora_weights(trainer), lora_weights(reference), rtol=1e-3, atol=1e-5)


def test_padded_rows_of_similar_lengths_are_in_a_batch(tmp_path: Path):
    def padded(trainer: ULDTrainer) -> int:
        return sum(batch["input_ids"].numel() for batch in trainer.get_train_dataloader())

    sets = {"forget": make_rows(64, seed=7), "retain": make_rows(64, seed=8)}
    by_chance = make_trainer(tmp_path, **sets, **PLAIN)
    num_tokens = sum(len(tokens) for tokens in by_chance.train_dataset["input_ids"])
    waste = padded(by_chance) - num_tokens
    assert padded(make_trainer(tmp_path, **sets, padding_free=False)) - num_tokens < 0.5 * waste
    assert padded(make_trainer(tmp_path, **sets)) == num_tokens


def test_micro_batches_of_similar_lengths_give_the_same_assistant(reference: ULDTrainer, tmp_path: Path):
    # 3 steps are too few to move rows between them: only the order inside of a step changes.
    settings = {"padding_free": False, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = descend(tmp_path, **settings)
    assert_same_weights(lora_weights(trainer), lora_weights(reference), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["bloom", "gpt_oss", "stablelm", "falcon"])
def test_families_that_do_not_keep_rows_apart_are_padded(family: str, tmp_path: Path):
    assert first_batch(make_trainer(tmp_path, any_model(family)))["input_ids"].shape[0] == 8


def test_rows_that_would_see_each_other_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"padding_free=True: in StableLmForCausalLM with .*'sdpa', rows would see"):
        make_trainer(tmp_path, any_model("stablelm"), padding_free=True)


def test_retain_weight_matters(reference: ULDTrainer, tmp_path: Path):
    weights = lora_weights(descend(tmp_path, retain_weight=1.0))
    assert any(not torch.allclose(weights[name], value) for name, value in lora_weights(reference).items())


def test_copy_of_the_assistant_runs_the_copy(reference: ULDTrainer):
    clone = copy.deepcopy(reference.model)
    torch.nn.init.zeros_(clone.get_output_embeddings().weight)
    assert clone(input_ids=torch.arange(5)[None]).logits.abs().max() == 0


# A target given by name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama and its tokenizer on disk; the weights above the second layer are NaN."""
    path = tmp_path_factory.mktemp("target")
    target = tiny_model("llama")
    for layer in target.model.layers[2:]:
        for parameter in layer.parameters():
            torch.nn.init.constant_(parameter, torch.nan)
    target.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def from_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ULDTrainer:
    """[`reference`] on the target's name, saved."""
    trainer = descend(tmp_path_factory.mktemp("out"), str(folder), **PLAIN)
    trainer.save_model()
    return trainer


def test_target_by_name_gives_the_same_assistant(reference: ULDTrainer, from_folder: ULDTrainer):
    assert_same_weights(lora_weights(from_folder), lora_weights(reference))


def test_only_the_assistants_layers_of_a_target_by_name_are_loaded(from_folder: ULDTrainer):
    base = from_folder.model.get_base_model()
    assert len(base.model.layers) == base.config.num_hidden_layers == 2


def test_tokenizer_is_found_by_the_targets_name(folder: Path, tmp_path: Path):
    args = ULDConfig(str(tmp_path), num_assistant_layers=2, use_cpu=True, report_to="none")
    trainer = ULDTrainer(str(folder), args, forget_dataset=FORGET, retain_dataset=RETAIN)
    assert trainer.processing_class.get_vocab() == make_tokenizer().get_vocab()


def test_saved_assistant_names_its_target(from_folder: ULDTrainer, folder: Path):
    config = json.loads(Path(from_folder.args.output_dir, "config.json").read_text())
    assert config["target_name_or_path"] == str(folder)


def test_assistant_of_a_target_by_name_fits_the_whole_target(from_folder: ULDTrainer):
    target = tiny_model("llama")
    model = ULDForCausalLM.from_pretrained(from_folder.args.output_dir, target=target)
    expected = ULDForCausalLM(target=target, assistant=from_folder.model, alpha=1.25)
    input_ids = torch.arange(4, 14)[None]
    assert torch.equal(model(input_ids).logits, expected(input_ids).logits)


def test_output_folder_is_named_after_the_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    target = tiny_model("llama", num_layers=8)
    target.name_or_path = "org/finetuned"
    trainer = ULDTrainer(target, forget_dataset=FORGET, retain_dataset=RETAIN, processing_class=make_tokenizer())
    assert trainer.args.output_dir == "finetuned-ULD"


# What is saved


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, ULDTrainer]:
    """A target and the trainer that saved an assistant for it, with a checkpoint at step 2."""
    target = tiny_model("llama")
    settings = {"alpha": 1.25, "relative_top": 0.0, "outside": "mask", "clamp": True}
    trainer = train(tmp_path_factory.mktemp("out"), target, save_strategy="steps", save_steps=2, **settings)
    trainer.save_model()
    return target, trainer


SAVED_FILES = {
    "README.md",
    "assistant/adapter_config.json",
    "assistant/adapter_model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.mark.parametrize("subfolder", ["", "checkpoint-2"])
def test_saved_files_are_those_of_an_unlearned_model(saved: tuple[PreTrainedModel, ULDTrainer], subfolder: str):
    folder = Path(saved[1].args.output_dir, subfolder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files >= SAVED_FILES


@pytest.mark.parametrize("subfolder", ["", "checkpoint-2"])
def test_root_has_no_adapter(saved: tuple[PreTrainedModel, ULDTrainer], subfolder: str):
    folder = Path(saved[1].args.output_dir, subfolder)
    assert list(folder.glob("adapter_*")) == []


@pytest.mark.parametrize("subfolder", ["", "checkpoint-2"])
def test_saved_config_is_of_type_uld(saved: tuple[PreTrainedModel, ULDTrainer], subfolder: str):
    config = json.loads(Path(saved[1].args.output_dir, subfolder, "config.json").read_text())
    assert config["model_type"] == "uld"


def test_saved_config_has_the_settings_of_inference(saved: tuple[PreTrainedModel, ULDTrainer]):
    config = json.loads(Path(saved[1].args.output_dir, "config.json").read_text())
    assistants = {"assistant": {"num_layers": 2, "alpha": 1.25}}
    settings = {"assistants": assistants, "relative_top": 0.0, "outside": "mask", "clamp": True}
    assert {name: config[name] for name in settings} == settings


def test_saved_adapter_holds_lora_only(saved: tuple[PreTrainedModel, ULDTrainer]):
    names = load_file(Path(saved[1].args.output_dir, "assistant", "adapter_model.safetensors"))
    assert {name.split(".")[-2] for name in names} == {"lora_A", "lora_B"}


def test_saved_model_is_the_trained_one(saved: tuple[PreTrainedModel, ULDTrainer]):
    target, trainer = saved
    model = ULDForCausalLM.from_pretrained(trainer.args.output_dir, target=target)
    trained = ULDForCausalLM(
        target=target, assistant=trainer.model, alpha=1.25, relative_top=0.0, outside="mask", clamp=True
    )
    input_ids = torch.arange(4, 14)[None]
    assert torch.equal(model(input_ids).logits, trained(input_ids).logits)


def test_saved_model_is_not_the_target(saved: tuple[PreTrainedModel, ULDTrainer]):
    target, trainer = saved
    model = ULDForCausalLM.from_pretrained(trainer.args.output_dir, target=target)
    input_ids = torch.arange(4, 14)[None]
    assert not torch.allclose(model(input_ids).logits, target(input_ids).logits, atol=1e-2)


def test_checkpoint_is_the_model_of_its_step(saved: tuple[PreTrainedModel, ULDTrainer], tmp_path: Path):
    target, trainer = saved
    model = ULDForCausalLM.from_pretrained(Path(trainer.args.output_dir, "checkpoint-2"), target=target)
    stopped = train(tmp_path, tiny_model("llama"), callbacks=[Stop(2)])
    actual = {name: value for name, value in model.assistant.named_parameters() if "lora_" in name}
    assert_same_weights(actual, lora_weights(stopped))


def test_card_says_what_the_folder_holds(saved: tuple[PreTrainedModel, ULDTrainer]):
    card = Path(saved[1].args.output_dir, "README.md").read_text()
    assert "| `assistant/` | 2 | 1.25 |" in card


# Resuming


class Stop(TrainerCallback):
    """Stops at a step, saving a checkpoint where asked to, as if interrupted."""

    def __init__(self, step: int, save: bool = False):
        self.step, self.save = step, save

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True
            control.should_save = self.save


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ULDTrainer]:
    """Three epochs of a family without dropout and of one with it."""
    return request.param, train(tmp_path_factory.mktemp("out"), tiny_model(request.param), num_train_epochs=3)


@pytest.mark.parametrize("step", [1, 3, 5], ids=["first-epoch", "between-epochs", "second-epoch"])
def test_resumed_training_ends_like_an_uninterrupted_one(
    uninterrupted: tuple[str, ULDTrainer], tmp_path: Path, step: int
):
    family, expected = uninterrupted
    train(tmp_path, tiny_model(family), num_train_epochs=3, callbacks=[Stop(step, save=True)])
    resumed = make_trainer(tmp_path, tiny_model(family), num_train_epochs=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 9
    assert_same_weights(lora_weights(resumed), lora_weights(expected))


def test_resumed_training_with_accumulation_ends_like_an_uninterrupted_one(tmp_path: Path):
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    expected = train(tmp_path / "whole", **settings)
    train(tmp_path / "cut", callbacks=[Stop(4, save=True)], **settings)
    resumed = make_trainer(tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(lora_weights(resumed), lora_weights(expected))


# LoRA


def test_default_lora_is_the_papers(reference: ULDTrainer):
    config = reference.model.peft_config["assistant"]
    assert (config.r, config.lora_alpha) == (32, 32)


def test_lora_config_is_used(tmp_path: Path):
    peft_config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    weights = lora_weights(make_trainer(tmp_path, peft_config=peft_config))
    assert {name.split(".")[-4] for name in weights} == {"q_proj"}
    assert {min(value.shape) for value in weights.values()} == {4}


def test_given_lora_config_is_not_changed(tmp_path: Path):
    peft_config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    before = peft_config.to_dict()
    make_trainer(tmp_path, peft_config=peft_config)
    assert peft_config.to_dict() == before


def test_lora_of_another_seed_is_another(tmp_path: Path):
    first, second = (lora_weights(make_trainer(tmp_path, seed=seed)) for seed in (0, 1))
    assert any(not torch.equal(first[name], second[name]) for name in first)


# What is refused


def test_nan_is_reported_with_its_term(tmp_path: Path):
    target = tiny_model("llama")
    torch.nn.init.constant_(target.get_input_embeddings().weight[63], torch.nan)
    retain = Dataset.from_list([{"prompt": "w59", "completion": f" w{i}"} for i in range(20)])  # w59 is token 63
    with pytest.raises(FloatingPointError, match=r"The retain loss is nan at step 1\. Lower learning_rate"):
        train(tmp_path, target, retain=retain)


def test_nan_in_the_forget_term_is_reported(tmp_path: Path):
    target = tiny_model("llama")
    torch.nn.init.constant_(target.get_input_embeddings().weight[63], torch.nan)
    forget = Dataset.from_list([{"prompt": "w59", "completion": f" w{i}"} for i in range(20)])
    with pytest.raises(FloatingPointError, match="The forget loss is nan at step 1"):
        train(tmp_path, target, forget=forget)


def test_infinity_is_reported_with_its_term(tmp_path: Path):
    target = tiny_model("llama")
    torch.nn.init.constant_(target.lm_head.weight[10], 1e38)  # finite, its logits are not
    with pytest.raises(FloatingPointError, match=r"The forget loss is (inf|nan) at step 1"):
        train(tmp_path, target)
    with pytest.raises(FloatingPointError, match=r"The retain loss is inf at step 3\. Lower learning_rate"):
        check_finite({"forget": 1.0, "retain": math.inf}, 3, 1e-3)


def unlearned_model() -> ULDForCausalLM:
    """A model that has been unlearned already."""
    target = tiny_model("llama")
    return ULDForCausalLM(target=target, assistant=build_assistant(target, 2))


TEXTS = Dataset.from_list([{"text": "w1 w2"}, {"text": "w3 w4"}])
WRONG_INPUTS: dict[str, tuple[Callable[[], dict[str, Any]], type[Exception], str]] = {
    "no-forget-set": (lambda: {"forget": None}, TypeError, "forget_dataset is missing"),
    "no-retain-set": (lambda: {"retain": None}, TypeError, "retain_dataset is missing"),
    "empty-forget-set": (lambda: {"forget": FORGET.select([])}, ValueError, "forget_dataset is empty"),
    "empty-retain-set": (lambda: {"retain": RETAIN.select([])}, ValueError, "retain_dataset is empty"),
    "streamed": (lambda: {"retain": RETAIN.to_iterable_dataset()}, TypeError, "retain_dataset is streamed"),
    "columns": (lambda: {"forget": Dataset.from_list([{"fact": "w1"}])}, ValueError, r"has the columns \['fact'\]"),
    "blank-answer": (
        lambda: {"forget": Dataset.from_list([{"prompt": "w1", "completion": " "}])},
        ValueError,
        r"forget_dataset\[0\] has no answer",
    ),
    "too-long": (
        lambda: {"max_length": 3},
        ValueError,
        r"forget_dataset\[\d+\] has \d+ tokens, more than max_length=3",
    ),
    "in-both-sets": (
        lambda: {"forget": TEXTS, "retain": TEXTS.select([1])},
        ValueError,
        r"retain_dataset\[0\] is also forget_dataset\[1\]",
    ),
    "no-layers": (lambda: {"num_assistant_layers": 0}, ValueError, "num_assistant_layers=0 must be at least 1"),
    "too-many-layers": (
        lambda: {"num_assistant_layers": 5},
        ValueError,
        "cannot have 5 layers: the target has 4",
    ),
    "alpha-nan": (lambda: {"alpha": math.nan}, ValueError, "alpha=nan"),
    "alpha-zero": (lambda: {"alpha": 0.0}, ValueError, r"alpha=0\.0"),
    "relative-top": (lambda: {"relative_top": 1.5}, ValueError, r"relative_top=1\.5"),
    "outside": (lambda: {"outside": "drop"}, ValueError, "outside='drop'"),
    "retain-weight-zero": (lambda: {"retain_weight": 0.0}, ValueError, r"retain_weight=0\.0 must be a finite number"),
    "retain-weight-negative": (lambda: {"retain_weight": -1.0}, ValueError, r"retain_weight=-1\.0 must be a finite"),
    "retain-weight-infinite": (lambda: {"retain_weight": math.inf}, ValueError, "retain_weight=inf must be a finite"),
    "retain-weight-nan": (lambda: {"retain_weight": math.nan}, ValueError, "retain_weight=nan must be a finite"),
    "ratio-zero": (lambda: {"retain_per_forget": 0.0}, ValueError, r"retain_per_forget=0\.0 must be a finite number"),
    "packing": (lambda: {"packing": True}, ValueError, "packing=True is not supported"),
    **{
        f"{name} 2": (
            lambda name=name: {"parallelism_config": ParallelismConfig(**{name: 2})},
            ValueError,
            rf"Tensor, context and sequence parallelism are not supported .*{name}=2",
        )
        for name in ("tp_size", "cp_size", "sp_size")
    },
    "order": (
        lambda: {"train_sampling_strategy": "sequential"},
        ValueError,
        "train_sampling_strategy='sequential' would not mix",
    ),
    "eval-strategy": (lambda: {"eval_strategy": "steps"}, ValueError, "eval_strategy='steps' is not supported"),
    "eval-on-start": (lambda: {"eval_on_start": True}, ValueError, "eval_on_start=True is not supported"),
    "loss-type": (lambda: {"loss_type": "dft"}, ValueError, "loss_type='dft' has no meaning here"),
    "larger-tokenizer": (
        lambda: {"model": tiny_model("llama", vocab_size=60)},
        ValueError,
        "The tokenizer has 64 tokens, the target's vocabulary 60",
    ),
    "smaller-tokenizer": (
        lambda: {"model": tiny_model("llama", vocab_size=80)},
        ValueError,
        "The tokenizer has 64 tokens, the target's vocabulary 80",
    ),
    "peft-target": (
        lambda: {"model": build_assistant(tiny_model("llama"), 4)},
        TypeError,
        "The target is a PEFT model.*Merge it first",
    ),
    "unlearned-target": (lambda: {"model": unlearned_model()}, ValueError, "already an unlearned model"),
    "not-lora": (
        lambda: {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)},
        ValueError,
        r"must be a peft\.LoraConfig, got PromptTuningConfig",
    ),
    "lora-on-the-head": (
        lambda: {"peft_config": LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"])},
        ValueError,
        "puts LoRA on the embeddings or the head",
    ),
    "modules-to-save": (
        lambda: {"peft_config": LoraConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"])},
        ValueError,
        "must leave modules_to_save",
    ),
}


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_input_is_refused_before_training(tmp_path: Path, case: str):
    make, error, match = WRONG_INPUTS[case]
    arguments = make()
    with pytest.raises(error, match=match):
        make_trainer(tmp_path, **arguments)


def test_context_parallelism_of_the_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # As `accelerate launch --parallelism_config_cp_size 2` sets it.
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "2")
    with pytest.raises(ValueError, match=r"context and sequence parallelism are not supported .*cp_size=2"):
        ULDConfig(str(tmp_path), use_cpu=True)


def test_data_parallelism_of_the_launcher_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", "2")
    assert ULDConfig(str(tmp_path), use_cpu=True).parallelism_config is None


@pytest.mark.parametrize("asked", [{"tp_plan": "auto"}, {"distributed_config": {"tp_size": 2}}], ids=str)
def test_a_plan_for_tensor_parallelism_is_refused(tmp_path: Path, asked: dict[str, Any]):
    tiny_model("llama").save_pretrained(tmp_path / "target")
    with pytest.raises(ValueError, match="Load it without tp_plan"):
        make_trainer(tmp_path, str(tmp_path / "target"), model_init_kwargs=asked)


def test_a_tensor_parallel_target_is_refused(tmp_path: Path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        target = tiny_model("llama")
        target.lm_head.weight = torch.nn.Parameter(
            distribute_tensor(target.lm_head.weight.detach(), init_device_mesh("cpu", (1,)), [Replicate()])
        )
        with pytest.raises(ValueError, match="Load it without tp_plan"):
            make_trainer(tmp_path, target)
    finally:
        torch.distributed.destroy_process_group()


def test_unprepared_datasets_are_refused(tmp_path: Path):
    rows = Dataset.from_list([{"input_ids": [4, 5, 6], "labels": [4, 5, 6]}])
    with pytest.raises(ValueError, match="skip_prepare_dataset"):
        train(tmp_path, forget=rows, retain=rows, dataset_kwargs={"skip_prepare_dataset": True})


def test_the_targets_own_folder_is_not_written_to(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="holds another model, perhaps the target"):
        make_trainer(tmp_path, str(tmp_path))
    assert (tmp_path / "config.json").read_text() == before


def test_a_folder_with_an_adapter_is_refused_before_training(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds an adapter_config\.json"):
        make_trainer(tmp_path)


def test_target_with_an_adapter_inside_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # transformers 5.24 wants a PEFT that is not out yet for its own adapters.
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda min_version: None)
    target = tiny_model("llama")
    target.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="The target has a PEFT adapter"):
        make_trainer(tmp_path, target)


def test_composed_with_its_target_it_has_the_settings_of_training(saved: tuple[PreTrainedModel, ULDTrainer]):
    target, trainer = saved
    config = ULDForCausalLM(target=target, assistant=trainer.model).config
    assert (config.alpha, config.relative_top, config.outside, config.clamp) == (1.25, 0.0, "mask", True)


@pytest.mark.parametrize(("retain_weight", "warned"), [(0.01, True), (10.0, False)])
def test_an_assistant_that_speaks_on_the_retain_set_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, transformers_log: None, retain_weight: float, warned: bool
):
    monitored = logging.getLogger("uld_hf.training.uld_trainer")
    monitored.addHandler(caplog.handler)
    train(tmp_path, max_steps=30, retain_weight=retain_weight)
    monitored.removeHandler(caplog.handler)
    assert ("nats per token from uniform" in caplog.text) is warned


def test_a_saved_model_that_would_be_replaced_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, transformers_log: None
):
    monitored = logging.getLogger("uld_hf.training.forget_retain_trainer")
    monitored.addHandler(caplog.handler)
    train(tmp_path, max_steps=1).save_model()
    assert "holds a saved model" not in caplog.text
    train(tmp_path, max_steps=1)
    monitored.removeHandler(caplog.handler)
    assert f"{tmp_path} holds a saved model, which save_model() will replace" in caplog.text


@pytest.mark.parametrize(("max_steps", "warned"), [(1, True), (150, False)])
def test_an_assistant_that_is_not_done_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, transformers_log: None, max_steps: int, warned: bool
):
    monitored = logging.getLogger("uld_hf.training.uld_trainer")
    monitored.addHandler(caplog.handler)
    train(tmp_path, max_steps=max_steps, retain_weight=1.0)
    monitored.removeHandler(caplog.handler)
    assert ("of the forget set's tokens" in caplog.text) is warned


def test_a_negative_alpha_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"alpha=-1 would add what must be forgotten"):
        make_trainer(tmp_path, alpha=-1)


def test_chat_template_of_another_model_is_refused(tmp_path: Path):
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="chat_template_path"):
        make_trainer(tmp_path, chat_template_path=str(tmp_path))


def test_unlearned_target_by_name_is_refused(from_folder: ULDTrainer, tmp_path: Path):
    with pytest.raises(ValueError, match="already an unlearned model"):
        make_trainer(tmp_path, from_folder.args.output_dir)


def test_tokenizer_with_a_token_that_is_never_used_is_accepted(tmp_path: Path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    trainer = make_trainer(tmp_path, processing_class=tokenizer)
    assert len(trainer.processing_class) == VOCAB_SIZE + 1


def test_padding_with_a_token_that_the_target_lacks_is_refused(tmp_path: Path):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match=r"pads with '\[PAD\]', token 64, for which .* 64 rows has none"):
        make_trainer(tmp_path, processing_class=tokenizer)


def test_tokenizer_of_a_padded_vocabulary_is_accepted(tmp_path: Path):
    trainer = make_trainer(tmp_path, tiny_model("llama", vocab_size=70))
    assert len(trainer.processing_class) == 64


# ULDConfig


def test_documented_defaults_are_the_defaults():
    defaults = {field.name: field.default for field in fields(ULDConfig)}
    documented = re.findall(r"^\s+(\w+) \(`\w+`, \*optional\*, defaults to `(.+?)`\):", ULDConfig.__doc__, re.MULTILINE)
    assert len(documented) == 13
    assert {name: ast.literal_eval(text) for name, text in documented} == {
        name: defaults[name] for name, _ in documented
    }


@pytest.mark.parametrize("center", [True, False])
def test_centred_logits_are_clamped_by_default_and_raw_ones_are_not(tmp_path: Path, center: bool):
    assert ULDConfig(str(tmp_path), use_cpu=True, center=center).clamp is center
    assert ULDModelConfig(center=center).clamp is center
    assert Subtraction(1.0, center=center).clamp is center
    target = tiny_model("llama")
    assert ULDForCausalLM(target=target, assistant=build_assistant(target, 2), center=center).config.clamp is center


@pytest.mark.parametrize(
    "name", ["learning_rate", "num_train_epochs", "per_device_train_batch_size", "weight_decay", "warmup_steps"]
)
def test_documented_differences_from_trl_are_the_defaults(name: str):
    default = next(field.default for field in fields(ULDConfig) if field.name == name)
    documented = re.search(rf"`{name}`: ([\d.e-]*\d)", ULDConfig.__doc__)[1]
    assert float(documented) == default


def test_new_parameters_are_documented():
    new = {field.name for field in fields(ULDConfig)} - {field.name for field in fields(SFTConfig)}
    assert {name for name in new if f"{name} (`" in ULDConfig.__doc__} == new


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", math.nan), ("relative_top", 1.5), ("outside", "drop")], ids=lambda value: str(value)
)
def test_settings_of_inference_are_checked_before_a_model_is_loaded(tmp_path: Path, name: str, value: Any):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        ULDConfig(str(tmp_path), use_cpu=True, **{name: value})


def test_pushed_repository_is_private_by_default(tmp_path: Path):
    assert ULDConfig(str(tmp_path), use_cpu=True).hub_private_repo is True


def test_bf16_is_off_on_cpu(tmp_path: Path):
    assert ULDConfig(str(tmp_path), use_cpu=True).bf16 is False


def test_bf16_can_be_asked_for(tmp_path: Path):
    assert ULDConfig(str(tmp_path), use_cpu=True, bf16=True).bf16 is True


def test_gradient_checkpointing_is_off_by_default(tmp_path: Path):
    assert not ULDConfig(str(tmp_path), use_cpu=True).gradient_checkpointing
