"""A search on disk: creates or resumes it, hands out its trials, and takes back what became of them.

The folder of a search has ``study.json`` (what a trial means), ``journal.log`` (every trial), and ``locks/``. Workers may be killed at any
time: a trial's lock is freed by the kernel, and whoever comes next sees that its worker is gone.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from workbench.errors import RunError
from workbench.files import hash_json, lock_within, read_json
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.resources import code_commit
from workbench.search.asked import Asked, TrialLocks
from workbench.search.candidate import Outcome
from workbench.search.genes import FormulaSpace, ShareSpace, Space
from workbench.search.identity import check_plan, identity, images_of, record_plan, refuse_empty
from workbench.search.journal import PATIENCE_SECONDS, open_journal
from workbench.search.plan import SearchPlan
from workbench.search.records import TrialRecord, record_of
from workbench.search.rungs import should_end
from workbench.search.samplers import Sampling

MOST_TRIES = 3
"""How often a candidate is trained whose workers die."""
REPEATS = "-repeats"
"""End of the name of the Optuna study with the repeats of another one; no sampler reads it, so that repeats never breed."""


class SearchStudy:
    """One search: its plan, its trials, and the studies of Optuna that hold them.

    There is a study for each input (``global``, ...), one for the shares of the best formulas (``shares``), and beside each the repeats of
    its best candidates with fresh seeds (``global-repeats``).

    Attributes:
        plan: What is searched.
        folder: Where the search lies.
        commit: Commit of the code of this process.
    """

    def __init__(self, plan: SearchPlan, folder: Path, state: Mapping[str, Any], write: bool):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan, self.folder, self.state = plan, folder, dict(state)
        self.name = folder.name
        self.commit = code_commit()
        self.journal, self.storage = open_journal(folder, write)
        self._locks = TrialLocks(folder / "locks")
        self._samplings: dict[str, Sampling] = {}
        self._spaces: dict[str, Space] = {}
        self._studies: dict[str, optuna.Study] = {}
        self._records: dict[str, tuple[list[TrialRecord], set[int]]] = {}
        for study in self.storage.get_all_studies():
            if study.user_attrs.get("search") != self.state["id"]:
                raise RunError(
                    f"{folder / 'journal.log'} is not the journal of this search: its study '{study.study_name}' belongs to another. "
                    "Restore the journal that belongs to study.json, or choose another name for this search."
                )

    @classmethod
    def open(cls, plan: SearchPlan, folder: Path, fitness: str, other_code: bool = False) -> "SearchStudy":
        """Creates a search, or resumes the one in ``folder``.

        Args:
            plan: what to search.
            folder: where the search lies; it is made if it does not exist.
            fitness: hash of the list of held-out images that measure a trial.
            other_code: whether trials of another commit of the code may be added; each trial records its own.

        Raises:
            ConfigError: there is nothing to search: no legal formula for the batch, or one alone.
            RunError: the folder cannot be written, holds a search with other settings or code, or its journal is damaged or foreign.
        """
        recipe = load_recipe(recipe_path(plan.recipe), arm=plan.arm)
        refuse_empty(plan, images_of(recipe))
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {folder}: {error.strerror}. Choose a writable folder, or set WORKBENCH_SEARCHES.") from error
        if not os.access(folder, os.W_OK):
            raise RunError(f"cannot write {folder}. Make it writable, or choose another folder with WORKBENCH_SEARCHES.")
        commit = code_commit()
        with open(folder / "locks" / "study", "a+b") as lock:
            if not lock_within(lock, PATIENCE_SECONDS):
                raise RunError(f"another process has been opening the search {folder} for a minute. End it, or try again.")
            mine = identity(plan, recipe, fitness)
            state = record_plan(folder, plan, mine, commit, check_plan(folder, mine, commit, other_code))
        return cls(plan, folder, state, write=True)

    @staticmethod
    def check(plan: SearchPlan, folder: Path, other_code: bool = False) -> None:
        """Raises what ``open`` would, except for the held-out images and the journal, before anything is prepared for training."""
        recipe = load_recipe(recipe_path(plan.recipe), arm=plan.arm)
        refuse_empty(plan, images_of(recipe))
        check_plan(folder, identity(plan, recipe, None), code_commit(), other_code)

    @classmethod
    def read(cls, folder: Path) -> "SearchStudy":
        """Opens a search to look at it; nothing is written.

        Raises:
            RunError: there is no search, or its journal cannot be read.
        """
        path = folder / "study.json"
        if not path.is_file():
            known = ", ".join(sorted(one.parent.name for one in folder.parent.glob("*/study.json"))) or "none"
            raise RunError(f"there is no search '{folder.name}' in {folder.parent}. Searches there: {known}.")
        state = read_json(path)
        return cls(SearchPlan.model_validate(state["plan"]), folder, state, write=False)

    @cached_property
    def images(self) -> int:
        """Returns the number of images in a batch of one process."""
        return int(self.state["identity"]["batch"])

    @property
    def studies(self) -> list[str]:
        """Returns the names of the studies that exist, those of repeats left out."""
        return [name for name in (one.study_name for one in self.storage.get_all_studies()) if not name.endswith(REPEATS)]

    @property
    def stop_path(self) -> Path:
        """Returns the file that asks workers to end after their trial."""
        return self.folder / "stop"

    def formulas(self, input: Any) -> FormulaSpace:
        """Returns the formulas of an input, each with the share of the first stage."""
        return FormulaSpace(input, self.plan.mode, self.images, self.plan.share, self.plan.extra)

    def space(self, name: str) -> Space:
        """Returns what a study chooses from."""
        if name not in self._spaces:
            formulas = self.study(name).user_attrs.get("formulas")
            if formulas is None:
                self._spaces[name] = self.formulas(name)
            else:
                chosen = tuple(self.formulas(one["input"]).genotype({k: v for k, v in one.items() if k != "input"}) for one in formulas)
                self._spaces[name] = ShareSpace(chosen, self.plan.shares, self.plan.share)
        return self._spaces[name]

    def study(self, name: str, **attributes: Any) -> optuna.Study:
        """Returns a study of Optuna; it is made with these attributes if it does not exist."""
        if name not in self._studies:
            known = {one.study_name for one in self.storage.get_all_studies()}
            if name in known:
                self._studies[name] = optuna.load_study(study_name=name, storage=self.storage)
            else:
                with self.journal.together():
                    self._studies[name] = optuna.create_study(
                        study_name=name, storage=self.storage, direction="maximize", load_if_exists=True
                    )
                    for key, value in {**attributes, "search": self.state["id"]}.items():
                        self._studies[name].set_user_attr(key, value)
        return self._studies[name]

    def sampling(self, name: str) -> Sampling:
        """Returns what proposes the trials of a study."""
        if name not in self._samplings:
            # another stream of random numbers for each study
            seed = int(hash_json([self.plan.seed, name])[:8], 16)
            self._samplings[name] = Sampling(self.plan.sampler, self.space(name), seed, self.plan.seeded)
        return self._samplings[name]

    def records(self, name: str) -> list[TrialRecord]:
        """Returns the trials of a study in order, and behind them the repeats of its candidates."""
        return [record for study in (name, name + REPEATS) if self._exists(study) for record in self._read(study)]

    def _exists(self, study: str) -> bool:
        return study in self._studies or study in {one.study_name for one in self.storage.get_all_studies()}

    def _read(self, study: str) -> list[TrialRecord]:
        """Returns the records of a study of Optuna; those of finished trials are made once."""
        trials = self.study(study).get_trials(deepcopy=False)
        records, unfinished = self._records.setdefault(study, ([], set()))
        for number in [*sorted(unfinished), *range(len(records), len(trials))]:
            record = record_of(study.removesuffix(REPEATS), trials[number])
            records[number : number + 1] = [record]
            (unfinished.add if record.open else unfinished.discard)(number)
        return records

    def ask(self, name: str) -> Asked:
        """Proposes the next trial of a study and locks it for this process."""
        with self.journal.together():
            study, space = self.study(name), self.space(name)
            records = self.records(name)
            study.sampler = self.sampling(name).of(sum(not record.repeat for record in records))
            trial = study.ask(dict(space.distributions))
            flagged = sum(record.unpruned and record.state in ("RUNNING", "COMPLETE") for record in records)
            return self._begin(name, trial, space, self.plan.seed, flagged < self.plan.unpruned)

    def ask_repeat(self, name: str, of: TrialRecord, seed: int) -> Asked:
        """Begins to train a candidate again with a fresh seed.

        Args:
            name: study of the candidate.
            of: its first trial.
            seed: the fresh seed.
        """
        with self.journal.together():
            study, space = self.study(name + REPEATS), self.space(name)
            study.enqueue_trial(dict(of.genes), user_attrs={"repeat_of": of.number})
            study.sampler = optuna.samplers.RandomSampler()  # which Optuna asks even where everything is given
            return self._begin(study.study_name, study.ask(dict(space.distributions)), space, seed, True)

    def _begin(self, study: str, trial: Trial, space: Space, seed: int, unpruned: bool) -> Asked:
        lock = self._locks.take(study, trial.number)
        genes = dict(trial.params)
        candidate = space.candidate(genes)
        formulas = [asdict(genotype) | {"share": share} for genotype, share in candidate.shares] if candidate else []
        facts = {
            "candidate": str(candidate or "nothing"), "canonical": space.key(genes), "formulas": formulas, "seed": seed,
            "unpruned": unpruned, "worker": f"{os.uname().nodename}:{os.getpid()}", "commit": self.commit,
        }  # fmt: skip
        for key, value in facts.items():
            trial.set_user_attr(key, value)
        return Asked(study, trial.number, space, genes, candidate, seed, unpruned, trial, lock)

    def rung(self, asked: Asked, step: int, ap: float) -> bool:
        """Records the AP of a running trial at a rung; returns True if it should end there."""
        with self.journal.together():
            asked.rungs[step] = ap
            asked.trial.report(ap, step)
            return not asked.unpruned and should_end(self.records(asked.study), step, ap, self.plan.unpruned, self.plan.correlation)

    def tell(self, asked: Asked, outcome: Outcome, **notes: Any) -> None:
        """Records what became of a trial: all of it, or nothing if this process is killed meanwhile.

        Args:
            asked: the trial.
            outcome: what became of it.
            notes: further attributes.
        """
        facts = {key: value for key, value in asdict(outcome).items() if key != "ap" and value} | notes
        facts["rungs"] = {str(step): ap for step, ap in outcome.rungs.items()}
        with self.journal.together():
            for step, ap in outcome.rungs.items():
                if step not in asked.rungs:
                    asked.trial.report(ap, step)
            for key, value in facts.items():
                asked.trial.set_user_attr(key, value)
            if outcome.gate is None:
                self.study(asked.study).tell(asked.trial, outcome.ap)
            else:
                self.study(asked.study).tell(asked.trial, state=TrialState.PRUNED)
        self._locks.give_back(asked)

    def fail(self, asked: Asked, reason: str, retry: bool) -> None:
        """Records that a trial has no result.

        Args:
            asked: the trial.
            reason: why, as a sentence.
            retry: whether its candidate is trained again.
        """
        with self.journal.together():
            self._fail(asked.study, asked.number, reason, retry)
        self._locks.give_back(asked)

    def sweep(self) -> list[tuple[str, int]]:
        """Fails the trials whose worker is gone and queues their candidates once more; returns which they were."""
        gone: list[tuple[str, int]] = []
        with self.journal.together():
            for frozen in self.storage.get_all_studies():
                name = frozen.study_name
                for trial in self.study(name).get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    with self._locks.abandoned(name, trial.number) as abandoned:
                        if not abandoned:
                            continue
                        worker = trial.user_attrs.get("worker", "unknown")
                        self._fail(name, trial.number, f"its worker ({worker}) was killed", retry=True)
                    gone.append((name, trial.number))
        return gone

    def _fail(self, name: str, number: int, reason: str, retry: bool) -> None:
        study = self.study(name)
        trial = study.get_trials(deepcopy=False)[number]
        tries = int(trial.user_attrs.get("tries", 1))
        # a repeat that is missing is begun again anyway
        if retry and tries < MOST_TRIES and not name.endswith(REPEATS) and len(trial.params) == len(self.space(name).choices):
            study.enqueue_trial(dict(trial.params), user_attrs={"retry_of": number, "tries": tries + 1})
        self.storage.set_trial_user_attr(trial._trial_id, "reason", reason)
        self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
