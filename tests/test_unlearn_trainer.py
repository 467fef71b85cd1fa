"""`UnlearnTrainer` at work: its loss beside a plain computation, what it changes, saves and refuses."""

import copy
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file
from test_trainer import assert_same_weights, first_batch, logged, make_rows
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    MixtralConfig,
    PreTrainedModel,
)

from uld_hf import ULDForCausalLM, UnlearnConfig, UnlearnTrainer, build_assistant
from uld_hf.assistant import put_adapter
from uld_hf.baselines.checks import default_steering_layer
from uld_hf.baselines.collator import FORGET, REFUSAL, RETAIN
from uld_hf.baselines.refusals import REFUSALS, refuse_each
from uld_hf.baselines.unlearn_config import DEFAULT_BETAS
from uld_hf.baselines.unlearn_trainer import count_units


FORGET_ROWS, RETAIN_ROWS = make_rows(8, seed=0), make_rows(12, seed=1)
LOSS_TYPES = ("ga", "npo", "simnpo", "dpo", "undial", "rmu")
METHODS = [(loss_type, retain) for loss_type in LOSS_TYPES for retain in ("none", "nll", "kl")]
METHODS.append(("rmu", "activations"))
INPUT_IDS = torch.tensor([[1, 9, 12, 5, 33, 21, 8]])
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")


def make_trainer(
    output_dir: Path,
    model: str | PreTrainedModel | None = None,
    forget: Dataset | None = FORGET_ROWS,
    retain: Dataset | None = RETAIN_ROWS,
    peft_config: Any = None,
    processing_class: Any = None,
    **settings: Any,
) -> UnlearnTrainer:
    """A trainer of a tiny llama, two steps of 8 rows to an epoch."""
    defaults = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return UnlearnTrainer(
        tiny_model("llama") if model is None else model,
        UnlearnConfig(str(output_dir), **(defaults | settings)),
        forget_dataset=forget,
        retain_dataset=retain,
        processing_class=processing_class or make_tokenizer(),
        peft_config=peft_config,
    )


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """Folder of a tiny llama."""
    tiny_model("llama").save_pretrained(tmp_path / "target")
    make_tokenizer().save_pretrained(tmp_path / "target")
    return str(tmp_path / "target")


def test_an_adapter_remembers_the_revision_of_its_base(tmp_path: Path, saved: str):
    trainer = make_trainer(
        tmp_path / "out", saved, peft_config=LORA, model_init_kwargs={"revision": "v2"}, loss_type="ga", max_steps=1
    )
    trainer.save_model()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["revision"] == "v2"
    assert LORA.revision is None


def test_a_target_given_by_name_is_not_spread_over_devices(tmp_path: Path, saved: str, monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, Any]] = []

    def load(name: str, **options: Any) -> PreTrainedModel:
        asked.append(options)
        return AutoModelForCausalLM.from_pretrained(name)

    monkeypatch.setattr("uld_hf.baselines.unlearn_trainer.create_model_from_path", load)
    make_trainer(tmp_path / "out", saved, loss_type="ga", trust_remote_code=True)
    assert asked == [{"device_map": None, "trust_remote_code": True}]


def test_labels_are_not_smoothed(tmp_path: Path):
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1 is not supported"):
        make_trainer(tmp_path, label_smoothing_factor=0.1)


def test_merging_leaves_the_trained_model_as_it_is(tmp_path: Path, saved: str):
    trainer = make_trainer(tmp_path / "out", saved, peft_config=LORA, loss_type="ga", merge_adapter=True)
    trainer.train()
    trainer.model.eval()
    expected = trainer.model(INPUT_IDS).logits
    trainer.save_model()
    torch.testing.assert_close(trainer.model(INPUT_IDS).logits, expected)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged(INPUT_IDS).logits, expected, rtol=1e-4, atol=1e-5)


