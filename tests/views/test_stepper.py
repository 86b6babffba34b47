"""The widget's scene is what the query table says."""

import base64
import io

import pytest
from PIL import Image

from tests.app.example_runs import make_stepped_run
from tests.shared_runs import shared_copy
from workbench.analysis.of_run import open_data
from workbench.errors import RunError
from workbench.store.queries import read_queries
from workbench.store.run import Run
from workbench.views.figures import image_rows
from workbench.views.stepper import MOST, Stepper, scene_of, stepper


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(shared_copy(tmp_path_factory, "stepped", make_stepped_run) / "stepped")


def test_every_evaluation_and_layer_holds_the_boxes_scores_and_mates_of_the_query_table(run: Run):
    scene = scene_of(run, 2)
    record = open_data(run.info(), "val").records[1]
    assert [moment["step"] for moment in scene["steps"]] == [6, 12]
    assert len(scene["targets"]) == len(record.boxes) and scene["layers"] == 2
    rows = read_queries(run, "val", where="image_id = $image", parameters={"image": record.image_id})
    for moment in scene["steps"]:
        for layer, found in enumerate(moment["layers"]):
            own = rows[(rows["model"] == "student") & (rows["step"] == moment["step"]) & (rows["layer"] == layer)]
            own = own.sort_values("score", ascending=False).head(MOST)
            assert [query["score"] for query in found["student"]] == [round(float(score), 3) for score in own["score"]]
            for query, row in zip(found["student"], own.to_dict("records"), strict=True):
                of_teacher = rows[(rows["model"] == "teacher") & (rows["layer"] == row["mate_layer"])]
                (mate,) = of_teacher[of_teacher["query"] == row["mate"]].itertuples()
                assert query["mate"] == pytest.approx([mate.cx, mate.cy], abs=1e-4)
                assert query["box"] == pytest.approx([row["cx"], row["cy"], row["w"], row["h"]], abs=1e-4)


def test_the_widget_carries_a_still_for_viewers_and_less_than_a_quarter_megabyte(run: Run):
    made = stepper(run, 1)
    assert isinstance(made, Stepper)
    data, _ = made._repr_mimebundle_()
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"])))
    assert max(picture.size) == 480
    assert len(str(made.scene)) < 250_000


def test_an_image_that_was_not_traced_is_refused_with_what_to_do(run: Run):
    with pytest.raises(RunError, match="keeps queries of the steps 6, 12, not of 7"):
        image_rows(run, open_data(run.info(), "val").records[0].image_id, 7)
    with pytest.raises(RunError, match="workbench record stepped"):
        image_rows(run, -5)
