"""Reads and writes what people say about a run: tags, a note, and whether it is put away.

The labels lie in a file of their own in the run's folder. Nothing that is computed reads it, so no hash of the run depends on it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from workbench.errors import RunError
from workbench.files import read_json, write_json
from workbench.remote import is_remote
from workbench.store.run import Run
from workbench.store.schemas import StoredLabels

LONGEST_TAG, MOST_TAGS, LONGEST_NOTE = 40, 20, 2000  # letters, tags of a run, letters


@dataclass(frozen=True)
class Labels:
    """What people say about a run.

    Attributes:
        tags: Tags in the order in which they were given.
        note: Free text.
        archived: True if the run was put away, so that lists leave it out.
    """

    tags: tuple[str, ...] = ()
    note: str = ""
    archived: bool = False

    def tagged(self, add: Iterable[str] = (), remove: Iterable[str] = ()) -> "Labels":
        """Returns the labels with some tags more and some fewer.

        Raises:
            RunError: a tag is empty, too long or no plain line of text, or there would be too many.
        """
        gone = {_tag(tag) for tag in remove}
        tags = tuple(dict.fromkeys([*(tag for tag in self.tags if tag not in gone), *map(_tag, add)]))
        if len(tags) > MOST_TAGS:
            raise RunError(f"a run takes {MOST_TAGS} tags, but this one would have {len(tags)}. Remove some first.")
        return Labels(tags, self.note, self.archived)


NO_LABELS = Labels()


def read_labels(run: Run) -> Labels:
    """Returns the labels of a run; a run without a file of labels has none.

    Raises:
        WorkbenchError: the file is damaged.
    """
    if not run.labels_path.exists():
        return NO_LABELS
    kept = read_json(run.labels_path, StoredLabels)
    return Labels(tuple(kept.get("tags", ())), kept.get("note", ""), kept.get("archived", False))


def write_labels(run: Run, labels: Labels) -> None:
    """Replaces the labels of a run; where nothing is said any more, the file is removed.

    Raises:
        RunError: the run is remote or gone, or the note is too long.
        WorkbenchError: the folder cannot be written.
    """
    if is_remote(run.path):
        raise RunError(f"{run.path} is remote, and the workbench only reads remote runs. Label a local copy of it.")
    if len(labels.note) > LONGEST_NOTE:
        raise RunError(f"a note takes {LONGEST_NOTE} letters, but this one has {len(labels.note)}. Shorten it.")
    run.check_there()
    if labels == NO_LABELS:
        run.labels_path.unlink(missing_ok=True)
    else:
        write_json(run.labels_path, {"tags": list(labels.tags), "note": labels.note, "archived": labels.archived})


def _tag(text: str) -> str:
    tag = text.strip()
    if not tag or len(tag) > LONGEST_TAG or not tag.isprintable() or "," in tag:
        raise RunError(f"{tag[:LONGEST_TAG]!r} cannot be a tag: use 1 to {LONGEST_TAG} letters on one line, without a comma.")
    return tag
