"""Encoded members that do not fit the model are counted with their size; if none fits, no run starts."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from showo_data import BadSamples, FlowSpec, Sample, Skipped, Source
from showo_data.members import (
    CODES,
    CONDITION,
    FEATURES,
    BadSampleError,
    Encoded,
    Fit,
    read_codes,
    read_features,
)
from showo_data.shards import write_shard

FITS: dict[Encoded, Fit] = {
    CODES: Fit((16,), 64, "the tokens, the codebook"),
    CONDITION: Fit((4,), 64, "the scale"),
    FEATURES: Fit((3, 2), keys="the tower"),
}
GOOD: dict[Encoded, Any] = {
    CODES: np.arange(16, dtype=np.uint16),
    CONDITION: np.arange(4),
    FEATURES: np.ones((3, 2), np.float16),
}


def _npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def _source(folder: Path, samples: list[dict[Encoded, Any]], **options: Any) -> Source:
    """A flow of these members, each beside the good ones."""
    rows = [{**GOOD, **sample} for sample in samples]
    encoded = [{name: _npy(values) for name, values in row.items()} for row in rows]
    write_shard(folder / "a.tar", [{"__key__": f"k{i}", **row} for i, row in enumerate(encoded)])
    options = {"encoded": tuple(FITS), "fits": FITS, "streams": 1, "window": 1, **options}
    return Source(
        FlowSpec(flow="f", kind="image", urls=(str(folder / "a.tar"),), batch=1, **options)
    )


def _codes(*values: int, count: int = 16, dtype: Any = np.int64) -> np.ndarray:
    codes = np.zeros(count, dtype)
    codes[: len(values)] = values
    return codes


CODES_EXPECTED = ", expected 16 codes from 0 to 63 (the tokens, the codebook)"
BAD: list[tuple[Encoded, Any, str]] = [
    (CODES, _codes(count=64), "codes.npy has 64 codes" + CODES_EXPECTED),
    (CODES, _codes(count=0), "codes.npy has 0 codes" + CODES_EXPECTED),
    (CODES, np.zeros((2, 8), int), "codes.npy has codes of the shape (2, 8)" + CODES_EXPECTED),
    (CODES, _codes(64), "codes.npy has the code 64" + CODES_EXPECTED),  # the mask token
    (CODES, _codes(-1), "codes.npy has the code -1" + CODES_EXPECTED),
    (
        CODES,
        _codes(2**64 - 1, dtype=np.uint64),
        f"codes.npy has the code {2**64 - 1}" + CODES_EXPECTED,
    ),
    (CODES, np.zeros(16), "codes.npy: float64 (16,)"),
    (CODES, np.zeros(16, bool), "codes.npy: bool (16,)"),
    (CODES, np.zeros(16, "m8[s]"), "codes.npy: timedelta64[s] (16,)"),
    (CONDITION, _codes(), "condition.npy has 16 codes, expected 4 codes from 0 to 63 (the scale)"),
    (
        FEATURES,
        np.ones((4, 2)),
        "features.npy has the shape (4, 2), expected the shape (3, 2) (the tower)",
    ),
    (
        FEATURES,
        np.ones((2, 3)),
        "features.npy has the shape (2, 3), expected the shape (3, 2) (the tower)",
    ),
    (FEATURES, np.full((3, 2), np.nan), "features.npy has values that are not finite"),
    (FEATURES, np.ones((3, 2), int), "features.npy: int64 (3, 2)"),
]


@pytest.mark.parametrize(("member", "values", "detail"), BAD, ids=[detail for _, _, detail in BAD])
def test_members_that_do_not_fit_are_counted(
    tmp_path: Path, member: Encoded, values: Any, detail: str
) -> None:
    """Good samples and bad ones in one shard: the log says what was found and what was expected."""
    source = _source(tmp_path, [{}, {member: values}])
    good, bad = source[0], source[1]
    assert isinstance(good, Sample) and isinstance(bad, Skipped)
    reason = "broken-features" if member == FEATURES else "broken-codes"
    assert (bad.reason, bad.detail) == (reason, detail)
    counts = BadSamples()
    counts.add([bad], good=1)
    shard = tmp_path / "a.tar"
    expected = f"1 samples skipped: {reason} 1 ({shard} 'k1': {detail}); most in {shard} 1"
    assert counts.summary() == BadSamples.merged([BadSamples(), counts]).summary() == expected


@pytest.mark.parametrize(
    "values",
    [np.zeros((4, 4), np.int32), np.zeros((1, 16), np.uint8), np.asfortranarray(np.full((4, 4), 63)),
     np.arange(16, dtype=">i4")],
)  # fmt: skip
def test_grids_and_other_byte_orders_fit(tmp_path: Path, values: np.ndarray) -> None:
    sample = _source(tmp_path, [{CODES: values}])[0]
    assert isinstance(sample, Sample) and sample.codes_N is not None
    assert sample.codes_N.tolist() == values.flatten().tolist()


@pytest.mark.parametrize("count", [1, 3, 20])
def test_no_run_starts_on_shards_of_another_model(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError) as raised:
        _source(tmp_path, [{CODES: _codes(count=64)}] * count)
    assert str(raised.value) == (
        f"flow 'f': none of its first {min(count, 8)} samples fits the model: in {tmp_path / 'a.tar'}, "
        f"sample 'k0', codes.npy has 64 codes{CODES_EXPECTED}; encode the images with this config's "
        "networks and sizes (showo-dist encode), or change the config"
    )


def test_a_run_starts_where_one_of_the_first_samples_fits(tmp_path: Path) -> None:
    bad: list[dict[Encoded, Any]] = [{CODES: _codes(count=64)}] * 7
    source = _source(tmp_path, [*bad, {}])
    assert [isinstance(source[p], Sample) for p in range(8)] == [False] * 7 + [True]


def test_a_header_that_does_not_fit_its_bytes() -> None:
    """Whatever bit of a header flips, the codes are the same or the sample is skipped."""
    whole = _npy(np.arange(16, dtype=np.uint8))
    for bit in range(8 * (len(whole) - 16)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        try:
            codes_N = read_codes({CODES: bytes(data)}.get, CODES, FITS[CODES])
        except BadSampleError as bad:
            assert bad.reason == "broken-codes" and bad.detail.startswith("codes.npy")
        else:
            assert codes_N is not None and codes_N.tolist() == list(range(16)), bit


@pytest.mark.parametrize("shape", ["(10**15,)", "(-1, -16)", "(1000000000000000,)", "(16, 0)"])
@pytest.mark.parametrize("kind", ["|u1", "<i8", "<f2", "|O", "<U9", "V4"])
def test_headers_that_claim_what_is_not_there(shape: str, kind: str) -> None:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(16)
    read = {CODES: data, FEATURES: data}.get
    for reader in (partial(read_codes, extension=CODES), read_features):
        with pytest.raises(BadSampleError, match="broken-"):
            reader(read)
