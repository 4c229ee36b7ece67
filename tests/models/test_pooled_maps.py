"""Feature maps averaged over boxes."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from knownot.models.pooled_maps import pooled_maps


@given(st.data())
def test_a_row_is_the_direction_of_the_mean_pixel_in_the_box(data: st.DataObject) -> None:
    height, width, stride = (data.draw(st.integers(1, most)) for most in (5, 4, 6))
    top, left = (data.draw(st.integers(0, side * stride - 1)) for side in (height, width))
    bottom = data.draw(st.integers(top + 1, height * stride))
    right = data.draw(st.integers(left + 1, width * stride))
    cells = torch.randn(1, 3, height, width)
    pixels = cells.repeat_interleave(stride, 2).repeat_interleave(stride, 3)
    expected = normalize(pixels[:, :, top:bottom, left:right].mean((2, 3)))
    box = torch.tensor([[left, top, right, bottom]]).float()
    torch.testing.assert_close(pooled_maps([cells], [box], [stride]), expected, atol=1e-4, rtol=0)


def test_parts_of_cells_count_as_parts() -> None:
    cells = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two channels, one row of two cells
    box = torch.tensor([[6.0, 0.0, 9.0, 8.0]])  # two pixels of the first, one of the second
    expected = normalize(torch.tensor([[2.0, 1.0]]))
    torch.testing.assert_close(pooled_maps([cells], [box], [8]), expected)


def test_boxes_without_area_or_outside_have_zeros_and_none_gives_none() -> None:
    cells = torch.ones(1, 2, 3, 3)
    boxes = torch.tensor([[4.0, 4.0, 4.0, 9.0], [30.0, 2.0, 40.0, 9.0], [0.0, 0.0, 24.0, 24.0]])
    rows = pooled_maps([cells], [boxes], [8])
    torch.testing.assert_close(rows, torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.5**0.5] * 2]))
    assert pooled_maps([cells], [boxes[:0]], [8]).shape == (0, 2)


def test_each_box_reads_its_own_image_and_maps_stand_side_by_side() -> None:
    fine, coarse = 100 * torch.rand(3, 4, 6, 6), torch.rand(3, 5, 3, 3)
    boxes = [torch.rand(n, 2).repeat(1, 2) * 20 + torch.tensor([0.0, 0, 9, 7]) for n in (2, 0, 3)]
    rows = pooled_maps([fine, coarse], boxes, [8, 16])
    assert rows.shape == (5, 9)
    for i, part in enumerate(rows.split([2, 0, 3])):
        alone = [
            pooled_maps([cells[i : i + 1]], [boxes[i]], [stride])
            for cells, stride in ((fine, 8), (coarse, 16))
        ]
        torch.testing.assert_close(part, torch.cat(alone, 1))
