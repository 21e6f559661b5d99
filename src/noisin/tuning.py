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

import dataclasses
import json
import math
import os
import shlex
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import optuna
import pandas as pd
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, Trial, TrialState, create_trial
from tqdm import tqdm

import noisin
from noisin.config import Config
from noisin.data.corpus import Corpus
from noisin.data.published import NAMES
from noisin.figures import importances, save
from noisin.model import stream
from noisin.noise import FAMILIES, MODES
from noisin.runs.directory import RunDirectory
from noisin.runs.formats import LARGEST, Progress, differences, seal
from noisin.system.errors import UserError
from noisin.system.files import hold_folder, parse_json, read_regular, write_json
from noisin.system.process import DIVERGED, Job, run_process


@dataclass(frozen=True)
class Searched:
    """An option that is searched, unless the user gives it a value.

    Parameters
    ----------
    option : str
        Its name in `Config`. It is searched in the methods in which it acts.
    choices : tuple of str, default ()
        Values of an option of texts.
    low, high : float
        Closed range of a number.
    log : bool, default False
        Search the range on a logarithmic scale.
    above : str, optional
        Another option; where that acts, the range begins above its value.
    optimizer : str, optional
        Search this range with this optimizer only.
    """

    option: str
    choices: Tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    above: Optional[str] = None
    optimizer: Optional[str] = None

    @property
    def top(self) -> Any:
        """The last choice, or the highest number."""
        return self.choices[-1] if self.choices else self.high

    def suggest(self, trial: BaseTrial, base: Config) -> Any:
        """Let Optuna choose a value for a trial of the method of `base`."""
        if self.choices:
            return trial.suggest_categorical(self.option, self.choices)
        low = self.low
        if self.above and base.acts(self.above):
            low = max(low, min(1.1 * getattr(base, self.above), self.high))
        return trial.suggest_float(self.option, low, self.high, log=self.log)


SPACE = (
    Searched("gamma", low=0.03, high=1.0, log=True, above="lower_bound"),
    Searched("noise", choices=tuple(sorted(FAMILIES))),
    Searched("noise_mode", choices=MODES),
    Searched("dropout_inputs", high=0.7),
    Searched("dropout_states", high=0.7),
    Searched("dropout_outputs", high=0.7),
    Searched("dropout_embedding", high=0.4),
    Searched("standard_dropout", high=0.7),
    Searched("learning_rate", low=3e-4, high=1e-2, log=True, optimizer="adam"),
    Searched("learning_rate", low=0.1, high=10.0, log=True, optimizer="sgd"),
)
# Digits of a searched number, so that the command of the best trial is short and exact.
DIGITS = 3
# A trial may be pruned from the epoch WARM_UP on, once FIRST trials have ended: if its best validation perplexity is
# above the median of theirs at that epoch.
FIRST, WARM_UP = 5, 3
# Trials of a method from which importances are estimated: what distinguishes the best tenth of them.
ENOUGH = 20
PICTURE = "importances.png"
_LISTS = {entry.name for entry in dataclasses.fields(Config) if entry.metadata["kind"] is list}


class Space:
    """What is searched for some methods, with all other options fixed.

    Parameters
    ----------
    methods : sequence of str
    fixed : mapping of str to option value
        Options given by the user, which are not searched.

    Raises
    ------
    UserError
        For an unknown method or an invalid value, as `Config`.
    """

    def __init__(self, methods: Sequence[str], fixed: Mapping[str, Any]) -> None:
        if "noise_parameters" in fixed and "noise" not in fixed:
            raise UserError("--noise-parameters are those of one noise family: give --noise too")
        self._fixed = dict(fixed)
        optimizer = fixed.get("optimizer", Config.optimizer)
        free = (searched for searched in SPACE if searched.option not in fixed)
        self.searched = [searched for searched in free if searched.optimizer in (None, optimizer)]
        tops = {searched.option: searched.top for searched in self.searched}
        self.bases = {method: self.config({"method": method, **tops}) for method in dict.fromkeys(methods)}

    def config(self, values: Mapping[str, Any]) -> Config:
        """Return the configuration with these values of the searched options, its numbers rounded."""
        rounded = {
            name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for name, value in values.items()
        }
        lists = {name: [value] for name, value in rounded.items() if name in _LISTS}
        return Config(**{**self._fixed, **rounded, **lists})

    def suggest(self, trial: BaseTrial) -> Config:
        """Let Optuna choose the options of a trial."""
        method = trial.suggest_categorical("method", list(self.bases))
        base = self.bases[method]
        acting = [searched for searched in self.searched if base.acts(searched.option)]
        return self.config({"method": method, **{s.option: s.suggest(trial, base) for s in acting}})

    def described(self, config: Config) -> Dict[str, str]:
        """Return what distinguishes a trial: its method and the searched options that act in it, as text."""
        acting = [searched.option for searched in self.searched if config.acts(searched.option)]
        return {"method": config.method, **{name: _shown(getattr(config, name)) for name in acting}}

    def identity(self, corpus: Corpus) -> Dict[str, Any]:
        """Return what makes two searches the same one, as JSON."""
        options: Dict[str, Any] = {}
        left_out = {"method", *(searched.option for searched in self.searched)}
        for base in self.bases.values():
            options.update({n: v for n, v in base.to_dict().items() if base.acts(n) and n not in left_out})
        if options["corpus"] not in NAMES:
            options["corpus"] = "a text of one's own"
        searched = {s.option: dataclasses.asdict(s) for s in self.searched}
        content = {"methods": list(self.bases), "options": options, "searched": searched}
        return {**json.loads(json.dumps(content)), "corpus_sha256": corpus.digest, "version": noisin.__version__}

    def folder(self, corpus: Corpus) -> Path:
        """Return the default folder of the study: one for each corpus and each set of fixed options."""
        return Path("runs/tune") / f"{corpus.name}-{seal({**self.identity(corpus), 'corpus_sha256': ''})['digest'][:8]}"


