"""Block checking gives the text of plain decoding, in fewer passes of the assistant."""

from collections import Counter
from itertools import product

import pytest
import torch
from families import tiny_model, train_like
from scipy.stats import chisquare
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.block_checking import BlockSize
from uld_hf.cache_name import CACHE
from uld_hf.lockstep import Lockstep


NEW_TOKENS = 24
PROMPTS = torch.randint(4, 64, (3, 12), generator=torch.Generator().manual_seed(4))
MASK = (torch.arange(12) >= torch.tensor([[7], [0], [3]])).long()
PROMPTS = PROMPTS.masked_fill(MASK == 0, 0)
# From hardly any disagreement with the target to nearly constant one.
ALPHAS = (0.02, 0.7, 3.0)


def compose(family: str, alpha: float = 0.7) -> ULDForCausalLM:
    target = tiny_model(family)
    assistant = {
        "alice": train_like(build_assistant(target, 2)),
        "bob": train_like(build_assistant(target, 1), seed=2),
    }
    return ULDForCausalLM(target=target, assistant=assistant, alpha={"alice": alpha, "bob": alpha / 2}, relative_top=0)


def generate(model: ULDForCausalLM, execution: str = "two passes", **options):
    model.execution = execution
    options = {"attention_mask": MASK, "max_new_tokens": NEW_TOKENS, "do_sample": False, **options}
    return model.generate(options.pop("inputs", PROMPTS), **options)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_text_is_that_of_plain_decoding(family: str, alpha: float):
    model = compose(family, alpha)
    assert torch.equal(generate(model, execution="blocks"), generate(model))


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2, "bad_words_ids": [[7], [9, 10]]},
        {"min_new_tokens": 6, "eos_token_id": list(range(4, 24))},
        {"eos_token_id": list(range(4, 24)), "pad_token_id": 0},  # rows end at different places
        {"max_new_tokens": 1},
        {"prefill_chunk_size": 5},
        {"inputs": PROMPTS[1:2], "attention_mask": MASK[1:2]},
    ],
    ids=str,
)
@pytest.mark.parametrize("alpha", [0.02, 0.7])
def test_options_mean_what_they_mean_in_plain_decoding(options: dict, alpha: float):
    model = compose("llama", alpha)
    assert torch.equal(generate(model, execution="blocks", **options), generate(model, **options))


@pytest.mark.parametrize("largest", [1, 3, 64])
def test_the_largest_block_does_not_matter(largest: int):
    model = compose("llama", 0.02)
    model.max_block_size = largest
    assert torch.equal(generate(model, execution="blocks"), generate(model))


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 2}, {"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}],
    ids=str,
)
def test_other_modes_take_plain_steps(options: dict):
    model = compose("llama")
    options = {"inputs": PROMPTS[1:2], "attention_mask": MASK[1:2], **options}
    assert torch.equal(generate(model, execution="blocks", **options), generate(model, **options))


@pytest.mark.parametrize("name", ["scores", "logits"])
def test_returned_scores_are_the_unlearned_models(name: str):
    model = compose("llama")
    options = {"return_dict_in_generate": True, f"output_{name}": True, "repetition_penalty": 1.2}
    actual = generate(model, execution="blocks", **options)
    expected = generate(model, **options)
    torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-4)


def test_returned_cache_continues_the_text():
    model = compose("llama", 0.02)
    # Rows that have ended hold drafts in the cache where plain decoding has pads: here none ends.
    first = generate(model, execution="blocks", return_dict_in_generate=True, eos_token_id=None)
    length = first.sequences.shape[1]
    assert length == 12 + NEW_TOKENS
    assert first[CACHE].get_seq_length() == length - 1
    mask = torch.cat([MASK, torch.ones(3, NEW_TOKENS, dtype=torch.long)], dim=1)
    options = {"inputs": first.sequences, "attention_mask": mask, "eos_token_id": None}
    expected = generate(model, **options)
    assert torch.equal(generate(model, execution="blocks", **{CACHE: first[CACHE]}, **options), expected)


def test_criteria_stop_it_in_the_middle_of_a_block():
    class Length(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 12 + 10)

    model = compose("llama", 0.02)
    criteria = StoppingCriteriaList([Length()])
    text = generate(model, execution="blocks", stopping_criteria=criteria)
    assert text.shape[1] == 22
    assert torch.equal(text, generate(model, max_new_tokens=10))


def test_a_processor_that_remembers_is_asked_as_in_plain_decoding():
    class Alternate(LogitsProcessor):
        """Even tokens and odd ones by turns, whatever the text says: it counts its calls."""

        def __init__(self):
            self.seen = []

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.seen.append(input_ids.tolist())
            return scores.index_fill(1, torch.arange(len(self.seen) % 2, 64, 2), -torch.inf)

    model, in_blocks, plainly = compose("llama", 0.02), Alternate(), Alternate()
    model.max_block_size = 4
    text = generate(model, execution="blocks", logits_processor=[in_blocks])
    assert torch.equal(text, generate(model, logits_processor=[plainly]))
    assert in_blocks.seen == plainly.seen


