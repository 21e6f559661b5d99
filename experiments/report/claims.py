"""The paper's claims, judged one by one from the records: what holds here, what does not, what has too few runs."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from benchmarks.report import TITLES, relative_rates
from experiments.catalogue import FIGURE2, ICML, TABLE2, TABLE3, ZAREMBA, Case, Experiment
from experiments.report.runs import (
    ESTIMATORS,
    Mention,
    Run,
    Score,
    candidates,
    choose,
    name_of,
    number,
    runs_of_case,
    scores,
)
from noisin.methods import DROPOUT, DROPOUT_NOISIN, METHODS, NOISIN, NOISIN_STAR, NONE, STANDARD_DROPOUT
from noisin.system.errors import plural

NOTICEABLE = 0.1  # of a step's time: more is "noticeably slower", less is "about the same"
SMALL = 0.03  # of the perplexity: a gain up to this is "small"; the paper's on WikiText-2 is a third of it
CLAIMS = {
    "a": "NOISIN or NOISIN* beats None in every setting",
    "b": "NOISIN or NOISIN* beats Dropout in all settings but one",
    "c": "Learned noise (NOISIN*) is more stable than fixed (NOISIN)",
    "d": "None overfits early, NOISIN later and less",
    "e": f"NOISIN costs about as much as None, Dropout noticeably more (by {100 * NOTICEABLE:g} % or more)",
    "f": f"The gain of NOISIN* over None is small on WikiText-2 (up to {100 * SMALL:g} %)",
    "g": "Later version, here with 200 units: NOISIN beats Dropout and Standard dropout",
    "h": "Later version, here with 200 units: Dropout + NOISIN beats Dropout and NOISIN",
}
RIVALS = {"a": NONE.name, "b": DROPOUT.name}
# Settings in which the claim may fail. Of (a) the paper's own numbers do in one: its "all but one instance" is of both.
EXCEPTIONS = {"a": 0, "b": 1}
HOLDS, FAILS, UNDECIDED, MISSING, UNMEASURED = "holds", "fails", "undecided", "not enough runs", "not measured"
# Claims of the later version: the method, and those that it should beat.
LATER = {
    "g": (NOISIN.name, (DROPOUT.name, STANDARD_DROPOUT.name)),
    "h": (DROPOUT_NOISIN.name, (DROPOUT.name, NOISIN.name)),
}
NOISY = (NOISIN.name, NOISIN_STAR.name)
SEEDS = 3  # of each method, before their deviations are compared
ROUNDS = 7  # of a measurement: if luck alone decided each, all or all but one would agree once in eight times
APART = 4.0  # times: of equal methods with three seeds each, one pair in eight has deviations further apart

Evidence = Tuple[Union[str, Mention], ...]
Deviations = Mapping[str, Optional[float]]  # by method; None where nothing is known


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
    settings = _settings()
    deviations = seed_deviations(runs)
    found: List[Judgement] = []
    for claim in RIVALS:
        judged = [_beats(claim, experiment, case, runs, deviations) for experiment, case in settings]
        found += _beats_throughout(claim, TABLE2, judged[: len(TABLE2.cases)])  # which come first
        found += chain.from_iterable(judged)
    found += _stable_over_seeds(settings, runs)
    found += _stable_over_cases(TABLE2, runs)
    found += _overfits_later(FIGURE2, runs)
    found += _cost(measurements)
    found += _small_gain(TABLE3, runs, deviations)
    for claim, (method, rivals) in LATER.items():
        (case,) = ICML.cases
        of_case = candidates(ICML, case, runs)
        for rival in rivals:
            setting = f"{ICML.short_title}: against {METHODS[rival].title}"
            found += _below(claim, setting, of_case, (method,), rival, deviations)
    return found


def _settings() -> List[Tuple[Experiment, Case]]:
    return [(experiment, case) for experiment in (TABLE2, TABLE3, ZAREMBA) for case in experiment.cases]


def seed_deviations(runs: Sequence[Run]) -> Dict[str, Deviations]:
    """Standard deviation of each method over seeds, of the logarithm of perplexity: on the test by each estimator, and
    'validation'.

    Pooled over all variants of the method that have several seeds, for one alone says little; it stands for those with
    one seed too. A method without such a variant has the deviation that is pooled over all methods.
    """
    judged = scores(list(dict.fromkeys(run for setting in _settings() for run in candidates(*setting, runs))))
    values = {name: [score.tests(name) for score in judged] for name in ESTIMATORS}
    values["validation"] = [score.by_seed(lambda run: run.valid) for score in judged]
    return {name: _pooled_by_method(judged, found) for name, found in values.items()}


def _pooled_by_method(found: Sequence[Score], values: Sequence[Sequence[float]]) -> Deviations:
    logs = [list(map(math.log, of_score)) for of_score in values]
    of_all = _pooled(logs)
    own = {
        method: _pooled([one for score, one in zip(found, logs) if score.config.method == method]) for method in METHODS
    }
    return {method: of_all if deviation is None else deviation for method, deviation in own.items()}


def _pooled(found: Sequence[Sequence[float]]) -> Optional[float]:
    several = [values for values in found if len(values) > 1 and all(map(math.isfinite, values))]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
    return math.sqrt(squares / freedom) if freedom else None


def title_of(experiment: Experiment, case: Case) -> str:
    """A setting in words."""
    return f"{experiment.short_title}: {case.title}" if case.title else experiment.title


def _beats(
    claim: str, experiment: Experiment, case: Case, runs: Sequence[Run], deviations: Mapping[str, Deviations]
) -> List[Judgement]:
    """Whether the better of NOISIN and NOISIN* has the lower test perplexity; by each estimator.

    Validation says which is the better one, and which gamma and rates stand for a method where several were tried.
    """
    setting, rival = title_of(experiment, case), RIVALS[claim]
    published = _published(case.paper, rival)
    return _below(claim, setting, candidates(experiment, case, runs), NOISY, rival, deviations, published)


def _below(
    claim: str,
    setting: str,
    runs: Sequence[Run],
    methods: Sequence[str],
    rival: str,
    deviations: Mapping[str, Deviations],
    published: str = "-",
) -> List[Judgement]:
    """Whether the best of these methods has the lower test perplexity; by each estimator."""
    ours, other = choose(runs, *methods), choose(runs, rival)
    if ours is None or other is None:
        named = " or ".join(METHODS[method].title for method in methods)
        return [_missing(claim, setting, {named: ours, METHODS[rival].title: other}, published)]
    judgements = []
    for estimator in ESTIMATORS:
        verdict, evidence = lower(ours, other, estimator, deviations[estimator]), _against(ours, other, estimator)
        judgements.append(Judgement(claim, setting, f"test, {estimator}", verdict, evidence, published))
    return judgements


def lower(ours: Score, other: Score, estimator: str, deviations: Deviations) -> str:
    """Whether one score is below another, by more than two standard errors of their difference.

    Parameters
    ----------
    ours, other : Score
    estimator : str
        'clean' or 'limit'.
    deviations : mapping
        As `seed_deviations` has them for the estimator. Where they are None, luck could explain any difference but that
        to a diverged run.
    """
    mine, theirs = math.log(ours.test(estimator)), math.log(other.test(estimator))
    if mine == theirs:
        return UNDECIDED
    if math.isfinite(mine - theirs) and abs(mine - theirs) <= margin_of(deviations, ours, other):
        return UNDECIDED
    return HOLDS if mine < theirs else FAILS


def margin_of(deviations: Deviations, *compared: Score) -> float:
    """Two standard errors of the difference between the means of two scores; infinite where a deviation is unknown."""
    found = [(deviations[score.config.method], score.seeds) for score in compared]
    return 2 * math.sqrt(sum(math.inf if one is None else one**2 / seeds for one, seeds in found))


def _beats_throughout(
    claim: str,
    experiment: Experiment,
    of_cases: Sequence[Sequence[Judgement]],
) -> List[Judgement]:
    """The claim on all cases of an experiment together, from what was judged in each of them."""
    setting = f"{experiment.short_title}: all {len(experiment.cases)} cases"
    by_paper = [judgements[0].paper.split(":")[0] for judgements in of_cases]
    published = f"{_throughout(claim, by_paper)}: {counted(by_paper)}"
    found = []
    for estimator in ESTIMATORS:
        by_measure = [{judgement.measure: judgement.verdict for judgement in judgements} for judgements in of_cases]
        verdicts = [verdicts.get(f"test, {estimator}", MISSING) for verdicts in by_measure]
        verdict, measure = _throughout(claim, verdicts), f"cases, {estimator}"
        found.append(Judgement(claim, setting, measure, verdict, (counted(verdicts),), published))
    return found


def _throughout(claim: str, verdicts: Sequence[str]) -> str:
    if verdicts.count(FAILS) > EXCEPTIONS[claim]:
        return FAILS
    if verdicts.count(HOLDS) >= len(verdicts) - EXCEPTIONS[claim]:
        return HOLDS
    return MISSING if MISSING in verdicts else UNDECIDED


def counted(verdicts: Sequence[str]) -> str:
    """How often each of them occurs, as 'holds in 2, fails in 1'."""
    kinds = [kind for kind in (HOLDS, FAILS, UNDECIDED, MISSING, UNMEASURED) if kind in verdicts]
    return ", ".join(f"{kind} in {verdicts.count(kind)}" for kind in kinds)


def _against(ours: Score, other: Score, estimator: str) -> Evidence:
    return (*ours.sentence(estimator), " against ", *other.sentence(estimator))


def _published(paper: Mapping[str, float], rival: str) -> str:
    """The same verdict by the paper's numbers; the better of its two is chosen on its test set, for want of another."""
    noisy = [paper[method] for method in NOISY if method in paper]
    if not noisy or rival not in paper:
        return "-"
    return f"{HOLDS if min(noisy) < paper[rival] else FAILS}: {min(noisy):.1f} against {paper[rival]:.1f}"


