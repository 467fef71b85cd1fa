"""Rivals through the one formula: Offset unlearning and Divergence Decoding, of assistants with signs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from families import make_tokenizer, tiny_model, train_like
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from test_trainer import first_batch, logged, make_rows, make_trainer
from transformers import PreTrainedModel

from uld_hf import ULDForCausalLM, ULDLogitsProcessor, ULDTrainer, build_assistant, logit_difference
from uld_hf.evaluation.scoring import Subtraction, score_completions, score_subtractions


PROMPTS = torch.randint(4, 64, (3, 12), generator=torch.Generator().manual_seed(4))
LETTER = {"relative_top": 0.0, "center": False}  # the rivals' papers have neither filter nor centring
FORGET, RETAIN = make_rows(8, seed=0), make_rows(12, seed=1)
INF = math.inf


def make_assistant(target: PreTrainedModel, num_layers: int, seed: int) -> PeftModel:
    return train_like(build_assistant(target, num_layers), seed)


def compose_offset(target: PreTrainedModel, weight: float = 1.5, **options: Any) -> ULDForCausalLM:
    """Target + weight * (assistant - untrained assistant)."""
    assistants = {"trained": make_assistant(target, 2, seed=1), "untrained": build_assistant(target, 2)}
    return ULDForCausalLM(
        target=target, assistant=assistants, alpha={"trained": -weight, "untrained": weight}, **(LETTER | options)
    )


def compose_divergence(target: PreTrainedModel, alpha: float = 0.8, **options: Any) -> ULDForCausalLM:
    """Target + alpha * (auxiliary of the retain set - auxiliary of the forget set)."""
    assistants = {"forget": make_assistant(target, 2, seed=1), "retain": make_assistant(target, 3, seed=2)}
    return ULDForCausalLM(
        target=target, assistant=assistants, alpha={"forget": alpha, "retain": -alpha}, **(LETTER | options)
    )


@torch.no_grad()
def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits.double()


def plain_logits(model: ULDForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """The rivals' own equations, from whole passes in float64."""
    target = logits_of(model.target, ids)
    parts = {name: logits_of(assistant, ids) for name, assistant in model.assistants.items()}
    alphas = model.config.alphas
    if "trained" in parts:
        return target + alphas["untrained"] * (parts["trained"] - parts["untrained"])
    divergence = parts["retain"] - parts["forget"]
    if not model.config.remove_top_k:
        return target + alphas["forget"] * divergence
    lowest = (-divergence).topk(model.config.remove_top_k, dim=-1).indices
    return target.scatter(-1, lowest, -INF)


RIVALS = {
    "offset": lambda target: compose_offset(target),
    "linear": lambda target: compose_divergence(target),
    "rank": lambda target: compose_divergence(target, remove_top_k=6),
}
every_rival = pytest.mark.parametrize("rival", RIVALS)
every_family = pytest.mark.parametrize("family", ["llama", "gpt2"])


@every_family
@every_rival
def test_logits_are_the_rivals_equation(family: str, rival: str):
    model = RIVALS[rival](tiny_model(family)).double()
    torch.testing.assert_close(model(PROMPTS).logits.double(), plain_logits(model, PROMPTS), rtol=1e-10, atol=1e-10)


