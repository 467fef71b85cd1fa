"""The formula, against a slow float64 computation token by token, and the properties that make it safe."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uld_hf.subtraction import center_logits, certainty, check_subtraction, logit_difference


INF = math.inf
RELATIVE_TOPS = (0.0, 0.01, 0.3, 1.0)
every_relative_top = pytest.mark.parametrize("relative_top", RELATIVE_TOPS)
every_outside = pytest.mark.parametrize("outside", ["keep", "mask"])
every_center = pytest.mark.parametrize("center", [True, False])
alphas_of_any_sign = st.floats(-3, 3).filter(lambda alpha: abs(alpha) > 1e-3)

# Quarters are exact in every floating dtype, also after a shift, and log(0.01) and log(0.3) fall between two of them:
# no test hangs on which side of the threshold a rounding error lands.
quarters = st.integers(-60, 60).map(lambda number: number / 4)
few = settings(max_examples=20)


@st.composite
def logit_rows(draw: st.DrawFn, num_tensors: int) -> list[torch.Tensor]:
    """Float64 tensors of one shape `(rows, vocab_size)`, of quarters from -30 to 30 and some -inf."""
    rows, vocab_size = draw(st.integers(1, 3)), draw(st.integers(2, 8))
    size = rows * vocab_size
    drawn = draw(st.binary(min_size=num_tensors * size, max_size=num_tensors * size))
    numbers = torch.frombuffer(bytearray(drawn), dtype=torch.int8).double().view(num_tensors, rows, vocab_size)
    return list(torch.where(numbers.abs() <= 120, numbers / 4, -INF))


@st.composite
def possible_rows(draw: st.DrawFn, num_tensors: int) -> list[torch.Tensor]:
    """As `logit_rows`, but every row has one token that target and assistants agree is possible."""
    tensors = draw(logit_rows(num_tensors))
    for tensor in tensors:
        tensor[tensor[:, 0] == -INF, 0] = 1.25
    return tensors


def reference_row(
    target: list[float],
    assistants: list[list[float]],
    alphas: Sequence[float],
    relative_top: float,
    outside: str,
    center: bool,
    clamp: bool = False,
) -> list[float]:
    """The formula of one position, as the docstring of `logit_difference` says it, without tensors."""
    out = list(target)
    for assistant, alpha in zip(assistants, alphas, strict=True):
        both = [v for v in range(len(target)) if target[v] > -INF and assistant[v] > -INF]
        shift = 0.0
        if center and both:
            log_sum = math.log(math.fsum(math.exp(assistant[v]) for v in both))
            shift = math.log(len(both)) - log_sum
        for v in both:
            out[v] -= alpha * (max(assistant[v] + shift, 0.0) if clamp else assistant[v] + shift)
    best = max(target)
    for v in range(len(target)):
        if relative_top > 0 and target[v] < best + math.log(relative_top):
            out[v] = -INF if outside == "mask" else target[v]
    return out


def reference(target: torch.Tensor, assistants: Sequence[torch.Tensor], alphas: Sequence[float], **kwargs):
    rows = [
        reference_row(row, [assistant[i].tolist() for assistant in assistants], alphas, **kwargs)
        for i, row in enumerate(target.tolist())
    ]
    return torch.tensor(rows, dtype=torch.float64)


def random_logits(*shape: int, seed: int = 0, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize(("center", "clamp"), [(True, False), (True, True), (False, False)])
@every_outside
@every_relative_top
@few
@given(tensors=possible_rows(3), alphas=st.lists(alphas_of_any_sign, min_size=1, max_size=2))
def test_equals_the_sum_token_by_token(tensors, alphas, relative_top, outside, center, clamp):
    target, assistants = tensors[0], tensors[1 : 1 + len(alphas)]
    kwargs = {"relative_top": relative_top, "outside": outside, "center": center, "clamp": clamp}
    actual = logit_difference(target, assistants, alphas, **kwargs)
    expected = reference(target, assistants, alphas, **kwargs)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@few
@given(tensors=possible_rows(2), alpha=st.floats(0.1, 3))
def test_clamped_no_token_is_lifted(tensors, alpha):
    target, assistant = tensors
    assert (logit_difference(target, [assistant], [alpha], relative_top=0, clamp=True) <= target).all()


def test_clamped_the_order_of_what_the_assistant_does_not_know_is_the_targets():
    target = torch.tensor([[9.0, 4.0, 3.0, 2.0]])
    assistant = torch.tensor([[20.0, -1.0, -9.0, -4.0]])
    actual = logit_difference(target, [assistant], [10.0], relative_top=0, clamp=True)
    assert actual[0, 1:].tolist() == [4.0, 3.0, 2.0]
    assert actual[0, 0] < 2.0


@every_center
@every_outside
@every_relative_top
def test_float32_at_the_size_of_a_model(relative_top, outside, center):
    target, first, second = (random_logits(4, 500, seed=seed).round(decimals=2) for seed in range(3))
    kwargs = {"relative_top": relative_top, "outside": outside, "center": center, "clamp": center}
    actual = logit_difference(target, [first, second], [0.75, -0.4], **kwargs)
    expected = reference(target.double(), [first.double(), second.double()], [0.75, -0.4], **kwargs)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("center", [True, False])
def test_defaults_are_a_filter_that_keeps_the_target_and_a_centred_assistant_which_is_clamped(center):
    target, assistant = random_logits(2, 50), random_logits(2, 50, seed=1)
    settings = {} if center else {"center": False}
    explicit = logit_difference(
        target, [assistant], [0.75], relative_top=0.01, outside="keep", center=center, clamp=center
    )
    assert torch.equal(logit_difference(target, [assistant], [0.75], **settings), explicit)


@every_outside
@every_relative_top
@few
@given(tensors=possible_rows(1), alpha=alphas_of_any_sign, level=quarters)
def test_a_uniform_assistant_changes_no_plausible_token(tensors, alpha, level, relative_top, outside):
    target = tensors[0]
    uniform = torch.full_like(target, level)
    actual = logit_difference(target, [uniform], [alpha], relative_top=relative_top, outside=outside)
    alone = logit_difference(target, [], [], relative_top=relative_top, outside=outside)
    torch.testing.assert_close(actual, alone, rtol=0, atol=1e-12)


def test_without_the_filter_a_uniform_assistant_gives_the_target():
    target = random_logits(3, 500)
    actual = logit_difference(target, [torch.full_like(target, 7.5)], [1.5], relative_top=0)
    torch.testing.assert_close(actual, target, rtol=0, atol=1e-5)


def test_uncentred_a_uniform_assistant_moves_plausible_tokens_against_the_others():
    target = torch.tensor([[4.0, 3.0, -9.0]])
    actual = logit_difference(target, [torch.full_like(target, 2.0)], [1.0], relative_top=0.01, center=False)
    assert actual.tolist() == [[2.0, 1.0, -9.0]]


@every_center
@few
@given(
    tensors=possible_rows(3),
    alphas=st.tuples(alphas_of_any_sign, alphas_of_any_sign),
    relative_top=st.floats(0.001, 1),
)
def test_masking_never_lets_an_implausible_token_win(tensors, alphas, relative_top, center):
    target, *assistants = tensors
    actual = logit_difference(target, assistants, alphas, relative_top=relative_top, outside="mask", center=center)
    chosen = target.gather(-1, actual.argmax(dim=-1, keepdim=True))
    assert (chosen >= target.amax(dim=-1, keepdim=True) + math.log(relative_top)).all()


def test_the_filter_keeps_exactly_the_tokens_at_the_threshold_and_above():
    target = torch.tensor([0.5, 0.05, 0.004, 0.446]).log()[None]
    actual = logit_difference(target, [torch.zeros_like(target)], [1.0], relative_top=0.05, outside="mask")
    assert actual.isfinite().tolist() == [[True, True, False, True]]


def test_the_filter_compares_probabilities_of_the_target_and_not_of_the_difference():
    target = torch.tensor([[2.0, 1.0, -8.0]])
    assistant = torch.tensor([[9.0, 0.0, -9.0]])
    actual = logit_difference(target, [assistant], [1.0], relative_top=0.1, outside="keep", center=False)
    assert actual.tolist() == [[-7.0, 1.0, -8.0]]


@every_center
@every_outside
@every_relative_top
@few
@given(tensors=possible_rows(2), alpha=alphas_of_any_sign)
def test_what_the_target_rules_out_stays_ruled_out(tensors, alpha, relative_top, outside, center):
    target, assistant = tensors
    actual = logit_difference(target, [assistant], [alpha], relative_top=relative_top, outside=outside, center=center)
    assert (actual[target == -INF] == -INF).all()


@every_center
@every_outside
@every_relative_top
@few
@given(tensors=logit_rows(3), alphas=st.tuples(alphas_of_any_sign, alphas_of_any_sign))
def test_never_nan(tensors, alphas, relative_top, outside, center):
    target, *assistants = tensors
    actual = logit_difference(target, assistants, alphas, relative_top=relative_top, outside=outside, center=center)
    assert not actual.isnan().any()


@pytest.mark.parametrize(
    "logits", [[1.0, math.nan, 2.0], [INF, 0.0, 0.0], [-INF, -INF, -INF]], ids=["NaN", "infinite", "nothing possible"]
)
@pytest.mark.parametrize("options", [{}, {"outside": "mask"}, {"gate": 0.1}, {"remove_top_k": 2}, {"center": False}])
def test_a_broken_assistant_breaks_all_of_the_row_and_no_other(options, logits):
    # Of the one plausible token alone NaN would be the most probable: the target's own text.
    target = torch.tensor([[30.0, 0.0, 1.0], [30.0, 0.0, 1.0]])
    assistant = torch.tensor([logits, [1.0, 3.0, 2.0]])
    broken, whole = logit_difference(target, [assistant], [1.0], **{"relative_top": 0.01, **options})
    assert broken.isnan().all()
    assert not whole.isnan().any()


@pytest.mark.parametrize("options", [{}, {"outside": "mask"}, {"gate": 0.1}, {"remove_top_k": 2}, {"center": False}])
def test_a_target_that_is_infinite_breaks_its_row_and_no_other(options):
    target = torch.tensor([[1.0, INF, 2.0], [1.0, 3.0, 2.0]])  # its choice could not be taken away
    assistant = torch.tensor([[0.0, 9.0, 0.0], [0.0, 9.0, 0.0]])
    broken, whole = logit_difference(target, [assistant], [5.0], **{"relative_top": 0.01, **options})
    assert broken.isnan().all()
    assert not whole.isnan().any()


@every_center
def test_an_assistant_that_rules_out_all_that_the_target_allows_changes_nothing(center):
    target = torch.tensor([[1.0, 2.0, -INF, -INF]])
    assistant = torch.tensor([[-INF, -INF, 1.0, 2.0]])
    actual = logit_difference(target, [assistant], [0.75], relative_top=0, center=center)
    assert torch.equal(actual, target)


@every_center
@every_outside
@every_relative_top
def test_a_row_in_which_the_target_rules_out_everything_stays_so(relative_top, outside, center):
    target = torch.full((1, 3), -INF)
    kwargs = {"relative_top": relative_top, "outside": outside, "center": center}
    assert torch.equal(logit_difference(target, [torch.ones(1, 3)], [0.75], **kwargs), target)


@every_center
def test_a_token_that_the_assistant_rules_out_is_left_to_the_target(center):
    target = torch.tensor([[1.0, 2.0, 3.0]])
    assistant = torch.tensor([[0.0, -INF, 1.0]])
    actual = logit_difference(target, [assistant], [0.75], relative_top=0, center=center)
    assert actual[0, 1] == 2.0


@every_center
def test_padded_vocabulary_rows_do_not_change_the_others(center):
    target, assistant = random_logits(2, 10), random_logits(2, 10, seed=1)
    padding = torch.full((2, 6), -INF)
    plain = logit_difference(target, [assistant], [0.75], center=center)
    # The assistant is the target's first layers: its head has the same padded rows, whatever they hold.
    padded = logit_difference(
        torch.cat([target, padding], -1), [torch.cat([assistant, torch.zeros(2, 6)], -1)], [0.75], center=center
    )
    torch.testing.assert_close(padded[:, :10], plain)
    assert (padded[:, 10:] == -INF).all()


@every_center
@every_outside
@every_relative_top
@few
@given(tensors=possible_rows(2), shifts=st.lists(quarters, min_size=3, max_size=3), alpha=alphas_of_any_sign)
def test_a_constant_added_to_the_targets_row_changes_no_probability(
    tensors, shifts, alpha, relative_top, outside, center
):
    target, assistant = tensors
    kwargs = {"relative_top": relative_top, "outside": outside, "center": center}
    shift = torch.tensor(shifts, dtype=torch.float64)[: len(target), None]
    plain = logit_difference(target, [assistant], [alpha], **kwargs)
    shifted = logit_difference(target + shift, [assistant], [alpha], **kwargs)
    torch.testing.assert_close(shifted.softmax(-1), plain.softmax(-1), rtol=0, atol=1e-10)


@every_outside
@every_relative_top
@few
@given(tensors=possible_rows(2), shifts=st.lists(quarters, min_size=3, max_size=3), alpha=alphas_of_any_sign)
def test_a_constant_added_to_a_centred_assistants_row_changes_nothing(tensors, shifts, alpha, relative_top, outside):
    target, assistant = tensors
    shift = torch.tensor(shifts, dtype=torch.float64)[: len(target), None]
    plain = logit_difference(target, [assistant], [alpha], relative_top=relative_top, outside=outside)
    shifted = logit_difference(target, [assistant + shift], [alpha], relative_top=relative_top, outside=outside)
    torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-10)


@every_outside
def test_log_probabilities_of_the_target_do_as_well_as_its_logits(outside):
    target, assistant = random_logits(3, 60), random_logits(3, 60, seed=1)
    from_logits = logit_difference(target, [assistant], [0.75], outside=outside)
    from_log_probs = logit_difference(target.log_softmax(-1), [assistant], [0.75], outside=outside)
    torch.testing.assert_close(from_log_probs.softmax(-1), from_logits.softmax(-1))


@every_center
@every_outside
@few
@given(tensors=possible_rows(3), alphas=st.tuples(alphas_of_any_sign, alphas_of_any_sign))
def test_the_order_of_the_assistants_does_not_matter(tensors, alphas, outside, center):
    target, first, second = tensors
    one_way = logit_difference(target, [first, second], alphas, outside=outside, center=center)
    other_way = logit_difference(target, [second, first], alphas[::-1], outside=outside, center=center)
    torch.testing.assert_close(one_way, other_way, rtol=1e-12, atol=1e-10)


def test_a_negative_alpha_adds_the_assistant():
    target, assistant = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    actual = logit_difference(target, [assistant], [-0.5], relative_top=0, center=False)
    assert actual.tolist() == [[2.5, 1.5]]


def test_subtracting_lowers_what_the_assistant_prefers():
    target = torch.zeros(1, 4)
    assistant = torch.tensor([[5.0, 0.0, 0.0, 0.0]])
    actual = logit_difference(target, [assistant], [0.75])
    assert actual.argmin().item() == 0


@every_center
@pytest.mark.parametrize("relative_top", [0.0, 0.01])
def test_alpha_zero_gives_the_target(relative_top, center):
    target, assistant = random_logits(2, 50), random_logits(2, 50, seed=1)
    assistant[0, 3] = -INF
    actual = logit_difference(target, [assistant], [0.0], relative_top=relative_top, center=center)
    assert torch.equal(actual, target)


@pytest.mark.parametrize(
    ("given_dtype", "result_dtype"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_result_is_at_least_float32(given_dtype, result_dtype):
    target, assistant = random_logits(2, 50).to(given_dtype), random_logits(2, 50, seed=1).to(given_dtype)
    assert logit_difference(target, [assistant], [0.75]).dtype == result_dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_on_in_float32(dtype):
    target, assistant = random_logits(2, 500).to(dtype), random_logits(2, 500, seed=1).to(dtype)
    actual = logit_difference(target, [assistant], [0.75])
    assert torch.equal(actual, logit_difference(target.float(), [assistant.float()], [0.75]))


def test_half_precision_logits_do_not_overflow():
    target = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    actual = logit_difference(target, [-target], [1.0], relative_top=0, center=False)
    assert actual.tolist() == [[120000.0, -120000.0]]


def test_the_arguments_are_not_changed():
    target, assistant = random_logits(2, 50), random_logits(2, 50, seed=1)
    before = target.clone(), assistant.clone()
    logit_difference(target, [assistant], [0.75], outside="mask")
    assert torch.equal(target, before[0])
    assert torch.equal(assistant, before[1])


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 7)])
def test_any_number_of_leading_dimensions(shape):
    target, assistant = random_logits(*shape), random_logits(*shape, seed=1)
    actual = logit_difference(target, [assistant], [0.75])
    rows = logit_difference(target.view(-1, 7), [assistant.view(-1, 7)], [0.75])
    assert torch.equal(actual, rows.view(shape))


def test_centred_logits_have_unit_mean_probability_ratio():
    centred = center_logits(random_logits(3, 40))
    torch.testing.assert_close(centred.exp().mean(dim=-1), torch.ones(3))


def test_centring_counts_possible_tokens_only():
    assert center_logits(torch.tensor([2.0, 2.0, -INF])).tolist() == [0.0, 0.0, -INF]


@pytest.mark.parametrize("alphas", [[], [0.5, 0.5]])
def test_one_alpha_for_each_assistant(alphas):
    target = random_logits(2, 5)
    with pytest.raises(ValueError, match=f"1 assistants but {len(alphas)} alphas"):
        logit_difference(target, [target], alphas)


@pytest.mark.parametrize("shape", [(2, 6), (1, 5), (3, 2, 5)])
def test_shapes_that_would_broadcast_or_not_are_refused(shape):
    with pytest.raises(ValueError, match="must share one vocabulary"):
        logit_difference(random_logits(2, 5), [random_logits(*shape)], [0.75])


@pytest.mark.parametrize("alpha", [0, 0.0, -0.0, 9e-5, -1e-12, 2e4, -1e308, INF, -INF, math.nan])
def test_an_alpha_that_subtracts_nothing_or_everything_is_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha=.* its size must lie between 0.0001 and 10000"):
        check_subtraction(alpha, 0.01, "keep")


@pytest.mark.parametrize("relative_top", [-0.1, 1.1, math.nan, INF])
def test_a_filter_out_of_range_is_refused(relative_top):
    with pytest.raises(ValueError, match=r"relative_top=.* must lie between 0"):
        check_subtraction(0.75, relative_top, "keep")


def test_a_filter_that_leaves_the_first_choice_only_is_refused():
    with pytest.raises(ValueError, match=r"outside='mask' with relative_top=1 leaves the target's first choice"):
        check_subtraction(0.75, 1.0, "mask")


@pytest.mark.parametrize("outside", ["x", "", "Keep", None])
def test_an_unknown_treatment_of_other_tokens_is_refused(outside):
    with pytest.raises(ValueError, match="must be 'keep' or 'mask'"):
        check_subtraction(0.75, 0.01, outside)


def test_clamping_raw_logits_is_refused():
    with pytest.raises(ValueError, match="clamp=True needs center=True"):
        check_subtraction(0.75, 0.01, "keep", center=False, clamp=True)


@pytest.mark.parametrize("settings", [(0.75, 0.01, "keep"), (-2, 0, "mask"), (1, 1, "keep"), (1e-4, 0.99, "mask")])
def test_settings_in_range_are_accepted(settings):
    assert check_subtraction(*settings) is None


# --- gate ---


def test_certainty_is_one_less_the_entropy_as_a_share_of_the_uniform_ones():
    logits = torch.tensor(
        [[2.0, 2.0, 2.0, 2.0], [1.0, 1.0, -INF, -INF], [5.0, -INF, -INF, -INF], [math.log(7), 0.0, 0.0, 0.0]],
        dtype=torch.float64,
    )
    expected = 1 - (0.7 * math.log(1 / 0.7) + 0.3 * math.log(10)) / math.log(4)
    actual = certainty(logits)[:, 0]
    assert actual[:2].tolist() == [0.0, 0.0]  # as sure as a guess among the tokens that there are
    assert math.isnan(actual[2])  # there is nothing to be sure of
    torch.testing.assert_close(actual[3].item(), expected)


@every_center
@every_outside
@every_relative_top
@few
@given(tensors=possible_rows(2), alpha=st.floats(0.1, 3), gate=st.floats(0.01, 0.5))
def test_the_gate_takes_each_position_whole_or_leaves_it_to_the_bit(
    tensors, alpha, gate, relative_top, outside, center
):
    target, assistant = tensors
    options = {"relative_top": relative_top, "outside": outside, "center": center}
    if outside == "mask" and relative_top == 1:
        return  # refused
    gated = logit_difference(target, [assistant], [alpha], gate=gate, **options)
    subtracted = logit_difference(target, [assistant], [alpha], **options)
    for position in range(len(target)):
        is_sure = not bool(certainty(assistant[position]) <= gate)
        assert torch.equal(gated[position], subtracted[position] if is_sure else target[position])


def test_each_assistant_has_a_gate_of_its_own_and_one_is_added_where_another_is_subtracted():
    target = torch.zeros(3, 4, dtype=torch.float64)
    sure, unsure = torch.tensor([9.0, 0, 0, 0]), torch.zeros(4)
    first, second = torch.stack([sure, unsure, unsure]), torch.stack([sure.flip(0), sure.flip(0), unsure])
    added = torch.tensor([[1.0, 2, 3, 4]]).expand(3, 4)
    parts = [part.double() for part in (first, second, added)]
    actual = logit_difference(target, parts, [1.0, 2.0, -0.5], relative_top=0, center=False, gate=0.2)
    expected = torch.stack(
        [
            -parts[0][0] - 2 * parts[1][0] + 0.5 * parts[2][0],
            -2 * parts[1][1] + 0.5 * parts[2][1],
            target[2],
        ]
    )
    assert torch.equal(actual, expected)


def test_where_the_gate_is_shut_no_token_is_ruled_out():
    target = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    for options in ({"remove_top_k": 2, "relative_top": 0}, {"outside": "mask", "relative_top": 0.5}):
        assert torch.equal(logit_difference(target, [torch.zeros(1, 4)], [1.0], gate=0.1, **options), target)
        assert not torch.equal(logit_difference(target, [torch.zeros(1, 4)], [1.0], **options), target)


def test_what_a_processor_has_ruled_out_does_not_make_an_assistant_sure():
    target = torch.tensor([[3.0, 2.0, -INF, -INF]])
    assistant = torch.tensor([[4.0, -4.0, 4.0, 4.0]])  # sure of the first of two, unsure of the first of three
    assert torch.equal(logit_difference(target, [assistant], [1.0], relative_top=0, gate=0.4), target)


@pytest.mark.parametrize("settings", [{"gate": 0.1}, {"by_certainty": True}, {"gate": 0.1, "by_certainty": True}])
def test_an_assistant_that_has_broken_does_not_leave_the_targets_own_output(settings):
    target = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assistant = torch.tensor([[math.nan, 0.0, 0.0], [9.0, 0.0, 0.0]])
    actual = logit_difference(target, [assistant], [1.0], relative_top=0, **settings)
    assert actual[0].isnan().all()
    assert actual[1].isfinite().all()


@pytest.mark.parametrize("gate", [-0.1, 0.51, 1.0, math.nan, INF])
def test_a_gate_that_could_shut_for_good_is_refused(gate):
    with pytest.raises(ValueError, match=r"gate=.* must lie between 0 \(subtract everywhere\) and 0\.5"):
        check_subtraction(1.0, 0.01, "keep", gate=gate)


# --- by certainty ---


@every_center
@every_outside
@every_relative_top
@few
@given(tensors=possible_rows(2), alpha=st.floats(0.1, 3), gate=st.sampled_from([0.0, 0.2]))
def test_by_certainty_every_position_has_an_alpha_of_its_own(tensors, alpha, gate, relative_top, outside, center):
    target, assistant = tensors
    if outside == "mask" and relative_top == 1:
        return  # refused
    options = {"relative_top": relative_top, "outside": outside, "center": center, "gate": gate}
    actual = logit_difference(target, [assistant], [alpha], by_certainty=True, **options)
    for position in range(len(target)):
        own_alpha = alpha * certainty(assistant[position]).nan_to_num(nan=1.0).item()
        expected = logit_difference(target[[position]], [assistant[[position]]], [own_alpha], **options)
        torch.testing.assert_close(actual[[position]], expected)


def test_an_assistant_that_knows_nothing_is_not_subtracted_by_certainty_and_one_token_is_in_full():
    target = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    options = {"relative_top": 0, "center": False, "by_certainty": True}
    assert torch.equal(logit_difference(target, [torch.full((1, 4), 7.0)], [1.0], **options), target)
    one = torch.tensor([[200.0, 0.0, 0.0, 0.0]])
    assert torch.equal(logit_difference(target, [one], [1.0], **options), target - one)


def test_what_is_added_is_added_in_full_by_certainty():
    target, knows = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[3.0, 0, 0, 0]], dtype=torch.float64)
    added = torch.tensor([[1.0, 2, 3, 4]], dtype=torch.float64)
    actual = logit_difference(target, [knows, added], [2.0, -0.5], relative_top=0, center=False, by_certainty=True)
    torch.testing.assert_close(actual, -2 * certainty(knows) * knows + 0.5 * added)


def test_by_certainty_and_rank_are_refused_together():
    with pytest.raises(ValueError, match="by_certainty=True has no meaning with remove_top_k=3"):
        check_subtraction(1.0, 0.0, "keep", remove_top_k=3, by_certainty=True)


# --- replacement ---


@few
@given(
    tensors=possible_rows(3),
    alpha=st.floats(0.1, 3),
    weight=st.floats(0.1, 3),
    clamp=st.booleans(),
    by_certainty=st.booleans(),
)
def test_where_the_gate_is_open_what_is_added_takes_the_targets_place(tensors, alpha, weight, clamp, by_certainty):
    target, knows, wording = tensors
    options = {"relative_top": 0, "gate": 0.2, "clamp": clamp, "by_certainty": by_certainty, "replace": True}
    actual = logit_difference(target, [knows, wording], [alpha, -weight], **options)
    possible = target > -INF
    fact = center_logits(knows.masked_fill(~possible, -INF))
    fact = fact.clamp(min=0) if clamp else fact
    said = weight * center_logits(wording.masked_fill(~possible, -INF))  # never clamped
    weights = alpha * certainty(knows).nan_to_num(nan=1.0) if by_certainty else alpha
    expected = said - weights * fact.masked_fill(fact == -INF, 0)
    for position in range(len(target)):
        if not certainty(knows[position]) <= 0.2:
            torch.testing.assert_close(actual[position], expected[position].masked_fill(~possible[position], -INF))
        else:
            assert torch.equal(actual[position], target[position])


def test_a_target_that_is_replaced_has_no_say():
    torch.manual_seed(0)
    knows, wording = torch.randn(2, 1, 6, dtype=torch.float64)
    knows[0, 0] = 9
    targets = torch.randn(2, 1, 6, dtype=torch.float64)
    options = {"relative_top": 0, "gate": 0.2, "replace": True}
    first, second = (logit_difference(target, [knows, wording], [1.0, -1.2], **options) for target in targets)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "settings", [{"gate": 0.0}, {"relative_top": 0.01}, {"remove_top_k": 3}, {"gate": 0.0, "relative_top": 0.01}]
)
def test_a_replacement_that_would_be_everywhere_or_go_by_the_target_is_refused(settings):
    good = {"relative_top": 0.0, "gate": 0.1}
    assert check_subtraction(1.0, outside="keep", replace=True, **good) is None
    with pytest.raises(ValueError, match="replace=True needs gate above 0"):
        check_subtraction(1.0, outside="keep", replace=True, **(good | settings))


@pytest.mark.parametrize("name", ["replace", "by_certainty"])
def test_what_is_no_yes_or_no_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=1 must be True or False"):
        check_subtraction(1.0, 0.0, "keep", gate=0.1, **{name: 1})


@pytest.mark.parametrize("alphas", [[1.0], [1.0, 0.5], [-1.0]])
def test_to_replace_the_target_by_nothing_is_refused(alphas):
    logits = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="needs an assistant that is subtracted and one that is added"):
        logit_difference(logits, [logits] * len(alphas), alphas, relative_top=0, gate=0.1, replace=True)
