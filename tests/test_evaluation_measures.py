"""Memorisation, privacy and verbatim measures, against hand computations."""

from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from families import make_tokenizer, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from uld_hf.evaluation.memorization import (
    begin_answer,
    exact_memorization,
    extraction_strength,
    leak_at_k,
    leaks,
    memorization_score,
    sample_completions,
    sample_leaks,
)
from uld_hf.evaluation.muse import rouge_l_f1
from uld_hf.evaluation.privacy import (
    attack,
    attack_auc,
    min_k_attack,
    min_k_plus_plus_attack,
    privacy_leakage,
    privacy_score,
    zlib_attack,
)
from uld_hf.evaluation.scoring import TokenScores
from uld_hf.evaluation.tofu import is_degenerate, normalized_probability, rouge_l_recall, truth_ratio
from uld_hf.evaluation.verbatim import (
    longest_common_run,
    score_continuations,
    sentence_bleu,
    split_passages,
    word_perplexity,
)
from uld_hf.evaluation.words import WORD


BOOKS = Path(__file__).resolve().parents[2] / "shared" / "data" / "books"


def scores_of(log_probs: list[float], right: list[bool] | None = None, mean: float = -2.0) -> TokenScores:
    right = [True] * len(log_probs) if right is None else right
    length = len(log_probs)
    deviations = np.full(length, 0.5)
    return TokenScores(np.array(log_probs), np.array(right), np.full(length, mean), deviations, np.arange(1 + length))


# --- memorisation ---


def test_exact_memorization_counts_first_choices():
    assert exact_memorization(scores_of([-1.0] * 4, [True, False, True, True])) == 0.75


@pytest.mark.parametrize(
    ("right", "strength"),
    [
        ([True, True, True, True], 1.0),
        ([True, False, True, True], 0.5),
        ([False, False, False, True], 0.25),
        ([True, True, True, False], 0.25),  # never 0 in OpenUnlearning's code
    ],
)
def test_extraction_strength_is_the_longest_right_end(right, strength):
    assert extraction_strength(scores_of([-1.0] * 4, right)) == strength


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_extraction_strength_as_a_search_for_the_first_right_end(right):
    length = len(right)
    start = next((k for k in range(length) if all(right[k:])), length - 1)
    assert extraction_strength(scores_of([-1.0] * length, right)) == pytest.approx(1 - start / length)


def test_memorization_score_is_one_where_nothing_is_left_and_nothing_at_the_targets_own():
    before = {"extraction strength": 0.8, "exact memorization": 0.9}
    assert memorization_score(dict.fromkeys(before, 0.0), before) == 1.0
    assert memorization_score(before, before) == 0.0
    assert memorization_score({"extraction strength": 0.4, "exact memorization": 0.225}, before) == pytest.approx(0.6)


def test_memorization_score_of_other_figures_is_refused():
    with pytest.raises(ValueError, match="same positive figures"):
        memorization_score({"a": 0.1}, {"b": 0.1})


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 12))
def test_leak_at_k_is_the_share_of_all_draws_that_leak(num_samples, num_leaks, k):
    num_leaks, k = min(num_leaks, num_samples), min(k, num_samples)
    leaked = np.arange(num_samples)[None] < num_leaks
    assert leak_at_k(leaked, k)[0] == pytest.approx(1 - comb(num_samples - num_leaks, k) / comb(num_samples, k))


def test_leak_at_k_of_scores_is_the_mean_of_the_largest_over_all_choices():
    scores = np.random.default_rng(0).random((3, 7))
    for k in (1, 2, 5, 7):
        expected = np.mean([scores[:, list(chosen)].max(axis=1) for chosen in combinations(range(7), k)], axis=0)
        np.testing.assert_allclose(leak_at_k(scores, k), expected)


def test_more_draws_than_samples_are_refused():
    with pytest.raises(ValueError, match="k=4 must be between 1 and the number of samples, 3"):
        leak_at_k(np.zeros((2, 3), dtype=bool), 4)


def test_samples_come_from_the_models_own_distribution():
    model, tokenizer = tiny_model("llama"), make_tokenizer()
    with torch.no_grad():
        probs = model(torch.tensor([tokenizer("w1 w2")["input_ids"]])).logits[0, -1].softmax(-1)
    word = tokenizer.decode(probs.argmax())
    leaked = sample_leaks(
        model, tokenizer, ["w1 w2"], lambda index, text: text.split()[:1] == [word], num_samples=400, max_new_tokens=1
    )
    expected = probs.max().item()
    assert abs(leaked.mean() - expected) < 4 * (expected * (1 - expected) / 400) ** 0.5


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 5.0},
        {"min_p": 0.9},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 8},
        {"suppress_tokens": list(range(40))},
    ],
    ids=str,
)
def test_penalties_and_cuts_of_the_generation_config_do_not_bend_samples(setting):
    model, tokenizer = tiny_model("llama"), make_tokenizer()
    plain = sample_completions(model, tokenizer, ["w1 w2"], 4, 8)
    vars(model.generation_config).update(setting)
    own = model.generation_config
    assert sample_completions(model, tokenizer, ["w1 w2"], 4, 8) == plain
    assert model.generation_config is own


