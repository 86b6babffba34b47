"""Reports what this machine has and what is missing for which feature, with the command that adds it."""

import base64
import hashlib
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

import workbench
from workbench.errors import DISTRIBUTION, pip_install
from workbench.resources import checkout_root
from workbench.services import mongo

HOW_TO_GET_A_BROWSER = (
    "the browser tests need Chromium and none was found. Install it ('apt-get install chromium' on Debian, "
    "'brew install --cask chromium' on macOS), or run '.venv/bin/playwright install chromium', or set CHROMIUM to the path of one."
)
PACKAGE, CONSOLE_SCRIPT = "workbench", "workbench.cli:main"  # what is imported; the script that every copy of ours installs
# Feature as the user knows it -> extra of pyproject.toml; None is what every installation has.
FEATURES: dict[str, str | None] = {
    "train": None,
    "app": "app",
    "inspect": "inspect",
    "notebooks": "notebooks",
    "export": "export",
    "search": "search",
    "pretrained weights": "pretrained",
    "docs": "docs",
    "browser tests": "dev",
}
_SYSTEM_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Feature:
    """A feature of the workbench and what it lacks here. It works if nothing is missing."""

    name: str
    missing: tuple[str, ...]
    remedy: str | None


@dataclass(frozen=True)
class Conflict:
    """Says that another distribution installs the package ``workbench`` into this environment, and how to repair it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Device:
    """A device that torch can compute on. ``memory`` is in bytes, or None if torch does not say."""

    name: str
    description: str
    memory: int | None


@dataclass(frozen=True)
class Report:
    """Everything that ``workbench doctor`` says about a machine. Sizes are in bytes."""

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
    conflict: Conflict | None

    def rows(self) -> list[dict[str, str | None]]:
        """Returns the report as rows of text: ``what``, ``value``, and a ``remedy`` where something is missing or in conflict."""
        gib = 2**30
        facts = [("workbench", self.workbench), ("python", self.python), ("system", self.system)]
        facts += [(name, version or "not installed") for name, version in self.versions.items()]
        for device in self.devices:
            facts.append((device.name, f"{device.description}, {device.memory / gib:.1f} GiB" if device.memory else device.description))
        facts += [("cores", str(self.cores)), ("memory", f"{self.memory / gib:.1f} GiB")]
        facts += [("free disk", f"{self.free_disk / gib:.1f} GiB at {self.folder}"), ("browser", self.browser or "none found")]
        rows: list[dict[str, str | None]] = [{"what": what, "value": value, "remedy": None} for what, value in facts]
        no_conflict = f"nothing else installs a package called {PACKAGE}"
        what, remedy = (self.conflict.what, self.conflict.remedy) if self.conflict else (no_conflict, None)
        rows.append({"what": "installation", "value": what, "remedy": remedy})
        for feature in self.features:
            value = "missing: " + ", ".join(feature.missing) if feature.missing else "ready"
            rows.append({"what": feature.name, "value": value, "remedy": feature.remedy})
        return rows


def report(folder: Path | None = None) -> Report:
    """Returns what this machine has and what is missing.

    folder: folder where runs would be written, to report the free disk space; None uses the current folder.
    """
    folder = (folder or Path.cwd()).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    browser = find_browser()
    return Report(
        # the package may have been overwritten by another product
        workbench=getattr(workbench, "__version__", "unknown"),
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
        conflict=find_conflict(),
    )


def find_conflict() -> Conflict | None:
    """Returns the most serious reason why ``import workbench`` may load files that are not ours, or None if there is none.

    Our own distribution used to be called ``workbench`` too. Its console script tells such an old copy from the other product.
    """
    named = list(metadata.distributions(name=PACKAGE))
    foreign = [distribution for distribution in named if not _is_ours(distribution)]
    root = checkout_root()
    reinstall = f"pip install --force-reinstall --no-deps {f'--editable {root}' if root else DISTRIBUTION}"
    replace = f"pip uninstall {PACKAGE}, then {reinstall}"
    if foreign:
        what = f"conflict: another product called '{PACKAGE}' is installed ({PACKAGE} {foreign[0].version}). "
        return Conflict(what + "Both install the same package and overwrite each other's files.", replace)
    if changed := _changed_files():
        differ = f"{changed[0]} and {len(changed) - 1} more files differ" if changed[1:] else f"{changed[0]} differs"
        what = f"conflict: {differ} from what was installed. "
        return Conflict(what + f"Another distribution, such as the product called '{PACKAGE}', may have overwritten them.", reinstall)
    if named:
        what = f"conflict: the workbench is installed under its old name, '{PACKAGE}'; it is now called '{DISTRIBUTION}'."
        return Conflict(what, replace)
    return None


def requirements(extra: str | None) -> list[Requirement]:
    """Returns what pyproject.toml requires: the core for None, otherwise what the extra adds to it."""
    root = checkout_root()
    if root and (root / "pyproject.toml").is_file():
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines: Iterable[str] = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
        return [Requirement(line) for line in lines]
    found = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    if extra is None:
        return [requirement for requirement in found if requirement.marker is None]
    return [r for r in found if r.marker and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""})]


def installed_version(name: str) -> str | None:
    """Returns the version of an installed distribution, or None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def unmet(wanted: Iterable[Requirement]) -> list[str]:
    """Returns one phrase for each requirement that is not installed, or whose version is outside the required range."""
    missing = []
    for requirement in wanted:
        version = installed_version(requirement.name)
        if version is None:
            missing.append(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement.name} is {version}, but {requirement.specifier} is needed")
    return missing


