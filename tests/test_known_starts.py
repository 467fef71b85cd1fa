"""Greedy answers whose beginning scoring has told: those of `generate()` for each prompt by itself, in fewer steps."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import EOS, make_tokenizer, tiny_model, train_like
from transformers import GenerationMixin, LlamaForCausalLM, PreTrainedModel

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.evaluation.evaluation import Question, evaluate
from uld_hf.evaluation.known_starts import KnownStart, batches_to_generate, plain_ends
from uld_hf.evaluation.scoring import score_completions
from uld_hf.evaluation.tofu import generate_completions


# What the model is taught. Lengths differ, of prompts and of answers; some words come twice.
TAUGHT = {
    "w1 w2 w3": " w20 w21 w22 w23 w20",
    "w4": " w25 w26",
    "w5 w6 w7 w8 w9": " w27 w28 w29 w30 w27 w32 w33 w34",
    "w10 w11": " w35 w36 w37 w38",
}
PROMPTS, ANSWERS = [*TAUGHT], [*TAUGHT.values()]


def but_for(place: int) -> list[str]:
    """The answers with another token at a place."""
    changed = [answer.split() for answer in ANSWERS]
    for words in changed:
        words[place if place < 0 else min(place, len(words) - 1)] = "w50"
    return [" " + " ".join(words) for words in changed]


# What may be scored as the right answer: the model's own, or one from which the model's departs somewhere.
RIGHT = {
    "known": ANSWERS,
    "other from the first token": but_for(0),
    "other from the middle": but_for(2),
    "other at the last token": but_for(-1),
    "shorter": [answer.rsplit(maxsplit=1)[0] for answer in ANSWERS],
    "longer": [f"{answer} w51" for answer in ANSWERS],
    "of all kinds": [ANSWERS[0], but_for(0)[1], but_for(2)[2], but_for(-1)[3]],
}


def teach(model: PreTrainedModel) -> PreTrainedModel:
    """Train a tiny model until it gives the answers, with their ends."""
    tokenizer = make_tokenizer()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    rows = [torch.tensor([[*tokenizer(prompt + answer)["input_ids"], EOS]]) for prompt, answer in TAUGHT.items()]
    for _ in range(60):
        for ids in rows:
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def taught() -> PreTrainedModel:
    torch.manual_seed(0)
    return teach(LlamaForCausalLM(tiny_model("llama").config))


@pytest.fixture
def model(taught: PreTrainedModel) -> PreTrainedModel:
    """The taught model, with settings of its own that a test may change."""
    model = LlamaForCausalLM(taught.config).eval()
    model.load_state_dict(taught.state_dict())
    return model


@pytest.fixture(scope="module")
def unlearned(taught: PreTrainedModel) -> ULDForCausalLM:
    assistant = train_like(build_assistant(taught, 2))
    return ULDForCausalLM(target=taught, assistant=assistant, alpha=1.5, relative_top=0, clamp=False)


def by_generate(model: PreTrainedModel, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """Each prompt by itself."""
    tokenizer, texts = make_tokenizer(), []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        mask = torch.ones_like(ids)
        whole = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False)
        texts.append(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return texts


def with_scores(
    model: PreTrainedModel,
    right: Sequence[str],
    max_new_tokens: int = 12,
    batch_size: int = 32,
    prompts: Sequence[str] = PROMPTS,
    ends: Sequence[int | None] | None = None,
) -> list[str]:
    """Answers of a model that was scored on what is right."""
    tokenizer = make_tokenizer()
    scores = score_completions(model, tokenizer, prompts, right, ends=ends)
    return generate_completions(model, tokenizer, prompts, max_new_tokens, batch_size, scores)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What `generate()` is asked to go on from, call by call."""
    calls, generate, tokenizer = [], GenerationMixin.generate, make_tokenizer()

    def recorded(self: PreTrainedModel, *, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        calls.append(tokenizer.batch_decode(input_ids, skip_special_tokens=True))
        return generate(self, input_ids, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", recorded)
    return calls


# --- the answers are those of generate() ---


def test_the_model_gives_the_answers_that_it_was_taught(taught):
    assert by_generate(taught, PROMPTS, 12) == [answer.strip() for answer in ANSWERS]


@pytest.mark.parametrize("max_new_tokens", [1, 3, 12])
@pytest.mark.parametrize("kind", RIGHT)
def test_answers_are_those_of_generate(taught, kind, max_new_tokens):
    texts = with_scores(taught, RIGHT[kind], max_new_tokens)
    assert texts == by_generate(taught, PROMPTS, max_new_tokens)


@pytest.mark.parametrize("kind", RIGHT)
def test_answers_of_an_unlearned_model_are_those_of_generate(unlearned, kind):
    texts = with_scores(unlearned, RIGHT[kind])
    assert texts == by_generate(unlearned, PROMPTS, 12)
    assert texts != by_generate(unlearned.target, PROMPTS, 12)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_answers_do_not_depend_on_the_batch_size(taught, batch_size):
    texts = with_scores(taught, RIGHT["of all kinds"], batch_size=batch_size)
    assert texts == by_generate(taught, PROMPTS, 12)


def test_an_answer_ends_at_any_of_the_models_ends(model):
    ends = make_tokenizer().convert_tokens_to_ids(["</s>", "w22", "w29"])
    model.generation_config.eos_token_id = ends
    texts = with_scores(model, ANSWERS)
    assert texts == by_generate(model, PROMPTS, 12)
    assert texts[0] == "w20 w21 w22"


@pytest.mark.parametrize("ends", [None, [60, 61]])
def test_an_answer_goes_on_behind_an_end_that_is_not_the_models(model, asked, ends):
    model.generation_config.eos_token_id = ends
    texts = with_scores(model, ANSWERS)
    assert len(asked[0]) == len(ANSWERS)
    assert texts == by_generate(model, PROMPTS, 12)


def test_no_answer_is_longer_than_allowed_whatever_is_known_of_the_others_in_its_batch(model):
    model.generation_config.eos_token_id = None
    texts = with_scores(model, RIGHT["of all kinds"], max_new_tokens=6)
    assert texts == by_generate(model, PROMPTS, 6)


def test_a_passage_goes_on_where_what_was_scored_stops(taught):
    begun = [answer.rsplit(maxsplit=1)[0] for answer in ANSWERS]
    texts = with_scores(taught, begun, ends=[None] * len(begun))
    assert texts == by_generate(taught, PROMPTS, 12)


def test_nothing_is_known_of_a_prompt_that_is_split_otherwise_before_its_answer(taught):
    # "w1 w2" and "3 w4" are w1, w23, w4 together: the model was scored on another prompt.
    prompts, right = ["w1 w2", "w1 w2 w"], ["3 w4", "3 w20 w21"]
    texts = with_scores(taught, right, prompts=prompts)
    assert texts == by_generate(taught, prompts, 12)


def test_an_answer_that_was_begun_goes_on_with_what_is_known_of_its_rest(taught):
    tokenizer = make_tokenizer()
    scores = score_completions(taught, tokenizer, PROMPTS, but_for(-1))
    begun = [prompt + " " + " ".join(answer.split()[:1]) for prompt, answer in TAUGHT.items()]
    texts = generate_completions(taught, tokenizer, begun, 12, scores=scores)
    assert texts == by_generate(taught, begun, 12)


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 10.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": [25]},
        {"begin_suppress_tokens": [24]},
        {"bad_words_ids": [[25, 26]]},
        {"forced_eos_token_id": 40},
        {"min_new_tokens": 5},
        {"num_beams": 3},
        {"sequence_bias": [[[26], -100.0]]},
    ],
    ids=str,
)
def test_a_setting_that_changes_greedy_answers_changes_them_here(model, setting):
    plain = by_generate(model, PROMPTS, 6)
    model.generation_config.update(**setting)
    texts = with_scores(model, ANSWERS, 6)
    assert texts == by_generate(model, PROMPTS, 6)
    assert texts != plain or "num_beams" in setting  # of a model that is as sure as this one beams find the same