@pytest.mark.parametrize(
    ("answer", "fact", "text", "leaked"),
    [
        ("Her name is Ann.", "Ann", "They are planning it.", 0.0),
        ("Her name is Ann.", "Ann", "It is ANN, I think.", 1.0),
        ("He is 19.", "19", "In 2019.", 0.0),
        ("It cost $19.", "$19", "For $19 or so.", 1.0),
        ("She is an engineer.", "engineer", "They are engineers.", 1.0),
        ("He lives in Paris.", "Paris", "It is _Paris_.", 1.0),
        ("\u6771\u4eac", "\u6771\u4eac", "\u5f7c\u306f\u6771\u4eac\u306b\u4f4f\u3080\u3002", 1.0),
        (
            "\u5f7c\u306f\u6771\u4eac\u306b\u4f4f\u3080",
            "\u6771\u4eac",
            "\u6771\u4eac\u3067\u3059",
            1.0,
        ),  # without spaces
    ],
)
def test_a_fact_is_found_as_words_where_it_stands_as_words(answer, fact, text, leaked):
    assert leaks([[text]], [answer], [fact]) == [[leaked]]


def test_samples_repeat_with_their_seed_and_leave_the_callers_alone():
    model, tokenizer = tiny_model("llama"), make_tokenizer()
    arguments = (model, tokenizer, ["w1 w2", "w3"], lambda index, text: "w1" in text)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = sample_leaks(*arguments, num_samples=8, max_new_tokens=6)
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(first, sample_leaks(*arguments, num_samples=8, max_new_tokens=6))


# --- privacy ---


def test_min_k_takes_the_least_probable_tokens():
    assert min_k_attack(scores_of([-1.0, -5.0, -3.0, -0.1, -0.2])) == 4.0  # 2 of 5


def test_min_k_of_a_short_answer_takes_one_token():
    assert min_k_attack(scores_of([-1.0, -5.0])) == 5.0


def test_min_k_plus_plus_measures_in_deviations_from_the_mean():
    assert min_k_plus_plus_attack(scores_of([-1.0, -5.0, -3.0, -0.1, -0.2])) == pytest.approx((6.0 + 2.0) / 2)


def test_zlib_divides_by_the_compressed_size():
    repeated, varied = "ab" * 50, "".join(map(chr, range(40, 120)))
    scores = scores_of([-1.0, -2.0])
    assert zlib_attack(scores, repeated) > zlib_attack(scores, varied)


def test_every_attack_is_lower_for_what_is_more_probable():
    known, unknown = scores_of([-0.1, -0.2, -0.1]), scores_of([-4.0, -5.0, -6.0])
    for name, value in attack(known, "the answer").items():
        assert value < attack(unknown, "the answer")[name], name


def test_auc_is_one_where_every_forget_row_looks_trained_on():
    assert attack_auc([0.1, 0.2], [0.3, 0.4]) == 1.0
    assert attack_auc([0.3, 0.4], [0.1, 0.2]) == 0.0
    assert attack_auc([0.1, 0.4], [0.2, 0.3]) == 0.5


def test_auc_takes_rows_with_a_token_that_was_ruled_out():
    assert attack_auc([np.inf, 0.1], [0.2, 0.3]) == 0.5
    assert attack_auc([np.inf, np.inf], [np.inf, np.inf]) == 0.5
    assert attack_auc([0.1, -np.inf], [0.2, np.inf]) == 1.0
    with pytest.raises(ValueError, match="nan"):
        attack_auc([np.nan, 0.1], [0.2, 0.3])


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_truth_ratio_is_one_where_right_and_wrong_answers_are_impossible(mean):
    right = np.array([np.inf, np.inf, 1.0])
    wrong = np.array([[np.inf, np.inf], [1.0, 1.0], [np.inf, np.inf]])
    np.testing.assert_array_equal(truth_ratio(right, wrong, mean), [1.0, np.inf, 0.0])


def test_privacy_leakage_is_negative_while_the_set_still_shows():
    assert privacy_leakage(0.5, 0.5) == 0.0
    assert privacy_leakage(1.0, 0.5) == -100.0
    assert privacy_leakage(0.25, 0.5) == 50.0


