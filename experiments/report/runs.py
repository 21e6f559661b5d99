"""Committed runs as the report shows them: read and checked, chosen by validation, averaged over seeds."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from experiments.catalogue import Case, Experiment
from experiments.records import RESULTS
from noisin.config import Config, recorded_config
from noisin.methods import METHODS
from noisin.objective import approximate_limit
from noisin.runs.record import read_record
from noisin.system.errors import UserError, escape_unprintable

# What methods are compared by: not `averaged` itself, whose bias at the record's S differs between methods.
ESTIMATORS = ("clean", "limit")
APPROXIMATE = "≈"
OWN = "**/record.json"


@dataclass(frozen=True, eq=False)
class Run:
    """One record, with what the report needs to speak of it.

    Parameters
    ----------
    record : mapping
        As it was read.
    config : Config
        Of the record; options that are new since then have their defaults.
    file : str, default ""
        Where the record lies in the folder of the results.
    anchor : str, default ""
        The id of its details in the page.
    """

    record: Mapping[str, Any]
    config: Config
    file: str = ""
    anchor: str = ""

    @property
    def epochs(self) -> Sequence[Mapping[str, Any]]:
        return self.record["epochs"]

    @property
    def valid(self) -> float:
        """Best validation perplexity; infinite for a run that diverged before its first."""
        return _perplexity(self.record["valid_ppl"])

    def test(self, estimator: str) -> float:
        """Test perplexity; infinite where a diverged run has none, or it was not finite.

        Parameters
        ----------
        estimator : {'clean', 'bound', 'averaged', 'limit'}
            The last is the limit of `averaged` for infinitely many samples.
        """
        test = self.record["test_ppl"] or {}
        if estimator == "limit" and self.approximate:
            return _perplexity(approximate_limit(self.test("bound"), self.test("averaged"), test["samples"]))
        if estimator == "limit":
            estimator = "averaged_limit" if "averaged_limit" in test else "averaged"
        return _perplexity(test.get(estimator))

    @property
    def approximate(self) -> bool:
        """Whether the limit has to be estimated from `bound` and `averaged`, as in records older than its jackknife."""
        return self.stochastic and "averaged_limit" not in self.record["test_ppl"]

    def shown(self, estimator: str) -> str:
        """Test perplexity as the tables show it, with `APPROXIMATE` before an estimated limit."""
        return _marked(self.test(estimator), estimator == "limit" and self.approximate)

    @property
    def stochastic(self) -> bool:
        """Whether its test was averaged over samples."""
        return (self.record["test_ppl"] or {}).get("samples", 1) > 1

    @cached_property
    def variant(self) -> str:
        """What this run shares with those that differ from it by the seed alone; by the dtype nothing is chosen."""
        return variant_of(self.config)


def _perplexity(value: Optional[float]) -> float:
    return math.inf if value is None else value


def variant_of(config: Config) -> str:
    """A fingerprint of all but the seed and the dtype."""
    return replace(config, seed=0, dtype="float32").digest


def run_of(record: Mapping[str, Any], file: str = "", anchor: str = "") -> Run:
    """The run that left this record."""
    return Run(record, recorded_config(record["config"]), file, anchor)


def load_runs(folder: Path = RESULTS, pattern: str = "*/*.json") -> List[Run]:
    """Every record below `folder`, checked.

    Parameters
    ----------
    folder : Path, default that of the committed records
    pattern : str, default '*/*.json'
        Of the records' paths in it; `OWN` for run directories at any depth.

    Raises
    ------
    UserError
        If there is no folder or no record, or one is damaged or was changed, naming it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one with runs, e.g. runs")
    runs = [
        run_of(read_record(path), escape_unprintable(path.relative_to(folder).as_posix()), f"run-{number}")
        for number, path in enumerate(sorted(folder.glob(pattern)), 1)
    ]
    if not runs:
        raise UserError(f"{folder} holds no finished run; `noisin train` or `make ptb` makes some")
    return runs


def runs_of(experiment: Experiment, runs: Sequence[Run]) -> List[Run]:
    """Those that belong to an experiment, whatever the seed and dtype.

    Experiments share runs (Figure 2 is one case of Table 2), so every experiment's records are looked at.
    """
    declared = _variants(experiment)
    return [run for run in runs if run.variant in declared]


@lru_cache(maxsize=None)
def _variants(experiment: Experiment) -> FrozenSet[str]:
    return frozenset(map(variant_of, experiment.shown_configs()))


def runs_of_case(experiment: Experiment, case: Case, runs: Sequence[Run]) -> List[Run]:
    """Those that belong to one case of it."""
    return in_case(case, runs_of(experiment, runs))


def candidates(experiment: Experiment, case: Case, runs: Sequence[Run]) -> List[Run]:
    """Those that belong to one case of it or of its searches: among them validation chooses a method's variant."""
    found = [run for one in (experiment, *experiment.searches) for run in runs_of_case(one, case, runs)]
    return competing(found)


