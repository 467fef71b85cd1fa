"""`ULDModelConfig`: everything a saved unlearned model says about itself."""

import copy
import difflib
import importlib
import re
from numbers import Real
from typing import Any, Self

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from .saved_files import CHECKSUM, DamagedFileError, check_checksum
from .subtraction import Outside, check_replacement, check_subtraction, clamp_or_default
from .truncated_config import ADAPTER_NAME, check_num_layers, select_layers


# Settings of the subtraction that all assistants of a model have in common.
SHARED_SETTINGS = ("relative_top", "outside", "center", "clamp", "remove_top_k", "gate", "by_certainty", "replace")
# Those that an assistant may be trained for: one alone cannot take the target's place.
SETTINGS_OF_ONE = SHARED_SETTINGS[:-1]


def meant_setting(name: str) -> str | None:
    """
    The setting of the subtraction that a name is nearly the name of: set or given, it would change nothing.

    Args:
        name (`str`):
            A name.

    Returns:
        `str` or `None`: The setting; `None` if there is none, or the name is one.
    """
    known = ("alpha", *SHARED_SETTINGS)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return close[0] if close and name not in known else None


def given_settings(**settings: Any) -> dict[str, Any]:
    """
    Those settings of the subtraction that were given, to be put over saved ones.

    Args:
        settings (`Any`):
            By name, `None` where nothing was given.

    Returns:
        `dict[str, Any]`: Those that are not `None`; with `center=False`, `clamp=False` too unless it was given.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if given.get("center") is False:  # raw logits have no zero to clamp at
        given.setdefault("clamp", False)
    return given


def check_assistants(assistants: dict[str, dict[str, Any]], target_config: PreTrainedConfig | None) -> None:
    """
    Refuse a table of assistants that names none, or one that cannot be.

    Args:
        assistants (`dict[str, dict[str, Any]]`):
            `"num_layers"` and `"alpha"` by name.
        target_config ([`~transformers.PreTrainedConfig`], *optional*):
            Configuration of the target.

    Raises:
        ValueError: If there is none, a name cannot be a folder's, or an entry is not a number of layers and a weight.
    """
    if not isinstance(assistants, dict) or not assistants:
        raise ValueError(f"assistants={assistants!r} names no assistant: the output would be the target's own.")
    for name, assistant in assistants.items():
        check_name(name)
        if not isinstance(assistant, dict) or set(assistant) != {"num_layers", "alpha"}:
            raise ValueError(f"The entry of assistant {name!r} must have 'num_layers' and 'alpha', got {assistant!r}.")
        num_layers, alpha = assistant["num_layers"], assistant["alpha"]
        if type(num_layers) is not int or not isinstance(alpha, Real) or isinstance(alpha, bool):
            raise ValueError(
                f"Assistant {name!r} has num_layers={num_layers!r} and alpha={alpha!r}: an integer and a number are "
                "needed, e.g. 8 and 1.25."
            )
        # transformers builds every config class once without arguments to find its defaults, so None must pass here.
        if target_config is not None:
            check_num_layers(assistant["num_layers"], target_config)


def check_name(name: str) -> None:
    """
    Refuse an assistant's name that cannot be the name of its folder, its PEFT adapter and its module.

    Args:
        name (`str`):
            Name of an assistant.

    Raises:
        ValueError: If it has other characters than letters, digits, `-` and `_`, or is `"default"`.
    """
    if name == "default":  # PEFT writes an adapter of that name to no folder of its own
        raise ValueError("An assistant cannot be called 'default': give it another name=.")
    # Of names like "keys", PyTorch's containers say that they are taken.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in dir(nn.ModuleDict()):
        raise ValueError(f"The assistant's name {name!r} must consist of letters, digits, '-' and '_'. Give name=.")


class SeveralAssistantsError(ValueError, AttributeError):
    """A setting of "the" assistant where there are several: for `hasattr`, which transformers asks, there is none."""


class ULDModelConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ULDForCausalLM`]: which target, which assistant, and how the one is subtracted from the other.

    The settings of the subtraction (`alpha`, `relative_top`, `outside`, `center`, `clamp`, `remove_top_k`, `gate`,
    `by_certainty`, `replace`) may be changed on a loaded model; they are checked at every forward pass. With several
    assistants, each has an `alpha` of its own; a negative one adds the assistant, as the rivals do (docs/baselines.md).

    Args:
        target_config ([`~transformers.PreTrainedConfig`] or `dict[str, Any]`):
            Configuration of the target.
        target_name_or_path (`str`, *optional*):
            Hub id or folder from which the target is loaded.
        target_revision (`str`, *optional*):
            Revision of the target on the Hub.
        target_fingerprint (`dict[str, str]`, *optional*):
            Hashes of the target's tensors and tokenizer, see [`uld_hf.hub.fingerprint_target`].
        num_assistant_layers (`int`, *optional*, defaults to `8`):
            Number K of the target's first decoder layers that the assistant runs on.
        alpha (`float`, *optional*, defaults to `1.25`):
            Weight of the assistant's logits, which are subtracted (paper section 4.1, without centring: 0.75 on TOFU,
            0.5 on books).
        assistants (`dict[str, dict[str, Any]]`, *optional*):
            `"num_layers"` and `"alpha"` of each assistant by name, in place of `num_assistant_layers` and `alpha`.
        relative_top (`float`, *optional*, defaults to `0.01`):
            Subtract only at tokens whose target probability is at least this fraction of the most probable token's;
            `0` subtracts everywhere.
        outside (`"keep"` or `"mask"`, *optional*, defaults to `"keep"`):
            Tokens left out by `relative_top` keep the target's logits, or can't be chosen.
        center (`bool`, *optional*, defaults to `True`):
            Subtract the assistant's `log p + log V`, so that a uniform assistant changes nothing.
        clamp (`bool`, *optional*, defaults to the value of `center`):
            Do not lift the tokens that the assistant finds less probable than a uniform guess (not in the paper).
        remove_top_k (`int`, *optional*, defaults to `0`):
            Instead of subtracting, rule out so many tokens, those with the highest weighted sum of the assistants'
            logits (Divergence Decoding's rank variant, not in the paper).
        gate (`float`, *optional*, defaults to `0.0`):
            Subtract an assistant only at positions where it is surer than this (0: uniform, 1: one token), and add one
            only where another is subtracted; elsewhere the target's logits are kept to the bit (not in the paper).
        by_certainty (`bool`, *optional*, defaults to `False`):
            Multiply the weight of an assistant that is subtracted by how sure it is, 0 to 1, at every position (not in
            the paper).
        replace (`bool`, *optional*, defaults to `False`):
            Where the gate is open, let the assistants that are added take the target's place (not in the paper).
        training (`dict[str, dict[str, Any]]`, *optional*):
            How each assistant was trained, for the model card: sizes of the data, settings, last metrics. Never texts.
            [`~hub.record_evaluation`] adds results of an evaluation under `"evaluation"`, and what was evaluated under
            `"evaluated"`: the next save leaves both out if anything else is subtracted by then.
        files (`dict[str, dict[str, Any]]`, *optional*):
            Size and hash of each of the assistants' files. Written by `save_pretrained`.

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
        alpha: float = 1.25,
        assistants: dict[str, dict[str, Any]] | None = None,
        relative_top: float = 0.01,
        outside: Outside = "keep",
        center: bool = True,
        clamp: bool | None = None,
        remove_top_k: int = 0,
        gate: float = 0.0,
        by_certainty: bool = False,
        replace: bool = False,
        training: dict[str, dict[str, Any]] | None = None,
        files: dict[str, dict[str, Any]] | None = None,
        **kwargs: Any,
    ):
        # Importing the model registers it with AutoModelForCausalLM. Whoever loads a saved model makes its
        # configuration first: here is early enough, and `import uld_hf` need not take the time.
        importlib.import_module(".modeling_uld", __package__)
        if isinstance(target_config, dict):
            target_config = AutoConfig.for_model(**target_config)
        if assistants is None:
            assistants = {ADAPTER_NAME: {"num_layers": num_assistant_layers, "alpha": alpha}}
        check_assistants(assistants, target_config)
        for name, table in (("target_fingerprint", target_fingerprint), ("training", training), ("files", files)):
            if not isinstance(table, dict | None):
                raise ValueError(f"{name}={table!r} must be a dictionary: config.json is damaged.")
        self.target_config = target_config
        self.target_name_or_path = target_name_or_path
        self.target_revision = target_revision
        self.target_fingerprint = target_fingerprint
        self.assistants = copy.deepcopy(assistants)
        self.relative_top = relative_top
        self.outside = outside
        self.center = center
        # Raw logits have no zero to clamp at.
        self.clamp = clamp_or_default(clamp, center)
        self.remove_top_k = remove_top_k
        self.gate = gate
        self.by_certainty = by_certainty
        self.replace = replace
        self.training = copy.deepcopy(training) or {}
        self.files = copy.deepcopy(files) or {}
        self.check()
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """
        A configuration from the content of a config.json.

        Args:
            config_dict (`dict[str, Any]`):
                The content.
            **kwargs:
                As in [`~transformers.PreTrainedConfig.from_dict`].

        Returns:
            [`ULDModelConfig`]: The configuration.

        Raises:
            ValueError: If it is damaged: of another checksum, or of other types.
        """
        if CHECKSUM in config_dict:
            check_checksum(config_dict)
        content = {name: value for name, value in config_dict.items() if name != CHECKSUM}
        try:
            return super().from_dict(content, **kwargs)
        except ValueError:
            raise
        except Exception as error:  # transformers' many configs take apart what they are given, each in its own way
            raise DamagedFileError(
                f"config.json is damaged: {type(error).__name__}: {error}. Download or save it again."
            ) from error

    def __setattr__(self, name: str, value: Any) -> None:
        meant = None if name.startswith("_") or name in vars(self) else meant_setting(name)
        if meant is not None and name not in dir(type(self)):
            raise AttributeError(f"There is no setting {name!r}, and nothing would change: did you mean {meant!r}?")
        super().__setattr__(name, value)

    def _only_assistant(self, setting: str) -> dict[str, Any]:
        if len(self.assistants) != 1:
            raise SeveralAssistantsError(
                f"There are {len(self.assistants)} assistants, each with its own {setting}: {self.assistants}. Use "
                "config.assistants, or set_alpha(name, alpha) on the model."
            )
        return next(iter(self.assistants.values()))

    @property
    def alpha(self) -> float:
        """Weight of the only assistant."""
        return self._only_assistant("alpha")["alpha"]

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        self._only_assistant("alpha")["alpha"] = alpha

    @property
    def alphas(self) -> dict[str, float]:
        """Weight of each assistant by name."""
        return {name: assistant["alpha"] for name, assistant in self.assistants.items()}

    @property
    def subtraction(self) -> dict[str, Any]:
        """All that decides what is subtracted: assistants with their weights, and the settings that they share."""
        return {name: copy.deepcopy(vars(self)[name]) for name in ("assistants", *SHARED_SETTINGS)}

    @property
    def num_assistant_layers(self) -> int:
        """Number of layers K of the only assistant."""
        return self._only_assistant("number of layers")["num_layers"]

    @property
    def most_assistant_layers(self) -> int:
        """Number of layers that the assistants depend on: the K of the deepest."""
        return max(assistant["num_layers"] for assistant in self.assistants.values())

    def check(self) -> None:
        """
        Refuse settings under which nothing would be subtracted.

        Raises:
            ValueError: If a setting of the subtraction is out of range.
        """
        if not isinstance(self.center, bool) or not isinstance(self.clamp, bool):
            raise ValueError(f"center={self.center!r} and clamp={self.clamp!r} must be True or False.")
        settings = {name: vars(self)[name] for name in SHARED_SETTINGS}
        for assistant in self.assistants.values():
            check_subtraction(assistant["alpha"], **settings)
        if self.replace:
            check_replacement(list(self.alphas.values()))

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """
        The target's text config, with every assistant's layers after the target's own.

        `generate()` builds its cache from this config: one ordinary cache holds the N layers of the target and the K
        of each assistant, and is reordered, cropped, repeated and offloaded as any other.
        """
        if self.target_config is None:
            return self
        text_config = copy.deepcopy(self.target_config.get_text_config(decoder=decoder, encoder=encoder))
        layers = list(range(text_config.num_hidden_layers))
        of_assistants = [layer for assistant in self.assistants.values() for layer in layers[: assistant["num_layers"]]]
        select_layers(text_config, layers + of_assistants)
        if vars(text_config).get("num_kv_shared_layers"):
            text_config.num_kv_shared_layers = 0  # they are no longer the last: all have a place, theirs stays empty
        # Continuous batching changes the model's attention and asks this config whether it needs a mask.
        if self._attn_implementation is not None:
            text_config._attn_implementation = self._attn_implementation
        return text_config


# AutoConfig knows the class from here on, and with it AutoModelForCausalLM and pipeline(): see `__init__`.
AutoConfig.register(ULDModelConfig.model_type, ULDModelConfig)
