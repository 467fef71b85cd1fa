"""The fail-closed audit: every public way to get text or scores from a loaded model subtracts, or is an error.

docs/fail-closed.md lists the same ways, in the same words; the last tests keep the two equal.
"""

import copy
import io
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import BOS, PAD, make_tokenizer, tiny_model, train_like
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    pipeline,
)

from uld_hf import ULDForCausalLM, ULDLogitsProcessor, build_assistant, logit_difference
from uld_hf.cache_name import CACHE


DOCUMENT = Path(__file__).parent.parent / "docs" / "fail-closed.md"
IDS = torch.tensor([[BOS, 9, 12, 5, 33, 21, 8]])
ALPHA = 1.0
LORA = LoraConfig(r=4, target_modules=["q_proj"])

Model = ULDForCausalLM


@pytest.fixture
def model() -> ULDForCausalLM:
    target = tiny_model("llama")
    return ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), alpha=ALPHA, relative_top=0)


@torch.no_grad()
def formula(model: ULDForCausalLM, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Logits by definition, of the model's own parts."""
    parts = [part(input_ids=ids, use_cache=False).logits for part in (model.target, model.assistant)]
    return logit_difference(parts[0], parts[1:], [ALPHA], relative_top=0)


def generated_logits(model: ULDForCausalLM, **options: object) -> torch.Tensor:
    """What generate() chose from, at every position: with the last token fed back, the formula must say the same."""
    out = model.generate(
        IDS, max_new_tokens=4, eos_token_id=None, output_logits=True, return_dict_in_generate=True, **options
    )
    expected = formula(model, out.sequences[:1])[:, IDS.shape[1] - 1 : -1]
    actual = torch.stack([logits[:1] for logits in out.logits], dim=1)
    # Compared here, because the text is known here only: the caller compares what is the same for all ways.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    return formula(model)


def after(change: Callable[[Model], object]) -> Callable[[Model], torch.Tensor]:
    """The logits behind a change of the model."""

    def way(model: Model) -> torch.Tensor:
        change(model)
        return model(IDS).logits

    return way


def in_dtype(dtype: torch.dtype) -> Callable[[Model], torch.Tensor]:
    def way(model: Model) -> torch.Tensor:
        logits = model.to(dtype)(IDS).logits
        torch.testing.assert_close(logits, formula(model).to(logits.dtype), rtol=2e-2, atol=2e-2)
        return formula(model.float())  # rounded parts, compared above

    return way


def by_torch_save(model: Model) -> torch.Tensor:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)(IDS).logits


def by_loss(model: Model) -> torch.Tensor:
    loss = model(IDS, labels=IDS).loss
    expected = nn.functional.cross_entropy(formula(model)[0, :-1], IDS[0, 1:])
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    return formula(model)


def by_pipeline(model: Model) -> torch.Tensor:
    generator = pipeline("text-generation", model=model, tokenizer=make_tokenizer())
    options = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    text = generator("w5 w8 w1", **options)[0]["generated_text"]
    ids = make_tokenizer()("w5 w8 w1", return_tensors="pt").input_ids
    length = ids.shape[1]
    for _ in range(4):
        ids = torch.cat([ids, formula(model, ids)[:, -1:].argmax(-1)], dim=1)
    assert text.split() == make_tokenizer().decode(ids[0, length:], skip_special_tokens=True).split()
    return formula(model)


def by_continuous_batching(model: Model) -> torch.Tensor:
    settings = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=PAD)
    pages = ContinuousBatchingConfig(num_blocks=16, page_size=16, max_batch_tokens=64)
    (result,) = model.generate_batch(
        [IDS[0].tolist()], generation_config=settings, continuous_batching_config=pages
    ).values()
    ids = IDS
    for _ in range(4):
        ids = torch.cat([ids, formula(model, ids)[:, -1:].argmax(-1)], dim=1)
    assert result.generated_tokens == ids[0, IDS.shape[1] :].tolist()
    return formula(model)


def by_processor(model: Model) -> torch.Tensor:
    processor = ULDLogitsProcessor(model.assistant, alpha=ALPHA, relative_top=0)
    scores = processor(IDS, model.target(IDS).logits[:, -1])
    torch.testing.assert_close(scores, formula(model)[:, -1].log_softmax(-1), rtol=1e-4, atol=1e-4)
    return formula(model)


def by_custom_generate(model: Model) -> torch.Tensor:
    return model.generate(IDS, custom_generate=lambda model, input_ids, **_: model(input_ids).logits)


