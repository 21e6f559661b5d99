"""The search for gamma, dropout rates and learning rate by validation perplexity: `noisin tune`. Needs Optuna.

A study has a folder:

    study.jsonl             Optuna's journal, one JSON object a line: every trial with its options and perplexities
    trial-0007/             run directory of a trial while it trains
    importances.png         what mattered
    lock                    held by the process that searches

The test split is never evaluated. A trial's sampler is seeded by the trial's number, so that an interrupted search with
one job goes on as it would have.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import optuna
import pandas as pd
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState, create_trial
from tqdm import tqdm

from noisin.config import Config
from noisin.data.corpus import Corpus
from noisin.figures import importances, save
from noisin.model import stream
from noisin.runs.directory import RunDirectory
from noisin.runs.formats import LARGEST, Progress, differences, seal
from noisin.search import Space
from noisin.system.errors import UserError, plural
from noisin.system.files import hold_folder, parse_json, read_regular, write_json
from noisin.system.process import DIVERGED, Job, run_process

# A trial may be pruned from the epoch WARM_UP on, once FIRST trials have finished: if its best validation perplexity is
# above the median of theirs at that epoch.
FIRST, WARM_UP = 5, 3
# Trials of a method from which importances are estimated: what distinguishes the best tenth of them.
ENOUGH = 20
JOURNAL, PICTURE = "study.jsonl", "importances.png"


class _SealedJournal(JournalFileBackend):
    """Optuna's journal, each line with the sha256 of the rest of it."""

    def append_logs(self, logs: List[Dict[str, Any]]) -> None:
        super().append_logs([seal(log) for log in logs])


class Study:
    """The trials of a search, in a folder that this process holds.

    Parameters
    ----------
    folder : Path
    space : Space
    corpus : Corpus

    Raises
    ------
    UserError
        If the folder holds a study of another text or other options, or a damaged one.
    """

    def __init__(self, folder: Path, space: Space, corpus: Corpus) -> None:
        self.folder, self.space = folder, space
        path, identity = folder / JOURNAL, space.identity(corpus)
        # Optuna's lock: a search that is killed while it writes leaves it, and the next one would wait for ever.
        path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)
        written = _lines_of_journal(path)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _damage_in(path), _quiet():
            storage = JournalStorage(_SealedJournal(str(path)))
            pruner = MedianPruner(FIRST, WARM_UP)
            self.optuna = optuna.create_study(
                storage=storage, study_name="noisin", load_if_exists=True, pruner=pruner, sampler=TPESampler()
            )
            before = self.optuna.user_attrs.get("identity")
            if before is None and written > 1:
                raise ValueError("it does not say what is searched")
        if before is None:
            self.optuna.set_user_attr("identity", identity)
        elif before != identity:
            raise UserError(
                f"{folder} holds another study ({'; '.join(differences(before, identity))}): give it the same options, "
                "text and version of noisin, or give another --study"
            )
        with _damage_in(path):
            for trial in self.optuna.trials:
                self._check(trial)

    def _check(self, trial: FrozenTrial) -> None:
        if trial.state != TrialState.RUNNING:  # an interrupted one may lack some options
            again = FixedTrial(trial.params)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of a value out of its range
                self.space.suggest(again)
            if again.distributions != trial.distributions:
                raise ValueError(f"trial {trial.number} has other options or ranges")
        values = [*trial.intermediate_values.values(), *([trial.value] if trial.state == TrialState.COMPLETE else [])]
        steps = list(trial.intermediate_values)
        if not all(isinstance(value, (int, float)) and 0 < value <= LARGEST for value in values):
            raise ValueError(f"trial {trial.number} has a perplexity that is none")
        if steps != list(range(1, len(steps) + 1)):
            raise ValueError(f"trial {trial.number} does not have the epochs 1, 2, ...")

    def ended(self) -> List[FrozenTrial]:
        """Return the trials that have ended, best first: finished, pruned, failed."""
        ended = [trial for trial in self.optuna.trials if trial.state.is_finished()]
        order = list(_STATUS)
        return sorted(ended, key=lambda trial: (order.index(trial.state), best_valid(trial), trial.number))

    def best(self) -> Optional[FrozenTrial]:
        """Return the finished trial with the lowest validation perplexity; None without any."""
        return next((trial for trial in self.ended() if trial.state == TrialState.COMPLETE), None)

    def table(self) -> pd.DataFrame:
        """Return a row for each trial that has ended, best first."""
        rows = []
        for trial in self.ended():
            valid, epochs = best_valid(trial), str(trial.last_step or 0)
            shown = f"{valid:.2f}" if valid < math.inf else ""
            row = {"trial": str(trial.number), "valid": shown, "status": _STATUS[trial.state], "epochs": epochs}
            rows.append({**row, **self.space.described(self.space.config(trial.params))})
        columns = ["trial", "valid", "status", "epochs", "method", *(s.option for s in self.space.searched)]
        table = pd.DataFrame(rows, columns=columns, dtype=object).fillna("")
        return table.loc[:, (table != "").any()]

    def importances(self) -> Dict[str, Dict[str, float]]:
        """Return how much each searched option mattered, for each method with enough trials.

        The importances are PED-ANOVA's and add up to 1. A pruned trial counts with its best perplexity.
        """
        found = {}
        for method in self.space.bases:
            trials = [t for t in self.ended() if t.params["method"] == method and best_valid(t) < math.inf]
            if len(trials) >= ENOUGH:
                with _quiet():
                    found[method] = _importances(trials)
        return found