@every_family
@every_rival
@pytest.mark.parametrize("execution", ["two passes", "lockstep", "blocks"])
def test_generation_is_that_of_the_equation(family: str, rival: str, execution: str):
    model = RIVALS[rival](tiny_model(family))
    model.execution = execution
    ids = PROMPTS
    for _ in range(8):
        ids = torch.cat([ids, plain_logits(model, ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(PROMPTS, **options), ids)


@every_family
@every_rival
def test_saved_and_loaded_it_is_the_same(family: str, rival: str, tmp_path: Path):
    tiny_model(family).save_pretrained(tmp_path / "target")
    target = type(tiny_model(family)).from_pretrained(tmp_path / "target")
    model = RIVALS[rival](target)
    model.save_pretrained(tmp_path / "rival")
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "rival")
    assert loaded.config.alphas == model.config.alphas
    assert loaded.config.remove_top_k == model.config.remove_top_k
    assert torch.equal(loaded(PROMPTS).logits, model(PROMPTS).logits)


def test_centring_does_not_change_an_offset():
    model = compose_offset(tiny_model("llama"))
    expected = model(PROMPTS).logits.log_softmax(-1)
    model.config.center = True
    torch.testing.assert_close(model(PROMPTS).logits.log_softmax(-1), expected, rtol=1e-4, atol=1e-4)


# The rank variant, token by token


def plain_rank(
    target: list[float], assistants: list[list[float]], alphas: list[float], num_tokens: int, relative_top: float
) -> list[float]:
    """Rule out tokens one by one, the highest score first."""
    threshold = max(target) + math.log(relative_top) if relative_top else -INF
    scores = []
    for token, logit in enumerate(target):
        parts = [a * x[token] for a, x in zip(alphas, assistants, strict=True) if x[token] > -INF]
        scores.append((sum(parts), token, logit > -INF and logit >= threshold))
    ranked = [token for _, token, is_candidate in sorted(scores, reverse=True) if is_candidate]
    return [-INF if token in ranked[:num_tokens] else logit for token, logit in enumerate(target)]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    num_tokens=st.integers(1, 5),
    relative_top=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    alphas=st.lists(st.sampled_from([-1.5, -0.5, 0.5, 1.0]), min_size=1, max_size=3),
    impossible=st.integers(0, 2),
)
def test_rank_rules_out_the_highest_scores(
    seed: int, num_tokens: int, relative_top: float, alphas: list[float], impossible: int
):
    generator = torch.Generator().manual_seed(seed)
    target, *assistants = 3 * torch.randn(1 + len(alphas), 4, 8, dtype=torch.float64, generator=generator)
    target[:, :impossible] = -INF
    actual = logit_difference(
        target, assistants, alphas, relative_top=relative_top, center=False, remove_top_k=num_tokens
    )
    for row in range(4):
        columns = [assistant[row].tolist() for assistant in assistants]
        assert actual[row].tolist() == plain_rank(target[row].tolist(), columns, alphas, num_tokens, relative_top)


def test_rank_leaves_one_possible_token():
    target = torch.tensor([[1.0, 2.0, -INF, -INF]])
    actual = logit_difference(target, [torch.tensor([[5.0, 4.0, 0.0, 0.0]])], [1.0], relative_top=0, remove_top_k=3)
    assert actual.tolist() == [[-INF, 2.0, -INF, -INF]]


def test_rank_may_rule_out_the_only_plausible_token():
    target = torch.tensor([[9.0, 0.0, 0.0]])
    actual = logit_difference(target, [torch.tensor([[5.0, 0.0, 0.0]])], [1.0], relative_top=0.5, remove_top_k=1)
    assert actual.tolist() == [[-INF, 0.0, 0.0]]