def _missing(claim: str, setting: str, scores: Mapping[str, Optional[Score]], published: str = "-") -> Judgement:
    lacking = ", nor of ".join(name for name, score in scores.items() if score is None)
    return Judgement(claim, setting, "-", MISSING, (f"no run of {lacking}",), published)


def _stable_over_seeds(settings: Sequence[Tuple[Experiment, Case]], runs: Sequence[Run]) -> List[Judgement]:
    """Whether the learned noise's standard deviation over seeds is the lower one, wherever both have enough of them."""
    judgements, lacking = [], 0
    for experiment, case in settings:
        found = runs_of_case(experiment, case, runs)
        learned, fixed = choose(found, NOISIN_STAR.name), choose(found, NOISIN.name)
        if learned is None or fixed is None or min(learned.seeds, fixed.seeds) < SEEDS:
            lacking += 1
            continue
        for estimator in ESTIMATORS:
            mine, theirs = (_deviation(score.tests(estimator)) for score in (learned, fixed))
            verdict = UNDECIDED if max(mine, theirs) < APART * min(mine, theirs) else _smaller(mine, theirs)
            measure, evidence = f"deviation over seeds, {estimator}", _against(learned, fixed, estimator)
            judgements.append(Judgement("c", title_of(experiment, case), measure, verdict, evidence))
    if lacking:
        needed = f"{plural(lacking, 'setting')} with fewer than {SEEDS} seeds of NOISIN* or of NOISIN"
        judgements.append(Judgement("c", "other settings" if judgements else "all settings", "-", MISSING, (needed,)))
    return judgements