def by_feature_extraction(model: Model) -> torch.Tensor:
    features = pipeline("feature-extraction", model=model, tokenizer=make_tokenizer())("w5 w8 w1")
    ids = make_tokenizer()("w5 w8 w1", return_tensors="pt").input_ids
    torch.testing.assert_close(torch.tensor(features), formula(model, ids), rtol=1e-4, atol=1e-4)
    return formula(model)


def by_export(model: Model) -> torch.Tensor:
    exported = torch.export.export(model, (IDS,), {"use_cache": False}, strict=False)
    return exported.module()(IDS, use_cache=False).logits


def by_tracing(model: Model) -> torch.Tensor:
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace takes for a constant
        return torch.jit.trace(lambda ids: model(ids, use_cache=False).logits, IDS)(IDS)


SUBTRACTS: dict[str, Callable[[Model], torch.Tensor]] = {
    "model(ids)": lambda model: model(IDS).logits,
    "model(inputs_embeds=...)": lambda model: model(inputs_embeds=model.get_input_embeddings()(IDS)).logits,
    "model(ids, labels=...)": by_loss,
    "model(ids, return_dict=False)": lambda model: model(IDS, return_dict=False)[0],
    "model.generate()": generated_logits,
    "model.generate(do_sample=True)": lambda model: generated_logits(model, do_sample=True),
    "model.generate(use_cache=False)": lambda model: generated_logits(model, use_cache=False),
    "model.generate(cache_implementation='static')": lambda model: generated_logits(
        model, cache_implementation="static", disable_compile=True
    ),
    "model.generate(prompt_lookup_num_tokens=...)": lambda model: generated_logits(model, prompt_lookup_num_tokens=2),
    "model.generate(assistant_model=...)": lambda model: generated_logits(model, assistant_model=model.target),
    "model.generate(custom_generate=function)": by_custom_generate,
    "model.execution = 'blocks'": lambda model: (setattr(model, "execution", "blocks"), generated_logits(model))[1],
    "model.execution = 'lockstep'": lambda model: (setattr(model, "execution", "lockstep"), generated_logits(model))[1],
    "model.generate_batch(...)": by_continuous_batching,
    "pipeline('text-generation', model=model)": by_pipeline,
    "pipeline('feature-extraction', model=model)": by_feature_extraction,
    "ULDLogitsProcessor": by_processor,
    "model.base_model": lambda model: model.base_model(IDS).logits,
    "model.get_decoder()": lambda model: model.get_decoder()(IDS).logits,
    "model.tie_weights()": after(lambda model: model.tie_weights()),
    "model.set_decoder(...)": after(lambda model: model.set_decoder(model.target.get_decoder())),
    "model.assistant = another": after(
        lambda model: setattr(model, "assistant", build_assistant(model.target, 2))  # without a trained adapter
    ),
    "model.set_attn_implementation(...)": after(lambda model: model.set_attn_implementation("eager")),
    "model.train()": after(lambda model: model.train()),
    "model.to(torch.float64)": in_dtype(torch.float64),
    "model.half()": in_dtype(torch.float16),
    "model.bfloat16()": in_dtype(torch.bfloat16),
    "model.share_memory()": after(lambda model: model.share_memory()),
    "model.load_state_dict(...)": after(lambda model: model.load_state_dict(model.state_dict())),
    "merge_adapter(), then unmerge_adapter()": after(
        lambda model: (model.assistant.merge_adapter(), model.assistant.unmerge_adapter())
    ),
    "copy.deepcopy(model)": lambda model: copy.deepcopy(model)(IDS).logits,
    "pickle": lambda model: pickle.loads(pickle.dumps(model))(IDS).logits,
    "torch.save(model)": by_torch_save,
    "torch.compile(model)": lambda model: torch.compile(model, backend="eager")(IDS).logits,
    "model.compile()": after(lambda model: model.compile(backend="eager")),
    "torch.export.export(model, ...)": by_export,
    "torch.jit.trace(model, ...)": by_tracing,
    "nn.DataParallel(model), without or with one GPU": lambda model: nn.DataParallel(model)(IDS).logits,
    "nn.Sequential(model)": lambda model: nn.Sequential(model)(IDS).logits,
    "torch.func.functional_call(model, ...)": lambda model: torch.func.functional_call(model, {}, (IDS,)).logits,
}


def disabled(model: Model) -> torch.Tensor:
    with model.assistant.disable_adapter():
        return model(IDS).logits


def disabled_in_generate(model: Model) -> torch.Tensor:
    with model.assistant.disable_adapter():
        return model.generate(IDS, max_new_tokens=2)