def plain_loss(
    model: PreTrainedModel, target: PreTrainedModel, trainer: UnlearnTrainer, batch: dict[str, torch.Tensor]
) -> float:
    """The loss of a batch: every row alone and unpadded, float64, token by token, by the papers' formulas."""
    args, beta = trainer.args, trainer.args.beta
    by_kind: dict[int, list[dict[str, Any]]] = {FORGET: [], RETAIN: [], REFUSAL: []}
    for ids, mask, labels, kind in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], batch["kinds"].tolist(), strict=True
    ):
        ids, labels = ids[mask.bool()][None], labels[mask.bool()]
        with torch.no_grad():
            ours, theirs = (m.double()(input_ids=ids, output_hidden_states=True) for m in (model, target))
        row = {"log_probs": [], "reference": [], "logits": [], "reference_logits": [], "labels": []}
        row |= {"hidden": [], "reference_hidden": []}
        for position in range(1, len(labels)):
            label = int(labels[position])
            if label == -100:
                continue
            row["labels"].append(label)
            for name, outputs in (("", ours), ("reference_", theirs)):
                logits = outputs.logits[0, position - 1]
                row[f"{name}logits"].append(logits)
                row["reference" if name else "log_probs"].append(float(logits.log_softmax(-1)[label]))
                if trainer._steering_layer is not None:
                    row[f"{name}hidden"].append(outputs.hidden_states[trainer._steering_layer + 1][0, position])
        by_kind[kind].append(row)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def log_sigmoid(value: float) -> float:
        return -math.log1p(math.exp(-value))

    forget, retain, refusals = by_kind[FORGET], by_kind[RETAIN], by_kind[REFUSAL]
    if args.loss_type == "ga":
        loss = mean([value for row in forget for value in row["log_probs"]])
    elif args.loss_type == "npo":
        gains = [sum(row["log_probs"]) - sum(row["reference"]) for row in forget]
        loss = mean([-2 / beta * log_sigmoid(-beta * gain) for gain in gains])
    elif args.loss_type == "simnpo":
        loss = mean([-2 / beta * log_sigmoid(-beta * mean(row["log_probs"]) - args.margin) for row in forget])
    elif args.loss_type == "dpo":
        gains = [
            sum(refusal["log_probs"]) - sum(refusal["reference"]) - sum(row["log_probs"]) + sum(row["reference"])
            for row, refusal in zip(forget, refusals, strict=True)
        ]
        loss = mean([-1 / beta * log_sigmoid(beta * gain) for gain in gains])
    elif args.loss_type == "undial":
        losses = []
        for row in forget:
            for logits, reference, label in zip(row["logits"], row["reference_logits"], row["labels"], strict=True):
                lowered = reference.clone()
                lowered[label] -= beta
                losses.append(float(-(lowered.softmax(-1) * logits.log_softmax(-1)).sum()))
        loss = mean(losses)
    else:
        direction = torch.rand(32, generator=torch.Generator().manual_seed(args.seed))
        aim = (args.steering_coefficient * direction / direction.norm()).double()
        loss = mean([float(((hidden - aim) ** 2).sum()) for row in forget for hidden in row["hidden"]])
    if args.retain_loss_type == "nll":
        loss += args.retain_weight * -mean([value for row in retain for value in row["log_probs"]])
    elif args.retain_loss_type == "kl":
        losses = []
        for row in retain:
            for logits, reference in zip(row["logits"], row["reference_logits"], strict=True):
                p, q = logits.log_softmax(-1), reference.log_softmax(-1)
                losses.append(float((q.exp() * (q - p)).sum()))
        loss += args.retain_weight * mean(losses)
    elif args.retain_loss_type == "activations":
        pairs = [pair for row in retain for pair in zip(row["hidden"], row["reference_hidden"], strict=True)]
        loss += args.retain_weight * mean([float(((h - q) ** 2).sum()) for h, q in pairs])
    return loss


