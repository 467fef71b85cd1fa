"""Draws from a model's own distribution, whatever its generation config would make of it."""

from typing import Any


# Arguments of `generate()`. What is left out, or `None`, is taken from the model's generation config: many checkpoints
# have a penalty or a cut there.
PLAIN_SAMPLING: dict[str, Any] = {
    "do_sample": True,
    "num_beams": 1,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
}