@pytest.mark.parametrize("num_tokens", [4, 5])
def test_ruling_out_the_whole_vocabulary_is_refused(num_tokens: int):
    row = torch.zeros(1, 4)
    with pytest.raises(ValueError, match=f"remove_top_k={num_tokens} would rule out the whole vocabulary of 4"):
        logit_difference(row, [row], [1.0], remove_top_k=num_tokens)


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"remove_top_k": -1}, "remove_top_k=-1 must be 0"),
        ({"remove_top_k": 1.5}, r"remove_top_k=1\.5 must be 0"),
        ({"remove_top_k": True}, "remove_top_k=True must be 0"),
        ({"remove_top_k": 3, "outside": "mask"}, "could rule out every token"),
    ],
    ids=str,
)
def test_settings_of_the_rank_variant_are_checked(given_settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Subtraction(1.0, **given_settings)
    target = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        ULDForCausalLM(target=target, assistant=make_assistant(target, 2, seed=1), **given_settings)


def test_the_processor_rules_out_as_the_model_does():
    target = tiny_model("llama")
    assistant = make_assistant(target, 2, seed=1)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model = ULDForCausalLM(target=target, assistant=assistant, remove_top_k=5, relative_top=0.0)
    processor = ULDLogitsProcessor(assistant, remove_top_k=5, relative_top=0.0)
    actual = target.generate(PROMPTS, logits_processor=[processor], **options)
    assert torch.equal(actual, model.generate(PROMPTS, **options))


# Together they must take something away


def test_assistants_that_are_all_added_are_refused():
    target = tiny_model("llama")
    assistant = make_assistant(target, 2, seed=1)
    with pytest.raises(ValueError, match="none is subtracted"):
        ULDForCausalLM(target=target, assistant=assistant, alpha=-0.5)
    with pytest.raises(ValueError, match="none is subtracted"):
        ULDLogitsProcessor(assistant, alpha=-0.5)


@pytest.mark.parametrize("kind", ["an equal one", "two untrained"])
def test_assistants_that_cancel_are_refused(kind: str):
    target = tiny_model("llama")

    def make() -> PeftModel:
        return build_assistant(target, 2) if kind == "two untrained" else make_assistant(target, 2, seed=1)

    model = ULDForCausalLM(target=target, assistant=make(), alpha=0.7)
    for alpha in (-0.7, -0.69999, -0.9):  # all of it, all but what rounding loses, and more than all
        with pytest.raises(ValueError, match="what is subtracted is added again"):
            model.add_assistant(make(), name="second", alpha=alpha)
    model.add_assistant(make(), name="second", alpha=-0.5)  # 0.2 of it is left
    with pytest.raises(ValueError, match="what is subtracted is added again"):
        model.set_alpha("second", -0.7)
    assert model.config.alphas["second"] == -0.5
    model.config.assistants["second"]["alpha"] = -0.7
    with pytest.raises(ValueError, match="what is subtracted is added again"):
        model(PROMPTS)


def test_assistants_that_cancel_beside_one_that_is_added_are_refused():
    target = tiny_model("llama")
    model = ULDForCausalLM(target=target, assistant=make_assistant(target, 2, seed=1), alpha=0.7)
    model.add_assistant(make_assistant(target, 2, seed=2), name="wording", alpha=-0.5)
    with pytest.raises(ValueError, match="what is subtracted is added again"):
        model.add_assistant(make_assistant(target, 2, seed=1), name="again", alpha=-0.7)
    assert list(model.assistants) == ["assistant", "wording"]


def test_assistants_that_cancel_beside_one_that_is_subtracted_are_refused():
    target = tiny_model("llama")
    model = ULDForCausalLM(target=target, assistant=make_assistant(target, 2, seed=1), alpha=0.7)
    model.add_assistant(make_assistant(target, 2, seed=2), name="bob", alpha=0.5)
    with pytest.raises(ValueError, match=r"\['assistant', 'again'\] compute the same"):
        model.add_assistant(make_assistant(target, 2, seed=1), name="again", alpha=-0.7)


@pytest.mark.parametrize("name", ["1", "layers", "lora_A"])
def test_assistants_that_cancel_are_refused_whatever_they_are_called(name: str):
    target = tiny_model("llama")
    model = ULDForCausalLM(target=target, assistant=make_assistant(target, 2, seed=1), alpha=0.7)
    with pytest.raises(ValueError, match="what is subtracted is added again"):
        model.add_assistant(make_assistant(target, 2, seed=1), name=name, alpha=-0.7)


def test_weights_that_change_together_are_judged_together():
    target = tiny_model("llama")
    model = ULDForCausalLM(target=target, assistant=make_assistant(target, 2, seed=1), alpha=1.0)
    model.add_assistant(make_assistant(target, 2, seed=1), name="again", alpha=-0.5)
    with pytest.raises(ValueError, match="what is subtracted is added again"):
        model.set_alpha("assistant", 0.25)
    model.set_alphas({"assistant": 0.25, "again": -0.125})
    assert model.config.alphas == {"assistant": 0.25, "again": -0.125}
    with pytest.raises(ValueError, match="There is no assistant 'bob'"):
        model.set_alphas({"assistant": 1.0, "bob": 1.0})
    assert model.config.alphas["assistant"] == 0.25


def test_untrained_assistants_of_other_depths_do_not_cancel():
    target = tiny_model("llama")
    model = ULDForCausalLM(
        target=target,
        assistant={"two": build_assistant(target, 2), "three": build_assistant(target, 3)},
        alpha={"two": 1.0, "three": -1.0},
    )
    assert not torch.allclose(model(PROMPTS).logits, target(PROMPTS).logits, atol=1e-2)


def test_the_one_that_is_subtracted_cannot_be_removed_or_turned():
    model = compose_divergence(tiny_model("llama"))
    for attempt in (lambda: model.remove_assistant("forget"), lambda: model.set_alpha("forget", -1.0)):
        with pytest.raises(ValueError, match="none is subtracted"):
            attempt()
    assert model.config.alphas == {"forget": 0.8, "retain": -0.8}
    model.remove_assistant("retain")
    assert model.config.alphas == {"forget": 0.8}


def test_one_alpha_for_assistants_of_both_signs_is_refused(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path / "target")
    target = type(tiny_model("llama")).from_pretrained(tmp_path / "target")
    compose_divergence(target).save_pretrained(tmp_path / "rival")
    with pytest.raises(ValueError, match=r"alpha=0\.5 for all: .* give alpha by name, such as alpha=\{'"):
        ULDForCausalLM.from_pretrained(tmp_path / "rival", alpha=0.5)
    loaded = ULDForCausalLM.from_pretrained(tmp_path / "rival", alpha={"forget": 0.5, "retain": -0.4})
    assert loaded.config.alphas == {"forget": 0.5, "retain": -0.4}


@pytest.mark.parametrize("rival", ["offset", "linear"])
def test_a_sweep_keeps_the_signs(rival: str):
    model = RIVALS[rival](tiny_model("llama"))
    prompts, completions = ["w1 w2", "w3"], [" w4 w5", " w6"]
    _, ((*swept,),) = score_subtractions(model, make_tokenizer(), prompts, completions, [Subtraction(0.4, **LETTER)])
    size = abs(next(iter(model.config.alphas.values())))
    for name, weight in model.config.alphas.items():
        model.config.assistants[name]["alpha"] = 0.4 * weight / size
    for first, second in zip(swept, score_completions(model, make_tokenizer(), prompts, completions), strict=True):
        torch.testing.assert_close(torch.tensor(first.log_probs), torch.tensor(second.log_probs), rtol=1e-4, atol=1e-4)


# Auxiliaries are trained, saved and loaded like assistants


def make_auxiliary(output_dir: Path, model: Any, learned: str, **settings: Any) -> ULDTrainer:
    sets = {"forget": FORGET, "retain": None} if learned == "forget" else {"forget": None, "retain": RETAIN}
    alpha = 1.0 if learned == "forget" else -1.0
    return make_trainer(output_dir, model, objective="likelihood", alpha=alpha, **sets, **(LETTER | settings))


@pytest.mark.parametrize("learned", ["forget", "retain"])
def test_the_loss_of_an_auxiliary_is_the_cross_entropy(tmp_path: Path, learned: str):
    trainer = make_auxiliary(tmp_path, None, learned, padding_free=False)
    batch = first_batch(trainer)
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[labels != -100].double(), labels[labels != -100])
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("learned", ["forget", "retain"])
def test_an_auxiliary_learns_its_set(tmp_path: Path, learned: str):
    trainer = make_auxiliary(tmp_path, None, learned, num_train_epochs=15)
    trainer.train()
    losses = logged(trainer, f"{learned}_loss")
    assert losses[-1] < 0.7 * losses[0]
    assert logged(trainer, f"{learned}_accuracy")
    other = {"forget": "retain", "retain": "forget"}[learned]
    assert not [key for entry in trainer.state.log_history for key in entry if key.startswith(other)]


