"""The loss of baking: how far the student's next-token distribution is from the composed model's, token by token.

Logits of student and teacher are made one tile of tokens at a time. The teacher's come from the hidden states of target
and assistants, or from the most probable tokens that were written to disk.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..training.losses import chunked_loss, make_head, tile_tokens, token_weights


Divergence = Literal["forward_kl", "reverse_kl", "js"]
DIVERGENCES = ("forward_kl", "reverse_kl", "js")


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q); what p rules out adds nothing, also where q rules it out."""
    impossible = log_p == -torch.inf
    return (log_p.exp() * (log_p - log_q).masked_fill(impossible, 0.0)).sum(dim=-1)


def token_divergence(student: torch.Tensor, teacher: torch.Tensor, kind: Divergence) -> torch.Tensor:
    """
    Divergence between student and teacher at each token.

    Args:
        student (`torch.Tensor` of shape `(num_tokens, num_outcomes)`):
            The student's log-probabilities.
        teacher (`torch.Tensor` of shape `(num_tokens, num_outcomes)`):
            The teacher's log-probabilities.
        kind (`str`):
            `"forward_kl"`, KL(teacher || student); `"reverse_kl"`, KL(student || teacher); or `"js"`, the mean of the
            two's KL to their mixture (Jensen-Shannon; arXiv 2306.13649, equation 1, with beta 1/2).

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`: In nats.

    Raises:
        ValueError: If `kind` is another word.
    """
    if kind == "forward_kl":
        return _kl(teacher, student)
    if kind == "reverse_kl":
        return _kl(student, teacher)
    if kind == "js":
        # What both rule out would be -inf - (-inf) in the mixture's gradient.
        neither = (student == -torch.inf) & (teacher == -torch.inf)
        mixture = torch.logaddexp(student.masked_fill(neither, 0.0), teacher.masked_fill(neither, 0.0)) - math.log(2)
        return 0.5 * (_kl(teacher, mixture) + _kl(student, mixture))
    raise ValueError(f"divergence={kind!r} must be one of {DIVERGENCES}.")