_STATUS = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "diverged"}


def best_valid(trial: FrozenTrial) -> float:
    """Return the lowest validation perplexity of a trial; infinity without a whole epoch."""
    return min(trial.intermediate_values.values(), default=math.inf)


def _importances(trials: Sequence[FrozenTrial]) -> Dict[str, float]:
    study = optuna.create_study()
    for trial in trials:
        params = {name: value for name, value in trial.params.items() if name != "method"}
        distributions = {name: trial.distributions[name] for name in params}
        study.add_trial(create_trial(params=params, distributions=distributions, value=best_valid(trial)))
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def _lines_of_journal(path: Path) -> int:
    """Count the lines of a journal, all of them sealed; cut off a torn last one, which a full disk can leave."""
    if not path.exists():
        return 0
    *lines, torn = read_regular(path, "the journal of a study").split(b"\n")
    with _damage_in(path):
        for number, line in enumerate(lines, 1):
            content = parse_json(line)
            if content != seal(content):
                raise ValueError(f"line {number} has changed since it was written")
    if torn:
        os.truncate(path, path.stat().st_size - len(torn))
    return len(lines)


@contextmanager
def _damage_in(path: Path) -> Iterator[None]:
    """Say in one line that a study cannot be used, whatever Optuna makes of it."""
    try:
        yield
    except OSError:
        raise  # no damage, but e.g. a full disk
    except Exception as error:
        reason = str(error) if isinstance(error, (ValueError, UserError)) else "it is not a journal of Optuna"
        raise UserError(f"{path} is damaged ({reason}): restore it, or delete it to begin the study again") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore Optuna's warnings, of parts of it that are new and of importances from few trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _held(folder: Path) -> IO[str]:
    """Make and lock the folder of a study, which may hold nothing else."""
    try:
        others = [path.name for path in folder.glob("[!.]*") if path.name != "lock"]
        if others and not (folder / JOURNAL).exists():
            raise UserError(f"{folder} holds no study, but {min(others)}: give a new folder as --study")
        return hold_folder(folder)
    except OSError as error:
        raise UserError(f"cannot use {folder} for a study: {error.strerror}; give another --study") from None


def tune(
    space: Space,
    corpus: Corpus,
    folder: Path,
    trials: int,
    jobs: int = 1,
    threads: int = 1,
    device: str = "auto",
    options: Sequence[str] = (),
    report: Callable[[str], None] = tqdm.write,
) -> Study:
    """Search until the study has so many trials, going on from where it was interrupted.

    Parameters
    ----------
    space : Space
    corpus : Corpus
        The text that the configurations of `space` name.
    folder : Path
        Where the study is kept.
    trials : int
        Those of earlier calls included.
    jobs : int, default 1
        Trials side by side, each a process.
    threads : int, default 1
        Of each trial.
    device : str, default 'auto'
        As in `noisin.system.device.find_device`.
    options : sequence of str, default none
        Further options of `noisin train`.
    report : callable, default tqdm.write
        Receives one line for each trial.

    Returns
    -------
    Study

    Raises
    ------
    UserError
        As from `Study`; if another process holds the folder; if a trial ends without a result.
    """
    with _held(folder):
        study = Study(folder, space, corpus)
        environment = {"OMP_NUM_THREADS": str(threads)}
        _Search(study, corpus, trials, device, environment, options, report).run(jobs)
        found = study.importances()
        if found:
            save(importances(found), folder / PICTURE)
        return study


