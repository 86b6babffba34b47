"""The journal and the identity of a search: whatever is wrong with its files, one message says so and nothing is lost."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.search.examples import FITNESS, TableTrainer, opened, plan
from workbench.errors import ConfigError, RunError
from workbench.files import try_lock
from workbench.search import study as study_module
from workbench.search.journal import KernelLock, open_journal
from workbench.search.study import SearchStudy
from workbench.search.workers import work


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a search whose trials are all done."""
    assert work(opened(tmp_path / "tried", trials=4), TableTrainer())
    return tmp_path / "tried"


def states(folder: Path) -> list[Any]:
    search = SearchStudy.read(folder)
    return [(record.study, record.number, record.state, record.value) for name in search.studies for record in search.records(name)]


def test_a_search_is_resumed_with_more_trials(finished: Path):
    before = states(finished)
    search = opened(finished, trials=6)
    assert work(search, TableTrainer())
    after = states(finished)
    assert set(before) <= set(after)
    assert sum(record.trained for record in search.records("logits")) == 6
    assert json.loads((finished / "study.json").read_text())["plan"]["trials"] == 6


def test_another_plan_is_refused_and_every_difference_named(finished: Path):
    before = states(finished)
    with pytest.raises(RunError) as caught:
        opened(finished, steps=200, mode="official", share=1.0, trials=9)
    text = str(caught.value)
    for difference in ("steps: 100, now 200", "mode: corrected, now official", "share: 3.0, now 1.0", "another name", "study.json"):
        assert difference in text
    assert "trials" not in text.split("compared:")[1]
    with pytest.raises(RunError, match=r"held_out: 0+, now f+"):
        SearchStudy.open(plan(), finished, "f" * 16, other_code=True)
    with pytest.raises(RunError, match=r"recipe: .*, now "):
        opened(finished, recipe="shapes_cached")
    assert states(finished) == before


def test_a_plan_is_compared_before_anything_is_prepared(finished: Path):
    SearchStudy.check(plan(), finished, other_code=True)
    with pytest.raises(RunError, match="steps: 100, now 50"):
        SearchStudy.check(plan(steps=50), finished, other_code=True)


def test_a_worker_with_other_code_is_refused_unless_it_is_asked_for(finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study_module, "code_commit", lambda: "0123456789ab")
    with pytest.raises(RunError, match=r"and this is 0123456789ab.*--other-code"):
        SearchStudy.open(plan(), finished, FITNESS)
    search = opened(finished, trials=5)
    assert work(search, TableTrainer())
    assert {record.commit for record in search.records("logits")} > {"0123456789ab"}


@pytest.mark.parametrize(("changes", "message"), [
    ({"inputs": ["localization"], "mode": "official"}, "localization has no legal formula.*choose the other mode"),
    ({"shares": [0.0, 0.0]}, "at least two different values"),
])  # fmt: skip
def test_a_search_with_nothing_to_choose_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises((ConfigError, ValueError), match=message):
        opened(tmp_path, **changes)
    assert not (tmp_path / "journal.log").exists()


def test_a_space_of_one_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from workbench.search import genes

    monkeypatch.setattr(genes, "positions", lambda input, added: {"t3": ("no", "channel"), "distance": ("l2",)})  # two names of one formula
    with pytest.raises(ConfigError, match=r"input logits has one legal formula.*Leave the input out"):
        opened(tmp_path)


def test_a_half_last_line_is_cut_off_and_no_finished_trial_is_lost(finished: Path):
    before = states(finished)
    with open(finished / "journal.log", "ab") as file:
        file.write(b'{"op_code":5,"worker_id":"x","trial')
    assert states(finished) == before  # a reader leaves it alone
    search = opened(finished, trials=5)
    assert work(search, TableTrainer())
    assert set(before) <= set(states(finished))
    assert all(json.loads(line) for line in (finished / "journal.log").read_text().splitlines())