def test_divergence_decoding_from_training_to_loading(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path / "target")
    make_tokenizer().save_pretrained(tmp_path / "target")
    trainers = {
        name: make_auxiliary(tmp_path / name, str(tmp_path / "target"), name, num_train_epochs=3)
        for name in ("forget", "retain")
    }
    for trainer in trainers.values():
        trainer.train()
        trainer.save_model()
    with pytest.raises(ValueError, match=r"none is subtracted .* model\.add_assistant"):
        ULDForCausalLM.from_pretrained(tmp_path / "retain")
    model = ULDForCausalLM.from_pretrained(tmp_path / "forget")
    model.add_assistant(tmp_path / "retain")
    assert model.config.alphas == {"assistant": 1.0, "retain": -1.0}
    target, forget, retain = (
        logits_of(part, PROMPTS) for part in (model.target, *(trainers[name].model for name in ("forget", "retain")))
    )
    torch.testing.assert_close(model(PROMPTS).logits.double(), target + retain - forget, rtol=1e-4, atol=1e-4)
    # The same from the trainers at hand, whose settings the assistants remember.
    assistants = {name: trainer.model for name, trainer in trainers.items()}
    again = ULDForCausalLM(target=model.target, assistant=assistants)
    assert again.config.alphas == {"forget": 1.0, "retain": -1.0}
    assert (again.config.relative_top, again.config.center) == (0.0, False)
    torch.testing.assert_close(again(PROMPTS).logits, model(PROMPTS).logits, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "retain" / "README.md").read_text()
    assert "| objective | likelihood |" in card
    assert "| `assistant/` | 2 | -1.0 | 0 | 12 |" in card


@pytest.mark.parametrize(
    ("sets", "alpha", "error", "message"),
    [
        ({"forget": FORGET, "retain": RETAIN}, 1.0, TypeError, r"learns one set, got \['forget', 'retain'\]"),
        ({"forget": None, "retain": None}, 1.0, TypeError, "learns one set, got none"),
        ({"forget": FORGET, "retain": None}, -1.0, ValueError, r"alpha=-1\.0 would add what must be forgotten"),
        ({"forget": None, "retain": RETAIN}, 1.0, ValueError, r"alpha=1\.0 would subtract what must be kept"),
    ],
    ids=["both", "none", "forget added", "retain subtracted"],
)
def test_an_auxiliary_of_the_wrong_set_or_sign_is_refused(
    tmp_path: Path, sets: dict[str, Dataset | None], alpha: float, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, objective="likelihood", alpha=alpha, **sets)


def test_an_unknown_objective_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="objective='nll' must be one of 'uld', 'likelihood'"):
        make_trainer(tmp_path, objective="nll")
