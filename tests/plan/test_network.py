"""Predicted bytes against the counters of two network namespaces with one rank each.

``benchmarks/plan.py`` compares seconds."""

import pytest

from showo_dist.plan.timing import on_the_wire, step_bytes
from showo_launch.rehearsal.programs import missing_requirement
from tests.plan.links import (
    FORMATS,
    HOSTS,
    STAGES,
    Measured,
    measure_formats,
    measure_links,
    profile,
)

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def two_hosts() -> None:
    reason = missing_requirement()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def measured(two_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measure_links(tmp_path_factory.mktemp("traffic") / "traffic.json")


@pytest.mark.parametrize("stage", STAGES)
def test_bytes_are_within_five_percent(stage: int, measured: Measured) -> None:
    """An unlimited interface sends packets of up to 64 KB; a limited one cuts them into frames."""
    payload = step_bytes(profile(stage).collectives, HOSTS, "gloo")
    for rate, found in measured[stage].items():
        predicted = on_the_wire(payload) if rate else payload
        print(f"ZeRO-{stage} {rate}: predicted {predicted:,.0f}, counted {found['bytes']:,.0f}")
        assert predicted == pytest.approx(found["bytes"], rel=0.05)


@pytest.fixture(scope="module")
def of_formats(
    two_hosts: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, str], float]:
    return measure_formats(tmp_path_factory.mktemp("formats") / "bytes.json")


@pytest.mark.parametrize(("stage", "dtype"), FORMATS)
def test_bytes_of_both_formats_of_gradients(
    stage: int, dtype: str, of_formats: dict[tuple[int, str], float]
) -> None:
    predicted = step_bytes(profile(stage, dtype).collectives, HOSTS, "gloo")
    counted = of_formats[stage, dtype]
    print(f"ZeRO-{stage} {dtype}: predicted {predicted:,.0f}, counted {counted:,.0f}")
    assert predicted == pytest.approx(counted, rel=0.05)
