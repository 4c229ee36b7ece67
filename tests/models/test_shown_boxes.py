"""Unknown objects once; proposals that lie on nothing the detector has shown."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from knownot.models.shown_boxes import highest_unclaimed, unclaimed, without_repeats


def random_boxes(seed: int, n: int) -> Tensor:
    corners = 40 * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))
    sides = 5 + 20 * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed + 1))
    return torch.cat([corners, corners + sides], dim=1)


@given(seed=st.integers(0, 2**16), n=st.integers(0, 12))
def test_a_repeated_unknown_box_is_one_on_a_surer_one_that_counts(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes, scores = random_boxes(seed, n), torch.rand(n, generator=generator)
    unknown = torch.rand(n, generator=generator) < 0.5
    counts: list[int] = []  # of all boxes, the surest on each place
    expected = ~unknown
    for row in scores.argsort(descending=True).tolist():
        if not any(box_iou(boxes[[row]], boxes[[i]]).item() > 0.5 for i in counts):
            counts.append(row)
            expected[row] = True
    assert torch.equal(without_repeats(boxes, scores, unknown), expected)


def test_proposals_on_around_and_inside_a_box_are_claimed() -> None:
    box = torch.tensor([[20.0, 20.0, 60.0, 60.0]])
    proposals = torch.tensor(
        [
            [21.0, 20.0, 60.0, 61.0],  # the box itself
            [25.0, 25.0, 35.0, 35.0],  # a part of its object
            [20.0, 20.0, 90.0, 60.0],  # object and surroundings
            [70.0, 70.0, 90.0, 90.0],  # elsewhere
            [71.0, 70.0, 90.0, 91.0],  # the same again
            [50.0, 50.0, 80.0, 80.0],  # touches a corner only
        ]
    )
    objectness = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert unclaimed(proposals, objectness, box).tolist() == [3, 5]
    assert highest_unclaimed(proposals, objectness, box) == objectness[3]
    assert unclaimed(proposals, objectness, box[:0]).tolist()[0] == 0


def test_nothing_proposed_is_nothing_shown() -> None:
    none = torch.zeros(0, 4)
    assert unclaimed(none, torch.zeros(0), torch.tensor([[0.0, 0.0, 9.0, 9.0]])).tolist() == []
    assert highest_unclaimed(none, torch.zeros(0), none) == 0.0


@given(seed=st.integers(0, 2**16), n=st.integers(1, 10), m=st.integers(1, 4))
def test_what_is_left_overlaps_no_box_by_half_of_itself(seed: int, n: int, m: int) -> None:
    proposals, boxes = random_boxes(seed, n), random_boxes(seed + 7, m)
    for row in unclaimed(proposals, torch.rand(n), boxes).tolist():
        x1, y1, x2, y2 = proposals[row].tolist()
        for bx1, by1, bx2, by2 in boxes.tolist():
            common = max(0.0, min(x2, bx2) - max(x1, bx1)) * max(0.0, min(y2, by2) - max(y1, by1))
            assert common < 0.5 * (x2 - x1) * (y2 - y1) + 1e-3
