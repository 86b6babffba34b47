"""What this machine has, and what is missing for which feature, with the command that adds it."""

import os
import platform
import shutil
import subprocess
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from workbench import __version__
from workbench.resources import checkout_root
from workbench.services import mongo

HOW_TO_GET_A_BROWSER = (
    "the browser tests need Chromium and none was found. Install it ('apt-get install chromium' on Debian, "
    "'brew install --cask chromium' on macOS), or run '.venv/bin/playwright install chromium', or set CHROMIUM to the path of one."
)
# Feature as the user knows it -> extra of pyproject.toml; None is what every installation has.
FEATURES: dict[str, str | None] = {
    "train": None,
    "app": "app",
    "inspect": "inspect",
    "notebooks": "notebooks",
    "export": "export",
    "search": "search",
    "docs": "docs",
    "browser tests": "dev",
}
_SYSTEM_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Feature:
    """A feature and what stands in its way; nothing missing means that it works."""

    name: str
    missing: tuple[str, ...]
    remedy: str | None


@dataclass(frozen=True)
class Device:
    """A device that torch can compute on; ``memory`` in bytes, None where torch does not tell."""

    name: str
    description: str
    memory: int | None


@dataclass(frozen=True)
class Report:
    """The machine as the workbench sees it; sizes in bytes."""

    workbench: str
    python: str
    system: str
    versions: dict[str, str | None]
    devices: tuple[Device, ...]
    cores: int
    memory: int
    free_disk: int
    folder: str
    browser: str | None
    features: tuple[Feature, ...]

    def rows(self) -> list[dict[str, str | None]]:
        """The report as a table of text: what, value, and the remedy where something is missing."""
        gib = 2**30
        facts = [("workbench", self.workbench), ("python", self.python), ("system", self.system)]
        facts += [(name, version or "not installed") for name, version in self.versions.items()]
        for device in self.devices:
            facts.append((device.name, f"{device.description}, {device.memory / gib:.1f} GiB" if device.memory else device.description))
        facts += [("cores", str(self.cores)), ("memory", f"{self.memory / gib:.1f} GiB")]
        facts += [("free disk", f"{self.free_disk / gib:.1f} GiB at {self.folder}"), ("browser", self.browser or "none found")]
        rows: list[dict[str, str | None]] = [{"what": what, "value": value, "remedy": None} for what, value in facts]
        for feature in self.features:
            value = "missing: " + ", ".join(feature.missing) if feature.missing else "ready"
            rows.append({"what": feature.name, "value": value, "remedy": feature.remedy})
        return rows


def report(folder: Path | None = None) -> Report:
    """Looks at the machine.

    Args:
        folder: where runs would be written, for the free disk space; the current folder by default.
    """
    folder = (folder or Path.cwd()).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    browser = find_browser()
    return Report(
        workbench=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        versions={requirement.name: installed_version(requirement.name) for requirement in requirements(None)},
        devices=devices(),
        cores=psutil.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        free_disk=shutil.disk_usage(existing).free,
        folder=str(folder),
        browser=str(browser) if browser else None,
        features=tuple(_feature(name, extra, browser) for name, extra in FEATURES.items()),
    )


def requirements(extra: str | None) -> list[Requirement]:
    """What pyproject.toml asks for: the core for None, else what the extra adds to it."""
    root = checkout_root()
    if root and (root / "pyproject.toml").is_file():
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines: Iterable[str] = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
        return [Requirement(line) for line in lines]
    found = [Requirement(line) for line in metadata.requires("workbench") or []]
    if extra is None:
        return [requirement for requirement in found if requirement.marker is None]
    return [r for r in found if r.marker and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""})]


def installed_version(name: str) -> str | None:
    """Version of an installed distribution; None when it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def unmet(wanted: Iterable[Requirement]) -> list[str]:
    """One phrase for each requirement that is absent or of a version outside its range."""
    missing = []
    for requirement in wanted:
        version = installed_version(requirement.name)
        if version is None:
            missing.append(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement.name} is {version}, needed is {requirement.specifier}")
    return missing


def find_browser() -> Path | None:
    """A Chromium that starts: $CHROMIUM, then the system's, then playwright's own; None when there is none."""
    named = os.environ.get("CHROMIUM")
    candidates = [named] if named else [found for name in _SYSTEM_BROWSERS if (found := shutil.which(name))]
    for candidate in candidates:
        if _starts(candidate):
            return Path(candidate)
    own = None if named else _playwright_browser()
    return Path(own) if own and _starts(own) else None


def devices() -> tuple[Device, ...]:
    """What torch can compute on, the processor last."""
    processor = Device("cpu", platform.processor() or platform.machine(), psutil.virtual_memory().total)
    try:
        import torch
    except (ImportError, OSError):
        return (processor,)
    found = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append(Device(f"cuda:{index}", properties.name, properties.total_memory))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", None))
    return (*found, processor)


def _starts(browser: str) -> bool:
    """True when the program answers to --version: Ubuntu's chromium, for one, may be a stub that only asks for snap."""
    try:
        return subprocess.run([browser, "--version"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _playwright_browser() -> str | None:
    """The path at which playwright keeps its Chromium, whether or not it was ever downloaded."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return None
    try:
        with sync_playwright() as playwright:
            return playwright.chromium.executable_path
    except Error:
        return None


def _feature(name: str, extra: str | None, browser: Path | None) -> Feature:
    missing = unmet(requirements(extra))
    remedy = ("pip install --upgrade workbench" if extra is None else f"pip install 'workbench[{extra}]'") if missing else None
    if name == "train" and not missing and (broken := _broken_torchvision()):
        missing, remedy = [broken], "install torch and torchvision together from one index, so that they belong together"
    if name == "inspect" and not missing and not mongo.is_available():
        missing = ["MongoDB: fiftyone was installed without one"]
        remedy = f"run 'workbench inspect --setup', or set {mongo.URI} to a MongoDB 6.0 or newer"
    if name == "browser tests" and browser is None:
        missing.append("Chromium")
        remedy = f"{remedy}; {HOW_TO_GET_A_BROWSER}" if remedy else HOW_TO_GET_A_BROWSER
    return Feature(name, tuple(missing), remedy)


def _broken_torchvision() -> str | None:
    """What an import of torch and torchvision says when the two builds do not fit each other."""
    try:
        import torchvision.ops  # noqa: F401 - registers the compiled operators, which is what fails
    except (ImportError, OSError, RuntimeError) as error:
        return f"torchvision does not work with this torch: {error}"
    return None