def _smaller(mine: float, theirs: float) -> str:
    return UNDECIDED if mine == theirs else HOLDS if mine < theirs else FAILS


def _stable_over_cases(experiment: Experiment, runs: Sequence[Run]) -> List[Judgement]:
    """Whether the learned noise's perplexities differ less from case to case: only over all cases, or not at all."""
    setting = f"{experiment.short_title}: all {len(experiment.cases)} cases"
    verdict, evidence = _steadier(*([case.paper[method] for case in experiment.cases] for method in reversed(NOISY)))
    published = f"{verdict}: {evidence}"
    found = [runs_of_case(experiment, case, runs) for case in experiment.cases]
    chosen = {method: [choose(of_case, method) for of_case in found] for method in NOISY}
    complete = {method: [score for score in of_method if score] for method, of_method in chosen.items()}
    if any(len(scores) < len(experiment.cases) for scores in complete.values()):
        counts = " and ".join(f"{METHODS[method].title} in {len(complete[method])}" for method in reversed(NOISY))
        lacking = f"{counts} of {len(experiment.cases)} cases"
        return [Judgement("c", setting, "-", MISSING, (lacking,), published)]
    judgements = []
    for estimator in ESTIMATORS:
        verdict, evidence = _steadier(
            *([score.test(estimator) for score in complete[method]] for method in reversed(NOISY))
        )
        judgements.append(
            Judgement("c", setting, f"deviation over cases, {estimator}", verdict, (evidence,), published)
        )
    return judgements


