"""Matching, mean average precision, the box threshold and the open-set measures.

The references are pycocotools, a slow loop, and cases small enough to count by hand.
"""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from knownot.data.detection_set import Objects
from knownot.evaluation.box_matching import Boxes, match
from knownot.evaluation.box_metrics import best_f1_threshold, coco_curves, mean_average_precision
from knownot.evaluation.open_set import (
    aose,
    open_set_measures,
    unknown_ap,
    unknown_recall,
    wilderness_impact,
)

K = 3
NAMES = ["ant", "bee", "cow"]


def at(*places: float) -> Tensor:
    """Squares of 10 by 10 pixels, 100 apart; at 1.2 and at 1 they overlap by an IoU of 2 / 3."""
    place = torch.tensor(places).reshape(-1, 1)
    left = place.floor() * 100 + (place % 1 * 10).round()
    top = torch.zeros_like(left)
    return torch.cat([left, top, left + 10, top + 10], 1)


def found(places: list[float], labels: list[int], scores: list[float], unknown=None) -> Boxes:
    called = torch.tensor(unknown if unknown is not None else [False] * len(labels)).bool()
    return Boxes(at(*places), torch.tensor(labels).long(), torch.tensor(scores), called)


def wanted(places: list[float], labels: list[int], ignore=None) -> Objects:
    ignored = torch.tensor(ignore if ignore is not None else [False] * len(labels)).bool()
    return Objects(at(*places), torch.tensor(labels).long(), ignored)


def random_photos(seed: int, photos: int = 12) -> tuple[list[Boxes], list[Objects], list[Tensor]]:
    """Objects of classes −1, 0, 1, 2, some ignored, and detections around them and elsewhere."""
    random = np.random.default_rng(seed)
    detections, truth, unknown_scores = [], [], []
    for _ in range(photos):
        n = int(random.integers(0, 7))
        corner = random.uniform(0, 300, (n, 2))
        boxes = np.concatenate([corner, corner + random.uniform(20, 90, (n, 2))], 1)
        labels = random.integers(-1, K, n)
        truth.append(
            Objects(
                torch.tensor(boxes).float().reshape(-1, 4),
                torch.tensor(labels).long(),
                torch.tensor(random.random(n) < 0.2),
            )
        )
        around = np.repeat(boxes, 3, 0) + random.normal(0, 6, (3 * n, 4))
        around[:, 2:] = np.maximum(around[:, 2:], around[:, :2] + 1)
        guesses = np.where(
            random.random(3 * n) < 0.7, np.repeat(labels, 3).clip(0), random.integers(0, K, 3 * n)
        )
        detections.append(
            Boxes(
                torch.tensor(around).float().reshape(-1, 4),
                torch.tensor(guesses).long(),
                torch.tensor(random.random(3 * n)).float(),
                torch.tensor(random.random(3 * n) < 0.4),
            )
        )
        unknown_scores.append(torch.tensor(random.normal(size=3 * n)))
    return detections, truth, unknown_scores


