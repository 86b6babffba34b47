"""Makes or updates the environment in .venv: `python3 tools/environment.py EXTRA`. It needs only Python.

It uses uv if uv is on PATH or can be installed into .venv-tools, and otherwise pip. Outside this folder only the download cache of uv or
pip changes. A stamp in .venv records the requirements, so that a second call returns at once.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
TOOLS = ROOT / ".venv-tools"
BIN = VENV / "bin"


def say(text: str) -> None:
    """Prints a line about the set-up without delay."""
    print(f"[setup] {text}", flush=True)


def run(command: list[str]) -> bool:
    """Runs a command and shows its output; returns True if it succeeded."""
    # Companies and proxies use their own certificates, which uv trusts only if it is told to use those of the system.
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "UV_SYSTEM_CERTS": "1"}).returncode == 0


def find_uv() -> str | None:
    """Returns the path of uv: the one on PATH, or one that pip installs into .venv-tools. None if neither works."""
    if found := shutil.which("uv"):
        return found
    private = TOOLS / "bin" / "uv"
    if private.exists():
        return str(private)
    say("uv is not on PATH; installing it into .venv-tools")
    in_venv = [sys.executable, "-m", "venv", str(TOOLS)], [str(TOOLS / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"]
    beside = ([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(TOOLS), "uv"],)
    for commands in (in_venv, beside):
        if all(run(command) for command in commands) and private.exists():
            return str(private)
    say("uv could not be installed; using pip, which takes some minutes longer")
    return None


def constraint() -> str | None:
    """Returns the requirement for torch within the range of pyproject.toml; None for no further restriction.

    ``TORCH=2.11.0`` selects a version. Otherwise a Linux machine without an NVIDIA driver requires 2.14 or newer. This avoids an older
    CPU-only wheel from a local folder, with which no torchvision of the registry works.
    """
    if version := os.environ.get("TORCH"):
        return f"torch=={version}"
    if sys.platform == "linux" and platform.machine() == "x86_64" and not shutil.which("nvidia-smi"):
        return "torch>=2.14"
    return None


def install(extra: str, torch: str | None) -> bool:
    """Installs this checkout with one extra into .venv, as an editable package; returns True if it succeeded."""
    if VENV.exists() and not (VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}").is_dir():
        say(".venv was made with another version of Python; making it again")
        shutil.rmtree(VENV)
    if any(VENV.glob("lib/python*/site-packages/workbench-*.dist-info")):
        # either the former name of this project or another product; removing it later would remove files of ours too
        say(".venv holds a distribution called workbench, but this one is called distillation-workbench; making .venv again")
        shutil.rmtree(VENV)
    requirements = ["--editable", f".[{extra}]", *([torch] if torch else [])]
    if uv := find_uv():
        if run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(VENV)]) and run(
            [uv, "pip", "install", "--python", str(BIN / "python"), *requirements]
        ):
            return True
        say("uv failed; trying pip")
    return run([sys.executable, "-m", "venv", str(VENV)]) and run([str(BIN / "python"), "-m", "pip", "install", *requirements])


def main(extra: str) -> int:
    """Makes .venv match pyproject.toml and ``extra``; returns the exit status."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        say(f"{sys.executable} is Python {platform.python_version()}, but 3.11 or 3.12 is needed. Name another with PYTHON=/path/to/it")
        return 1
    torch = constraint()
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + f"{sys.version_info[:2]} {torch}".encode()).hexdigest()
    # `all` contains every extra, so an environment made for the tests also serves the demo.
    if any(stamp.exists() and stamp.read_text() == wanted for stamp in (VENV / f"stamp-{extra}", VENV / "stamp-all")):
        return 0
    say(f"making .venv with Python {platform.python_version()}, distillation-workbench[{extra}]" + (f" and {torch}" if torch else ""))
    say("this needs about 7 GB, including torch's CUDA libraries, and takes 1-2 minutes with uv or up to 10 with pip")
    if not install(extra, torch):
        say("the environment could not be made; the messages above say why. Fix the cause and run the same command again.")
        return 1
    (VENV / f"stamp-{extra}").write_text(wanted)
    say("the environment is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