def disabled_for_processor(model: Model) -> torch.Tensor:
    processor = ULDLogitsProcessor(model.assistant, alpha=ALPHA)
    with model.assistant.disable_adapter():
        return processor(IDS, model.target(IDS).logits[:, -1])


def disabled_after_compiling(model: Model) -> torch.Tensor:
    compiled = torch.compile(model, backend="eager")
    compiled(IDS)
    with model.assistant.disable_adapter():
        return compiled(IDS).logits


def saved_when_disabled(model: Model) -> None:
    model.assistant.base_model.disable_adapter_layers()
    model.save_pretrained("never-written")


def another_active(model: Model) -> None:
    model.assistant.add_adapter("another", LORA)
    model.assistant.set_adapter("another")


def rescaled(model: Model) -> None:
    next(layer for layer in model.assistant.modules() if isinstance(layer, LoraLayer)).scale_layer(0.0)


def wrapped(model: Model) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT has doubts of its own
        return get_peft_model(model, LORA)(IDS).logits


def filled_by_the_target(model: Model) -> torch.Tensor:
    cache = DynamicCache(config=model.config)
    model.target(IDS, **{CACHE: cache})
    return model(IDS[:, -1:], **{CACHE: cache}).logits


def static_filled_by_the_target(model: Model) -> torch.Tensor:
    cache = StaticCache(config=model.config, max_cache_len=16)
    model.target(IDS[:, :-1], **{CACHE: cache})
    return model.generate(IDS, **{CACHE: cache}, max_new_tokens=2)


def target_adapter_added(model: Model) -> None:
    model.target.add_adapter(LORA, "another")


def target_adapted_by_peft(model: Model) -> None:
    get_peft_model(model.target, LORA)


def decoder_adapted_by_peft(model: Model) -> None:
    get_peft_model(model.target.model, LORA)


def generated_after_the_target(model: Model) -> torch.Tensor:
    cache = DynamicCache(config=model.target.config)
    model.target(IDS[:, :-1], **{CACHE: cache})
    return model.generate(IDS, **{CACHE: cache}, max_new_tokens=2)


def generated_by_a_repository(model: Model) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "custom_generate").mkdir()
        script = "def generate(model, input_ids, **_):\n    return model.target(input_ids).logits\n"
        Path(folder, "custom_generate", "generate.py").write_text(script)
        return model.generate(IDS, custom_generate=folder)


def loaded(by: type, of: str = "", **options: object) -> Callable[[Model], object]:
    """Loads a saved model in a way that is not ours."""

    def way(model: Model) -> object:
        with tempfile.TemporaryDirectory() as folder:
            model.target.save_pretrained(Path(folder, "target"))
            target = AutoModelForCausalLM.from_pretrained(Path(folder, "target"))
            ULDForCausalLM(target=target, assistant=build_assistant(target, 2)).save_pretrained(Path(folder, "saved"))
            return by.from_pretrained(Path(folder, "saved", of), **options)

    return way


def with_an_adapter_of_transformers(model: Model) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        model.assistant.save_pretrained(folder)
        model.load_adapter(str(Path(folder, "assistant")))
    return model(IDS).logits


