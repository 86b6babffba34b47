from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.app.screenshot import HEIGHTS, WIDTH, take


@pytest.mark.browser
def test_the_pictures_of_the_readme_show_both_pages(chromium: Any, runs_root: Path, tmp_path: Path):
    for path in take(chromium, runs_root, tmp_path / "images"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape[:2] == (HEIGHTS[path.stem], WIDTH)
        marked = (np.ptp(pixels.astype(int), axis=2) > 60).mean()  # coloured pixels: marks, photographs
        assert marked > {"overview": 0.002, "image": 0.05}[path.stem]
