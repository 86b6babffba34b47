"""Targets as a frame."""

from workbench.analysis.detection.targets import target_frame


def test_targets_keep_their_index_in_file_order_and_crowds_are_left_out():
    boxes = [(10, 10, 0), (40, 50, 0), (100, 100, 1), (200, 100, 0), (32, 32, 0)]
    truth = {
        "images": [{"id": 7}, {"id": 9}], "categories": [{"id": 5, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{"id": n, "image_id": 7 if n != 1 else 9, "category_id": 2 if n else 5, "iscrowd": crowd, "bbox": [1, 2, w, h]}
                        for n, (w, h, crowd) in enumerate(boxes)],
    }  # fmt: skip
    frame = target_frame(truth)
    assert list(zip(frame["image_id"], frame["target"], strict=True)) == [(7, 0), (7, 2), (7, 3), (9, 0)]
    assert frame["label"].tolist() == [0, 1, 1, 1] and frame["category_id"].tolist() == [5, 2, 2, 2]
    assert frame["size"].tolist() == ["small", "large", "medium", "medium"]
    assert frame["area"].tolist() == [100, 20_000, 1024, 2000]
    assert frame[["x1", "y1", "x2", "y2"]].iloc[1].tolist() == [1, 2, 201, 102]


def test_what_the_file_says_of_area_and_index_is_kept():
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}],
             "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "area": 50.0, "target": 4}]}  # fmt: skip
    frame = target_frame(truth)
    assert (frame["target"].item(), frame["area"].item(), frame["size"].item()) == (4, 50, "small")


def test_no_targets_are_an_empty_frame():
    frame = target_frame({"images": [], "annotations": [], "categories": []})
    assert frame.empty and "size" in frame
