"""`ULDModelConfig`: everything a saved unlearned model says about itself."""

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .assistant import check_num_layers, select_layers
from .logit_difference import Outside, check_subtraction


class ULDModelConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ULDForCausalLM`]: which target, which assistant, and how the one is subtracted from the other.

    The subtraction's settings (`alpha`, `relative_top`, `outside`, `center`, `clamp`) may be changed on a loaded model;
    they are checked at every forward pass.

    Args:
        target_config ([`~transformers.PreTrainedConfig`] or `dict[str, Any]`):
            Configuration of the target.
        target_name_or_path (`str`, *optional*):
            Hub id or folder from which the target is loaded.
        target_revision (`str`, *optional*):
            Revision of the target on the Hub.
        target_fingerprint (`dict[str, str]`, *optional*):
            Hashes of the target's tensors, see [`uld_hf.hub.fingerprint_target`].
        num_assistant_layers (`int`, *optional*, defaults to `8`):
            Number K of the target's first decoder layers that the assistant runs on.
        alpha (`float`, *optional*, defaults to `0.75`):
            Weight of the assistant's logits, which are subtracted (paper section 4.1: 0.75 on TOFU, 0.5 on books).
        relative_top (`float`, *optional*, defaults to `0.01`):
            Subtract only at tokens whose target probability is at least this fraction of the most probable token's;
            `0` subtracts everywhere.
        outside (`"keep"` or `"mask"`, *optional*, defaults to `"keep"`):
            Tokens left out by `relative_top` keep the target's logits, or can't be chosen.
        center (`bool`, *optional*, defaults to `True`):
            Subtract the assistant's `log p + log V`, so that a uniform assistant changes nothing.
        clamp (`bool`, *optional*, defaults to `False`):
            Do not lift the tokens that the assistant finds less probable than a uniform guess (not in the paper).

    Raises:
        ValueError: If the assistant would have more layers than the target, or a setting of the subtraction is out of
            range.
    """

    model_type = "uld"

    def __init__(
        self,
        target_config: PreTrainedConfig | dict[str, Any] | None = None,
        target_name_or_path: str | None = None,
        target_revision: str | None = None,
        target_fingerprint: dict[str, str] | None = None,
        num_assistant_layers: int = 8,
        alpha: float = 0.75,
        relative_top: float = 0.01,
        outside: Outside = "keep",
        center: bool = True,
        clamp: bool = False,
        **kwargs: Any,
    ):
        if isinstance(target_config, dict):
            target_config = AutoConfig.for_model(**target_config)
        # transformers builds every config class once without arguments to find its defaults, so None must pass here.
        if target_config is not None:
            check_num_layers(num_assistant_layers, target_config)
        check_subtraction(alpha, relative_top, outside, center, clamp)
        self.target_config = target_config
        self.target_name_or_path = target_name_or_path
        self.target_revision = target_revision
        self.target_fingerprint = target_fingerprint
        self.num_assistant_layers = num_assistant_layers
        self.alpha = alpha
        self.relative_top = relative_top
        self.outside = outside
        self.center = center
        self.clamp = clamp
        super().__init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """
        The target's text config, with the assistant's layers after the target's own.

        `generate()` builds its cache from this config: one ordinary cache holds the N layers of the target and the K
        of the assistant, and is reordered, cropped, repeated and offloaded as any other.
        """
        if self.target_config is None:
            return self
        text_config = copy.deepcopy(self.target_config.get_text_config(decoder=decoder, encoder=encoder))
        layers = range(text_config.num_hidden_layers)
        select_layers(text_config, [*layers, *layers[: self.num_assistant_layers]])
        return text_config
