"""Predicted bytes against the counters of two network namespaces with one rank each.

``benchmarks/plan.py`` compares seconds."""

import pytest

from showo_dist.plan.timing import on_the_wire, step_bytes
from showo_launch.rehearsal.programs import missing_requirement
from tests.plan.links import HOSTS, STAGES, Measured, measure_links, profile

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    reason = missing_requirement()
    if reason:
        pytest.skip(reason)
    return measure_links(tmp_path_factory.mktemp("traffic") / "traffic.json")


@pytest.mark.parametrize("stage", STAGES)
def test_bytes_are_within_five_percent(stage: int, measured: Measured) -> None:
    """An unlimited interface sends packets of up to 64 KB; a limited one cuts them into frames."""
    payload = step_bytes(profile(stage).collectives, HOSTS, "gloo")
    for rate, found in measured[stage].items():
        predicted = on_the_wire(payload) if rate else payload
        print(f"ZeRO-{stage} {rate}: predicted {predicted:,.0f}, counted {found['bytes']:,.0f}")
        assert predicted == pytest.approx(found["bytes"], rel=0.05)
