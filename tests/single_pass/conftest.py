"""One process group per number of ranks, shared by all of its cases."""

from collections.abc import Iterator

import pytest

from tests.single_pass.group import RankGroup


@pytest.fixture(scope="session")
def group(request: pytest.FixtureRequest) -> Iterator[RankGroup]:
    """The group of ``request.param`` ranks; pytest runs the cases of one group together."""
    with RankGroup(request.param) as ranks:
        yield ranks
