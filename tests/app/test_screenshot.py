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
        # coloured pixels: marks of the charts, which are in the lower part of the overview, and photographs
        drawn = pixels[640:960] if path.stem == "overview" else pixels
        marked = (np.ptp(drawn.astype(int), axis=2) > 60).mean()
        assert marked > {"overview": 0.002, "image": 0.05}[path.stem]
