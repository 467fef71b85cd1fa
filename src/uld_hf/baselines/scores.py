"""What a model makes of the tokens of a batch that count in the loss."""

from dataclasses import dataclass

import torch


@dataclass
class Scores:
    """
    What a model makes of the tokens of a batch that count.

    Args:
        rows (`torch.LongTensor` of shape `(num_tokens,)`):
            Row of each token.
        log_probs (`torch.Tensor` of shape `(num_tokens,)`, *optional*):
            Log-probability of each token, in nats.
        logits (`torch.Tensor` of shape `(num_tokens, vocab_size)`, *optional*):
            Logits that predict each token.
        activations (`torch.Tensor` of shape `(num_tokens, hidden_size)`, *optional*):
            Activations at each token, after the steering layer.
    """

    rows: torch.LongTensor
    log_probs: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    activations: torch.Tensor | None = None


def log_likelihoods(logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """
    Log-probabilities of tokens.

    Args:
        logits (`torch.Tensor` of shape `(num_tokens, vocab_size)`):
            Logits that predict each token.
        labels (`torch.LongTensor` of shape `(num_tokens,)`):
            The tokens.

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`: In nats.
    """
    return logits.log_softmax(dim=-1).gather(-1, labels[:, None]).squeeze(-1)


def sum_rows(values: torch.Tensor, rows: torch.LongTensor, wanted: torch.BoolTensor) -> torch.Tensor:
    """
    Sums over the tokens of each wanted row.

    Args:
        values (`torch.Tensor` of shape `(num_tokens,)`):
            A value for each token.
        rows (`torch.LongTensor` of shape `(num_tokens,)`):
            Row of each token.
        wanted (`torch.BoolTensor` of shape `(num_rows,)`):
            Rows to sum over.

    Returns:
        `torch.Tensor`: A sum for each wanted row, in their order.
    """
    return values.new_zeros(len(wanted)).index_add(0, rows, values)[wanted]