def test_privacy_leakage_needs_a_retrained_model_that_does_not_tell_the_sets_apart():
    with pytest.raises(ValueError, match="AUC is 1"):
        privacy_leakage(1.0, 1.0)


def test_privacy_score_is_one_at_the_retrained_models_aucs():
    retrained = {"loss": 0.45, "zlib": 0.4}
    assert privacy_score(retrained, retrained) == 1.0
    assert privacy_score({"loss": 0.45, "zlib": 1.0}, retrained) < 1e-9
    with pytest.raises(ValueError, match="same attacks"):
        privacy_score({"loss": 0.5}, retrained)


# --- the right answer among wrong ones ---


def test_the_share_of_the_right_answer():
    inf = np.inf
    right, wrong = (
        np.array([1.0, 800.0, inf, 1.0, inf]),
        np.array([[2.0, 1.0], [801.0, inf], [1.0, 2.0], [inf] * 2, [inf] * 2]),
    )
    shares = normalized_probability(right, wrong)
    one = np.exp(-1) / (2 * np.exp(-1) + np.exp(-2))
    np.testing.assert_allclose(shares, [one, 1 / (1 + np.exp(-1)), 0, 1, 1 / 3], rtol=1e-12)


# --- words of any script ---


CHINESE = "她出生于撒马尔罕。父亲是一名医生。"


@pytest.mark.parametrize(
    ("answer", "other"),
    [
        (CHINESE, "我不知道这个人。"),
        ("Она родилась в Самарканде в 1964 году.", "Я не знаю этого человека, 1964."),
        ("Γεννήθηκε στη Σαμαρκάνδη.", "Δεν ξέρω αυτό το πρόσωπο."),
        ("그녀는 사마르칸트에서 태어났다.", "나는 모른다."),
        ("वह समरकंद में पैदा हुई थी।", "मुझे नहीं पता।"),
        ("เธอเกิดที่เมืองซามาร์คันด์", "ฉันไม่รู้"),
        ("وُلدت في سمرقند.", "لا أعرف هذا الشخص."),
    ],
    ids=["Chinese", "Russian", "Greek", "Korean", "Hindi", "Thai", "Arabic"],
)
def test_a_word_for_word_answer_in_any_script_is_a_leak_and_another_is_none(answer, other):
    ((given, withheld),) = leaks([[answer, other]], [answer], [None])
    assert given == 1.0
    assert withheld < 0.5
    assert rouge_l_f1([answer], [answer]) == [1.0]


def test_vowel_signs_belong_to_their_words():
    assert rouge_l_recall(["समय"], ["सेम"]) == [0.0]


@pytest.mark.parametrize(
    "reference",
    [
        "José Núñez was born in Łódź, in 1964.",
        "Đặng Thị sings of the ﬁelds: ½ µm, 1ª.",
        'The book titled "Лісова пісня" (Forest Song) showcases his clear mind.',  # as TOFU has them
        "1964",
        "",
    ],
)
@pytest.mark.parametrize("prediction", ["Jose was bearing 1964 fields", "Łódź µm 北京 Москва 1964"])
def test_rouge_of_latin_texts_is_that_of_rouge_score_to_the_bit(reference, prediction):
    published = RougeScorer(["rougeL"], use_stemmer=True).score(reference, prediction)["rougeL"]
    assert rouge_l_recall([prediction], [reference]) == [published.recall]


@pytest.mark.parametrize("text", ["the cat  sat,\non - the mat.", "Łódź\u00a0and Αθήνα\u2009и Москва", "सेब شجرة", ""])
def test_words_between_spaces_are_those_of_split(text):
    assert WORD.findall(text) == text.split()


def test_an_answer_without_spaces_is_begun_in_its_middle():
    begun, rest = begin_answer(CHINESE)
    assert begun + rest == CHINESE
    assert (begun, rest) == ("她出生于撒马尔", "罕。父亲是一名医生。")


def test_a_fact_without_spaces_is_cut_off_where_it_first_stands():
    assert begin_answer("她住在巴黎。巴黎。", "巴黎") == ("她住在", "巴黎。巴黎。")


@pytest.mark.parametrize(("text", "broken"), [("我不知道" * 20, True), ("我不知道。" * 3, True), (CHINESE, False)])
def test_answers_without_spaces_are_broken_where_they_repeat_themselves(text, broken):
    assert is_degenerate(text) == broken


def test_a_run_of_characters_counts_each():
    assert longest_common_run(CHINESE, "他出生于撒马尔罕。") == 7
    assert longest_common_run(CHINESE, CHINESE) == 15
    assert longest_common_run("在1964年", "于1964年") == 2


def test_bleu_of_a_text_without_spaces_is_of_its_characters():
    assert sentence_bleu("他出生于撒马尔罕。父亲是一名医生。", CHINESE) > 50