def _steadier(learned: Sequence[float], fixed: Sequence[float]) -> Tuple[str, str]:
    """Whether the deviation over cases is the lower one, whichever case is left out; and the deviations."""
    mine, theirs = _deviation(learned), _deviation(fixed)
    verdict, said = _smaller(mine, theirs), f"NOISIN* {number(mine)} against NOISIN {number(theirs)}"
    for fewer in zip(*(combinations(values, len(values) - 1) for values in (learned, fixed))):
        mine, theirs = map(_deviation, fewer)
        if _smaller(mine, theirs) != verdict:
            return UNDECIDED, f"{said}, but {number(mine)} against {number(theirs)} without one of the cases"
    return verdict, said


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.inf


def _overfits_later(experiment: Experiment, runs: Sequence[Run]) -> List[Judgement]:
    """For NOISIN and NOISIN*: whether None passes its best epoch, reaches it earlier, and then rises more.

    That ours does not rise at all cannot be judged: a run stops after some epochs without improvement.
    """
    judgements = []
    for case in experiment.cases:
        found = runs_of_case(experiment, case, runs)
        none = choose(found, NONE.name)
        for method in NOISY:
            ours = choose(found, method)
            setting = f"{title_of(experiment, case)}, {METHODS[method].title}"
            if none is None or ours is None:
                judgements.append(_missing("d", setting, {"None": none, METHODS[method].title: ours}))
            else:
                evidence = (*_course(none), "; ", *_course(ours))
                checks = {"best epoch on validation": _later, "rise an epoch from there on": _less}
                fit = all(map(overfits, none.runs)) and all(run.record["status"] != "diverged" for run in ours.runs)
                judgements += [
                    Judgement("d", setting, measure, check(none, ours) if fit else FAILS, evidence)
                    for measure, check in checks.items()
                ]
    return judgements


def _later(none: Score, ours: Score) -> str:
    """Whether ours reach their best epochs later."""
    return HOLDS if _best_epoch(ours) > _best_epoch(none) else FAILS


def _less(none: Score, ours: Score) -> str:
    """Whether validation perplexity rises less in an epoch, in each run of ours than in each of None."""
    mine, theirs = ([_rise(run) / _epochs_after(run) for run in score.runs] for score in (ours, none))
    return HOLDS if max(mine) < min(theirs) else FAILS if min(mine) > max(theirs) else UNDECIDED


def _rise(run: Run) -> float:
    """By how much validation perplexity rises after its best epoch, relative to it."""
    return run.epochs[-1]["valid_ppl"] / run.valid - 1


def _epochs_after(run: Run) -> int:
    """Epochs after the best one; at least 1, with a rise of 0 where the best is the last."""
    return max(1, len(run.epochs) - run.record["best_epoch"])


def overfits(run: Run) -> bool:
    """Whether validation perplexity ends above its best while training perplexity still falls."""
    best = run.record["best_epoch"]
    if best is None or best == len(run.epochs):
        return False
    return run.epochs[-1]["valid_ppl"] > run.valid and run.epochs[-1]["train_ppl"] < run.epochs[best - 1]["train_ppl"]


