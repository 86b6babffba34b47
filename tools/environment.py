"""Makes or updates the environment in .venv: `python3 tools/environment.py EXTRA`. Needs nothing but Python itself.

uv does the work where it is on PATH or can be installed into .venv-tools; else pip. Nothing outside this folder changes, but
for the download cache of uv or pip. A stamp inside .venv, made of what was asked for, lets a second call return at once.
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
    """Prints a line about the set-up, at once."""
    print(f"[setup] {text}", flush=True)


def run(command: list[str]) -> bool:
    """Runs a command with its output shown; True when it succeeded."""
    # Companies and proxies sign with certificates of their own, which uv trusts only when told to use the system's.
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "UV_SYSTEM_CERTS": "1"}).returncode == 0


def find_uv() -> str | None:
    """uv on PATH, or a private one made by pip."""
    if found := shutil.which("uv"):
        return found
    private = TOOLS / "bin" / "uv"
    if private.exists():
        return str(private)
    say("uv is not on PATH: trying to install it into .venv-tools")
    in_venv = [sys.executable, "-m", "venv", str(TOOLS)], [str(TOOLS / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"]
    beside = ([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(TOOLS), "uv"],)
    for commands in (in_venv, beside):
        if all(run(command) for command in commands) and private.exists():
            return str(private)
    say("uv cannot be installed here: pip it is, which takes some minutes longer")
    return None


def constraint() -> str | None:
    """Which torch to ask for, within the range of pyproject.toml.

    ``TORCH=2.11.0`` asks for a version. Otherwise a Linux machine without an NVIDIA driver asks for 2.14 or newer, so that an older
    CPU-only wheel lying in a local folder is not taken: no torchvision on the registry works with those.
    """
    if version := os.environ.get("TORCH"):
        return f"torch=={version}"
    if sys.platform == "linux" and platform.machine() == "x86_64" and not shutil.which("nvidia-smi"):
        return "torch>=2.14"
    return None


def install(extra: str, torch: str | None) -> bool:
    """Installs this checkout, editable, with one extra into .venv; True when it succeeded."""
    if VENV.exists() and not (VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}").is_dir():
        say(".venv was made with another Python: making it anew")
        shutil.rmtree(VENV)
    if any(VENV.glob("lib/python*/site-packages/workbench-*.dist-info")):
        # our own name of before, or another product's: either would take files of ours along when it is removed
        say(".venv holds a distribution called workbench, and this one is called distillation-workbench: making it anew")
        shutil.rmtree(VENV)
    requirements = ["--editable", f".[{extra}]", *([torch] if torch else [])]
    if uv := find_uv():
        if run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(VENV)]) and run(
            [uv, "pip", "install", "--python", str(BIN / "python"), *requirements]
        ):
            return True
        say("uv did not succeed: trying pip")
    return run([sys.executable, "-m", "venv", str(VENV)]) and run([str(BIN / "python"), "-m", "pip", "install", *requirements])


def main(extra: str) -> int:
    """Brings .venv to what pyproject.toml and ``extra`` ask for; returns the exit status."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        say(f"Python 3.11 or 3.12 is needed and {sys.executable} is {platform.python_version()}: name another with PYTHON=/path/to/it")
        return 1
    torch = constraint()
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + f"{sys.version_info[:2]} {torch}".encode()).hexdigest()
    # `all` holds every extra, so an environment made for the tests serves the demo too.
    if any(stamp.exists() and stamp.read_text() == wanted for stamp in (VENV / f"stamp-{extra}", VENV / "stamp-all")):
        return 0
    say(f"making .venv with Python {platform.python_version()}, distillation-workbench[{extra}]" + (f" and {torch}" if torch else ""))
    say("about 7 GB with the libraries for CUDA that torch brings; 1-2 minutes with uv, up to 10 with pip")
    if not install(extra, torch):
        say("the environment could not be made; the messages above say why. Mend that and run the same command again.")
        return 1
    (VENV / f"stamp-{extra}").write_text(wanted)
    say("the environment is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
