"""Set a share of labelled examples aside, for calibration."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
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
    kept, held = _with_every_class(kept, held, labels, seed)
    return sorted(kept + stays), sorted(held)


def _with_every_class(
    kept: list[int], held: list[int], labels: Sequence[int], seed: int
) -> tuple[list[int], list[int]]:
    """Both sides, with an example more of each class that is on the other alone: rare ones round to none."""
    lacking: list[int] = []
    for here, there in ((kept, held), (held, kept)):
        has = {labels[i] for i in here}
        by_class: dict[int, list[int]] = defaultdict(list)
        for i in there:
            if labels[i] not in has:
                by_class[labels[i]].append(i)
        lacking += [random.Random(f"{seed} {k}").choice(rows) for k, rows in by_class.items()]
    moved = set(lacking)
    return (
        [i for i in kept if i not in moved] + [i for i in held if i in moved],
        [i for i in held if i not in moved] + [i for i in kept if i in moved],
    )
