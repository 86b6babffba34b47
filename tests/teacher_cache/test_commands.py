"""``workbench cache``, as a user types it."""

from pathlib import Path
from typing import Any

from tests.flows import command, write_recipe
from tests.teacher_cache.teachers import CACHED
from workbench.files import read_json

SMALL: dict[str, Any] = {"data": {"options": {"train": 4}}, "train": {"steps": 1}}


def test_a_cache_is_built_listed_checked_mended_trained_from_and_pruned(tmp_path: Path, runs_folder: Path):
    recipe = str(write_recipe(tmp_path, CACHED, SMALL))
    code, _, err = command("run", recipe, "--plain")
    assert code == 10 and "Build it with 'workbench cache build'" in err
    assert not (runs_folder / "tiny-distilled-seed0").exists()

    code, out, err = command("cache", "build", recipe)
    assert code == 10 and "memory maps" in err and "--accept" in err
    assert "4 images x 2 variants" in out and "GB in all" in out and "GB free" in out and "ms per output" in out
    code, out, err = command("cache", "build", recipe, "--accept")
    assert code == 0 and "8 outputs computed, 0 reused" in out, err

    code, out, _ = command("cache", "list")
    assert code == 0 and "tiny" in out and "complete" in out and "memory (8,)" not in out and "memory [8]" in out

    code, out, err = command("cache", "check", recipe, "--answers", "3")
    assert code == 0 and "every file is intact" in out and "3 outputs computed again" in out, err
    assert "would change: 0 of 240 queries" in out, "3 answers of 4 layers and 20 queries, kept unrounded"
    shard = runs_folder / "caches" / "tiny" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    code, out, _ = command("cache", "check", recipe, "--answers", "3")
    assert code == 1 and "damaged: shard-00000.safetensors" in out
    code, out, _ = command("cache", "build", recipe, "--accept")
    assert code == 0 and "shard-00000.safetensors was damaged" in out and "8 outputs computed" in out

    code, out, err = command("run", recipe, "--plain")
    assert code == 0, err
    info = read_json(runs_folder / "tiny-distilled-seed0" / "run.json")
    assert info["cache"]["name"] == "tiny" and info["cache"]["build_seconds"]["wall"] > 0

    code, out, _ = command("cache", "prune")
    assert code == 0 and "so nothing was removed" in out and shard.exists()
    code, _, err = command("cache", "prune", "other")
    assert code == 10 and "Caches there: tiny" in err
    manifest = shard.parent / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 0'))
    code, out, _ = command("cache", "list")
    assert code == 0 and "unreadable" in out
    code, out, _ = command("cache", "prune")
    assert code == 0 and "removed tiny" in out and not shard.parent.exists()
    assert command("cache", "list")[1].strip() == "nothing yet"


def test_a_teacher_that_the_recipe_makes_is_trained_before_its_cache_is_built(tmp_path: Path, runs_folder: Path):
    write_recipe(tmp_path, {"name": "big"}, SMALL)
    cached = CACHED | {"name": "student", "teacher": {"recipe": "big.yaml", "seed": 3}}
    recipe = str(write_recipe(tmp_path, cached, SMALL))
    code, out, err = command("cache", "check", recipe)
    assert code == 4 and "there is no detector 'big-undistilled-seed3'" in err, "checking trains nothing"
    code, out, err = command("cache", "build", recipe, "--accept")
    assert code == 0 and "training the teacher first: run 'big-undistilled-seed3'" in out and "8 outputs computed" in out, err
    assert read_json(runs_folder / "big-undistilled-seed3" / "run.json")["state"] == "done"
    code, out, _ = command("cache", "build", recipe, "--accept")
    assert code == 0 and "training the teacher" not in out and "0 outputs computed, 8 reused" in out
