"""The attention setting: what each device gets, and what is refused."""

import logging

import pytest
import torch

from showo_kernels import select_backend
from showo_kernels.flash import find_varlen


def test_a_cpu_gets_sdpa() -> None:
    name, reason = select_backend("auto", "cpu")
    assert name == "sdpa" and "cpu" in reason


@pytest.mark.parametrize("name", ["sdpa", "dense"])
def test_a_name_is_taken_as_it_is(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert select_backend(name, torch.device("cpu"))[0] == name
    assert not caplog.records


def test_flex_on_a_cpu_is_said_to_be_forward_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert select_backend("flex", "cpu")[0] == "flex"
    assert "cannot train" in caplog.text


def test_what_cannot_run_is_refused_with_the_alternatives() -> None:
    with pytest.raises(ValueError, match="no kernel for cpu: choose auto, flex or sdpa"):
        select_backend("flash", "cpu")
    with pytest.raises(ValueError, match="'fast': allowed are auto, flex, flash, sdpa, dense"):
        select_backend("fast", "cpu")


def test_torch_itself_brings_a_variable_length_kernel() -> None:
    found = find_varlen()
    assert found is not None and found[0] == "torch varlen_attn"