def disturb(model: PreTrainedModel) -> None:
    """Change what is trained, so that the model is no longer the target."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(("loss_type", "retain_loss_type"), METHODS)
def test_loss_of_a_batch_is_the_formula(tmp_path: Path, loss_type: str, retain_loss_type: str, peft_config: Any):
    extra = {"margin": 0.3} if loss_type == "simnpo" else {}
    trainer = make_trainer(
        tmp_path,
        loss_type=loss_type,
        retain_loss_type=retain_loss_type,
        retain_weight=2.0,
        peft_config=peft_config,
        **extra,
    )
    batch = first_batch(trainer)
    disturb(trainer.model)
    actual = trainer.compute_loss(trainer.model, batch).item()
    assert actual == pytest.approx(plain_loss(trainer.model, tiny_model("llama"), trainer, batch), rel=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
@pytest.mark.parametrize("loss_type", ["npo", "undial"])
def test_loss_is_the_formula_on_other_families(tmp_path: Path, family: str, loss_type: str):
    model = tiny_model(
        family, **({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {})
    )
    trainer = make_trainer(tmp_path, model, loss_type=loss_type, retain_loss_type="kl")
    batch = first_batch(trainer)
    disturb(trainer.model)
    actual = trainer.compute_loss(trainer.model, batch).item()
    assert actual == pytest.approx(plain_loss(trainer.model, tiny_model(family), trainer, batch), rel=1e-4)


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a tiny llama that has learned both sets by heart."""
    settings = {"loss_type": "ga", "retain_loss_type": "none", "num_train_epochs": 60, "learning_rate": 5e-3}
    rows = Dataset.from_list([*FORGET_ROWS, *RETAIN_ROWS])
    trainer = make_trainer(tmp_path_factory.mktemp("out"), forget=rows, **settings)
    loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: -loss(*args, **kwargs)  # gradient descent
    trainer.train()
    assert logged(trainer, "forget_log_prob")[-1] > -0.2
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_training_forgets(tmp_path: Path, knowing: dict[str, torch.Tensor], loss_type: str, peft_config: Any):
    model = tiny_model("llama")
    model.load_state_dict(knowing)
    # RMU lets its directions grow as long as the retain term allows, which is weighed against a long one.
    extra = {"steering_coefficient": 30.0, "retain_weight": 0.1, "steering_layer": 2} if loss_type == "rmu" else {}
    rate = 2e-3 if peft_config is None else 2e-2
    trainer = make_trainer(
        tmp_path, model, loss_type=loss_type, peft_config=peft_config, num_train_epochs=10, learning_rate=rate, **extra
    )
    trainer.train()
    losses = logged(trainer, "forget_loss")
    assert sum(losses[-2:]) < sum(losses[:2])
    trainer.model.eval()
    with torch.no_grad():
        scores = trainer._score(trainer.model, trainer.data_collator(list(trainer.train_dataset)), with_logits=True)
    kinds = trainer.data_collator(list(trainer.train_dataset))["kinds"][scores.rows]
    forgotten, kept = (scores.log_probs[kinds == kind].mean() for kind in (FORGET, RETAIN))
    assert forgotten < -1
    assert kept > forgotten


def test_the_logged_terms_are_those_of_the_loss(tmp_path: Path):
    trainer = make_trainer(tmp_path, loss_type="npo", retain_loss_type="kl", retain_weight=3.0)
    trainer.train()
    for entry in trainer.state.log_history[:-1]:
        assert entry["loss"] == pytest.approx(entry["forget_loss"] + 3.0 * entry["retain_loss"], rel=1e-5)


def descend(output_dir: Path, **settings: Any) -> UnlearnTrainer:
    """Plain gradient descent: unlike Adam, it does not blow up the last digits of a gradient."""
    plain = {"optim": "sgd", "learning_rate": 0.02, "max_grad_norm": 0.0}
    trainer = make_trainer(output_dir, **(plain | settings))
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("loss_type", "retain_loss_type"),
    [
        ("npo", "nll"),
        ("ga", "kl"),
        ("dpo", "nll"),
        ("simnpo", "nll"),
        ("undial", "nll"),
        ("rmu", "activations"),
    ],
)
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, loss_type: str, retain_loss_type: str):
    method = {"loss_type": loss_type, "retain_loss_type": retain_loss_type}
    if loss_type == "rmu":
        method["learning_rate"] = 1e-4  # its gradients are those of a distance, squared
    whole = descend(tmp_path, **method)
    parts = descend(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=8, **method)
    assert logged(parts, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-4)
    expected = dict(whole.model.named_parameters())
    assert_same_weights(dict(parts.model.named_parameters()), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["all weights", "LoRA"])
def test_in_bfloat16_the_reference_is_computed_as_the_model_is(tmp_path: Path, peft_config: LoraConfig | None):
    trainer = make_trainer(tmp_path, loss_type="ga", retain_loss_type="kl", bf16=True, peft_config=peft_config)
    trainer.train()
    assert logged(trainer, "retain_loss")[0] == pytest.approx(0.0, abs=1e-7)  # nothing has changed yet


@pytest.mark.parametrize(
    "method",
    # A random model does not know the answers: only activations that are far from all others make them less likely.
    [{"loss_type": "npo"}, {"loss_type": "rmu", "steering_coefficient": 200.0}],
    ids=["npo", "rmu"],
)
@pytest.mark.parametrize(("learning_rate", "warned"), [(1e-8, True), (5e-2, False)])
def test_a_training_that_hardly_forgets_is_warned_of(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    transformers_log: None,
    method: dict[str, Any],
    learning_rate: float,
    warned: bool,
):
    monitored = logging.getLogger("uld_hf.baselines.unlearn_trainer")
    monitored.addHandler(caplog.handler)
    make_trainer(tmp_path, num_train_epochs=8, learning_rate=learning_rate, **method).train()
    monitored.removeHandler(caplog.handler)
    assert ("hardly anything was forgotten" in caplog.text) is warned