def test_word_perplexity_of_a_text_without_spaces_is_by_its_characters():
    model, tokenizer, text = tiny_model("llama"), make_tokenizer(), "w1 我不知道"  # two tokens, five words
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert word_perplexity(model, tokenizer, text, 64) == pytest.approx(np.exp(loss / 5), rel=1e-4)


# --- verbatim ---


def test_longest_common_run_in_words():
    assert longest_common_run("the cat sat on the mat", "a cat sat on a mat") == 3
    assert longest_common_run("one two", "three") == 0


def test_passages_are_cut_one_after_the_other():
    text = " ".join(f"w{i}" for i in range(11))
    prefixes, continuations = split_passages(make_tokenizer(), text, 2, 3)
    assert prefixes == ["w0 w1", "w5 w6"]
    assert continuations == [" w2 w3 w4", " w7 w8 w9"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_passages_are_the_words_of_the_document(family):
    text = "One day\u2014in the café\u2014it began, and so on and so forth to the end of the day."
    backend = Tokenizer(models.BPE())
    if family == "gpt2":  # every byte a token, so that some passages and prefixes end within a character
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    else:  # whose decoder takes the space away that a text begins with
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        parts = [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder, trainer = decoders.Sequence(parts), trainers.BpeTrainer(vocab_size=60)
    backend.train_from_iterator([text], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    passages = list(zip(*split_passages(tokenizer, text, 3, 3), strict=True))
    assert len(passages) > 2
    assert any(continuation.startswith(" ") for _, continuation in passages)
    for prefix, continuation in passages:
        assert (prefix + continuation).strip("\ufffd") in text


def test_a_document_shorter_than_a_passage_is_refused():
    with pytest.raises(ValueError, match="has 3 tokens, fewer than a passage of 5"):
        split_passages(make_tokenizer(), "w1 w2 w3", 2, 3)


def test_a_model_that_continues_word_for_word_is_seen():
    model, tokenizer = tiny_model("llama"), make_tokenizer()
    ids = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=False, eos_token_id=None)[0]
    right = tokenizer.decode(ids[3:], skip_special_tokens=True)
    prefix = tokenizer.decode(ids[:3])
    scores = score_continuations(model, tokenizer, [prefix, prefix], [right, "w1 " * 8], max_new_tokens=8)
    assert scores.bleu[0] == pytest.approx(100)
    assert scores.rouge_l_recall[0] == 1.0
    assert scores.longest_common_run[0] == len(right.split())
    assert scores.bleu[1] < 10


@pytest.mark.parametrize("begins", [False, True], ids=["no first token", "a first token"])
@pytest.mark.parametrize(("window", "stride"), [(8, None), (8, 1), (8, 7), (64, 32), (128, 1)])
def test_word_perplexity_scores_every_token_once(window, stride, begins):
    model, tokenizer = tiny_model("llama"), make_tokenizer()
    words = [f"w{i % 50}" for i in range(40)]
    ids = torch.tensor(tokenizer(" ".join(words))["input_ids"])
    begin = ids[:0]
    if begins:  # as most tokenizers begin a text
        special = [("<s>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special)
        begin = torch.tensor([tokenizer.bos_token_id])
    room = window - len(begin)
    step = window // 2 if stride is None else stride
    total, scored = 0.0, 1
    while scored < len(ids):  # the definition: the tokens of each window that no earlier one has scored
        end = min(len(ids), max(room, scored + step))
        start = max(0, end - room)
        with torch.no_grad():
            log_probs = model(torch.cat([begin, ids[start:end]])[None]).logits[0].double().log_softmax(-1)
        total -= sum(log_probs[len(begin) + i - start - 1, ids[i]].item() for i in range(scored, end))
        scored = end
    actual = word_perplexity(model, tokenizer, " ".join(words), window, stride)
    assert actual == pytest.approx(np.exp(total / len(words)), rel=1e-4)


def test_a_window_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match="window=129"):
        word_perplexity(tiny_model("llama"), make_tokenizer(), "w1 w2", 129)


@pytest.mark.skipif(not BOOKS.exists(), reason=f"the books are not at {BOOKS}")
def test_a_book_is_cut_into_passages_without_losing_words():
    text = (BOOKS / "alice_in_wonderland.txt").read_text()[:4000]
    words = {word: f"w{i % 60}" for i, word in enumerate(dict.fromkeys(text.split()))}
    made = " ".join(words[word] for word in text.split())
    prefixes, continuations = split_passages(make_tokenizer(), made, 20, 10)
    pairs = zip(prefixes, continuations, strict=True)
    joined = " ".join(prefix + continuation for prefix, continuation in pairs)
    assert made.startswith(joined)
    assert len(made.split()) - len(joined.split()) < 30
