"""Feature maps averaged over boxes."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from knownot.models.pooled_maps import mean_over_boxes, pooled_maps


@given(st.data())
def test_a_mean_is_that_of_the_pixels_in_the_box(data: st.DataObject) -> None:
    height, width, stride = (data.draw(st.integers(1, most)) for most in (5, 4, 6))
    top, left = (data.draw(st.integers(0, side * stride - 1)) for side in (height, width))
    bottom = data.draw(st.integers(top + 1, height * stride))
    right = data.draw(st.integers(left + 1, width * stride))
    cells = torch.randn(3, height, width)
    pixels = cells.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    expected = pixels[:, top:bottom, left:right].mean((1, 2))
    box = torch.tensor([[left, top, right, bottom]]).float()
    torch.testing.assert_close(mean_over_boxes(cells, box, stride)[0], expected)


def test_boxes_without_area_or_outside_have_zeros_and_none_gives_none() -> None:
    cells = torch.ones(2, 3, 3)
    boxes = torch.tensor([[4.0, 4.0, 4.0, 9.0], [30.0, 2.0, 40.0, 9.0], [0.0, 0.0, 24.0, 24.0]])
    means = mean_over_boxes(cells, boxes, 8)
    assert means.tolist() == [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    assert mean_over_boxes(cells, boxes[:0], 8).shape == (0, 2)


def test_maps_stand_side_by_side_each_of_unit_length() -> None:
    fine, coarse = 100 * torch.rand(4, 6, 6), torch.rand(5, 3, 3)
    boxes = torch.tensor([[1.0, 2.0, 30.0, 20.0], [0.0, 0.0, 5.5, 7.5]])
    pooled = pooled_maps([fine, coarse], boxes, [8, 16])
    assert pooled.shape == (2, 9)
    torch.testing.assert_close(pooled[:, :4], normalize(mean_over_boxes(fine, boxes, 8), dim=1))
    torch.testing.assert_close(pooled[:, 4:], normalize(mean_over_boxes(coarse, boxes, 16), dim=1))
