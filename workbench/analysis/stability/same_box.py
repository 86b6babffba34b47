"""Identifies queries by their boxes, where slots and encoder cells cannot be compared because the input had another size."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from workbench.overlap import centred_iou

BOX = ["cx", "cy", "w", "h"]
SAME_BOX_IOU = 0.7


def paired_boxes(group: np.ndarray, stride: int, boxes: np.ndarray) -> np.ndarray:
    """Returns which box of the same image one moment earlier is the same: one-to-one, IoU 0.7 or more, largest sum of IoU.

    Args:
        group: ``[R]`` moment and image of each row; one moment earlier the same image has ``group - stride``.
        stride: see ``group``.
        boxes: ``[R, 4]`` cxcywh.

    Returns:
        ``[R]`` row of the same box, -1 if there is none.
    """
    found = np.full(len(group), -1)
    order = np.argsort(group, kind="stable")
    names, start = np.unique(group[order], return_index=True)
    rows = dict(zip(names.tolist(), np.split(order, start[1:]), strict=True)) if len(names) else {}
    for name, now in rows.items():
        before = rows.get(name - stride)
        if before is not None:
            iou = centred_iou(boxes[now][:, None], boxes[before])
            iou[iou < SAME_BOX_IOU] = 0
            row, column = linear_sum_assignment(iou, maximize=True)
            same = iou[row, column] > 0
            found[now[row[same]]] = before[column[same]]
    return found
