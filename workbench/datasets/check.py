"""Finds everything that is wrong with a dataset (``workbench data check``). It decodes every image and changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.datasets.images import decode
from workbench.datasets.issues import Issues, Policy
from workbench.datasets.opening import find_format
from workbench.datasets.reading import Usable, usable
from workbench.errors import DataError


@dataclass
class Report:
    """The result of a check.

    Attributes:
        path: Root of the dataset.
        format: Name of its format.
        splits: Number of images and boxes that training would see, by split.
        issues: Every kind of problem with its count, action under the policy, severity and first examples. A problem that
            occurs in several lists of the same images counts once.
    """

    path: Path
    format: str
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    issues: Issues = field(default_factory=Issues)

    @property
    def ok(self) -> bool:
        """True if no image or annotation is lost and nothing is refused."""
        return all(issue.severity == "warning" for issue in self.issues)

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row per kind of problem and action, errors first."""
        return [
            {"severity": issue.severity, "kind": issue.kind, "action": issue.action, "count": issue.count, "examples": issue.examples}
            for issue in self.issues
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"path": str(self.path), "format": self.format, "ok": self.ok, "splits": self.splits, "issues": self.rows()}


def check(
    path: str | Path,
    split: str | None = None,
    format: str = "auto",
    policy: Policy | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Report:
    """Reads the annotations as training would, and decodes every image.

    Args:
        path: folder or file.
        split: name of the split; None checks all of them.
        format: as in ``open_dataset``.
        policy: policy that decides on the action for an issue, and so on its severity.
        progress: called with (number of decoded images, number of all images).
        options: options of the format, as in ``open_dataset``.

    Raises:
        DataError: there is no dataset of a known format at ``path``.
    """
    found, root = find_format(Path(path), format)
    policy = policy or Policy()
    report = Report(root, found.name)
    items: dict[Path, Usable] = {}
    try:
        names = found.splits(root) if split is None else (split,)
        if not names:
            report.issues.add("empty_split", "refused", f"{root} has no splits")
        for name in names:
            in_split = list(usable(found.read(root, name, policy, report.issues, **options), policy, report.issues))
            report.splits[name] = {"images": len(in_split), "boxes": sum(len(item.record.boxes) for item in in_split)}
            if not in_split:
                report.issues.add("empty_split", "refused", f"split '{name}' has no usable image")
            items.update((item.path, item) for item in in_split)
    except DataError as error:
        report.issues.add("broken_file", "refused", str(error))
    for done, item in enumerate(items.values(), start=1):
        try:
            decode(item.path, item.upright)
        except DataError as error:
            report.issues.add("unreadable_image", policy.action("unreadable_image"), str(error))
        if progress:
            progress(done, len(items))
    return report