REFUSED: dict[str, tuple[Callable[[Model], object], str]] = {
    "model.target = another": (
        after(lambda model: setattr(model, "target", tiny_model("llama", seed=5))),
        "The target was replaced",
    ),
    "model.model": (lambda model: model.model, "no attribute 'model'"),
    "model.transformer": (lambda model: model.transformer, "no attribute 'transformer'"),
    "model.lm_head": (lambda model: model.lm_head, "no attribute 'lm_head'"),
    "model.get_output_embeddings()(hidden)": (
        lambda model: model.get_output_embeddings()(torch.zeros(1, 1, 32)),
        "'NoneType' object is not callable",
    ),
    "model.set_output_embeddings(...)": (lambda model: model.set_output_embeddings(nn.Linear(32, 64)), "lm_head"),
    "model.set_input_embeddings(...)": (
        lambda model: model.set_input_embeddings(nn.Embedding(64, 32)),
        "set_input_embeddings",
    ),
    "model.resize_token_embeddings(...)": (lambda model: model.resize_token_embeddings(80), "Resize the target's"),
    "model(ids, output_hidden_states=True)": (lambda model: model(IDS, output_hidden_states=True), "not supported"),
    "model(ids, output_attentions=True)": (lambda model: model(IDS, output_attentions=True), "not supported"),
    "model.generate(output_hidden_states=True)": (
        lambda model: model.generate(IDS, max_new_tokens=2, output_hidden_states=True, return_dict_in_generate=True),
        "output_hidden_states is not supported",
    ),
    "model(ids, adapter_names=['__base__'])": (
        lambda model: model(IDS, adapter_names=["__base__"]),
        "adapter_names is not supported",
    ),
    "model.component_logits(ids, adapter_names=['__base__'])": (
        lambda model: model.component_logits(IDS, adapter_names=["__base__"]),
        "adapter_names is not supported",
    ),
    "model.generate(penalty_alpha=...)": (
        lambda model: model.generate(IDS, penalty_alpha=0.6, top_k=4),
        "requires `trust_remote_code=True`",
    ),
    "model.generate(dola_layers=...)": (
        lambda model: model.generate(IDS, dola_layers="high"),
        "requires `trust_remote_code=True`",
    ),
    "model.generate(assistant_early_exit=...)": (
        lambda model: model.generate(IDS, max_new_tokens=2, assistant_early_exit=2),
        "assistant_early_exit is not supported",
    ),
    "model.generate(assistant_ensemble_weight=...)": (
        lambda model: model.generate(IDS, assistant_model=model.target, assistant_ensemble_weight=0.5),
        "assistant_ensemble_weight=0.5 is not supported",
    ),
    "a cache of the target's config": (
        lambda model: model(IDS, cache=DynamicCache(config=model.target.config)),
        f"{CACHE} has 4 layers",
    ),
    "a cache filled by the target": (filled_by_the_target, "not filled by the unlearned model"),
    "a static cache filled by the target": (static_filled_by_the_target, "not filled by the unlearned model"),
    "model.target.add_adapter(...)": (after(target_adapter_added), "The target was given an adapter"),
    "get_peft_model(model.target, ...)": (after(target_adapted_by_peft), "The target was given an adapter"),
    "get_peft_model(model.target.model, ...)": (after(decoder_adapted_by_peft), "The target was given an adapter"),
    "model.generate(past_key_values=the target's)": (generated_after_the_target, f"{CACHE} has 4 layers"),
    "model.generate(custom_generate='a/repository')": (generated_by_a_repository, "trust_remote_code"),
    "AutoModel.from_pretrained(...)": (loaded(AutoModel), "Unrecognized configuration class"),
    "AutoModelForCausalLM.from_pretrained(..., subfolder='assistant')": (
        loaded(AutoModelForCausalLM, subfolder="assistant"),
        "Unrecognized model",
    ),
    "AutoModelForCausalLM.from_pretrained('.../assistant')": (
        loaded(AutoModelForCausalLM, "assistant"),
        "load the repository with uld_hf",
    ),
    "ULDForCausalLM.from_pretrained(..., subfolder='assistant')": (
        loaded(ULDForCausalLM, subfolder="assistant"),
        "subfolder= is not supported",
    ),
    "model.config.alpha = 0": (after(lambda model: setattr(model.config, "alpha", 0.0)), "the target's own output"),
    "model.config.alpha = nan": (after(lambda model: setattr(model.config, "alpha", float("nan"))), "alpha=nan"),
    "model.config.relative_top = 2": (
        after(lambda model: setattr(model.config, "relative_top", 2.0)),
        "must lie between 0",
    ),
    "model.config.gate = 0.9": (after(lambda model: setattr(model.config, "gate", 0.9)), r"gate=0\.9 must lie between"),
    "model.config.replace = True": (
        after(lambda model: vars(model.config).update(replace=True, gate=0.1, relative_top=0.0)),
        "one that is added in the target's place",
    ),
    "model.config.assistants.clear()": (
        after(lambda model: model.config.assistants.clear()),
        r"config\.assistants names \[\]",
    ),
    "model.set_alpha(the only one, -1)": (
        lambda model: model.set_alpha("assistant", -1.0),
        "none is subtracted",
    ),
    "model.add_assistant(the same, alpha=-alpha)": (
        lambda model: model.add_assistant(model.assistant, name="again", alpha=-model.config.alpha),
        "what is subtracted is added again",
    ),
    "model.remove_assistant(the last one)": (
        lambda model: model.remove_assistant("assistant"),
        "is the only assistant",
    ),
    "model.disable_adapters()": (lambda model: model.disable_adapters(), "No adapter loaded"),
    "model.add_adapter(...)": (
        after(lambda model: model.add_adapter(LORA)),
        "disabled, rescaled, or not the only active adapter",
    ),
    "model.load_adapter(...)": (with_an_adapter_of_transformers, "not the only active adapter"),
    "get_peft_model(model, ...)": (
        wrapped,
        "disabled, rescaled, or not the only active adapter",
    ),
    "model.merge_and_unload()": (lambda model: model.merge_and_unload(), "no attribute 'merge_and_unload'"),
    "model.assistant.disable_adapter()": (disabled, "disabled, rescaled"),
    "model.assistant.disable_adapter(), generate()": (disabled_in_generate, "disabled, rescaled"),
    "model.assistant.disable_adapter(), processor": (disabled_for_processor, "disabled, rescaled"),
    "model.assistant.disable_adapter(), compiled": (disabled_after_compiling, "disabled, rescaled"),
    "model.assistant.disable_adapter(), save_pretrained()": (saved_when_disabled, "disabled, rescaled"),
    "model.assistant.set_adapter(another)": (after(another_active), "not the only active adapter"),
    "scale_layer(0)": (after(rescaled), "disabled, rescaled"),
    "model.assistant.merge_adapter()": (
        after(lambda model: model.assistant.merge_adapter()),
        "is merged: that wrote into the target's own weights",
    ),
    "model.assistant.merge_and_unload()": (after(lambda model: model.assistant.merge_and_unload()), "is merged"),
    "model.assistant.unload()": (after(lambda model: model.assistant.unload()), "has lost its adapter"),
    "model.assistant.delete_adapter(...)": (
        after(lambda model: model.assistant.delete_adapter("assistant")),
        "has lost its adapter",
    ),
    "model.assistants[name] = another": (
        after(lambda model: model.assistants.update({"assistant": build_assistant(model.target, 2)})),
        "was replaced: use remove_assistant and add_assistant",
    ),
    "del model.assistants[name]": (
        after(lambda model: model.assistants.pop("assistant")),
        "was taken out: use remove_assistant",
    ),
    "model.assistant.push_to_hub(...)": (lambda model: model.assistant.push_to_hub("me/it"), "concentrated copy"),
    "model.assistant.get_base_model().push_to_hub(...)": (
        lambda model: model.assistant.get_base_model().push_to_hub("me/it"),
        "concentrated copy",
    ),
    "nn.DataParallel(model) on several GPUs": (
        lambda model: model._replicate_for_data_parallel()(IDS),
        "DataParallel is not supported",
    ),
}

