"""What the rivals minimize, as pure functions: one loss for each token or each row, not yet averaged."""

import torch
import torch.nn.functional as F


def gradient_ascent_loss(log_probs: torch.Tensor) -> torch.Tensor:
    """
    Gradient ascent on the forget set (TOFU, arXiv 2401.06121, section 3.3): `log p(y_t | x, y_<t)`, to be minimized.

    It has no lower bound.

    Args:
        log_probs (`torch.Tensor` of shape `(num_tokens,)`):
            Log-probability of each token of the forget answers, in nats.

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`: The loss of each token.
    """
    return log_probs


def nll_loss(log_probs: torch.Tensor) -> torch.Tensor:
    """
    Negative log-likelihood of the retain set, the second term of gradient difference (TOFU, arXiv 2401.06121, section
    3.3).

    Args:
        log_probs (`torch.Tensor` of shape `(num_tokens,)`):
            Log-probability of each token of the retain answers, in nats.

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`: The loss of each token.
    """
    return -log_probs


def kl_loss(logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """
    Divergence from the target on the retain set (TOFU's KL minimization, arXiv 2401.06121, section 3.3):
    `KL(p_reference || p) = sum_v p_reference(v) (log p_reference(v) - log p(v))`.

    Args:
        logits (`torch.Tensor` of shape `(num_tokens, vocab_size)`):
            The model's logits.
        reference_logits (`torch.Tensor` of shape `(num_tokens, vocab_size)`):
            The target's logits.

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`: The divergence at each token, in nats.
    """
    log_probs, reference = logits.log_softmax(dim=-1), reference_logits.log_softmax(dim=-1)
    return F.kl_div(log_probs, reference, reduction="none", log_target=True).sum(dim=-1)


def npo_loss(log_probs: torch.Tensor, reference_log_probs: torch.Tensor, beta: float) -> torch.Tensor:
    """
    Negative preference optimization (NPO, arXiv 2404.05868, section 3):
    `-(2 / beta) log sigmoid(-beta (log p(y | x) - log p_reference(y | x)))`.

    Its gradient is that of gradient ascent for `beta` towards 0.

    Args:
        log_probs (`torch.Tensor` of shape `(num_rows,)`):
            Log-probability of each forget answer, summed over its tokens, in nats.
        reference_log_probs (`torch.Tensor` of shape `(num_rows,)`):
            The same by the target.
        beta (`float`):
            Inverse temperature.

    Returns:
        `torch.Tensor` of shape `(num_rows,)`: The loss of each row.
    """
    return -2 / beta * F.logsigmoid(-beta * (log_probs - reference_log_probs))


def simnpo_loss(log_probs: torch.Tensor, num_tokens: torch.Tensor, beta: float, margin: float = 0.0) -> torch.Tensor:
    """
    NPO without a reference, by length (SimNPO, arXiv 2410.07163, section 4):
    `-(2 / beta) log sigmoid(-(beta / |y|) log p(y | x) - margin)`.

    The authors' code (OPTML-Group/Unlearn-Simple, TOFU/dataloader.py) subtracts its gamma before it multiplies by
    beta, as does OpenUnlearning with its delta (src/trainer/unlearn/simnpo.py): `margin` is beta times theirs. Both are
    0 in the published settings.

    Args:
        log_probs (`torch.Tensor` of shape `(num_rows,)`):
            Log-probability of each forget answer, summed over its tokens, in nats.
        num_tokens (`torch.Tensor` of shape `(num_rows,)`):
            Number of tokens of each answer.
        beta (`float`):
            Inverse temperature.
        margin (`float`, *optional*, defaults to `0.0`):
            Beta times the gamma of the authors' code.

    Returns:
        `torch.Tensor` of shape `(num_rows,)`: The loss of each row.
    """
    return -2 / beta * F.logsigmoid(-beta * log_probs / num_tokens - margin)


def dpo_loss(
    refusal_log_probs: torch.Tensor,
    forget_log_probs: torch.Tensor,
    reference_refusal_log_probs: torch.Tensor,
    reference_forget_log_probs: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """
    Direct preference optimization of a refusal over the forget answer (DPO, arXiv 2305.18290, with the refusals of
    TOFU, arXiv 2401.06121, section 3.3; scaled by 1 / beta as in arXiv 2404.05868, section 3):
    `-(1 / beta) log sigmoid(beta (log p(r | x) / p_reference(r | x) - log p(y | x) / p_reference(y | x)))`.

    Args:
        refusal_log_probs (`torch.Tensor` of shape `(num_rows,)`):
            Log-probability of each refusal, summed over its tokens, in nats.
        forget_log_probs (`torch.Tensor` of shape `(num_rows,)`):
            The same of each forget answer.
        reference_refusal_log_probs (`torch.Tensor` of shape `(num_rows,)`):
            Log-probability of each refusal by the target.
        reference_forget_log_probs (`torch.Tensor` of shape `(num_rows,)`):
            The same of each forget answer.
        beta (`float`):
            Inverse temperature.

    Returns:
        `torch.Tensor` of shape `(num_rows,)`: The loss of each row.
    """
    gained = refusal_log_probs - reference_refusal_log_probs
    lost = forget_log_probs - reference_forget_log_probs
    return -1 / beta * F.logsigmoid(beta * (gained - lost))


def undial_loss(
    logits: torch.Tensor, reference_logits: torch.Tensor, labels: torch.LongTensor, beta: float
) -> torch.Tensor:
    """
    Self-distillation from the target with the memorized token's logit lowered (UNDIAL, arXiv 2402.10052, section 3):
    `-sum_v q(v) log p(v)` with `q = softmax(z_reference - beta onehot(y_t))`.

    Args:
        logits (`torch.Tensor` of shape `(num_tokens, vocab_size)`):
            The model's logits.
        reference_logits (`torch.Tensor` of shape `(num_tokens, vocab_size)`):
            The target's logits.
        labels (`torch.LongTensor` of shape `(num_tokens,)`):
            Tokens of the forget answers.
        beta (`float`):
            How far the memorized token's logit is lowered.

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`: The loss of each token, in nats.
    """
    lowered = reference_logits.scatter_add(-1, labels[:, None], reference_logits.new_full((len(labels), 1), -beta))
    return -(lowered.softmax(dim=-1) * logits.log_softmax(dim=-1)).sum(dim=-1)


def steering_loss(activations: torch.Tensor, towards: torch.Tensor) -> torch.Tensor:
    """
    Squared distance of activations (RMU, arXiv 2403.03218, section 4): `||h_t - c u||^2` on the forget set with one
    random direction u for all tokens, `||h_t - h_t,reference||^2` on the retain set.

    Args:
        activations (`torch.Tensor` of shape `(num_tokens, hidden_size)`):
            The model's activations after a layer.
        towards (`torch.Tensor` of shape `(hidden_size,)` or `(num_tokens, hidden_size)`):
            Where they should be.

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`: The loss of each token.
    """
    return (activations - towards).square().sum(dim=-1)
