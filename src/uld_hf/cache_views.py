"""One cache for a target and its assistants: what each of them sees of it."""

from typing import Any

import torch
from transformers import Cache
from transformers.generation.continuous_batching.cache import PagedAttentionCache


class PagedView(PagedAttentionCache):
    """
    The paged cache of continuous batching, as one of the models that share it sees it.

    Args:
        cache ([`~transformers.generation.continuous_batching.cache.PagedAttentionCache`]):
            The cache of all layers.
        first (`int`):
            Number of the model's first layer in it.
    """

    def __init__(self, cache: PagedAttentionCache, first: int):
        # Not super().__init__(), which would allocate a cache.
        self._cache = cache
        self._first = first
        self.updated = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.updated = True
        return self._cache.update(
            key_states=key_states, value_states=value_states, layer_idx=layer_idx + self._first, kwargs=kwargs
        )


def view_layers(cache: Cache, first: int, end: int) -> Cache:
    """
    Some layers of a cache, offloaded where the cache is.

    Args:
        cache ([`~transformers.Cache`]):
            The cache of all layers.
        first (`int`):
            The first layer.
        end (`int`):
            The layer after the last.

    Returns:
        [`~transformers.Cache`]: A cache of these very layers: what is written to it is in the whole one.
    """
    layers = cache.layers[first:end]
    if not cache.offloading:
        return Cache(layers=layers)
    # Of a view that offloads nothing, transformers would look in vain for the layer to fetch back first.
    stays = [
        linear or dummy or (sliding and cache.only_non_sliding)
        for linear, sliding, dummy in list(zip(cache.is_linear, cache.is_sliding, cache.is_dummy, strict=True))[
            first:end
        ]
    ]
    view = Cache(layers=layers, offloading=not all(stays), offload_only_non_sliding=cache.only_non_sliding)
    if view.offloading:
        view.prefetch_stream = cache.prefetch_stream
    return view