class Outcomes(NamedTuple):
    """
    What is compared of student and teacher at some tokens.

    Args:
        student (`torch.Tensor` of shape `(num_tokens, num_outcomes)`):
            The student's log-probabilities.
        teacher (`torch.Tensor` of shape `(num_tokens, num_outcomes)`):
            The teacher's log-probabilities.
        first_choices (`torch.LongTensor` of shape `(num_tokens,)`):
            The token that the teacher finds most probable.
        likelihoods (`torch.Tensor` of shape `(num_tokens,)`):
            The teacher's log-probability of the text's own next token, at temperature 1.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    first_choices: torch.LongTensor
    likelihoods: torch.Tensor


# Targets are no dataclasses: FSDP would look into them, and round them to the type that the student computes in.
class ComposedTargets:
    """
    What a student must match: the composed distribution, of all tokens of the vocabulary.

    Args:
        hidden (`Sequence[torch.Tensor]`, each of shape `(num_tokens, hidden_size)`):
            Last hidden states of the target and of each assistant.
        head (`Callable[[torch.Tensor], torch.Tensor]`):
            The head that all of them share, see [`uld_hf.training.losses.make_head`].
        subtract (`Callable`):
            From the target's logits and a list of the assistants' to the composed logits: `ULDForCausalLM.subtract`.
    """

    def __init__(
        self,
        hidden: Sequence[torch.Tensor],
        head: Callable[[torch.Tensor], torch.Tensor],
        subtract: Callable[[torch.Tensor, list[torch.Tensor]], torch.Tensor],
    ):
        self.hidden, self.head, self.subtract = hidden, head, subtract

    @torch.no_grad()
    def log_probs(self, where: slice, temperature: float) -> torch.Tensor:
        """
        The teacher's log-probabilities of some tokens.

        Args:
            where (`slice`):
                Which tokens.
            temperature (`float`):
                Temperature of the distribution.

        Returns:
            `torch.Tensor` of shape `(num_tokens, vocab_size)`: In float32.
        """
        # The teacher is what is served: its own type, whatever the student trains in.
        with torch.autocast(self.hidden[0].device.type, enabled=False):
            target, *assistants = (self.head(hidden[where]) for hidden in self.hidden)
            return (self.subtract(target, assistants) / temperature).log_softmax(dim=-1)

    def outcomes(
        self, student: torch.Tensor, next_tokens: torch.LongTensor, where: slice, temperature: float
    ) -> Outcomes:
        """
        What is compared of student and teacher: here every token of the vocabulary.

        Args:
            student (`torch.Tensor` of shape `(num_tokens, vocab_size)`):
                The student's log-probabilities at that temperature.
            next_tokens (`torch.LongTensor` of shape `(num_tokens,)`):
                The token that comes next in the text.
            where (`slice`):
                Which tokens these are.
            temperature (`float`):
                Temperature of both distributions.

        Returns:
            [`Outcomes`]: Both sides.
        """
        teacher = self.log_probs(where, temperature)
        return Outcomes(student, teacher, teacher.argmax(dim=-1), likelihoods(teacher, next_tokens, temperature))


class TopKTargets:
    """
    What a student must match: the teacher's most probable tokens, and all others together as one outcome.

    The divergence between these coarser distributions is at most that between the whole ones.

    Args:
        tokens (`torch.LongTensor` of shape `(num_tokens, k)`):
            The most probable tokens, the first choice first.
        top_log_probs (`torch.Tensor` of shape `(num_tokens, k)`):
            Their log-probabilities, at the temperature of the comparison.
        rest (`torch.Tensor` of shape `(num_tokens,)`):
            Log-probability of all other tokens together.
        likelihoods (`torch.Tensor` of shape `(num_tokens,)`):
            Log-probability of the text's own next token, whichever it is, at temperature 1.
    """

    def __init__(
        self, tokens: torch.LongTensor, top_log_probs: torch.Tensor, rest: torch.Tensor, likelihoods: torch.Tensor
    ):
        self.tokens, self.top_log_probs, self.rest, self.likelihoods = tokens, top_log_probs, rest, likelihoods

    def outcomes(
        self, student: torch.Tensor, next_tokens: torch.LongTensor, where: slice, temperature: float
    ) -> Outcomes:
        """What is compared, see [`ComposedTargets.outcomes`]: here the top tokens, and all others as one outcome."""
        tokens = self.tokens[where]
        teacher = torch.cat([self.top_log_probs[where], self.rest[where, None]], dim=-1)
        return Outcomes(split_top(student, tokens), teacher, tokens[:, 0], self.likelihoods[where])


def likelihoods(log_probs: torch.Tensor, tokens: torch.LongTensor, temperature: float) -> torch.Tensor:
    """
    Log-probability of one token at each place, at temperature 1.

    Args:
        log_probs (`torch.Tensor` of shape `(num_tokens, vocab_size)`):
            Log-probabilities at another temperature.
        tokens (`torch.LongTensor` of shape `(num_tokens,)`):
            The tokens.
        temperature (`float`):
            That temperature.

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`: The log-probabilities.
    """
    own = log_probs.gather(-1, tokens[:, None])[:, 0]
    return own if temperature == 1.0 else temperature * own - (temperature * log_probs).logsumexp(dim=-1)


def split_top(log_probs: torch.Tensor, tokens: torch.LongTensor) -> torch.Tensor:
    """
    A distribution over some tokens and all others together.

    Args:
        log_probs (`torch.Tensor` of shape `(num_tokens, vocab_size)`):
            Log-probabilities.
        tokens (`torch.LongTensor` of shape `(num_tokens, k)`):
            The tokens that stay apart, fewer than there are.

    Returns:
        `torch.Tensor` of shape `(num_tokens, k + 1)`: Their log-probabilities, and that of all others together.
    """
    # Summed over the others themselves: 1 minus the sum of the top is nothing but rounding where they have it all.
    others = log_probs.scatter(-1, tokens, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, tokens), others], dim=-1)


def likelihood_gap(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """
    How far apart student and teacher are in the likelihood of the text's own tokens.

    A divergence hardly sees a token that the teacher finds improbable, whether it is a hundred or a million times so;
    the text that is forgotten consists of such tokens, and its likelihood is what many tests look at.

    Args:
        student (`torch.Tensor` of shape `(num_tokens,)`):
            The student's log-probabilities of these tokens.
        teacher (`torch.Tensor` of shape `(num_tokens,)`):
            The teacher's.

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`: Smooth L1 distance of the two (half the square, below a difference of 1
        nat).
    """
    return F.smooth_l1_loss(student, teacher, reduction="none")


@dataclass
class BakeLossOutput(ModelOutput):
    """
    What a forward pass of the student with `retain_mask` and `targets` returns.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`):
            `forget_divergence / num_forget + retain_weight * retain_divergence / num_retain`, and `likelihood_weight`
            times the same of the likelihood gap.
        forget_divergence (`torch.FloatTensor`):
            Sum over forget tokens, in nats.
        retain_divergence (`torch.FloatTensor`):
            Sum over retain tokens, in nats.
        forget_agreed (`torch.LongTensor`):
            Number of forget tokens at which student and teacher have the same first choice.
        retain_agreed (`torch.LongTensor`):
            The same of retain tokens.
    """

    loss: torch.FloatTensor | None = None
    forget_divergence: torch.FloatTensor | None = None
    retain_divergence: torch.FloatTensor | None = None
    forget_agreed: torch.LongTensor | None = None
    retain_agreed: torch.LongTensor | None = None


def bake_loss(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    labels: torch.LongTensor,
    retain_mask: torch.BoolTensor,
    num_items: torch.Tensor,
    targets: ComposedTargets | TopKTargets,
    *,
    retain_weight: float,
    kind: Divergence,
    temperature: float,
    likelihood_weight: float = 0.0,
    chunk_size: int | None = None,
) -> BakeLossOutput:
    """
    The student's loss: mean divergence from the teacher on forget tokens, plus `retain_weight` times that on the rest.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The student, without PEFT's wrapper.
        hidden (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`):
            Its last hidden states.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Tokens, not shifted. Only where they are not -100 is compared; which token it is matters to the likelihood
            gap alone.
        retain_mask (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
            `True` for tokens of what must be kept.
        num_items (`torch.Tensor` of shape `(2,)`):
            Number of forget and of retain tokens of the whole optimizer step.
        targets ([`ComposedTargets`] or [`TopKTargets`]):
            The teacher at the compared tokens, in the order of `labels`.
        retain_weight (`float`):
            Weight of the retain term.
        kind (`str`):
            The divergence, see [`token_divergence`].
        temperature (`float`):
            Temperature of both distributions in the divergence.
        likelihood_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the [`likelihood_gap`] beside the divergence, at temperature 1.
        chunk_size (`int`, *optional*):
            Tokens per tile of logits. Defaults to [`tile_tokens`].

    Returns:
        [`BakeLossOutput`]: The loss and its parts.
    """
    counted = labels[:, 1:] != -100
    next_tokens = labels[:, 1:][counted]
    hidden, retain_mask = hidden[:, :-1][counted], retain_mask[:, 1:][counted]
    trained = [parameter for parameter in model.get_output_embeddings().parameters() if parameter.requires_grad]
    if len(hidden) == 0:  # a micro-batch without answers still has to reach backward(), and all that is trained
        zero = sum((parameter.sum() for parameter in trained), hidden.sum()) * 0.0
        none = zero.detach()
        return BakeLossOutput(zero, none, none, none.long(), none.long())

    def score(
        logits: torch.Tensor, where: slice, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            logits = logits.float().requires_grad_()
            log_probs = (logits / temperature).log_softmax(dim=-1)
            compared = targets.outcomes(log_probs, next_tokens[where], where, temperature)
            divergence = loss = token_divergence(compared.student, compared.teacher, kind)
            if likelihood_weight:
                given = likelihoods(log_probs, next_tokens[where], temperature)
                gap = likelihood_gap(given, compared.likelihoods)
                loss = divergence + likelihood_weight * gap
            (gradient,) = torch.autograd.grad((loss * weights).sum(), logits)
        agreed = log_probs.argmax(dim=-1) == compared.first_choices
        return loss.detach(), torch.stack([divergence.detach(), agreed.to(divergence.dtype)], dim=-1), gradient

    chunk_size = chunk_size or tile_tokens(model.config.get_text_config(decoder=True).vocab_size)
    weights = token_weights(retain_mask, num_items, retain_weight)
    loss, _, parts = chunked_loss(hidden, weights, make_head(model), score, chunk_size, trained)
    per_token, agreed = parts[:, 0], parts[:, 1].bool()
    return BakeLossOutput(
        loss=loss,
        forget_divergence=per_token[~retain_mask].sum(),
        retain_divergence=per_token[retain_mask].sum(),
        forget_agreed=(agreed & ~retain_mask).sum(),
        retain_agreed=(agreed & retain_mask).sum(),
    )
