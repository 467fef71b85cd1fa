"""Fixtures of every test: no network, one thread, the families of models, a tokenizer."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path


# Before anything of huggingface is imported: the tests never ask a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch
from families import FAMILIES, make_tokenizer
from hypothesis import settings
from processes import launch_two
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import warning_once


# The same examples on every machine, however slow it is today.
settings.register_profile("uld_hf", derandomize=True, deadline=None)
settings.load_profile("uld_hf")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tiny models spend more time on waking threads than on sums.
    torch.set_num_threads(1)


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> str:
    """A model family: every test that asks for it runs on all of them."""
    return request.param


@pytest.fixture(scope="module")
def left_by_two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes left, which ran the test's file as a script."""
    folder = tmp_path_factory.mktemp("ddp")
    launch_two(str(request.path), folder)
    return folder


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of [`families.make_tokenizer`]."""
    return make_tokenizer()


@pytest.fixture
def transformers_log() -> Iterator[None]:
    """Let pytest's `caplog` see what transformers logs: it handles its own records and passes none on."""
    warning_once.cache_clear()  # or another test may have had this warning already
    logger = logging.getLogger("transformers")
    propagate, logger.propagate = logger.propagate, True
    yield
    logger.propagate = propagate
