"""Finds runs among many: searches, filters, sorts and groups the entries of the catalog, and makes tables of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from workbench.views.catalog import Entry

Facet = Callable[[Entry], Iterable[str]]
# what runs are filtered and grouped by; a run may have several tags, and one value of the others
FACETS: Mapping[str, Facet] = {
    "recipe": lambda entry: [entry.recipe], "arm": lambda entry: [entry.arm], "family": lambda entry: [entry.family],
    "seed": lambda entry: [str(entry.seed)], "schedule": lambda entry: [entry.schedule], "state": lambda entry: [entry.state],
    "data": lambda entry: [entry.dataset], "tag": lambda entry: entry.labels.tags,
}  # fmt: skip
UNTAGGED = "no tag"


class Order(NamedTuple):
    """Says how runs are sorted: by what, and whether the largest comes first."""

    key: Callable[[Entry], Any]
    descending: bool


ORDERS: Mapping[str, Order | None] = {
    "comparison": None,  # the order of the catalog
    "newest": Order(lambda entry: entry.created, True),
    "oldest": Order(lambda entry: entry.created, False),
    "AP": Order(lambda entry: -1.0 if entry.ap is None else entry.ap, True),
    "name": Order(lambda entry: entry.run.name, False),
}


@dataclass(frozen=True)
class Wanted:
    """Says which runs are wanted; the default wants all that are not archived.

    Attributes:
        search: Words, all of which must occur in the name, recipe, arm, family, data, tags or note, in whatever case.
        facets: For some of ``FACETS`` the wanted values; a run needs one of each. Without values a facet wants every run.
        since: First day of creation (UTC), such as 2026-11-30; "" for no limit.
        until: Last day of creation.
        archived: True for archived runs only.
    """

    search: str = ""
    facets: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    since: str = ""
    until: str = ""
    archived: bool = False


def matching(entries: Iterable[Entry], wanted: Wanted, order: str = "comparison") -> list[Entry]:
    """Returns the wanted runs in one of ``ORDERS``."""
    found = [entry for entry in entries if _is_wanted(entry, wanted)]
    by = ORDERS[order]
    return found if by is None else sorted(found, key=by.key, reverse=by.descending)


def offered(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Returns the values of each facet that these runs have, sorted; numbers as numbers."""
    found = {name: {value for entry in entries for value in facet(entry) if value} for name, facet in FACETS.items()}
    return {name: sorted(values, key=lambda text: (not text.isdigit(), int(text) if text.isdigit() else 0, text))
            for name, values in found.items()}  # fmt: skip


def list_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """Returns one row per run: run, arm, seed, schedule, ap (%) and its split, state, progress (0..1), tags, note, recipe, family, data,
    created.
    """
    rows = [{
        "run": entry.run.name, "recipe": entry.recipe, "arm": entry.arm, "family": entry.family, "seed": entry.seed,
        "schedule": entry.schedule, "state": entry.state, "progress": entry.step / entry.steps if entry.steps else None,
        "data": entry.dataset, "created": entry.created[:16].replace("T", " "), "ap": None if entry.ap is None else 100 * entry.ap,
        "split": entry.split, "tags": list(entry.labels.tags), "note": entry.labels.note,
    } for entry in entries]  # fmt: skip
    columns = ["run", "arm", "seed", "schedule", "ap", "split", "state", "progress", "tags", "note", "recipe", "family", "data", "created"]
    return pd.DataFrame(rows, columns=columns).astype({"ap": float, "progress": float})


def grouped(entries: Sequence[Entry], by: str) -> tuple[pd.DataFrame, list[list[Entry]]]:
    """Groups runs by a facet; a run with several tags is in several groups.

    Args:
        entries: the runs.
        by: one of ``FACETS``.

    Returns:
        One row per group in the order in which the groups appear: its value, runs, done, seeds, mean, lowest and highest AP (%) of the runs
        that have one on the group's split, that split (the one that most have), and the day of the newest; and the runs of each group.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        for value in list(FACETS[by](entry)) or [UNTAGGED]:
            groups.setdefault(value, []).append(entry)
    rows: list[dict[str, Any]] = []
    for value, own in groups.items():
        splits = [entry.split for entry in own if entry.ap is not None]
        split = max(sorted(set(splits)), key=splits.count, default="")
        known = [100 * entry.ap for entry in own if entry.ap is not None and entry.split == split]
        rows.append({
            by: value, "runs": len(own), "done": sum(entry.state == "done" for entry in own), "seeds": len({entry.seed for entry in own}),
            "ap": sum(known) / len(known) if known else None, "lowest": min(known, default=None), "highest": max(known, default=None),
            "split": split, "newest": max(entry.created for entry in own)[:10],
        })  # fmt: skip
    columns = [by, "runs", "done", "seeds", "ap", "lowest", "highest", "split", "newest"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(("ap", "lowest", "highest"), float)), list(groups.values())


def _is_wanted(entry: Entry, wanted: Wanted) -> bool:
    labels, day = entry.labels, entry.created[:10]
    if labels.archived != wanted.archived or (wanted.since and day < wanted.since) or (wanted.until and day > wanted.until):
        return False
    if any(values and not set(values) & set(FACETS[name](entry)) for name, values in wanted.facets.items()):
        return False
    text = "\n".join((entry.run.name, entry.recipe, entry.arm, entry.family, entry.dataset, *labels.tags, labels.note)).casefold()
    return all(word in text for word in wanted.search.casefold().split())