def test_defaults_fit_what_is_trained_and_the_method(tmp_path: Path):
    whole, lora = (make_trainer(tmp_path, learning_rate=None, peft_config=each) for each in (None, LORA))
    assert (whole.args.learning_rate, lora.args.learning_rate) == (1e-5, 1e-4)
    assert UnlearnConfig(str(tmp_path), loss_type="simnpo").retain_weight == 8.0
    assert UnlearnConfig(str(tmp_path), loss_type="npo").retain_weight == 1.0
    assert UnlearnConfig(str(tmp_path), loss_type="rmu").steering_coefficient == 6.5


@pytest.mark.parametrize("loss_type", ["undial", "rmu"])
def test_activation_checkpointing_changes_nothing(tmp_path: Path, loss_type: str):
    runs = [
        descend(tmp_path, loss_type=loss_type, learning_rate=1e-4, peft_config=LORA, activation_checkpointing=on)
        for on in (True, False)
    ]
    first, second = (dict(run.model.named_parameters()) for run in runs)
    assert_same_weights(first, second, rtol=1e-4, atol=1e-6)


# What is trained


def changed(trainer: UnlearnTrainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}


def test_without_a_peft_config_all_weights_are_trained(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert changed(trainer, before) == set(before)


def test_a_model_that_an_assistant_was_cut_from_is_trained_whole(tmp_path: Path):
    model = tiny_model("llama")
    build_assistant(model, 2)
    assert not all(parameter.requires_grad for parameter in model.parameters())
    trainer = make_trainer(tmp_path, model)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_lora_leaves_the_base_alone(tmp_path: Path):
    trainer = make_trainer(tmp_path, peft_config=LORA)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert changed(trainer, before) == {name for name in before if "lora_" in name}


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_rmu_trains_the_steered_layer_and_two_below(tmp_path: Path, peft_config: Any):
    model = tiny_model("llama", num_layers=6)
    trainer = make_trainer(tmp_path, model, loss_type="rmu", steering_layer=3, peft_config=peft_config)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    layers = {name.split("layers.")[1][0] if "layers." in name else name for name in changed(trainer, before)}
    assert layers == {"1", "2", "3"}


def test_rmu_keeps_a_copy_of_the_first_layers_only(tmp_path: Path):
    trainer = make_trainer(tmp_path, tiny_model("llama", num_layers=8), loss_type="rmu", steering_layer=2)
    assert trainer._reference.config.num_hidden_layers == 4


@pytest.mark.parametrize(("num_layers", "layer"), [(32, 7), (16, 4), (4, 1), (2, 0), (1, 0)])
def test_default_steering_layer_is_the_papers_depth(num_layers: int, layer: int):
    assert default_steering_layer(num_layers) == layer


@pytest.mark.parametrize(
    ("settings", "peft_config", "copied"),
    [
        ({"loss_type": "npo"}, None, False),
        ({"loss_type": "dpo"}, None, False),
        ({"loss_type": "npo", "retain_loss_type": "kl"}, None, True),
        ({"loss_type": "npo", "retain_loss_type": "kl"}, LORA, False),
        ({"loss_type": "undial"}, None, True),
        ({"loss_type": "undial"}, LORA, False),
        ({"loss_type": "rmu"}, LORA, False),
    ],
)
def test_the_target_is_copied_only_where_it_must_be(tmp_path: Path, settings: dict, peft_config: Any, copied: bool):
    assert (make_trainer(tmp_path, peft_config=peft_config, **settings)._reference is not None) == copied


# Rows


def test_each_forget_row_has_its_refusal(tmp_path: Path):
    trainer = make_trainer(tmp_path, loss_type="dpo", refusals=["w1 w2", "w3"])
    batch = first_batch(trainer)
    kinds = batch["kinds"].tolist()
    assert kinds.count(FORGET) == kinds.count(RETAIN) == kinds.count(REFUSAL) == 4
    answers = [row[row != -100].tolist() for row in batch["labels"][batch["kinds"] == REFUSAL]]
    assert {tuple(answer) for answer in answers} <= {(5, 6, 2), (7, 2)}  # w1 w2 </s>, w3 </s>
    prompts = {
        kind: [
            ids[: int((labels != -100).int().argmax())].tolist()
            for ids, labels in zip(
                *(batch[name][batch["kinds"] == kind] for name in ("input_ids", "labels")), strict=True
            )
        ]
        for kind in (FORGET, REFUSAL)
    }
    assert prompts[FORGET] == prompts[REFUSAL]


def test_the_reference_of_a_row_is_the_targets_likelihood(tmp_path: Path):
    trainer = make_trainer(tmp_path, loss_type="dpo")
    row = trainer.train_dataset[3]
    target = tiny_model("llama").double()
    for prefix, name in (("", "reference_log_prob"), ("refusal_", "refusal_reference_log_prob")):
        ids, labels = torch.tensor([row[f"{prefix}input_ids"]]), row[f"{prefix}labels"]
        log_probs = target(input_ids=ids).logits[0].log_softmax(-1)
        expected = sum(log_probs[i - 1, label].item() for i, label in enumerate(labels) if i and label != -100)
        assert row[name] == pytest.approx(expected, rel=1e-5)


def test_no_retain_set_is_needed_without_its_term(tmp_path: Path):
    trainer = make_trainer(tmp_path, retain=None, retain_loss_type="none")
    assert count_units(first_batch(trainer)).tolist()[1:] == [8, 0]
    trainer.train()


def test_a_batch_without_forget_rows_has_its_share_of_the_loss(tmp_path: Path):
    for loss_type in LOSS_TYPES:
        trainer = make_trainer(tmp_path, loss_type=loss_type)
        rows = [row for row in trainer.train_dataset if row["is_retain"]][:2]
        batch = trainer.data_collator(rows)
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor([10, 2, 20]))
        loss.backward()
        assert torch.isfinite(loss)


