"""The attention setting: what each device gets, and what is refused."""

import logging

import pytest
import torch

from showo_kernels import select_backend
from showo_kernels.cpu import compiled
from showo_kernels.varlen import warnings_as_errors
from tests.kernels.layouts import NO_NATIVE


@pytest.mark.skipif(NO_NATIVE is not None, reason=f"{NO_NATIVE}")
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_cpu_that_can_gets_the_native_kernel(dtype: torch.dtype | None) -> None:
    assert select_backend("auto", "cpu", dtype)[0] == "native"
    assert select_backend("native", "cpu", dtype)[0] == "native"


def test_a_cpu_that_cannot_gets_sdpa_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "obstacle", lambda: "the processor has no AVX-512")
    assert select_backend("auto", "cpu") == ("sdpa", "native: the processor has no AVX-512")
    with pytest.raises(ValueError, match=r"'native', but .* no AVX-512: choose auto or sdpa"):
        select_backend("native", "cpu")


def test_the_native_kernel_has_two_types_and_one_device() -> None:
    name, reason = select_backend("auto", "cpu", torch.float16)
    assert name == "sdpa" and "not torch.float16" in reason
    with pytest.raises(ValueError, match="native has no kernel for cuda"):
        select_backend("native", "cuda")


@pytest.mark.parametrize("name", ["sdpa", "dense"])
def test_a_name_is_taken_as_it_is(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert select_backend(name, torch.device("cpu"))[0] == name
    assert not caplog.records


def test_flex_on_a_cpu_warns_that_it_cannot_train(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert select_backend("flex", "cpu")[0] == "flex"
    assert "cannot train" in caplog.text


def test_what_cannot_run_is_refused_with_the_alternatives() -> None:
    with pytest.raises(ValueError, match="no kernel for cpu: choose auto, flex or sdpa"):
        select_backend("flash", "cpu")
    with pytest.raises(
        ValueError, match="'fast': allowed are auto, flex, flash, native, sdpa, dense"
    ):
        select_backend("fast", "cpu")


@pytest.mark.parametrize("width", [12, 100, 264])
def test_heads_that_flash_cannot_compute_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"a multiple of 8 up to 256, not {width}: choose auto"):
        select_backend("flash", "cuda", torch.bfloat16, width)


def test_torchs_flash_attention_is_deterministic_where_it_is_asked_for() -> None:
    """It is not while torch's deterministic algorithms may only warn."""

    def setting() -> tuple[bool, bool]:
        enabled = torch.are_deterministic_algorithms_enabled()
        return enabled, torch.is_deterministic_algorithms_warn_only_enabled()

    try:
        for given, inside in (
            ((False, False), (False, False)),
            ((True, True), (True, False)),
            ((True, False), (True, False)),
        ):
            torch.use_deterministic_algorithms(given[0], warn_only=given[1])
            with warnings_as_errors():
                assert setting() == inside
            assert setting() == given
    finally:
        torch.use_deterministic_algorithms(False)
