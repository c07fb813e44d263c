"""What several crash tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forked_ranks import ForkedRanks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedRanks]:
    """Ranks of the recipe `kd`, of a process that has imported everything."""
    with ForkedRanks(tmp_path_factory.mktemp("ranks")) as ranks:
        yield ranks
