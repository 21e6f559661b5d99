"""The paper's claims, judged one by one from the records: what holds here, what does not, what has too few runs."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from benchmarks.report import TITLES
from experiments.declared import FIGURE2, IDENTITY, TABLE2, TABLE3, ZAREMBA, Case, Experiment
from experiments.runs import (
    ESTIMATORS,
    PAPER_NAMES,
    Mention,
    Run,
    Score,
    candidates,
    choose,
    name_of,
    number,
    runs_of_case,
)

CLAIMS = {
    "a": "NOISIN or NOISIN* beats None",
    "b": "NOISIN or NOISIN* beats Dropout",
    "c": "Learned noise (NOISIN*) is more stable than fixed (NOISIN)",
    "d": "None overfits early, NOISIN later",
    "e": "NOISIN costs about as much as None, Dropout noticeably more",
    "f": "The gain of NOISIN* over None is small on WikiText-2",
}
HOLDS, FAILS, UNDECIDED, MISSING, UNMEASURED = "holds", "fails", "undecided", "not enough runs", "not measured"
NOISIN = ("noisin", "noisin*")
SEEDS = 3  # of each method, before their spreads are compared
NOTICEABLE = 0.1  # of a step's time: more is "noticeably slower", less is "about the same"
SMALL = 0.03  # of the perplexity: a gain up to this is "small"; the paper's on WikiText-2 is a third of it

Evidence = Tuple[Union[str, Mention], ...]


@dataclass(frozen=True)
class Judgement:
    """One claim in one setting.

    Parameters
    ----------
    claim : str
        A key of `CLAIMS`.
    setting : str
        Where it is judged.
    measure : str
        By what; a dash where there is nothing to measure yet.
    verdict : str
        'holds', 'fails', 'undecided', 'not enough runs' or 'not measured'.
    evidence : sequence of str and Mention
        The numbers behind it.
    paper : str
        The verdict by the paper's own numbers, or a dash.
    """

    claim: str
    setting: str
    measure: str
    verdict: str
    evidence: Evidence
    paper: str = "-"


def plain(evidence: Evidence) -> str:
    """Evidence as text."""
    return "".join(piece.text if isinstance(piece, Mention) else piece for piece in evidence)


def judge(runs: Sequence[Run], measurements: Optional[Mapping[str, Any]] = None) -> List[Judgement]:
    """Every claim in every setting, claim by claim.

    Parameters
    ----------
    runs : sequence of Run
    measurements : mapping, optional
        Content of `benchmarks/results.json`, for the claims on cost.
    """
    settings = [(experiment, case) for experiment in (TABLE2, IDENTITY, TABLE3, ZAREMBA) for case in experiment.cases]
    found: List[Judgement] = []
    for claim, rival in (("a", "none"), ("b", "dropout")):
        for experiment, case in settings:
            found += _beats(claim, rival, experiment, case, runs)
    for experiment, case in settings:
        found += _stable_over_seeds(experiment, case, runs)
    found += _stable_over_cases(TABLE2, runs)
    found += _overfits_later(FIGURE2, runs)
    found += _cost(measurements)
    found += _small_gain(TABLE3, runs)
    return found


def title_of(experiment: Experiment, case: Case) -> str:
    """A setting in words."""
    return f"{experiment.title.split(',')[0]}: {case.title}" if case.title else experiment.title


def _beats(claim: str, rival: str, experiment: Experiment, case: Case, runs: Sequence[Run]) -> List[Judgement]:
    """Whether the better of NOISIN and NOISIN* has the lower test perplexity; by each estimator.

    Validation says which is the better one, and which gamma and rates stand for a method where several were tried.
    """
    setting = title_of(experiment, case)
    published = _published(case.paper, rival)
    found = candidates(experiment, case, runs)
    ours, other = choose(found, *NOISIN), choose(found, rival)
    if ours is None or other is None:
        return [_missing(claim, setting, {"NOISIN or NOISIN*": ours, PAPER_NAMES[rival]: other}, published)]
    judgements = []
    for estimator in ESTIMATORS:
        verdict, evidence = lower(ours, other, estimator), _against(ours, other, estimator)
        judgements.append(Judgement(claim, setting, f"test, {estimator}", verdict, evidence, published))
    return judgements


def lower(ours: Score, other: Score, estimator: str) -> str:
    """Whether one score is below another, by more than two standard errors where one of them has several seeds.

    The deviation over seeds of the one that has them stands for the other's too.
    """
    mine, theirs = ours.test(estimator), other.test(estimator)
    deviations = [score.deviation(estimator) for score in (ours, other)]
    known = max((deviation for deviation in deviations if deviation is not None), default=0.0)
    errors = [
        (known if deviation is None else deviation) ** 2 / score.seeds
        for deviation, score in zip(deviations, (ours, other))
    ]
    margin = 2 * math.sqrt(sum(errors))
    if mine == theirs or abs(mine - theirs) <= margin:
        return UNDECIDED
    return HOLDS if mine < theirs else FAILS


def _against(ours: Score, other: Score, estimator: str) -> Evidence:
    return (*ours.said(estimator), " against ", *other.said(estimator))


def _published(paper: Mapping[str, float], rival: str) -> str:
    """The same verdict by the paper's numbers; the better of its two is chosen on its test set, for want of another."""
    noisy = [paper[method] for method in NOISIN if method in paper]
    if not noisy or rival not in paper:
        return "-"
    return f"{HOLDS if min(noisy) < paper[rival] else FAILS}: {min(noisy):.1f} against {paper[rival]:.1f}"