# --- and take fewer steps ---


def test_a_model_that_knows_all_answers_generates_nothing(taught, asked):
    with_scores(taught, ANSWERS)
    assert asked == []


def test_an_answer_that_is_known_as_far_as_it_may_go_is_not_generated(taught, asked):
    with_scores(taught, but_for(-1), max_new_tokens=1)
    assert asked == []


def test_what_is_known_is_not_generated(taught, asked):
    with_scores(taught, RIGHT["of all kinds"])
    assert asked == [["w5 w6 w7 w8 w9 w27 w28", "w4", "w10 w11 w35 w36 w37"]]


def test_no_more_is_generated_than_what_is_allowed_beyond_what_is_known(model):
    model.generation_config.eos_token_id = None
    steps = []
    model.lm_head.register_forward_pre_hook(lambda module, args: steps.append(1))
    scores = score_completions(model, make_tokenizer(), PROMPTS, but_for(-1))
    steps.clear()
    generate_completions(model, make_tokenizer(), PROMPTS, 12, scores=scores)
    assert len(steps) == 12 - 1  # of the answer of two words one is known


@pytest.mark.parametrize("begun", [False, True])
def test_evaluation_generates_only_what_scoring_has_not_told(taught, asked, begun):
    right = [ANSWERS[0], but_for(0)[1], *ANSWERS[2:]]
    questions = [Question(prompt, answer) for prompt, answer in zip(PROMPTS, right, strict=True)]
    results = evaluate(taught, make_tokenizer(), questions, 12, probe=begun, num_samples=0)
    # When asked, the second answer departs from the first word on; when it was begun with that, from the next.
    assert asked == [["w4"], *([["w4 w50"]] if begun else [])]
    assert results.completions == by_generate(taught, PROMPTS, 12)


