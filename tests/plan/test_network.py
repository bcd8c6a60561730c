"""Predicted bytes against two hosts of network namespaces, one rank on each (seconds: benchmarks/plan.py)."""

import pytest

from showo_dist.plan.shapes import on_the_wire, step_bytes
from showo_launch.rehearsal.programs import what_is_missing
from tests.plan.links import HOSTS, STAGES, Measured, measure_links, profile

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    reason = what_is_missing()
    if reason:
        pytest.skip(reason)
    return measure_links(tmp_path_factory.mktemp("traffic") / "traffic.json")


@pytest.mark.parametrize("stage", STAGES)
def test_bytes_are_within_five_percent(stage: int, measured: Measured) -> None:
    """Packets of up to 64 KB leave an unlimited interface; a limited one cuts them into frames."""
    payload = step_bytes(profile(stage).collectives, HOSTS, "gloo")
    for rate, found in measured[stage].items():
        predicted = on_the_wire(payload) if rate else payload
        print(f"ZeRO-{stage} {rate}: predicted {predicted:,.0f}, counted {found['bytes']:,.0f}")
        assert predicted == pytest.approx(found["bytes"], rel=0.05)
