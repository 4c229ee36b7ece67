"""Set a share of labelled examples aside, for calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def hold_out(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide examples into those to train on and those set aside, of every class its share.

    Of a class with two examples or more one at least is on either side; a single one stays.

    Args:
        labels: Class of each example.
        fraction: Share to be set aside.
        seed: Decides which.

    Returns:
        Indices that stay, and indices that are set aside, both ascending; none of the latter if every
        class has a single example.
    """
    from sklearn.model_selection import train_test_split

    lone = {label for label, count in Counter(labels).items() if count < 2}
    splittable = [i for i, label in enumerate(labels) if label not in lone]
    stays = [i for i, label in enumerate(labels) if label in lone]
    if not splittable:
        return stays, []
    of_splittable = [labels[i] for i in splittable]
    classes = len(set(of_splittable))
    size = min(max(round(fraction * len(splittable)), classes), len(splittable) - classes)
    kept, held = train_test_split(
        splittable, test_size=size, stratify=of_splittable, random_state=seed
    )
    return sorted(kept + stays), sorted(held)