def _best_epoch(score: Score) -> float:
    """Mean over seeds; a run that diverged before its first epoch counts as 0."""
    return statistics.fmean(score.by_seed(lambda run: run.record["best_epoch"] or 0))


def _course(score: Score) -> Evidence:
    """Of each seed: the best epoch, and the rise of validation perplexity from there to the last one."""
    pieces: List[Union[str, Mention]] = [f"{name_of(score.config)} best in epoch "]
    for index, run in enumerate(score.runs):
        best, count = run.record["best_epoch"] or 0, len(run.epochs)
        pieces += [", " if index else "", Mention(str(best), run), f" of {count}"]
        if 0 < best < count:
            pieces.append(f", then {100 * _rise(run):+.1f} % in {plural(count - best, 'epoch')}")
    return tuple(pieces)


def _cost(measurements: Optional[Mapping[str, Any]]) -> List[Judgement]:
    """The time of a training step, relative to that of the deterministic network; in each workload and dtype."""
    checks: Dict[str, Callable[[float], bool]] = {
        **dict.fromkeys(NOISY, lambda ratio: ratio <= 1 + NOTICEABLE),
        DROPOUT.name: lambda ratio: ratio >= 1 + NOTICEABLE,
    }
    if measurements is None:
        return [Judgement("e", "make bench", "-", UNMEASURED, ("no benchmarks/results.json",))]
    judgements = []
    for workload, dtype in dict.fromkeys((entry["workload"], entry["dtype"]) for entry in measurements["measurements"]):
        for method, check in checks.items():
            times = relative_rates(measurements, workload, dtype, NONE.name, method)
            if times:
                setting, rounds = f"{TITLES[workload]}, {dtype}, {METHODS[method].title}", plural(len(times), "round")
                said = f"{statistics.median(times):.2f} times the time of None, "
                said += f"{min(times):.2f} to {max(times):.2f} in {rounds}"
                verdict = _nearly_always(list(map(check, times)))
                judgements.append(Judgement("e", setting, "time of a step", verdict, (said,)))
    return judgements


def _nearly_always(passed: Sequence[bool]) -> str:
    """Whether all rounds but one agree, at the least."""
    if len(passed) < ROUNDS or 1 < sum(passed) < len(passed) - 1:
        return UNDECIDED
    return HOLDS if sum(passed) > 1 else FAILS


def _small_gain(experiment: Experiment, runs: Sequence[Run], deviations: Mapping[str, Deviations]) -> List[Judgement]:
    """Whether NOISIN*, which the paper used there, is below None, and not by much."""
    (case,) = experiment.cases
    setting, paper = title_of(experiment, case), case.paper
    gain = 1 - paper[NOISIN_STAR.name] / paper[NONE.name]
    published = f"{HOLDS if 0 < gain <= SMALL else FAILS}: {100 * gain:+.2f} %"
    found = runs_of_case(experiment, case, runs)
    ours, none = choose(found, NOISIN_STAR.name), choose(found, NONE.name)
    if ours is None or none is None:
        return [_missing("f", setting, {"NOISIN*": ours, "None": none}, published)]
    judgements = []
    for estimator in ESTIMATORS:
        verdict, said = lower(ours, none, estimator, deviations[estimator]), "no gain to measure"
        if math.isfinite(ours.test(estimator)) and math.isfinite(none.test(estimator)):
            gain = 1 - ours.test(estimator) / none.test(estimator)
            said = f"gain {100 * gain:+.2f} %"
            if verdict == HOLDS and gain > SMALL:
                clear = gain > SMALL + margin_of(deviations[estimator], ours, none)
                verdict, said = (FAILS, f"{said}, not small") if clear else (UNDECIDED, f"{said}, small or not")
        evidence = (f"{said}: ", *_against(ours, none, estimator))
        judgements.append(Judgement("f", setting, f"test, {estimator}", verdict, evidence, published))
    return judgements
