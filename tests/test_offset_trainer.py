"""`OffsetTrainer`: the rivals' losses on composed logits, of which the assistant alone is trained."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model
from test_trainer import first_batch, logged, make_rows
from test_unlearn_trainer import disturb, plain_loss
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from uld_hf import OffsetConfig, OffsetTrainer, ULDForCausalLM
from uld_hf.assistant import truncate_model
from uld_hf.hub import load_config


FORGET_ROWS, RETAIN_ROWS = make_rows(8, seed=0), make_rows(12, seed=1)
PROMPTS = torch.randint(4, 64, (2, 10), generator=torch.Generator().manual_seed(4))


def make_trainer(
    output_dir: Path, model: str | PreTrainedModel | None = None, retain: Dataset | None = RETAIN_ROWS, **settings: Any
) -> OffsetTrainer:
    defaults = {
        "num_assistant_layers": 2,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return OffsetTrainer(
        tiny_model("llama") if model is None else model,
        OffsetConfig(str(output_dir), **(defaults | settings)),
        forget_dataset=FORGET_ROWS,
        retain_dataset=retain,
        processing_class=make_tokenizer(),
    )


def test_the_revision_of_the_target_is_saved(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path / "target")
    trainer = make_trainer(tmp_path / "out", str(tmp_path / "target"), model_init_kwargs={"revision": "v2"})
    trainer.train()
    trainer.save_model()
    assert load_config(tmp_path / "out").target_revision == "v2"


def test_the_trainer_does_not_push_and_says_what_does(tmp_path: Path):
    with pytest.raises(NotImplementedError, match="uld push"):
        make_trainer(tmp_path).push_to_hub()


class PlainOffset(nn.Module):
    """The paper's equation, from whole passes of models that share nothing."""

    def __init__(self, assistant: nn.Module, weight: float):
        super().__init__()
        self.target = tiny_model("llama").double()
        self.untrained = truncate_model(tiny_model("llama"), 2).double()
        self.assistant, self.weight = assistant, weight

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        target, trained, untrained = (
            part(input_ids=input_ids).logits.double() for part in (self.target, self.assistant, self.untrained)
        )
        return CausalLMOutputWithPast(logits=target + self.weight * (trained - untrained))


@pytest.mark.parametrize(
    ("loss_type", "retain_loss_type"),
    [("ga", "nll"), ("ga", "kl"), ("npo", "kl"), ("simnpo", "none"), ("dpo", "kl"), ("undial", "nll")],
)
def test_loss_is_the_methods_on_the_composed_logits(tmp_path: Path, loss_type: str, retain_loss_type: str):
    trainer = make_trainer(
        tmp_path, loss_type=loss_type, retain_loss_type=retain_loss_type, retain_weight=2.0, offset_weight=1.5
    )
    batch = first_batch(trainer)
    disturb(trainer.model)
    actual = trainer.compute_loss(trainer.model, batch).item()
    expected = plain_loss(PlainOffset(trainer.model, 1.5), tiny_model("llama"), trainer, batch)
    assert actual == pytest.approx(expected, rel=1e-4)


def test_it_begins_as_the_target(tmp_path: Path):
    trainer = make_trainer(tmp_path, loss_type="npo", retain_loss_type="kl")
    batch = first_batch(trainer)
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    target = tiny_model("llama")(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(
        outputs.scores.logits, target[:, :-1][batch["labels"][:, 1:] != -100], rtol=1e-4, atol=1e-4
    )
    assert loss.item() == pytest.approx(2 / 0.1 * math.log(2), rel=1e-4)


def test_only_the_assistants_lora_is_trained(tmp_path: Path):
    target = tiny_model("llama")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    trainer = make_trainer(tmp_path, target, loss_type="ga", retain_weight=0.1, num_train_epochs=4)
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    losses = logged(trainer, "forget_log_prob")
    assert sum(losses[-2:]) < sum(losses[:2])


def test_the_saved_model_is_the_equation(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path / "target")
    make_tokenizer().save_pretrained(tmp_path / "target")
    trainer = make_trainer(tmp_path / "out", str(tmp_path / "target"), offset_weight=1.5)
    trainer.train()
    trainer.save_model()
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.alphas == {"trained": -1.5, "untrained": 1.5}
    trainer.model.eval()
    with torch.no_grad():
        expected = PlainOffset(trainer.model, 1.5)(PROMPTS).logits
    torch.testing.assert_close(loaded(PROMPTS).logits.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trainer.compose()(PROMPTS).logits, loaded(PROMPTS).logits, rtol=1e-5, atol=1e-5)
    assert "| method | offset |" in (tmp_path / "out" / "README.md").read_text()


def test_an_untrained_offset_is_not_saved(tmp_path: Path):
    with pytest.raises(ValueError, match="what is subtracted is added again"):
        make_trainer(tmp_path).save_model()


def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path: Path):
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "optim": "sgd"}
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    resumed = make_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(resumed.compose()(PROMPTS).logits, whole.compose()(PROMPTS).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "rmu"}, "steers activations"),
        ({"merge_adapter": True}, "nothing to merge"),
        ({"offset_weight": 0.0}, r"offset_weight=0\.0 must be a finite number above 0"),
        ({"num_assistant_layers": 0}, "num_assistant_layers=0 must be at least 1"),
        ({"num_assistant_layers": 5}, "cannot have 5 layers: the target has 4"),
        ({"push_to_hub": True}, "push it with `uld push`"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **settings)


def test_in_bfloat16_an_untrained_assistant_is_no_offset(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss_type="ga", retain_loss_type="kl", bf16=True)
    trainer.train()
    assert logged(trainer, "retain_loss")[0] == pytest.approx(0.0, abs=1e-7)


def test_the_assistant_is_lora_and_learns_at_its_rate(tmp_path: Path) -> None:
    assert make_trainer(tmp_path, learning_rate=None).args.learning_rate == 1e-4