def _missing(claim: str, setting: str, scores: Mapping[str, Optional[Score]], published: str = "-") -> Judgement:
    lacking = ", nor of ".join(name for name, score in scores.items() if score is None)
    return Judgement(claim, setting, "-", MISSING, (f"no run of {lacking}",), published)


def _stable_over_seeds(experiment: Experiment, case: Case, runs: Sequence[Run]) -> List[Judgement]:
    """Whether the learned noise's standard deviation over seeds is the lower one."""
    setting = title_of(experiment, case)
    found = runs_of_case(experiment, case, runs)
    learned, fixed = choose(found, "noisin*"), choose(found, "noisin")
    seeds = [0 if score is None else score.seeds for score in (learned, fixed)]
    if learned is None or fixed is None or min(seeds) < SEEDS:
        lacking = f"NOISIN* has {_count(seeds[0], 'seed')}, NOISIN {_count(seeds[1], 'seed')}; {SEEDS} are needed"
        return [Judgement("c", setting, "-", MISSING, (lacking,))]
    judgements = []
    for estimator in ESTIMATORS:
        verdict = _smaller(learned.deviation(estimator), fixed.deviation(estimator))
        evidence = _against(learned, fixed, estimator)
        judgements.append(Judgement("c", setting, f"deviation over seeds, {estimator}", verdict, evidence))
    return judgements


def _smaller(ours: Optional[float], other: Optional[float]) -> str:
    """Compare two deviations; None, of a method with a diverged run, is larger than any."""
    mine, theirs = (math.inf if value is None else value for value in (ours, other))
    return UNDECIDED if mine == theirs else HOLDS if mine < theirs else FAILS


def _stable_over_cases(experiment: Experiment, runs: Sequence[Run]) -> List[Judgement]:
    """Whether the learned noise's perplexities differ less from case to case: only over all cases, or not at all."""
    setting = f"{experiment.title.split(',')[0]}: all {len(experiment.cases)} cases"
    paper = {method: [case.paper[method] for case in experiment.cases] for method in NOISIN}
    spreads = {method: statistics.stdev(values) for method, values in paper.items()}
    verdict = _smaller(spreads["noisin*"], spreads["noisin"])
    published = f"{verdict}: {spreads['noisin*']:.1f} against {spreads['noisin']:.1f}"
    found = [runs_of_case(experiment, case, runs) for case in experiment.cases]
    chosen = {method: [choose(of_case, method) for of_case in found] for method in NOISIN}
    complete = {method: [score for score in of_method if score] for method, of_method in chosen.items()}
    if any(len(scores) < len(experiment.cases) for scores in complete.values()):
        counts = " and ".join(f"{PAPER_NAMES[method]} in {len(complete[method])}" for method in reversed(NOISIN))
        evidence = (f"{counts} of {len(experiment.cases)} cases",)
        return [Judgement("c", setting, "-", MISSING, evidence, published)]
    judgements = []
    for estimator in ESTIMATORS:
        learned, fixed = (
            _deviation([score.test(estimator) for score in complete[method]]) for method in reversed(NOISIN)
        )
        evidence = (f"NOISIN* {number(learned)} against NOISIN {number(fixed)}",)
        measure = f"deviation over cases, {estimator}"
        judgements.append(Judgement("c", setting, measure, _smaller(learned, fixed), evidence, published))
    return judgements


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.inf