def find_browser() -> Path | None:
    """Returns the first Chromium that starts: $CHROMIUM, else the system's, else playwright's own. None if there is none."""
    named = os.environ.get("CHROMIUM")
    candidates = [named] if named else [found for name in _SYSTEM_BROWSERS if (found := shutil.which(name))]
    for candidate in candidates:
        if _starts(candidate):
            return Path(candidate)
    own = None if named else _playwright_browser()
    return Path(own) if own and _starts(own) else None


def devices() -> tuple[Device, ...]:
    """Returns the devices that torch can compute on, the CPU last."""
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


def _is_ours(distribution: metadata.Distribution) -> bool:
    return any(point.group == "console_scripts" and point.value == CONSOLE_SCRIPT for point in distribution.entry_points)


def _changed_files() -> list[str]:
    """Returns the modules that differ from the installed ones; empty for an editable installation."""
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    changed = []
    for file in files:
        path = Path(str(file.locate()))
        if file.parts[0] == PACKAGE and file.suffix == ".py" and file.hash and path.is_file():
            digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, path.read_bytes()).digest()).decode().rstrip("=")
            changed += [str(file)] if digest != file.hash.value else []
    return changed


def _starts(browser: str) -> bool:
    """True when the program answers to --version: Ubuntu's chromium, for one, may be a stub that only asks for snap."""
    try:
        return subprocess.run([browser, "--version"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _playwright_browser() -> str | None:
    """Returns the path at which playwright keeps its Chromium, even if it was never downloaded."""
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
    remedy = (f"pip install --upgrade {DISTRIBUTION}" if extra is None else pip_install(extra)) if missing else None
    if name == "train" and not missing and (broken := _broken_torchvision()):
        missing, remedy = [broken], "install torch and torchvision together from one index, so that their builds match"
    if name == "inspect" and not missing and not mongo.is_available():
        missing = ["MongoDB, which fiftyone was installed without"]
        remedy = f"run 'workbench inspect --setup', or set {mongo.URI} to a MongoDB 6.0 or newer"
    if name == "browser tests" and browser is None:
        missing.append("Chromium")
        remedy = f"{remedy}; {HOW_TO_GET_A_BROWSER}" if remedy else HOW_TO_GET_A_BROWSER
    return Feature(name, tuple(missing), remedy)


def _broken_torchvision() -> str | None:
    """Returns the error of importing torch and torchvision if their builds do not match, else None."""
    try:
        import torchvision.ops  # noqa: F401 - registers the compiled operators, which is what fails
    except (ImportError, OSError, RuntimeError) as error:
        return f"torchvision does not work with this torch: {error}"
    return None