def competing(runs: Sequence[Run]) -> List[Run]:
    """Each of these runs once, without dropout of every layer's outputs where the one that replaced it has run."""
    replaced_by = {run: variant_of(replace(run.config, dropout_output_layers="top")) for run in runs}
    variants = {run.variant for run in runs}
    return [run for run, today in replaced_by.items() if today == run.variant or today not in variants]


def in_case(case: Case, runs: Sequence[Run]) -> List[Run]:
    """Those of these runs of an experiment that are of one case."""
    return [run for run in runs if case.covers(run.config)]


@dataclass(frozen=True)
class Mention:
    """A number in a sentence, and the run that it comes from."""

    text: str
    run: Run


@dataclass(frozen=True, eq=False)
class Score:
    """What one method reaches in one setting: a variant, with every seed that it was run with.

    Runs of one seed that differ by their dtype are no independent draws: they count as one, with their mean.
    """

    runs: Tuple[Run, ...]

    @property
    def config(self) -> Config:
        return self.runs[0].config

    @property
    def seeds(self) -> int:
        """How many different ones."""
        return len({run.config.seed for run in self.runs})

    def by_seed(self, value: Callable[[Run], float]) -> List[float]:
        """A number of each seed: the mean over its runs."""
        found: Dict[int, List[float]] = {}
        for run in self.runs:
            found.setdefault(run.config.seed, []).append(value(run))
        return [statistics.fmean(values) for values in found.values()]

    def of_seeds(self, seeds: Set[int]) -> Score:
        """The same with the runs of these seeds alone."""
        return replace(self, runs=tuple(run for run in self.runs if run.config.seed in seeds))

    @property
    def valid(self) -> float:
        """Best validation perplexity, mean over seeds."""
        return statistics.fmean(self.by_seed(lambda run: run.valid))

    def tests(self, estimator: str) -> List[float]:
        """Test perplexity of each seed; infinite if a run of it has none."""
        return self.by_seed(lambda run: run.test(estimator))

    def test(self, estimator: str) -> float:
        """Test perplexity, mean over seeds; infinite if a run of them has none."""
        return statistics.fmean(self.tests(estimator))

    def deviation(self, estimator: str) -> Optional[float]:
        """Standard deviation over seeds; None for a single one, or where a run has no number."""
        values = self.tests(estimator)
        return statistics.stdev(values) if self.seeds > 1 and all(map(math.isfinite, values)) else None

    def mean(self, estimator: str) -> str:
        """Test perplexity in words, as '136.3 ± 0.8' where there are several seeds."""
        deviation = self.deviation(estimator)
        estimated = any(run.shown(estimator).startswith(APPROXIMATE) for run in self.runs)
        return _marked(self.test(estimator), estimated) + ("" if deviation is None else f" ± {deviation:.1f}")

    def sentence(self, estimator: str) -> Iterator[Any]:
        """The method, its gamma and its number, as text and mentions."""
        yield f"{name_of(self.config)} "
        if len(self.runs) == 1:
            yield Mention(self.mean(estimator), self.runs[0])
            return
        yield f"{self.mean(estimator)} (seeds "
        for index, run in enumerate(self.runs):
            yield ", " if index else ""
            yield Mention(str(run.config.seed), run)
        yield ")"


def number(value: float) -> str:
    """A perplexity as the tables show it; a dash where a run has none."""
    return f"{value:{'.1f' if value < 1e7 else '.3g'}}" if math.isfinite(value) else "-"


def _marked(value: float, estimated: bool) -> str:
    return (APPROXIMATE if estimated and math.isfinite(value) else "") + number(value)


def name_of(config: Config) -> str:
    """The method as the paper calls it, with what tells its variants apart."""
    method = METHODS[config.method]
    described = method.described(config)
    return method.title + (f" ({described})" if described else "")


def network_of(config: Config) -> str:
    """The network in words, as '2-layer tanh RNN'."""
    kinds = [f"{config.layers}-layer", config.activation or "", config.cell.upper()]
    return " ".join(filter(None, kinds))


def scores(runs: Sequence[Run]) -> List[Score]:
    """The runs by variant, each with its seeds in order."""
    variants: Dict[str, List[Run]] = {}
    for run in runs:
        variants.setdefault(run.variant, []).append(run)
    return [Score(tuple(sorted(found, key=lambda run: run.config.seed))) for found in variants.values()]


def choose(runs: Sequence[Run], *methods: str) -> Optional[Score]:
    """The variant of these methods with the lowest validation perplexity, None without runs; the test has no say.

    Variants are compared on the seeds that all of them have, or luck would favour those with few; where there is no
    such seed, on all.
    """
    found = scores([run for run in runs if run.config.method in methods])
    if not found:
        return None
    shared = set.intersection(*({run.config.seed for run in score.runs} for score in found))
    return min(found, key=lambda score: (score.of_seeds(shared) if shared else score).valid)