def pycocotools_evaluation(detections: list[Boxes], truth: list[Objects]):
    """The original evaluator, after `evaluate` and `accumulate`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def annotation(number: int, photo: int, box: Tensor, label: Tensor, **more) -> dict:
        x1, y1, x2, y2 = box.double().tolist()
        size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        names = {"id": number, "image_id": photo, "category_id": int(label)}
        return {**names, **size, "iscrowd": 0, **more}

    objects, results = COCO(), COCO()
    for coco in (objects, results):
        images = [{"id": i} for i in range(len(truth))]
        coco.dataset = {"images": images, "categories": [{"id": k} for k in range(K)]}
        coco.dataset["annotations"] = []
    for i, (boxes, photo) in enumerate(zip(detections, truth, strict=True)):
        for target, label, ignore in zip(photo.boxes, photo.labels, photo.ignore, strict=True):
            if label >= 0:
                into = objects.dataset["annotations"]
                into.append(annotation(len(into) + 1, i, target, label, iscrowd=int(ignore)))
        for box, label, score in zip(boxes.boxes, boxes.labels, boxes.scores, strict=True):
            into = results.dataset["annotations"]
            into.append(annotation(len(into) + 1, i, box, label, score=float(score)))
    with contextlib.redirect_stdout(io.StringIO()):
        objects.createIndex()
        results.createIndex()
        evaluation = COCOeval(objects, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


# --- Boxes -----------------------------------------------------------------------------------


def test_boxes_of_different_lengths_are_refused() -> None:
    fine = found([1, 2], [0, 1], [0.5, 0.6])
    for name in ("boxes", "scores", "unknown"):
        parts = {key: getattr(fine, key) for key in ("boxes", "labels", "scores", "unknown")}
        parts[name] = parts[name][:1]
        with pytest.raises(ValueError, match=rf"{name}: expected shape \(2"):
            Boxes(**parts)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_boxes_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="scores: 1 values are NaN or infinite"):
        found([1], [0], [value])
    with pytest.raises(ValueError, match="boxes: 4 values are NaN or infinite"):
        Boxes(torch.full((1, 4), value), torch.tensor([0]), torch.ones(1), torch.ones(1).bool())


# --- match -----------------------------------------------------------------------------------


def test_the_better_of_two_detections_takes_the_object() -> None:
    boxes = found([1, 1, 2], [0, 0, 1], [0.5, 0.9, 0.1])
    assert match(boxes, wanted([2, 1], [1, 0])).tolist() == [-1, 1, 0]


def test_of_equal_scores_the_first_takes_the_object() -> None:
    # More than 16: NumPy's other sorts keep the order of fewer.
    boxes = found([1] * 50, [0] * 50, [0.4] * 25 + [0.5] * 25)
    assert match(boxes, wanted([1], [0])).tolist() == [-1] * 25 + [0] + [-1] * 24


def test_an_object_of_another_class_or_of_none_is_not_matched() -> None:
    boxes = found([1, 2], [0, 0], [0.9, 0.8])
    assert match(boxes, wanted([1, 2], [1, -1])).tolist() == [-1, -1]


def test_the_second_best_object_is_taken_when_the_best_is_gone() -> None:
    boxes = found([1, 1], [0, 0], [0.9, 0.8])
    objects = wanted([1.2, 1], [0, 0])  # the first overlaps by 2 / 3
    assert match(boxes, objects).tolist() == [1, 0]
    assert match(boxes, objects, iou=0.7).tolist() == [1, -1]


def test_an_ignored_object_takes_any_number_but_only_those_left() -> None:
    boxes = found([1, 1, 1, 3], [0, 0, 1, 0], [0.9, 0.8, 0.7, 0.6])
    objects = wanted([1, 1], [0, 0], ignore=[True, False])
    assert match(boxes, objects).tolist() == [1, -2, -1, -1]


def test_a_small_box_in_an_ignored_region_is_neither_right_nor_wrong() -> None:
    region = Objects(torch.tensor([[0.0, 0, 200, 200]]), torch.tensor([0]), torch.tensor([True]))
    assert match(found([1], [0], [0.9]), region).tolist() == [-2]


def test_an_overlap_of_exactly_the_threshold_suffices() -> None:
    objects = Objects(torch.tensor([[0.0, 0, 10, 5]]), torch.tensor([0]), torch.tensor([False]))
    assert match(found([0], [0], [0.9]), objects).tolist() == [0]


def slow_match(boxes: Boxes, objects: Objects, iou: float) -> list[int]:
    """Objects counted first, ignored ones after; for every detection every object in turn."""

    def overlap(d: int, g: int) -> float:
        a, b = boxes.boxes[d].tolist(), objects.boxes[g].tolist()
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        inside = max(width, 0.0) * max(height, 0.0)
        own, other = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
        return inside / (own if objects.ignore[g] else own + other - inside)

    result = [-1] * len(boxes)
    for d in sorted(range(len(boxes)), key=lambda d: -float(boxes.scores[d])):
        best, best_overlap = -1, iou
        for ignored in (False, True):
            for g in range(len(objects)):
                if bool(objects.ignore[g]) != ignored or objects.labels[g] != boxes.labels[d]:
                    continue
                if g in result and not ignored:
                    continue
                if overlap(d, g) >= best_overlap:
                    best, best_overlap = (-2 if ignored else g), overlap(d, g)
            if best != -1:
                break
        result[d] = best
    return result


# Corners on a coarse grid: many overlaps are equal, or exactly 0.5.
grid_boxes = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 4), st.integers(1, 4)),
    max_size=8,
).map(lambda rows: torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows]).reshape(-1, 4))


@given(
    boxes=grid_boxes,
    objects=grid_boxes,
    seed=st.integers(0, 999),
    iou=st.sampled_from([0.1, 0.5, 0.75, 1.0]),
)
def test_match_is_its_slow_loop(boxes, objects, seed, iou) -> None:
    random = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int, count: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=random)

    n, m = len(boxes), len(objects)
    detections = Boxes(boxes.float(), pick(0, 2, n), pick(0, 5, n) / 4, pick(0, 2, n).bool())
    truth = Objects(objects.float(), pick(-1, 2, m), pick(0, 4, m) == 0)
    assert match(detections, truth, iou).tolist() == slow_match(detections, truth, iou)


@pytest.mark.parametrize("seed", range(4))
def test_match_is_pycocotools(seed: int) -> None:
    detections, truth, _ = random_photos(seed)
    evaluation = pycocotools_evaluation(detections, truth)
    for entry in evaluation.evalImgs:
        if entry is None or entry["aRng"] != [0, 1e10]:
            continue
        i, k = entry["image_id"], entry["category_id"]
        of_class = detections[i].labels == k
        ours = match(detections[i], truth[i])[of_class]
        ours = ours[detections[i].scores[of_class].argsort(descending=True)]
        assert (ours == -2).tolist() == entry["dtIgnore"][0].tolist()
        assert (ours != -1).tolist() == (entry["dtMatches"][0] > 0).tolist()


def test_match_takes_empty_photos() -> None:
    boxes, objects = found([1], [0], [0.5]), wanted([1], [0])
    assert match(boxes, Objects.none()).tolist() == [-1]
    assert match(Boxes.none(), objects).tolist() == []
    assert match(Boxes.none(), Objects.none()).dtype == torch.int64


def test_match_of_boxes_without_area_finds_nothing() -> None:
    point = torch.zeros(1, 4)
    boxes = Boxes(point, torch.tensor([0]), torch.ones(1), torch.zeros(1).bool())
    for ignore in (False, True):
        objects = Objects(point, torch.tensor([0]), torch.tensor([ignore]))
        assert match(boxes, objects).tolist() == [-1]


@pytest.mark.parametrize("iou", [0.0, -1.0, 1.5, 50])
def test_match_rejects_an_overlap_outside_0_1(iou: float) -> None:
    with pytest.raises(ValueError, match=r"iou: expected a fraction in \(0, 1\]"):
        match(Boxes.none(), Objects.none(), iou)


# --- mean average precision ------------------------------------------------------------------


def test_map_of_a_small_case() -> None:
    # ant: right, wrong, right of two objects: precision 1 up to recall 0.5 (51 points), 2 / 3 on.
    # bee: one of one, at an overlap of 2 / 3: right at 0.5, 0.55, 0.6 and 0.65.
    boxes = found([1, 2, 3, 4.2], [0, 0, 0, 1], [0.9, 0.8, 0.7, 0.6])
    result = mean_average_precision([boxes], [wanted([1, 3, 4], [0, 0, 1])], NAMES)
    ant, bee = (51 + 50 * 2 / 3) / 101, 0.4
    assert result["per_class"] == {
        "ant": pytest.approx(ant),
        "bee": pytest.approx(bee),
        "cow": None,
    }
    assert result["map"] == pytest.approx((ant + bee) / 2)
    assert result["map_50"] == pytest.approx((ant + 1) / 2)


@pytest.mark.parametrize("seed", range(6))
def test_map_is_pycocotools(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    detections, truth, _ = random_photos(seed)
    expected = pycocotools_evaluation(detections, truth)
    capsys.readouterr()
    ours = mean_average_precision(detections, truth, NAMES)
    assert capsys.readouterr() == ("", "")
    assert ours["map"] == pytest.approx(expected.stats[0], abs=1e-6)
    assert ours["map_50"] == pytest.approx(expected.stats[1], abs=1e-6)
    for k, name in enumerate(NAMES):
        values = expected.eval["precision"][:, :, k, 0, 2]
        assert ours["per_class"][name] == pytest.approx(values[values > -1].mean(), abs=1e-6)


def test_an_overlap_and_a_recall_of_exactly_a_threshold_count() -> None:
    # 0.6 and 0.1 in single precision are above 0.6 and 0.1.
    boxes = Boxes(
        torch.tensor([[0.0, 0, 10, 6]]), torch.tensor([0]), torch.ones(1), torch.zeros(1).bool()
    )
    objects = wanted([*range(10)], [0] * 10)
    precision, _ = coco_curves([boxes], [objects], 1)
    assert precision[:, :, 0].sum(1).tolist() == [11.0] * 3 + [0.0] * 7


def test_unknown_objects_and_calls_play_no_part_in_map() -> None:
    boxes = found([1, 2], [0, 1], [0.9, 0.95])
    plain = mean_average_precision([boxes], [wanted([1], [0])], NAMES)
    called = found([1, 2], [0, 1], [0.9, 0.95], unknown=[True, True])
    assert mean_average_precision([called], [wanted([1, 2], [0, -1])], NAMES) == plain
    assert plain["map"] == pytest.approx(1.0)


def test_more_than_100_boxes_give_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    boxes = found([*range(101)], [0] * 101, [1 - i / 200 for i in range(101)])
    assert mean_average_precision([boxes], [wanted([100], [0])], NAMES)["map"] == 0.0
    assert [str(w.message) for w in recwarn] == []


def test_map_where_there_is_nothing_to_find_is_none() -> None:
    nothing = {"map": None, "map_50": None, "per_class": dict.fromkeys(NAMES)}
    boxes = found([1], [0], [0.5])
    for objects in (Objects.none(), wanted([1], [-1]), wanted([1], [0], ignore=[True])):
        assert mean_average_precision([boxes], [objects], NAMES) == nothing
    assert mean_average_precision([], [], NAMES) == nothing
    assert mean_average_precision([Boxes.none()], [Objects.none()], NAMES) == nothing


def test_map_without_detections_is_zero() -> None:
    result = mean_average_precision([Boxes.none()], [wanted([1], [1])], NAMES)
    assert result == {
        "map": 0.0,
        "map_50": 0.0,
        "per_class": {"ant": None, "bee": 0.0, "cow": None},
    }


# --- best_f1_threshold -----------------------------------------------------------------------


def test_the_threshold_of_a_small_case() -> None:
    # ant: precision 1 up to recall 0.5 (F1 2 / 3), 2 / 3 up to 1 (F1 0.8): score 0.7 of the third.
    # bee: right at four of ten overlaps: 0.4 of 0.6. cow: no right detection.
    boxes = found([1, 2, 3, 4.2, 5], [0, 0, 0, 1, 2], [0.9, 0.8, 0.7, 0.6, 0.99])
    truth = wanted([1, 3, 4, 6], [0, 0, 1, 2])
    assert best_f1_threshold([boxes], [truth], K) == pytest.approx((0.7 + 0.24) / 2)


def slow_threshold(detections: list[Boxes], truth: list[Objects]) -> float:
    evaluation = pycocotools_evaluation(detections, truth)
    best_scores = []
    for k in range(K):
        if not any(((o.labels == k) & ~o.ignore).any() for o in truth):
            continue
        points = []
        for r in range(101):
            precision = evaluation.eval["precision"][:, r, k, 0, 2].mean()
            score = evaluation.eval["scores"][:, r, k, 0, 2].mean()
            recall = evaluation.params.recThrs[r]
            f1 = 2 * precision * recall / (precision + recall) if precision > 0 else 0.0
            points.append((f1, -r, score))
        f1, _, score = max(points)
        if f1 > 0:
            best_scores.append(score)
    return sum(best_scores) / len(best_scores)


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_is_the_one_from_pycocotools(seed: int) -> None:
    detections, truth, _ = random_photos(seed, photos=6)
    ours = best_f1_threshold(detections, truth, K)
    assert ours == pytest.approx(slow_threshold(detections, truth), abs=1e-6)


def test_classes_without_ground_truth_do_not_move_the_threshold() -> None:
    boxes = found([1, 2], [0, 2], [0.8, 0.3])
    truth = wanted([1, 2], [0, 2], ignore=[False, True])
    assert best_f1_threshold([boxes], [truth], K) == pytest.approx(0.8)
    assert best_f1_threshold([boxes], [truth], K + 5) == pytest.approx(0.8)


def test_without_a_right_detection_the_threshold_keeps_every_box() -> None:
    objects = wanted([1], [0])
    assert best_f1_threshold([Boxes.none()], [objects], K) == 0.0
    assert best_f1_threshold([found([2], [0], [0.9])], [objects], K) == 0.0
    assert best_f1_threshold([found([2], [0], [0.9])], [Objects.none()], K) == 0.0
    assert best_f1_threshold([], [], K) == 0.0


# --- open-set measures -----------------------------------------------------------------------


def test_unknown_recall_counts_objects_found_by_boxes_called_unknown() -> None:
    # Unknown objects at 1, 2, 3, one ignored at 4. Two boxes share 1; that on 2 is called known.
    boxes = found([1, 1, 2, 9], [0, 1, 2, 0], [0.9, 0.8, 0.7, 0.6], [True, True, False, True])
    truth = wanted([1, 2, 3, 4], [-1] * 4, ignore=[False, False, False, True])
    assert unknown_recall([boxes], [truth]) == pytest.approx(1 / 3)


def test_aose_counts_unknown_objects_taken_for_known_ones_once() -> None:
    boxes = found([1, 1, 2, 3], [0, 1, 2, 0], [0.9, 0.8, 0.7, 0.6], [False, False, True, False])
    assert aose([boxes], [wanted([1, 2, 3], [-1, -1, -1])]) == 2
    assert aose([boxes], [wanted([1, 2, 3], [-1, -1, -1], ignore=[True, False, False])]) == 1


def test_a_detection_of_a_known_object_is_no_open_set_error() -> None:
    # The unknown object lies on the known one, as a rider on a horse does.
    boxes = found([1], [0], [0.9])
    assert aose([boxes], [wanted([1, 1.2], [0, -1])]) == 0
    assert aose([boxes], [wanted([1, 1.2], [0, -1], ignore=[True, False])]) == 0
    assert aose([boxes], [wanted([1, 1.2], [1, -1])]) == 1
    assert wilderness_impact([boxes], [wanted([1, 1.2], [0, -1])], K) == 0.0


def test_wilderness_impact_of_a_small_case() -> None:
    # ant, five objects, in order of score: right, right, on an unknown, right, wrong, right | on an
    # unknown, right: down to the bar the recall is 0.8. bee, one object: right | on an unknown.
    places = [1, 2, 11, 3, 20, 4, 12, 5, 6, 13]
    scores = [0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45]
    boxes = found(places, [0] * 8 + [1] * 2, scores)
    truth = wanted([1, 2, 3, 4, 5, 6, 11, 12, 13], [0] * 5 + [1] + [-1] * 3)
    # Taken: 4 right + 1 right, 1 wrong, 1 on an unknown object.
    assert wilderness_impact([boxes], [truth], K) == pytest.approx(1 / 6)
    assert wilderness_impact([boxes], [truth], K, recall=1.0) == pytest.approx(2 / 7)
    assert wilderness_impact([boxes], [truth], K, recall=0.4) == pytest.approx(0.0)


def test_wilderness_impact_at_a_recall_never_reached_takes_the_highest() -> None:
    boxes = found([1, 11, 12], [0, 0, 0], [0.8, 0.9, 0.1])
    truth = wanted([1, 2, 3, 11, 12], [0, 0, 0, -1, -1])
    assert wilderness_impact([boxes], [truth], K, recall=0.8) == pytest.approx(1.0)


def test_wilderness_impact_takes_equal_scores_together() -> None:
    # A threshold gives a recall of 0.25 or 1, nothing between.
    boxes = found([1, 2, 3, 4, 11], [0] * 5, [0.9, 0.5, 0.5, 0.5, 0.5])
    truth = wanted([1, 2, 3, 4, 11], [0, 0, 0, 0, -1])
    assert wilderness_impact([boxes], [truth], K, recall=0.5) == 0.0
    assert wilderness_impact([boxes], [truth], K, recall=0.8) == pytest.approx(1 / 4)


def test_wilderness_impact_is_the_ratio_of_the_two_precisions() -> None:
    detections, truth, _ = random_photos(3, photos=40)
    known = [photo.select(~photo.unknown) for photo in detections]
    impact = wilderness_impact(detections, truth, K, recall=1.0)
    right = wrong = on_unknown = 0
    for k in range(K):
        rows = []
        for photo, objects in zip(known, truth, strict=True):
            unknown = Objects(
                objects.boxes,
                torch.where((objects.labels < 0) & ~objects.ignore, k, -1),
                torch.zeros(len(objects)).bool(),
            )
            for d in torch.nonzero(photo.labels == k).flatten().tolist():
                own = slow_match(photo, objects, 0.5)[d]
                overlaps = slow_match(photo.select(torch.tensor([d])), unknown, 0.5)[0] >= 0
                if own != -2:
                    rows.append((-float(photo.scores[d]), own >= 0, overlaps and own < 0))
        rows.sort()
        last = max(i for i, row in enumerate(rows) if row[1])
        right += sum(row[1] for row in rows[: last + 1])
        on_unknown += sum(row[2] for row in rows[: last + 1])
        wrong += sum(not row[1] and not row[2] for row in rows[: last + 1])
    closed, opened = right / (right + wrong), right / (right + wrong + on_unknown)
    assert on_unknown > 0
    assert impact == pytest.approx(closed / opened - 1)


def test_wilderness_impact_is_none_without_a_detection_of_a_known_object() -> None:
    truth = wanted([1, 2], [0, -1])
    assert wilderness_impact([Boxes.none()], [truth], K) is None
    assert wilderness_impact([found([2], [0], [0.9])], [truth], K) is None
    assert wilderness_impact([found([2], [0], [0.9])], [wanted([2], [-1])], K) is None


def test_unknown_ap_ranks_by_the_unknown_score() -> None:
    # By unknown score: right, wrong (a known object), right. The box on 3 is not called unknown.
    boxes = found(
        [1, 5, 2, 3], [0, 1, 2, 0], [0.2, 0.9, 0.8, 0.9], unknown=[True, True, True, False]
    )
    truth = wanted([1, 2, 5], [-1, -1, 1])
    scores = [torch.tensor([3.0, -1.0, -2.0, 9.0])]
    assert unknown_ap([boxes], [truth], scores) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert unknown_ap([Boxes.none()], [truth], [torch.zeros(0)]) == 0.0


def test_unknown_ap_is_pycocotools() -> None:
    detections, truth, scores = random_photos(5, photos=30)
    as_known = []
    for photo, values in zip(detections, scores, strict=True):
        zeros = torch.zeros(len(photo)).long()
        as_known.append(Boxes(photo.boxes, zeros, values, photo.unknown).select(photo.unknown))
    flipped = [Objects(o.boxes, torch.where(o.labels < 0, 0, -1), o.ignore) for o in truth]
    expected = pycocotools_evaluation(as_known, flipped).stats[1]
    assert expected > 0
    assert unknown_ap(detections, truth, scores) == pytest.approx(expected, abs=1e-6)


def test_all_measures_come_together_at_a_threshold() -> None:
    boxes = found([1, 2, 3], [0, 1, 2], [0.9, 0.5, 0.2], unknown=[False, True, True])
    truth = wanted([1, 2, 3], [0, -1, -1])
    scores = [torch.tensor([0.0, 1.0, 2.0])]
    expected = {"unknown_recall": 1.0, "aose": 0, "wi": 0.0, "unknown_ap": 1.0, "n_unknown": 2}
    assert open_set_measures([boxes], [truth], scores, K) == pytest.approx(expected)
    strict = open_set_measures([boxes], [truth], scores, K, threshold=0.5)
    assert strict == pytest.approx({**expected, "unknown_recall": 0.5, "unknown_ap": 51 / 101})


def test_measures_without_unknown_objects_are_none() -> None:
    nothing = dict.fromkeys(("unknown_recall", "aose", "wi", "unknown_ap"))
    boxes, scores = found([1], [0], [0.9], unknown=[True]), [torch.ones(1)]
    for truth in (wanted([1], [0]), wanted([1], [-1], ignore=[True]), Objects.none()):
        measures = open_set_measures([boxes], [truth], scores, K)
        assert measures == {**nothing, "n_unknown": 0}
    assert open_set_measures([], [], [], K) == {**nothing, "n_unknown": 0}


def test_measures_without_detections() -> None:
    measures = open_set_measures([Boxes.none()], [wanted([1], [-1])], [torch.zeros(0)], K)
    assert measures == {
        "unknown_recall": 0.0,
        "aose": 0,
        "wi": None,
        "unknown_ap": 0.0,
        "n_unknown": 1,
    }


# --- what holds for all ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_no_measure_depends_on_the_order_of_the_photos(seed: int) -> None:
    detections, truth, scores = random_photos(seed)
    order = np.random.default_rng(seed).permutation(len(truth))
    moved = [[values[i] for i in order] for values in (detections, truth, scores)]
    before, after = (
        mean_average_precision(d, t, NAMES) for d, t in ((detections, truth), moved[:2])
    )
    assert before["per_class"] == pytest.approx(after["per_class"], abs=1e-12)
    threshold = best_f1_threshold(detections, truth, K)
    assert threshold == pytest.approx(best_f1_threshold(*moved[:2], K), abs=1e-12)
    measures = open_set_measures(detections, truth, scores, K, threshold=threshold)
    assert measures == pytest.approx(open_set_measures(*moved, K, threshold=threshold))


def test_photos_that_do_not_belong_together_are_refused() -> None:
    boxes, objects, scores = found([1], [0], [0.5]), wanted([1], [0]), [torch.ones(1)]
    for call in (
        lambda: mean_average_precision([boxes], [objects] * 2, NAMES),
        lambda: best_f1_threshold([boxes], [objects] * 2, K),
        lambda: open_set_measures([boxes], [objects] * 2, scores, K),
    ):
        with pytest.raises(ValueError, match="truth: expected one entry for each of the 1 photos"):
            call()
    for measure in (unknown_recall, aose):
        with pytest.raises(ValueError, match="zip"):
            measure([boxes], [objects] * 2)


def test_labels_outside_the_classes_are_refused() -> None:
    boxes, objects = found([1], [0], [0.5]), wanted([1], [0])
    with pytest.raises(
        ValueError, match="detections: expected labels from 0 to 2, got -1 in photo 1"
    ):
        mean_average_precision([boxes, found([1], [-1], [0.5])], [objects] * 2, NAMES)
    with pytest.raises(ValueError, match="truth: expected labels from -1 to 2, got 3 in photo 0"):
        best_f1_threshold([boxes], [wanted([1], [3])], K)
    with pytest.raises(ValueError, match="truth: expected labels from -1 to 2, got -2 in photo 0"):
        best_f1_threshold([boxes], [wanted([1], [-2])], K)


def test_wrong_unknown_scores_and_recalls_are_refused() -> None:
    boxes, truth = found([1], [0], [0.5], unknown=[True]), wanted([1], [-1])
    with pytest.raises(ValueError, match="unknown_scores: expected one score for each detection"):
        unknown_ap([boxes], [truth], [torch.ones(2)])
    with pytest.raises(ValueError, match="unknown_scores: expected one score for each detection"):
        open_set_measures([boxes], [truth], [], K)
    with pytest.raises(ValueError, match="unknown_scores: some are NaN"):
        unknown_ap([boxes], [truth], [torch.tensor([math.nan])])
    for recall in (0.0, 80):
        with pytest.raises(ValueError, match=r"recall: expected a fraction in \(0, 1\]"):
            open_set_measures([boxes], [truth], [torch.ones(1)], K, recall=recall)