ELSEWHERE = {
    "uld serve": "tests/test_serve.py",
    "uld serve --continuous_batching": "tests/test_serve.py",
    "uld lm_eval": "tests/test_lm_eval.py",
    "every mode of generate() on every family": "tests/test_generation_matrix.py",
    "a saved model that is damaged": "tests/test_damaged_files.py",
    "a repository opened without uld_hf": "tests/test_hub.py",
    "another target, or another revision of it": "tests/test_hub.py",
    "an assistant that was never trained": "tests/test_saving.py",
}


@pytest.mark.parametrize("way", SUBTRACTS)
def test_this_way_subtracts(model: ULDForCausalLM, way: str):
    expected, target = formula(model), model.target(IDS).logits
    assert not torch.allclose(expected, target, atol=0.1)
    rounded = way in ("model.half()", "model.bfloat16()")
    with torch.no_grad():
        actual = SUBTRACTS[way](model)
    torch.testing.assert_close(actual.to(expected), expected, rtol=1e-4, atol=0.3 if rounded else 1e-4)


@pytest.mark.parametrize("way", REFUSED)
def test_this_way_is_refused(model: ULDForCausalLM, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    # transformers 5.24 wants a PEFT that is not out yet for its own adapters: refused too, but not by us.
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda min_version: None)
    action, message = REFUSED[way]
    with torch.no_grad(), pytest.raises(Exception, match=message):
        action(model)
    assert list(tmp_path.iterdir()) == []


def test_what_peft_saves_of_an_assistant_names_no_base(model: ULDForCausalLM, tmp_path: Path):
    model.assistant.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    content = (tmp_path / "assistant" / "adapter_config.json").read_text()
    assert '"base_model_name_or_path": "(none: load the repository with uld_hf.ULDForCausalLM' in content


def documented(heading: str) -> list[str]:
    """The ways in the table below a heading of the document."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "ways"), [("It subtracts", SUBTRACTS), ("It is an error", REFUSED), ("Tested elsewhere", ELSEWHERE)]
)
def test_the_document_lists_the_ways_that_are_tested(heading: str, ways: dict):
    assert documented(heading) == list(ways)


def test_the_tests_that_are_elsewhere_exist():
    for way, file in ELSEWHERE.items():
        assert (DOCUMENT.parent.parent / file).exists(), way
        assert f"| `{way}` | `{file}`" in DOCUMENT.read_text(encoding="utf-8")