class _Search:
    """The trials that are left, on threads that each wait for the process of a trial."""

    def __init__(
        self,
        study: Study,
        corpus: Corpus,
        trials: int,
        device: str,
        environment: Mapping[str, str],
        options: Sequence[str],
        report: Callable[[str], None],
    ) -> None:
        self._study, self._corpus, self._trials, self._report = study, corpus, trials, report
        self._device, self._environment, self._options = device, environment, ["--no-test", *options]
        self._stopping, self._choosing = threading.Event(), threading.Lock()
        self._interrupted = [trial for trial in study.optuna.trials if trial.state == TrialState.RUNNING]
        ended = {self._directory(trial.number) for trial in study.optuna.trials if trial not in self._interrupted}
        for left in filter(Path.exists, ended):  # by a kill between the end of a trial and its removal
            shutil.rmtree(left)
        self._bar = tqdm(
            total=trials, initial=len(study.ended()), desc="trials", disable=None, leave=False, smoothing=0
        )

    def _directory(self, number: int) -> Path:
        return self._study.folder / f"trial-{number:04d}"

    def run(self, jobs: int) -> None:
        with self._bar, ThreadPoolExecutor(jobs) as pool:
            try:
                for future in as_completed([pool.submit(self._work) for _ in range(jobs)]):
                    future.result()
            finally:
                self._stopping.set()

    def _work(self) -> None:
        while not self._stopping.is_set():
            with self._choosing:
                chosen = self._next()
            if chosen is None:
                return
            self._train(*chosen)

    def _next(self) -> Optional[Tuple[Trial, Config]]:
        """Return an interrupted trial, or a new one; None if there are enough."""
        study = self._study.optuna
        number = self._interrupted[0].number if self._interrupted else len(study.trials)
        if number >= self._trials and not self._interrupted:
            return None
        seed = next(iter(self._study.space.bases.values())).seed  # of all methods
        study.sampler = TPESampler(seed=stream(seed, number))
        trial = Trial(study, self._interrupted.pop(0)._trial_id) if self._interrupted else study.ask()
        return trial, self._study.space.suggest(trial)

    def _train(self, trial: Trial, config: Config) -> None:
        directory = RunDirectory(self._directory(trial.number).resolve())
        write_json(directory.path / "options.json", config.to_dict())
        reported = set(self._study.optuna.trials[trial.number].intermediate_values)
        pruned, lines = threading.Event(), [""]

        def hear(line: str) -> None:
            lines.append(line)
            try:
                progress = directory.load() or Progress()
            except UserError:
                return  # the run says itself what is damaged, and mends it
            for entry in progress.epochs:
                if entry["epoch"] in reported or pruned.is_set():  # the run may be ahead of its lines
                    continue
                reported.add(entry["epoch"])
                trial.report(entry["valid_ppl"], entry["epoch"])
                self._bar.set_postfix_str(f"trial {trial.number}, epoch {entry['epoch']} of {config.epochs}")
                over = progress.status != "running" and entry is progress.epochs[-1]
                if not over and trial.should_prune():
                    pruned.set()

        job = Job(str(directory.path), os.getcwd(), self._device, self._environment)
        status = run_process(job, hear, lambda: pruned.is_set() or self._stopping.is_set(), self._options)
        progress = directory.load() or Progress()
        if progress.epochs and not directory.is_of(self._corpus):
            raise UserError(f"{config.corpus} has changed during the search: restore it, or search in another --study")
        if pruned.is_set():
            self._end(trial, TrialState.PRUNED)
        elif status == DIVERGED:
            self._end(trial, TrialState.FAIL)
        elif status == 0:
            self._end(trial, TrialState.COMPLETE, progress.valid_ppl)
        elif not self._stopping.is_set():
            raise UserError(f"trial {trial.number} ended without a result: {lines[-1]}")

    def _end(self, trial: Trial, state: TrialState, value: Optional[float] = None) -> None:
        self._study.optuna.tell(trial, value, state)
        shutil.rmtree(self._directory(trial.number))
        ended = self._study.optuna.trials[trial.number]
        valid = f"valid {best_valid(ended):.2f}" if ended.intermediate_values else "no valid perplexity"
        method, *options = self._study.space.described(self._study.space.config(ended.params)).items()
        best = self._study.best()
        mark = " *" if best and best.number == trial.number else ""
        named = ", ".join([method[1], *(f"{name} {value}" for name, value in options)])
        epochs = plural(ended.last_step or 0, "epoch")
        self._report(f"trial {trial.number:3d}  {valid}{mark}  {_STATUS[state]} after {epochs}  {named}")
        self._bar.update()