def _shown(value: Any) -> str:
    """Return an option's value as it is written on the command line."""
    if isinstance(value, dict):
        return ",".join(f"{name}={number!r}" for name, number in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def train_command(config: Config) -> str:
    """Return the command `noisin train` of a configuration, for a shell."""
    words = ["noisin", "train"]
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if value != entry.metadata["default"] and config.acts(entry.name):
            words += [f"--{entry.name.replace('_', '-')}", _shown(value)]
    return " ".join(map(shlex.quote, words))


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
        path, identity = folder / "study.jsonl", space.identity(corpus)
        written = _lines_of_journal(path)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _damage_in(path), _quiet():
            storage = JournalStorage(JournalFileBackend(str(path)))
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
        table = pd.DataFrame(rows, columns=columns).fillna("")
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
    """Count the lines of a journal, all of them JSON; cut off a torn last one, which a full disk can leave."""
    if not path.exists():
        return 0
    *lines, torn = read_regular(path, "the journal of a study").split(b"\n")
    with _damage_in(path):
        for line in lines:
            parse_json(line)
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
        raise UserError(f"{path} is damaged ({error or type(error).__name__}): restore it, or delete it") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore Optuna's warnings, of parts of it that are new and of importances from few trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    with hold_folder(folder):
        study = Study(folder, space, corpus)
        environment = {"OMP_NUM_THREADS": str(threads)}
        with _Search(study, corpus, trials, device, environment, options, report) as search:
            search.run(jobs)
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
        kept = {self._directory(trial.number) for trial in self._interrupted}
        for left in set(study.folder.glob("trial-*")) - kept:  # by a kill between the end of a trial and its removal
            shutil.rmtree(left)
        self._bar = tqdm(
            total=trials, initial=len(study.ended()), desc="trials", disable=None, leave=False, smoothing=0
        )

    def __enter__(self) -> _Search:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def _directory(self, number: int) -> Path:
        return self._study.folder / f"trial-{number:04d}"

    def run(self, jobs: int) -> None:
        with ThreadPoolExecutor(jobs) as pool:
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
        study.sampler = TPESampler(seed=stream(self._seed, number))
        trial = Trial(study, self._interrupted.pop(0)._trial_id) if self._interrupted else study.ask()
        return trial, self._study.space.suggest(trial)

    @property
    def _seed(self) -> int:
        return next(iter(self._study.space.bases.values())).seed

    def _train(self, trial: Trial, config: Config) -> None:
        directory = RunDirectory(self._directory(trial.number).resolve())
        write_json(directory.path / "options.json", config.to_dict())
        reported = set(self._study.optuna.trials[trial.number].intermediate_values)
        pruned, lines = threading.Event(), [""]

        def hear(line: str) -> None:
            lines.append(line)
            progress = directory.load() or Progress()
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
        if progress.epochs and directory.corpus_sha256 != self._corpus.digest:
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
        epochs = ended.last_step or 0
        self._report(f"trial {trial.number:3d}  {valid}{mark}  {_STATUS[state]} after {epochs} epochs  {named}")
        self._bar.update()
