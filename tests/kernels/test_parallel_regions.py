"""A step opens few parallel regions, and only its device thread does: counted exactly, in front of libgomp."""

import pytest

from tests.benchmarks import parallel_regions

NUM_LAYERS = 2
PER_LAYER = 9
"""Four products, two norms, rotating with storing, attention and the gated product."""
AROUND_LAYERS = {1: 2, 32: 6}
"""By rows: the last norm and the head, and what sampling many rows takes."""


@pytest.mark.skipif(parallel_regions.compiler() is None, reason="needs a C++ compiler")
def test_a_decode_step_opens_a_region_an_operator_at_most() -> None:
    for regions in parallel_regions.measure(NUM_LAYERS, threads=2, rows=tuple(AROUND_LAYERS), vocab_size=4000):
        limit = PER_LAYER * NUM_LAYERS + AROUND_LAYERS[regions.num_rows]
        assert 4 * NUM_LAYERS < regions.decode <= limit, regions
        assert regions.elsewhere == 0, regions
