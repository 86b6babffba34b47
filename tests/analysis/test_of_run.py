"""Opening the data of a run."""

import pytest

from workbench.analysis.of_run import open_data
from workbench.errors import RunError


def test_the_data_of_a_run_is_opened_with_its_options_and_refused_when_its_classes_changed():
    data = {"path": "shapes", "format": "auto", "val": "test", "policy": {}, "options": {"test": 3}}
    info = {"recipe": {"data": data}, "classes": ["circle", "square", "triangle", "cross"]}
    assert (len(open_data(info)), open_data(info).split) == (3, "test")
    with pytest.raises(RunError, match="other classes"):
        open_data({**info, "classes": ["circle"]})