def test_refusals_keep_the_form_of_the_answers():
    plain = refuse_each(Dataset.from_list([{"prompt": "a", "completion": " b"}] * 30), REFUSALS, seed=0)
    assert all(row[0] == " " and row[1:] in REFUSALS for row in plain["completion"])
    assert len(set(plain["completion"])) > 5
    messages = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    (row,) = refuse_each(Dataset.from_list([messages]), ["no"], seed=0)
    assert row["completion"] == [{"role": "assistant", "content": "no"}]
    assert row["prompt"] == messages["prompt"]


# Saving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama and its tokenizer on disk."""
    path = tmp_path_factory.mktemp("target")
    tiny_model("llama").save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("form", ["full", "lora", "merged"])
def test_the_saved_model_is_an_ordinary_one(folder: Path, tmp_path: Path, form: str):
    peft_config = None if form == "full" else LORA
    trainer = make_trainer(tmp_path, str(folder), peft_config=peft_config, merge_adapter=form == "merged")
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "adapter_config.json").exists() == (form == "lora")
    assert not (tmp_path / "training_args.bin").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(4, 20)[None]
    trainer.model.eval()
    torch.testing.assert_close(loaded(ids).logits, trainer.model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(loaded(ids).logits, tiny_model("llama")(ids).logits, atol=1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path)("w1")["input_ids"] == [5]


def test_options_of_loading_are_not_said_to_be_ignored(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, transformers_log: None
):
    trainer = make_trainer(tmp_path, str(folder), model_init_kwargs={"attn_implementation": "eager"})
    assert trainer.model.config._attn_implementation == "eager"
    assert trainer.args.model_init_kwargs == {"attn_implementation": "eager"}
    assert "ignored" not in caplog.text


def test_the_card_names_method_and_sizes_and_no_text(folder: Path, tmp_path: Path):
    trainer = make_trainer(tmp_path, str(folder), max_steps=1)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "2404.05868" in card
    assert "| forget_rows | 8 |" in card
    assert not [row["completion"] for row in FORGET_ROWS if len(row["completion"]) > 6 and row["completion"] in card]


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path: Path, peft_config: Any):
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "peft_config": peft_config}
    whole = descend(tmp_path / "whole", **settings)
    # A checkpoint after half of the same schedule: the last one is taken away.
    last = tmp_path / "whole" / "checkpoint-4"
    for file in sorted(last.rglob("*")):
        file.unlink()
    last.rmdir()
    plain = {"optim": "sgd", "learning_rate": 0.02, "max_grad_norm": 0.0}
    resumed = make_trainer(tmp_path / "whole", **(plain | settings))
    resumed.train(resume_from_checkpoint=True)
    expected = dict(whole.model.named_parameters())
    assert_same_weights(dict(resumed.model.named_parameters()), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("first", ["lora", "merged"])
def test_a_model_takes_the_place_of_the_adapter_that_was_there_and_the_other_way_round(
    folder: Path, tmp_path: Path, first: str
):
    for merge_adapter in (first == "merged", first != "merged"):
        trainer = make_trainer(
            tmp_path, str(folder), peft_config=LORA, loss_type="ga", merge_adapter=merge_adapter, learning_rate=1e-2
        )
        trainer.train()
        trainer.save_model()
    expected = trainer.model.eval()(INPUT_IDS).logits
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(INPUT_IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "adapter_config.json").exists() != (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("peft_config", "dtype"), [(None, torch.float32), (LORA, torch.bfloat16)], ids=["full", "merged"]
)
def test_only_what_is_trained_is_loaded_in_float32(tmp_path: Path, peft_config: Any, dtype: torch.dtype):
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "target")
    merges = peft_config is not None
    trainer = make_trainer(tmp_path / "out", str(tmp_path / "target"), peft_config=peft_config, merge_adapter=merges)
    trainer.train()
    assert all(each.dtype == torch.float32 for each in trainer.model.parameters() if each.requires_grad)
    trainer.save_model()
    assert {each.dtype for each in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}