# --- whether scoring tells what generate() would say ---


def test_nothing_is_known_of_a_prompt_that_ends_before_the_scored_one(taught):
    (scores,) = score_completions(taught, make_tokenizer(), PROMPTS[:1], ANSWERS[:1])
    ids = scores.input_ids.tolist()
    assert scores.first_choices(ids[:3]) == ids[3:]
    assert scores.first_choices(ids[:2]) == []


# A base model's generation config names the end of a text, a template may end turns with another token.
@pytest.mark.parametrize("own", [None, 9])
def test_answers_stop_at_the_end_that_they_are_scored_with(model, own):
    model.generation_config.eos_token_id = own
    tokenizer = make_tokenizer()
    (end,) = tokenizer("w23")["input_ids"]
    questions = [Question(PROMPTS[0], " w20 w21 w22", end_token_id=end, paraphrased_prompt=PROMPTS[0])]
    results = evaluate(model, tokenizer, questions, 12, probe=True, num_samples=2)
    assert results.completions == ["w20 w21 w22"]
    assert results.probes["question in other words"] == [["w20 w21 w22"]]
    assert results.probes["answer begun"] == [["w21 w22"]]
    assert all("w23" not in text for text in results.probes["drawn"][0])


def test_a_turn_that_ends_with_a_line_break_does_not_end_an_answer_at_its_first_line(model, monkeypatch):
    tokenizer, given = make_tokenizer(), []
    (end,) = tokenizer("w23")["input_ids"]
    # As of templates that put nothing but a line break behind a turn.
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, ids, **options: "\n" if ids == [end] else "w")
    monkeypatch.setattr(
        "uld_hf.evaluation.evaluation.generate_completions", lambda *args: given.append(args[-1]) or [" w20"]
    )
    for each in (end, EOS):
        evaluate(model, tokenizer, [Question(PROMPTS[0], " w20 w21", end_token_id=each)], 12)
    assert given == [set(), {EOS}]


def test_an_answer_known_up_to_the_end_of_its_turn_is_not_generated(model, asked):
    (end,) = make_tokenizer()("w23")["input_ids"]
    evaluate(model, make_tokenizer(), [Question(PROMPTS[0], " w20 w21 w22", end_token_id=end)], 12)
    assert asked == []


def test_the_ends_of_a_model_are_those_of_its_generation_config(model):
    assert plain_ends(model) == {EOS}
    model.generation_config.eos_token_id = [EOS, 7]
    assert plain_ends(model) == {EOS, 7}
    model.generation_config.eos_token_id = None
    assert plain_ends(model) == set()


@pytest.mark.parametrize(
    "setting",
    [
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20},
        {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
        {"max_length": 4096, "pad_token_id": 3},
    ],
    ids=str,
)
def test_settings_that_change_no_greedy_answer_are_passed_over(model, asked, setting):
    model.generation_config.update(**setting)
    with_scores(model, ANSWERS)
    assert asked == []


@pytest.mark.parametrize(
    "setting", [{"stop_strings": ["w1"]}, {"cache_implementation": "quantized"}, {"of_tomorrow": 0}], ids=str
)
def test_of_an_unknown_setting_nothing_is_taken_for_granted(model, setting):
    model.generation_config.update(**setting, allow_custom_entries=True)
    assert plain_ends(model) is None


def test_another_generate_is_asked_for_all_of_it(model):
    own = model.generate
    model.generate = lambda **kwargs: own(**kwargs)
    assert plain_ends(model) is None


def test_a_model_that_reads_a_longer_text_otherwise_is_asked_for_all_of_it():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert plain_ends(tiny_model("llama", rope_parameters=rope)) is None


# --- batches ---


def start(known: int, expected_rest: int) -> KnownStart:
    return KnownStart(ids=[5] * known, is_whole=False, expected_rest=expected_rest)


def test_rows_that_are_likely_to_end_together_are_run_together():
    starts = [start(0, 3), start(0, 9), start(5, 2), KnownStart([5, EOS], True, 1), start(2, 8)]
    assert list(batches_to_generate([4, 5, 6, 7, 8], starts, 12, 2, context=None)) == [[1, 4], [0, 2]]


def test_no_batch_runs_out_of_the_context():
    # 20 tokens and 2 more beside 3 and 12 more: 32 of the context's 22.
    starts = [start(10, 2), start(0, 3)]
    assert list(batches_to_generate([10, 3], starts, 12, 32, context=22)) == [[1], [0]]
    assert list(batches_to_generate([10, 3], starts, 12, 32, context=32)) == [[1, 0]]


def test_answers_up_to_the_end_of_the_context_are_those_of_generate():
    # Learned positions: there is none behind the last.
    model = teach(tiny_model("gpt2", n_positions=17))
    model.generation_config.eos_token_id = None
    texts = with_scores(model, [*ANSWERS[:2], but_for(-1)[2], but_for(0)[3]])
    assert texts == by_generate(model, PROMPTS, 12)