def test_a_journal_that_was_cut_is_noticed_and_can_be_used_on_purpose(finished: Path):
    before = states(finished)
    content = (finished / "journal.log").read_bytes()
    (finished / "journal.log").write_bytes(content[: len(content) // 2])
    for opening in (lambda: opened(finished), lambda: SearchStudy.read(finished)):
        with pytest.raises(RunError, match=f"it had {len(content)} bytes and has {len(content) // 2}.*Restore it"):
            opening()
    assert (finished / "journal.log").read_bytes() == content[: len(content) // 2]
    (finished / "locks" / "journal").unlink()  # as the message says
    search = opened(finished, trials=4)
    assert work(search, TableTrainer())
    kept = set(states(finished)) & set(before)
    assert 0 < len(kept) and sum(record.trained for record in search.records("logits")) == 4


def test_a_broken_line_in_the_middle_is_named(finished: Path):
    lines = (finished / "journal.log").read_bytes().split(b"\n")
    lines[6] = b"#" * len(lines[6])
    (finished / "journal.log").write_bytes(b"\n".join(lines))
    with pytest.raises(RunError, match=f"Line 7 of {len(lines) - 1} is broken"):
        opened(finished)


def test_a_missing_beginning_is_noticed(finished: Path):
    lines = (finished / "journal.log").read_bytes().split(b"\n")
    (finished / "journal.log").write_bytes(b"\n".join(lines[1:]))
    (finished / "locks" / "journal").unlink()
    with pytest.raises(RunError, match=r"do not follow from each other|is not the journal of this search"):
        opened(finished)


def test_the_journal_of_another_search_is_refused(finished: Path, tmp_path: Path):
    opened(tmp_path / "other").study("logits")
    os.replace(tmp_path / "other" / "journal.log", finished / "journal.log")
    (finished / "locks" / "journal").unlink()
    with pytest.raises(RunError, match="is not the journal of this search: its study 'logits' belongs to another"):
        opened(finished)


def test_a_file_that_is_no_journal_is_refused(finished: Path):
    (finished / "journal.log").write_text("minutes of the meeting\n" * 1000)
    with pytest.raises(RunError, match="It is not a journal of trials"):
        opened(finished)


def test_trials_without_the_file_that_says_what_they_mean_are_not_continued(finished: Path):
    (finished / "study.json").unlink()
    with pytest.raises(RunError, match=r"study.json, which says what they mean, is missing"):
        opened(finished)


def test_a_journal_that_cannot_be_written_is_refused_and_can_still_be_read(finished: Path, monkeypatch: pytest.MonkeyPatch):
    before = states(finished)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("journal.log"))  # root may write anywhere
    with pytest.raises(RunError, match=r"cannot write .*journal.log. Make it writable"):
        opened(finished)
    assert states(finished) == before


def test_a_locked_journal_is_waited_for_and_then_named(finished: Path):
    journal, lock = finished / "journal.log", finished / "locks" / "journal"
    with open(lock, "ab") as holder:
        assert try_lock(holder)
        began = time.monotonic()
        with pytest.raises(RunError, match=r"has been locked by another process for 0 seconds.*nothing was lost"):
            KernelLock(journal, lock, patience=0.2).acquire()
        assert time.monotonic() - began >= 0.2
        freed = threading.Timer(0.1, holder.close)
        freed.start()
        assert KernelLock(journal, lock, patience=30).acquire()
        freed.join()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path):
    (tmp_path / "journal.log").touch()
    code = (
        "import os, sys; from pathlib import Path; from workbench.search.journal import KernelLock; "
        "KernelLock(Path(sys.argv[1]), Path(sys.argv[2])).acquire(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "journal.log"), str(tmp_path / "lock")], check=False)
    assert (tmp_path / "lock").exists()
    assert KernelLock(tmp_path / "journal.log", tmp_path / "lock", patience=0.0).acquire()


def test_changes_that_belong_together_are_written_together(tmp_path: Path):
    (tmp_path / "locks").mkdir()
    journal, storage = open_journal(tmp_path, write=True)
    study = optuna.create_study(storage=storage, study_name="one", direction="maximize")
    before = (tmp_path / "journal.log").read_bytes()
    with journal.together():
        trial = study.ask({"x": optuna.distributions.CategoricalDistribution(("a", "b"))})
        trial.set_user_attr("note", "n")
        study.tell(trial, 1.0)
        assert study.get_trials()[0].value == 1.0  # this process sees what it did
        assert (tmp_path / "journal.log").read_bytes() == before
    _, again = open_journal(tmp_path, write=False)
    (read,) = optuna.load_study(study_name="one", storage=again).get_trials()
    assert (read.state.name, read.params, read.user_attrs, read.value) == ("COMPLETE", trial.params, {"note": "n"}, 1.0)


def test_optuna_alone_reads_the_journal(finished: Path):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(finished / "journal.log")))
    values = [trial.value for trial in optuna.load_study(study_name="logits", storage=storage).get_trials()]
    assert values == [value for study, _, _, value in states(finished) if study == "logits"][: len(values)]