@pytest.mark.parametrize("asks", [False, True])
def test_a_mixture_of_experts_is_saved_with_the_routing_of_the_target(tmp_path: Path, asks: bool):
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, output_router_logits=asks)
    trainer = make_trainer(tmp_path / "out", AutoModelForCausalLM.from_config(config), loss_type="ga", max_steps=1)
    trainer.train()
    trainer.save_model()
    saved = AutoConfig.from_pretrained(tmp_path / "out")
    assert saved.output_router_logits == asks
    assert saved.router_aux_loss_coef == config.router_aux_loss_coef


def test_an_adapter_is_not_saved_over_the_target(folder: Path, tmp_path: Path):
    trainer = make_trainer(tmp_path, str(folder), peft_config=LORA)
    with pytest.raises(ValueError, match="is the target's own folder"):
        trainer.save_model(str(folder))
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_a_training_does_not_go_on_with_another_target(tmp_path: Path, peft_config: Any):
    settings = {"save_strategy": "steps", "save_steps": 1, "peft_config": peft_config}
    make_trainer(tmp_path, **settings).train()
    again = make_trainer(tmp_path, tiny_model("llama", seed=1), num_train_epochs=2, **settings)
    with pytest.raises(ValueError, match="is of a training with other target"):
        again.train(resume_from_checkpoint=True)


# Pushing


