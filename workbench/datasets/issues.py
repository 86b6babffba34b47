"""Describes what can be wrong with a dataset, and what is done about it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

from workbench.errors import DataError

Action = Literal["fixed", "converted", "kept", "dropped", "refused"]
Choice = Literal["fix", "drop", "refuse"]
DropOrRefuse = Literal["drop", "refuse"]

EXAMPLES = 5
_DONE: dict[str, Action] = {"fix": "fixed", "drop": "dropped", "refuse": "refused"}


class Policy(BaseModel):
    """Says what reading a dataset does about each kind of problem; the field names are the kinds in ``Issues``.

    ``fix`` mends the annotation or image, ``drop`` leaves it out and counts it, ``refuse`` raises ``DataError`` once
    everything has been read, with the counts of all refused kinds. The defaults refuse what usually means a wrong path
    or a wrong file, because leaving it out would change what is measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    missing_image: DropOrRefuse = "refuse"
    """An image file does not exist."""
    unreadable_image: DropOrRefuse = "drop"
    """A file is not an image, or it is cut off."""
    too_many_pixels: DropOrRefuse = "drop"
    """An image has more than 100 million pixels (``WORKBENCH_MOST_MEGAPIXELS`` says otherwise), which would fill the memory."""
    unsafe_file_name: DropOrRefuse = "refuse"
    """A file name leads out of the dataset's folder, or no file can have it. Such a file is never opened."""
    duplicate_image_id: DropOrRefuse = "refuse"
    """Two images have the same id. ``drop`` keeps the first."""
    duplicate_annotation_id: Choice = "fix"
    """Two annotations have the same id. ``fix`` gives the second a new one."""
    dangling_reference: DropOrRefuse = "drop"
    """An annotation names an image or a class that is not declared."""
    broken_file: DropOrRefuse = "refuse"
    """The annotation file of one image (XML or txt) cannot be parsed. ``drop`` leaves out the image."""
    broken_annotation: DropOrRefuse = "drop"
    """A box is not four numbers, or a field is missing."""
    size_mismatch: Choice = "refuse"
    """The declared size is not the image's. ``fix`` believes the image and leaves the boxes as they are."""
    non_finite_box: DropOrRefuse = "drop"
    """A box holds NaN or infinity."""
    inverted_box: Choice = "fix"
    """A box has x2 < x1, y2 < y1, or a negative width or height. ``fix`` swaps the corners."""
    zero_size_box: DropOrRefuse = "drop"
    """A box is less than 0.01 pixels wide or high, if need be after clipping. Points, lines and boxes outside the image are such boxes."""
    box_outside: Choice = "fix"
    """A box reaches more than 0.05 pixels over the border of the image. ``fix`` clips it."""

    def action(self, kind: str) -> Action:
        """Returns what is done about ``kind``, one of this model's fields."""
        return _DONE[getattr(self, kind)]


@dataclass
class Issue:
    """One kind of problem: what was done, how often, and the first places as text."""

    kind: str
    action: Action
    count: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def severity(self) -> Literal["error", "warning"]:
        """Returns ``error`` if an image or annotation is lost or the dataset is refused, ``warning`` if nothing is lost."""
        return "error" if self.action in ("dropped", "refused") else "warning"

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.kind.replace('_', ' ')}: {self.count} {self.action} ({'; '.join(self.examples)}{more})"


class Issues:
    """Counts and first examples of every kind of problem found while reading."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Action], Issue] = {}
        self._places: set[tuple[str, str]] = set()

    def add(self, kind: str, action: Action, where: str) -> None:
        """Counts one problem, once for each place.

        Args:
            kind: field of ``Policy``, or name of a conversion.
            action: what was done.
            where: text that names the file and the box, so that the user can find them.
        """
        if (kind, where) in self._places:
            return
        self._places.add((kind, where))
        issue = self._found.setdefault((kind, action), Issue(kind, action))
        issue.count += 1
        if len(issue.examples) < EXAMPLES:
            issue.examples.append(where)

    def __iter__(self) -> Iterator[Issue]:
        return iter(sorted(self._found.values(), key=lambda issue: (issue.severity, issue.kind, issue.action)))

    def __len__(self) -> int:
        return len(self._found)

    def count(self, kind: str) -> int:
        """Returns how often ``kind`` was found, whatever was done about it."""
        return sum(issue.count for issue in self._found.values() if issue.kind == kind)

    def raise_refused(self, what: str) -> None:
        """Raises an error that lists every refused kind, if there is one.

        Args:
            what: name of the dataset in the message.

        Raises:
            DataError: a problem was refused.
        """
        refused = [issue for issue in self if issue.action == "refused"]
        if refused:
            kinds = [issue.kind for issue in refused]
            # no policy helps where no image is left
            choice = "" if "empty_split" in kinds else f", or choose what to do in the data policy, for example {kinds[0]}: drop"
            raise DataError(
                f"{what} cannot be used as it is. " + ". ".join(str(issue) for issue in refused) + f". Correct the files{choice}."
            )
