"""Packs what a GPU machine without a network needs into one archive: ``make gpu-bundle`` or ``python -m gpu.bundle OUT``.

It holds the files of the repository that the checks read, the embedded teacher among them, 200 small JPEG images, and the wheels that the
machine lacks. ``bash gpu/check.sh`` in the unpacked folder does the rest.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from workbench.datasets.opening import open_dataset
from workbench.errors import WorkbenchError

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 60_000_000  # bytes of the archive
IMAGES, SIDE = 200, 192
# neither the checks nor the tests marked cuda read these
LEFT_OUT = ("app/", "docs/images/", "notebooks/", "tests/app/", "tests/notebooks/", "benchmarks/results/")
# what the image of the machine lacks of the project's needs, with what these need in turn
WHEELS = (
    "annotated-types", "duckdb", "hotcoco", "pathlib-abc", "plotly", "pycocotools", "pydantic", "pydantic-core", "typing-inspection",
    "universal-pathlib",
)  # fmt: skip
PLATFORMS = [f"manylinux_2_{version}_x86_64" for version in (28, 27, 24, 17)] + ["manylinux2014_x86_64", "manylinux1_x86_64"]


def bundle(out: Path, wheels: Path | None) -> int:
    """Writes the archive and returns its size in bytes.

    Args:
        out: where the archive goes, ``.tar.gz``.
        wheels: folder of wheels to put in; None puts in none, for a machine that has all.

    Raises:
        WorkbenchError: it is larger than 60 MB.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out, "w:gz") as archive:
        for name in tracked():
            archive.add(ROOT / name, f"bundle/{name}", recursive=False)
        for number, content in enumerate(images()):
            _add(archive, f"bundle/gpu/images/{number:03d}.jpg", content)
        for path in sorted(wheels.glob("*.whl")) if wheels is not None else ():
            archive.add(path, f"bundle/gpu/wheels/{path.name}")
    size = out.stat().st_size
    if size > LARGEST:
        allowed = f"{LARGEST / 1e6:.0f} MB are allowed. Leave something out in gpu/bundle.py."
        raise WorkbenchError(f"{out} has {size / 1e6:.0f} MB, and {allowed}")
    return size


def tracked() -> list[str]:
    """Returns the files of the repository that go into the archive, as they lie in the working tree."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in names if not name.startswith(LEFT_OUT) and (ROOT / name).is_file()]


def images() -> Iterator[bytes]:
    """Yields 200 JPEG images of at most 192 pixels: blood cells where the shared data is there, generated shapes otherwise."""
    shared = Path(os.environ.get("WORKBENCH_SHARED_DATA", ROOT.parent / "shared" / "data")) / "bccd"
    dataset = open_dataset(str(shared) if shared.is_dir() else "shapes", "train")
    for index in range(min(IMAGES, len(dataset))):
        image = Image.fromarray(dataset.image(index))
        image.thumbnail((SIDE, SIDE))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=90)
        yield content.getvalue()


def download(folder: Path) -> None:
    """Fetches the wheels that the machine lacks, for Python 3.12 on Linux."""
    platforms = [argument for name in PLATFORMS for argument in ("--platform", name)]
    target = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *platforms, "-d", str(folder)]
    wanted = [f"{name}{_range(name)}" for name in WHEELS]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *target, *wanted], check=True)


def _range(name: str) -> str:
    """Returns the versions that the project accepts of a package."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    found = [line.strip().strip('",') for line in lines if line.strip().startswith(f'"{name}>')]
    return found[0].removeprefix(name) if found else ""


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def main(arguments: list[str]) -> int:
    """Makes the archive and prints its place and size."""
    parser = argparse.ArgumentParser(prog="python -m gpu.bundle", description="Pack what a GPU machine without a network needs.")
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "build" / "gpu-bundle.tar.gz", help="where the archive goes")
    parser.add_argument("--no-wheels", action="store_true", help="put no wheels in")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if not chosen.no_wheels:
            download(Path(folder))
        size = bundle(chosen.out, None if chosen.no_wheels else Path(folder))
    print(f"{chosen.out}: {size / 1e6:.1f} MB. Unpack it there and run: bash gpu/check.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