class FakeHub:
    """What stands in for the Hub: one repository, and the uploads to it."""

    def __init__(self, private: bool):
        self.private, self.uploads = private, []

    def __call__(self, token: str | None = None) -> "FakeHub":
        return self

    def create_repo(self, repo_id: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def repo_info(self, repo_id: str, **_: Any) -> SimpleNamespace:
        of_adapter = [SimpleNamespace(rfilename="adapter_config.json")]
        return SimpleNamespace(id=repo_id, private=self.private, siblings=of_adapter)

    def upload_folder(self, folder_path: str, **options: Any) -> None:
        files = filter_repo_objects(
            [str(file.relative_to(folder_path)) for file in Path(folder_path).rglob("*") if file.is_file()],
            allow_patterns=options["allow_patterns"],
        )
        self.uploads.append({name: Path(folder_path, name).read_bytes() for name in files})
        self.deleted = options["delete_patterns"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub with one private repository."""
    fake = FakeHub(private=True)
    for module in ("uld_hf.publish", "uld_hf.baselines.unlearn_trainer"):
        monkeypatch.setattr(f"{module}.HfApi", fake)
    return fake


PUSH = {"push_to_hub": True, "hub_token": "hf_secret", "save_strategy": "steps", "save_steps": 1, "peft_config": LORA}


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_what_is_pushed_is_the_saved_model_without_the_token(folder: Path, tmp_path: Path, hub: FakeHub, form: str):
    trainer = make_trainer(tmp_path, str(folder), merge_adapter=form == "merged", **PUSH)
    (tmp_path / "forget.jsonl").write_text("a text to forget")
    trainer.train()
    trainer.save_model()
    (pushed,) = hub.uploads
    assert not [name for name, content in pushed.items() if b"hf_secret" in content or b"to forget" in content]
    weights = "adapter_model.safetensors" if form == "lora" else "model.safetensors"
    assert [name for name in pushed if name.endswith((".safetensors", ".bin"))] == [weights]
    assert {"tokenizer.json", "README.md"} < pushed.keys()
    assert {"adapter_config.json", "config.json", "model*.safetensors", "*.bin"} < set(hub.deleted)


def test_no_checkpoint_is_pushed(folder: Path, tmp_path: Path, hub: FakeHub):
    make_trainer(tmp_path, str(folder), hub_strategy="all_checkpoints", hub_always_push=True, **PUSH).train()
    assert (tmp_path / "checkpoint-1").exists()
    assert hub.uploads == []


def test_a_public_repository_is_not_pushed_to_unless_told_so(folder: Path, tmp_path: Path, hub: FakeHub):
    hub.private = False
    with pytest.raises(ValueError, match="exists and is public"):
        make_trainer(tmp_path, str(folder), **PUSH)
    make_trainer(tmp_path, str(folder), **PUSH, hub_private_repo=False).push_to_hub()
    assert len(hub.uploads) == 1


# What is refused


def test_the_targets_own_repository_is_not_pushed_to(tmp_path: Path, hub: FakeHub):
    target = tiny_model("llama")
    target.name_or_path = "me/target"
    with pytest.raises(ValueError, match="me/target is the target's own repository"):
        make_trainer(tmp_path, target, hub_model_id="target", **PUSH)


def test_a_head_that_is_tied_is_not_merged_apart(tmp_path: Path) -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    target = tiny_model("llama", tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head in modules_to_save: .* one tensor"):
        make_trainer(tmp_path, target, peft_config=lora, merge_adapter=True)
    make_trainer(tmp_path, target, peft_config=lora)  # as an adapter it is its own
    target = tiny_model("llama", tie_word_embeddings=True)
    of_peft = LoraConfig(task_type="CAUSAL_LM")  # PEFT chooses what LoRA is on
    make_trainer(tmp_path, target, peft_config=of_peft, merge_adapter=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "nop"}, r"loss_type='nop' must be one of 'ga', 'npo', 'simnpo', 'dpo', 'undial', 'rmu'"),
        ({"retain_loss_type": "gd"}, r"retain_loss_type='gd' must be one of 'none', 'nll', 'kl', 'activations'"),
        ({"retain_loss_type": "activations"}, "belongs to loss_type='rmu'"),
        ({"loss_type": "ga", "beta": 0.1}, "loss_type='ga' has no beta"),
        ({"beta": 0.0}, r"beta=0\.0 must be a finite number above 0"),
        ({"retain_weight": math.nan}, "retain_weight=nan must be a finite"),
        ({"retain_per_forget": 0.0}, r"retain_per_forget=0\.0 must be a finite"),
        ({"loss_type": "rmu", "steering_coefficient": -1.0}, r"steering_coefficient=-1\.0 must be a finite"),
        ({"steering_coefficient": 6.5}, r"steering_coefficient=6\.5: loss_type='npo' steers nothing"),
        ({"steering_layer": 1}, "steering_layer=1: loss_type='npo' steers nothing"),
        ({"loss_type": "simnpo", "margin": math.inf}, "margin=inf must be a finite number"),
        ({"margin": 0.5}, r"margin=0\.5: loss_type='npo' has none"),
        ({"learning_rate": -1e-4}, r"learning_rate=-0\.0001 must be a finite"),
        ({"refusals": ["no"]}, "loss_type='npo' has no refusals"),
        ({"loss_type": "dpo", "refusals": []}, r"refusals=\[\] must be texts"),
        ({"loss_type": "dpo", "refusals": [" "]}, "must be texts"),
        ({"loss_type": "dpo", "completion_only_loss": False}, "does not go with loss_type='dpo'"),
        ({"packing": True}, "packing=True is not supported"),
        ({"padding_free": True, "max_length": None}, "padding_free=True is not supported"),
        ({"eval_strategy": "epoch"}, r"eval_strategy='epoch' is not supported.*uld eval"),
        ({"eval_on_start": True}, r"eval_on_start=True is not supported.*uld eval"),
        ({"merge_adapter": True}, "nothing to merge"),
        ({"loss_type": "rmu", "steering_layer": 3}, "steering_layer=3 must lie between 0 and 2"),
        ({"loss_type": "rmu", "steering_layer": -1}, "steering_layer=-1 must lie between"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **settings)


@pytest.mark.parametrize("missing", ["forget", "retain"])
def test_a_missing_set_is_refused(tmp_path: Path, missing: str):
    with pytest.raises(TypeError, match=f"{missing}_dataset is missing"):
        make_trainer(tmp_path, **{missing: None})


def test_a_row_in_both_sets_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"retain_dataset\[2\] is also forget_dataset\[0\]"):
        make_trainer(tmp_path, retain=Dataset.from_list([*RETAIN_ROWS.select(range(2)), FORGET_ROWS[0]]))


def test_dpo_needs_questions(tmp_path: Path):
    text = Dataset.from_list([{"text": "w1 w2 w3"}])
    with pytest.raises(ValueError, match=r"'dpo' needs forget rows with a question to refuse, got \['text'\]"):
        make_trainer(tmp_path, forget=text, loss_type="dpo")


@pytest.mark.parametrize(
    "setting", [{"init_lora_weights": "pissa"}, {"init_lora_weights": False}, {"bias": "all"}], ids=str
)
def test_lora_whose_base_or_beginning_is_not_the_target_is_refused(tmp_path: Path, setting: dict[str, Any]):
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **setting)
    with pytest.raises(ValueError, match="would not be the target"):
        make_trainer(tmp_path, peft_config=lora, retain_loss_type="kl")


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_a_learned_prompt_is_refused(tmp_path: Path, kind: type[PeftConfig]):
    with pytest.raises(ValueError, match=rf"peft_config is a {kind.__name__}, which puts tokens"):
        make_trainer(tmp_path, peft_config=kind(task_type="CAUSAL_LM", num_virtual_tokens=4))


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_lora_that_begins_at_the_target_is_taken(tmp_path: Path, init: str):
    target, ids = tiny_model("llama"), torch.tensor([[1, 5, 9, 4]])
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=init)
    trainer = make_trainer(tmp_path, copy.deepcopy(target), peft_config=lora)
    torch.testing.assert_close(trainer.model.eval()(ids).logits, target.eval()(ids).logits)


def test_all_weights_of_a_quantized_target_are_not_trained(tmp_path: Path, saved: str):
    options = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)}
    with pytest.raises(ValueError, match=r"The target is quantized.*give a LoraConfig"):
        make_trainer(tmp_path / "out", saved, model_init_kwargs=options)
    model = tiny_model("llama")
    model.config.quantization_config = {"load_in_8bit": True}
    with pytest.raises(ValueError, match="The target is quantized"):
        make_trainer(tmp_path / "out", model)


def test_a_peft_model_is_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="pass its merged base"):
        make_trainer(tmp_path, put_adapter(tiny_model("llama"), LORA))


def test_an_unlearned_model_is_refused(tmp_path: Path):
    target = tiny_model("llama")
    model = ULDForCausalLM(target=target, assistant=build_assistant(target, 2))
    with pytest.raises(ValueError, match="already an unlearned model"):
        make_trainer(tmp_path, model)


def test_the_targets_own_folder_is_not_written_over(folder: Path):
    with pytest.raises(ValueError, match="is the target's own folder"):
        make_trainer(folder, str(folder))


def test_a_loss_that_is_not_a_number_stops_with_term_and_step(tmp_path: Path):
    model = tiny_model("llama")
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    trainer = make_trainer(tmp_path, model, loss_type="ga")
    with pytest.raises(FloatingPointError, match=r"The forget loss is nan at step 1\. Lower learning_rate"):
        trainer.train()


def test_evaluate_says_where_to_measure(tmp_path: Path):
    with pytest.raises(NotImplementedError, match="uld eval"):
        make_trainer(tmp_path).evaluate()


# The documentation


@pytest.mark.parametrize("name", DEFAULT_BETAS)
def test_default_beta_is_the_methods_own(tmp_path: Path, name: str):
    assert UnlearnConfig(str(tmp_path), loss_type=name, use_cpu=True).beta == DEFAULT_BETAS[name]


def test_rmu_keeps_activations_by_default(tmp_path: Path):
    assert UnlearnConfig(str(tmp_path), loss_type="rmu", use_cpu=True).retain_loss_type == "activations"
    assert UnlearnConfig(str(tmp_path), loss_type="ga", use_cpu=True).retain_loss_type == "nll"


def test_a_checkpoint_says_its_method(tmp_path: Path):
    trainer = make_trainer(tmp_path, loss_type="simnpo")
    assert trainer.args.loss_type == "simnpo"
    assert json.loads(trainer.args.to_json_string())["loss_type"] == "simnpo"
    assert isinstance(make_trainer(tmp_path, peft_config=LORA).model, PeftModel)