def test_an_adapter_disabled_on_the_way_is_an_error(monkeypatch: pytest.MonkeyPatch):
    class Disable(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
            if input_ids.shape[1] == 12 + 9:
                model.assistants["alice"].base_model.disable_adapter_layers()
            return torch.zeros(len(input_ids), dtype=torch.bool)

    # Blocks of three: a plain step in lockstep would notice by itself.
    monkeypatch.setattr(BlockSize, "size", property(lambda self: 3, lambda self, value: None), raising=False)
    model = compose("llama", 0.02)
    with pytest.raises(RuntimeError, match="'alice' is disabled"):
        generate(model, execution="blocks", stopping_criteria=[Disable()], eos_token_id=None)


def test_streamer_gets_every_token():
    class Collect(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    model, streamer = compose("llama"), Collect()
    text = generate(model, execution="blocks", streamer=streamer, inputs=PROMPTS[1:2], attention_mask=MASK[1:2])
    assert streamer.tokens == text[0].tolist()
    assert streamer.ended


def count_passes(model: ULDForCausalLM, **options) -> Counter:
    """Passes of the target and of the first assistant in a generation."""
    passes = Counter()
    model._lockstep = Lockstep(model.target, list(model.assistants.values()))
    counted = {"target": model.target, "assistant": model.assistants["alice"], "both": model._lockstep.model}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: passes.update([name])) for name, module in counted.items()
    ]
    generate(model, inputs=PROMPTS[1:2], attention_mask=MASK[1:2], max_new_tokens=64, **options)
    for hook in hooks:
        hook.remove()
    return Counter({name: passes[name] + passes["both"] for name in ("target", "assistant")})


def test_agreement_saves_passes_of_the_assistant():
    passes = count_passes(compose("llama", 0.001), execution="blocks", eos_token_id=None)
    assert passes["assistant"] == 1 + 3 + 7  # prefill, blocks of 1, 2 and 4, 56 tokens in blocks of 8


def test_no_draft_goes_beyond_the_end():
    model = compose("llama", 0.001)
    passes = count_passes(model, execution="blocks", eos_token_id=None)
    assert passes["target"] == 64  # the prompt's, and one for each token but the last


def test_disagreement_wastes_few_passes_of_the_target():
    model = compose("llama", 6.0)
    model.config.clamp = False
    passes = count_passes(model, execution="blocks")
    assert passes["target"] <= 64 * 1.1
    assert passes["assistant"] <= 64


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sampled_text_has_the_distribution_of_the_formula(rows: int, monkeypatch: pytest.MonkeyPatch):
    # Always blocks of three, so that drafts are kept, refused and corrected at every place.
    monkeypatch.setattr(BlockSize, "size", property(lambda self: 3, lambda self, value: None), raising=False)
    model, prompt = compose("llama", 0.4), PROMPTS[1:2]
    num_tokens, num_samples, top_k = 4, 250, 2
    torch.manual_seed(0)
    model.execution = "blocks"
    options = {"max_new_tokens": num_tokens, "do_sample": True, "top_k": top_k, "eos_token_id": None}
    seen = Counter()
    for _ in range(num_samples // rows):
        texts = model.generate(prompt.expand(rows, -1), **options)
        seen.update(tuple(text[12:].tolist()) for text in texts)
    expected = {}
    for ranks in product(range(top_k), repeat=num_tokens):
        ids, probability = prompt, 1.0
        for rank in ranks:
            top = model(ids, use_cache=False).logits[0, -1].topk(top_k)
            probability *= top.values.softmax(-1)[rank].item()
            ids = torch.cat([ids, top.indices[rank].view(1, 1)], dim=1)
        expected[tuple(ids[0, 12:].tolist())] = probability
    assert set(seen) <= set(expected)
    # Rare texts together, as the test asks for a few of each.
    common = [text for text, probability in expected.items() if probability * num_samples >= 5]
    rest = 1 - sum(expected[text] for text in common)
    counts = [seen[text] for text in common] + [num_samples - sum(seen[text] for text in common)]
    frequencies = [num_samples * p for p in [*(expected[text] for text in common), rest]]
    assert len(common) >= 4
    assert chisquare(counts, frequencies).pvalue > 0.01


# BlockSize


def sizes(agreements: str, largest: int = 8) -> list[int]:
    block, out = BlockSize(largest), []
    for letter in agreements:
        out.append(block.size)
        block.update(letter == "+")
    return out


def test_blocks_double_with_agreement():
    assert sizes("++++++") == [1, 2, 4, 8, 8, 8]


def test_a_disagreement_means_plain_steps():
    assert sizes("+++-+") == [1, 2, 4, 8, 1]


def test_constant_disagreement_never_drafts_ahead():
    assert sizes("-" * 20) == [1] * 20


def test_wasted_blocks_make_it_more_cautious():
    assert sizes("+-++-++++-") == [1, 2, 1, 1, 2, 1, 1, 1, 1, 2]


def test_full_blocks_restore_confidence():
    assert sizes("+-++++-+++", largest=4) == [1, 2, 1, 1, 2, 4, 4, 1, 1, 2]


def test_an_unknown_execution_is_refused():
    with pytest.raises(ValueError, match=r"execution='fast' must be one of \('two passes', 'lockstep', 'blocks'\)"):
        generate(compose("llama"), execution="fast")


@pytest.mark.parametrize("size", [0, -1, 2.5, "8", True])
def test_a_block_size_that_is_no_number_of_tokens_is_refused(size: object):
    model = compose("llama")
    with pytest.raises(ValueError, match=rf"max_block_size={size!r} must be a whole number"):
        model.max_block_size = size
    assert model.max_block_size == 8
