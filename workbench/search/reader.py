"""Reads a search again and again while its workers write to it."""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from workbench.search.plan import SearchPlan
from workbench.search.records import TrialRecord
from workbench.search.stages import Cost, Stage, stages, total_cost
from workbench.search.study import SearchStudy


@dataclass(frozen=True)
class Read:
    """What was read of a search at one time.

    Attributes:
        plan: What is searched.
        records: The trials of each study, behind them its repeats.
        stages: How far each study has come.
        cost: What the search has cost and will cost.
    """

    plan: SearchPlan
    records: dict[str, list[TrialRecord]]
    stages: dict[str, Stage]
    cost: Cost


class SearchReader:
    """Reads a search for any number of threads; of a journal that has grown only the new lines are read.

    Args:
        folder: folder of the search.

    Raises:
        RunError: there is no search, or its journal cannot be read.
    """

    def __init__(self, folder: Path):
        self._search = SearchStudy.read(folder)
        self._reading = Lock()

    def read(self) -> Read:
        """Returns what the journal holds now."""
        with self._reading:
            search = self._search
            records = {name: search.records(name) for name in search.studies}
            return Read(search.plan, records, {one.study: one for one in stages(search)}, total_cost(search))
