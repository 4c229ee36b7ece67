"""Examples set aside: of every class its share, on either side one at least."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from knownot.data.hold_out import hold_out


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.floats(0.05, 0.95),
    st.integers(0, 5),
)
def test_no_class_is_on_one_side_alone(counts: list[int], fraction: float, seed: int) -> None:
    labels = [k for k, count in enumerate(counts) for _ in range(count)]
    kept, held = hold_out(labels, fraction, seed)
    assert sorted(kept + held) == list(range(len(labels)))
    assert (kept, held) == (sorted(kept), sorted(held))
    stays, aside = (Counter(labels[i] for i in part) for part in (kept, held))
    for label, count in enumerate(counts):
        assert stays[label] >= 1
        assert bool(aside[label]) == (count > 1)
        assert abs(aside[label] - fraction * count) < 2 or count < 2 / min(fraction, 1 - fraction)


def test_very_rare_classes_are_calibrated_and_trained() -> None:
    labels = [0] * 1000 + [1, 1] + [2, 2, 2]
    for fraction in (0.1, 0.8):
        kept, held = hold_out(labels, fraction, 0)
        assert {labels[i] for i in kept} == {labels[i] for i in held} == {0, 1, 2}
