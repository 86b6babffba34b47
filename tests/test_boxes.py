"""Box arithmetic equals torchvision's, and stays finite where torchvision's does not."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from workbench.boxes import cxcywh_to_xyxy, iou_and_giou, pairwise_iou_and_giou, xyxy_to_cxcywh

side = st.floats(0.01, 1.0)
place = st.floats(-0.5, 1.5)
a_box = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], place, place, side, side)
some_boxes = st.lists(a_box, min_size=1, max_size=6).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


@given(some_boxes, some_boxes)
def test_all_pairs_equal_torchvision(a: torch.Tensor, b: torch.Tensor):
    iou, giou = pairwise_iou_and_giou(a, b)
    torch.testing.assert_close(iou, box_iou(a, b), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(giou, generalized_box_iou(a, b), atol=1e-12, rtol=1e-9)


@given(some_boxes, some_boxes)
def test_elementwise_is_the_diagonal_of_all_pairs(a: torch.Tensor, b: torch.Tensor):
    count = min(len(a), len(b))
    pairs = pairwise_iou_and_giou(a[:count], b[:count])
    for one, all_pairs in zip(iou_and_giou(a[:count], b[:count]), pairs, strict=True):
        assert torch.equal(one, all_pairs.diagonal())


@given(some_boxes, some_boxes)
def test_giou_is_at_most_iou_and_above_minus_one(a: torch.Tensor, b: torch.Tensor):
    iou, giou = pairwise_iou_and_giou(a, b)
    assert (giou <= iou + 1e-12).all()
    assert (giou > -1).all()
    assert ((iou >= 0) & (iou <= 1 + 1e-12)).all()


@given(some_boxes)
def test_conversion_equals_torchvision_and_comes_back(boxes: torch.Tensor):
    centres = xyxy_to_cxcywh(boxes)
    torch.testing.assert_close(centres, box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(cxcywh_to_xyxy(centres), boxes, atol=1e-12, rtol=0)


def test_leading_dimensions_are_a_batch_of_the_same_numbers():
    a, b = torch.rand(2, 3, 5, 4), torch.rand(2, 3, 7, 4)
    a, b = cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)
    iou, giou = pairwise_iou_and_giou(a, b)
    assert iou.shape == giou.shape == (2, 3, 5, 7)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(iou[i, j], box_iou(a[i, j], b[i, j]))
            torch.testing.assert_close(giou[i, j], generalized_box_iou(a[i, j], b[i, j]))


def test_boxes_without_area_give_zero_and_finite_gradients():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    line = torch.tensor([[0.2, 0.5, 0.7, 0.5]], requires_grad=True)
    square = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    for degenerate in (point, line):
        for other in (square, point.detach(), line.detach()):
            iou, giou = iou_and_giou(degenerate, other)
            assert iou.item() == 0
            assert torch.isfinite(giou).all()
            (gradient,) = torch.autograd.grad((iou + giou).sum(), degenerate)
            assert torch.isfinite(gradient).all()


def test_two_boxes_side_by_side_worked_by_hand():
    # unit squares one apart: no overlap, union 2, hull 3
    iou, giou = iou_and_giou(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([2.0, 0.0, 3.0, 1.0]))
    assert iou.item() == 0
    torch.testing.assert_close(giou.item(), -1 / 3, atol=1e-6, rtol=0)