def _overfits_later(experiment: Experiment, runs: Sequence[Run]) -> List[Judgement]:
    """For NOISIN and NOISIN*: whether None passes its best epoch, and does so earlier."""
    judgements = []
    for case in experiment.cases:
        found = runs_of_case(experiment, case, runs)
        none = choose(found, "none")
        for method in NOISIN:
            ours = choose(found, method)
            setting = f"{title_of(experiment, case)}, {PAPER_NAMES[method]}"
            if none is None or ours is None:
                judgements.append(_missing("d", setting, {"None": none, PAPER_NAMES[method]: ours}))
            else:
                evidence = (*_course(none), "; ", *_course(ours))
                judgements.append(Judgement("d", setting, "best epoch on validation", _later(none, ours), evidence))
    return judgements


def _later(none: Score, ours: Score) -> str:
    """Holds if every run of None overfits, and ours reach their best epochs later."""
    if not all(overfits(run) for run in none.runs):
        return FAILS
    return HOLDS if _best_epoch(ours) > _best_epoch(none) else FAILS


def overfits(run: Run) -> bool:
    """Whether validation perplexity ends above its best while training perplexity still falls."""
    best = run.record["best_epoch"]
    if best is None or best == len(run.epochs):
        return False
    return run.epochs[-1]["valid_ppl"] > run.valid and run.epochs[-1]["train_ppl"] < run.epochs[best - 1]["train_ppl"]


def _best_epoch(score: Score) -> float:
    """Mean over seeds; a run that diverged before its first epoch counts as 0."""
    return sum(run.record["best_epoch"] or 0 for run in score.runs) / len(score.runs)


def _course(score: Score) -> Evidence:
    """Of each seed: the best epoch, and the rise of validation perplexity from there to the last one."""
    pieces: List[Union[str, Mention]] = [f"{name_of(score.config)} best in epoch "]
    for index, run in enumerate(score.runs):
        best, count = run.record["best_epoch"] or 0, len(run.epochs)
        pieces += [", " if index else "", Mention(str(best), run), f" of {count}"]
        if 0 < best < count:
            rise = run.epochs[-1]["valid_ppl"] / run.valid - 1
            pieces.append(f", then {100 * rise:+.1f} % in {_count(count - best, 'epoch')}")
    return tuple(pieces)


def _count(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _cost(measurements: Optional[Mapping[str, Any]]) -> List[Judgement]:
    """The time of a training step, relative to that of the deterministic network; in each workload and dtype."""
    checks: Dict[str, Callable[[float], bool]] = {
        "noisin": lambda ratio: ratio <= 1 + NOTICEABLE,
        "dropout": lambda ratio: ratio >= 1 + NOTICEABLE,
    }
    entries = [] if measurements is None else measurements["measurements"]
    rates = {(entry["workload"], entry["dtype"], entry["name"]): entry["words_per_second"] for entry in entries}
    judgements = []
    for workload, dtype in dict.fromkeys(key[:2] for key in rates):
        none = rates.get((workload, dtype, "none"))
        for method, check in checks.items():
            rate = rates.get((workload, dtype, method))
            if none and rate:
                ratio = none / rate
                setting = f"{TITLES[workload]}, {dtype}, {PAPER_NAMES[method]}"
                evidence = (f"{ratio:.2f} times the time of None",)
                judgements.append(Judgement("e", setting, "time of a step", HOLDS if check(ratio) else FAILS, evidence))
    return judgements or [Judgement("e", "make bench", "-", UNMEASURED, ("no benchmarks/results.json",))]


def _small_gain(experiment: Experiment, runs: Sequence[Run]) -> List[Judgement]:
    """Whether NOISIN*, which the paper used there, is below None, and not by much."""
    (case,) = experiment.cases
    setting, paper = title_of(experiment, case), case.paper
    gain = 1 - paper["noisin*"] / paper["none"]
    published = f"{HOLDS if 0 < gain <= SMALL else FAILS}: {100 * gain:+.1f} %"
    found = runs_of_case(experiment, case, runs)
    ours, none = choose(found, "noisin*"), choose(found, "none")
    if ours is None or none is None:
        return [_missing("f", setting, {"NOISIN*": ours, "None": none}, published)]
    judgements = []
    for estimator in ESTIMATORS:
        gain = 1 - ours.test(estimator) / none.test(estimator)
        verdict = lower(ours, none, estimator)
        verdict = FAILS if verdict == HOLDS and not gain <= SMALL else verdict
        evidence = (f"gain {100 * gain:+.1f} %: ", *_against(ours, none, estimator))
        judgements.append(Judgement("f", setting, f"test, {estimator}", verdict, evidence, published))
    return judgements
