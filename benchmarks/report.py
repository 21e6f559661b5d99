"""Tables and figures, drawn only from the measurements in `results.json`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from benchmarks.workloads import GROWTH, WORKLOADS
from noisin.figures import save
from noisin.methods import DROPOUT, METHODS, NOISIN, NOISIN_STAR, NONE
from noisin.system.errors import UserError
from noisin.system.files import read_json
from noisin.tables import markdown

HERE = Path(__file__).resolve().parent
SPEED_PICTURE, GROWTH_PICTURE = "speed.png", "growth.png"
TITLES = {
    "ptb-rnn-256": "1-layer RNN, 256 units, 10,000 words, Adam",
    "wikitext2-lstm-200": "2-layer LSTM, 200 units, 33,278 words, SGD",
}
DIMENSIONS = {
    "hidden": "hidden units",
    "batch_size": "batch size (sequences)",
    "unroll": "unroll (steps)",
    "layers": "layers",
    "vocabulary": "vocabulary (word types)",
    "samples": "S (trajectories)",
    "particles": "particles of a filter (evaluation)",
}
_TOGETHER = METHODS[f"{DROPOUT.name}+{NOISIN.name}"]
# What is measured for the values of each dimension.
GROWING: Dict[str, List[str]] = {
    **dict.fromkeys(GROWTH, [NOISIN.name]),
    "hidden": [NOISIN.name, _TOGETHER.name],
    "samples": [NOISIN.name, "log-averaged"],
    "particles": ["particle-filter"],
}
# Each name's label and the colour of its kind (Okabe and Ito's, which colour-blind readers can tell apart).
NAMES: Dict[str, Tuple[str, str]] = {
    "limit": ("matrix products alone", "#999999"),
    NONE.name: (NONE.title, "#0072B2"),
    DROPOUT.name: (DROPOUT.title, "#0072B2"),
    NOISIN.name: (NOISIN.title, "#0072B2"),
    NOISIN_STAR.name: (NOISIN_STAR.title, "#0072B2"),
    _TOGETHER.name: (_TOGETHER.title, "#0072B2"),
    "noisin-s4": ("NOISIN, S = 4", "#0072B2"),
    "noisin-2x1": ("NOISIN, two runs of half the threads", "#0072B2"),
    "gluonnlp": ("GluonNLP StandardRNN, no noise", "#E69F00"),
    "plain-cell": ("plain Gluon cells, noise", "#E69F00"),
    "pytorch": ("PyTorch layers, no noise", "#CC79A7"),
    "pytorch-noise": ("PyTorch cells, noise", "#CC79A7"),
    "pytorch-malloc": ("PyTorch layers, our memory settings", "#CC79A7"),
    "pytorch-noise-malloc": ("PyTorch cells, noise, our memory settings", "#CC79A7"),
    "pytorch-compiled": ("PyTorch compiled, noise", "#CC79A7"),
    "pytorch-compiled-malloc": ("PyTorch compiled, noise, our memory settings", "#CC79A7"),
    "jax": ("JAX, noise", "#009E73"),
    "jax-malloc": ("JAX, noise, our memory settings", "#009E73"),
    # Only in GROWTH:
    "log-averaged": ("NOISIN, log-averaged objective", "#D55E00"),
    "particle-filter": ("NOISIN, evaluation by a particle filter", "#0072B2"),
}
NOISY_PEERS = [name for name, (label, _) in NAMES.items() if ", noise" in label and not label.startswith("NOISIN")]
# Least rates of NOISIN: against the matrix products, and against the fastest peer with noise.
GOALS = {
    ("ptb-rnn-256", "float32"): (0.92, 1.4),
    ("ptb-rnn-256", "bfloat16"): (0.85, 1.25),
    ("wikitext2-lstm-200", "float32"): (0.90, 1.4),
    ("wikitext2-lstm-200", "bfloat16"): (0.80, 1.25),
}


def read_results(path: Path) -> Dict[str, Any]:
    """Read the measurements that `make bench` wrote.

    Returns
    -------
    dict
        As in docs/formats.md.

    Raises
    ------
    UserError
        If the file cannot be read or has any other content.
    """
    results = read_json(path)
    try:
        if _are_results(results):
            return results
    except (KeyError, TypeError):
        pass  # a missing value or a wrong type is as bad as a wrong value
    raise UserError(f"{path} is not what `make bench` writes: run it, or restore the file")


def _are_results(results: Dict[str, Any]) -> bool:
    measurements, growth, startup = results["measurements"], results["growth"], results["startup_seconds"]
    if not isinstance(measurements, list) or not isinstance(growth, list):
        return False
    names: Dict[Tuple[str, str], List[str]] = {}
    for entry in measurements:
        names.setdefault((entry["workload"], entry["dtype"]), []).append(entry["name"])
    return (
        all(isinstance(results[facts], dict) for facts in ("hardware", "versions"))
        and (startup is None or _is_positive(startup))
        and all(_is_measurement(entry) for entry in measurements + growth)
        and all(sum(_is_positive(entry.get(name)) for name in GROWTH) == 1 for entry in growth)
        and len(names) > 0
        and all({NONE.name, "limit"} <= set(found) for found in names.values())
    )


def _is_measurement(entry: Dict[str, Any]) -> bool:
    return (
        entry["workload"] in WORKLOADS
        and entry["name"] in NAMES
        and entry["dtype"] in ("float32", "bfloat16")
        and all(_is_positive(entry[name]) for name in ("min", "words_per_second", "max", "peak_mib"))
        and entry["min"] <= entry["words_per_second"] <= entry["max"]
        and isinstance(entry["rates"], list)
        and len(entry["rates"]) > 0
        and all(map(_is_positive, entry["rates"]))
    )


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e12  # larger values cannot be drawn


def table(results: Mapping[str, Any], workload: str) -> pd.DataFrame:
    """Return a row per contender with words per second, median (min to max), and peak memory in MiB, per dtype."""
    rows: Dict[str, Dict[str, str]] = {}
    for entry in results["measurements"]:
        if entry["workload"] == workload:
            row = rows.setdefault(entry["name"], {"": NAMES[entry["name"]][0]})
            rate, low, high = (entry[key] for key in ("words_per_second", "min", "max"))
            row[f"{entry['dtype']}, words/s"] = f"{rate:,.0f} ({low:,.0f} to {high:,.0f})"
            row[f"{entry['dtype']}, MiB"] = f"{entry['peak_mib']:,.0f}"
    return pd.DataFrame([rows[name] for name in NAMES if name in rows], dtype=object).fillna("-")


def ratios(results: Mapping[str, Any], workload: str) -> pd.DataFrame:
    """Return a row per ratio of two contenders: median over rounds, range, goal (if any), and whether it is met."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        of_limit, of_peer = GOALS[workload, dtype]
        rates = {name: _measured(results, workload, name, dtype).get("words_per_second", 0) for name in NOISY_PEERS}
        peer = max(NOISY_PEERS, key=rates.__getitem__)
        figures = [
            ("NOISIN / matrix products alone", "noisin", "limit", (">=", of_limit)),
            (f"NOISIN / fastest peer with noise ({NAMES[peer][0]})", "noisin", peer, (">=", of_peer)),
            ("NOISIN / GluonNLP, no noise", "noisin", "gluonnlp", (">=", 1.2)),
            ("None / PyTorch layers, our memory settings", "none", "pytorch-malloc", None),
            ("time of NOISIN / None", "none", "noisin", ("<=", 1.02)),
            (f"time of {_TOGETHER.title} / None", "none", _TOGETHER.name, ("<=", 1.12)),
            ("time of S = 4 / S = 1", "noisin", "noisin-s4", ("<=", 4.0)),
            ("two runs of half the threads / one", "noisin-2x1", "noisin", None),
        ]
        for name, over, under, goal in figures:
            found = relative_rates(results, workload, dtype, over, under)
            if found:
                middle, rounds = statistics.median(found), f"{min(found):.2f} to {max(found):.2f}"
                rows.append(
                    {
                        "figure": name,
                        "dtype": dtype,
                        "median": f"{middle:.2f}",
                        "rounds": rounds,
                        **_judged(middle, goal),
                    }
                )
    return pd.DataFrame(rows)


def relative_rates(results: Mapping[str, Any], workload: str, dtype: str, over: str, under: str) -> List[float]:
    """Return the ratio of two contenders' rates in each round, empty if either was not measured.

    Parameters
    ----------
    results : mapping
        As from `read_results`.
    workload : str
        Key of `WORKLOADS`.
    dtype : {'float32', 'bfloat16'}
    over, under : str
        Names of the contenders in numerator and denominator.

    Returns
    -------
    list of float
    """
    rates = [_measured(results, workload, name, dtype).get("rates", []) for name in (over, under)]
    return [mine / theirs for mine, theirs in zip(*rates)]


def _judged(ratio: float, goal: Optional[Tuple[str, float]]) -> Dict[str, str]:
    """Return the goal and whether the unrounded ratio meets it."""
    if goal is None:
        return {"goal": "", "met": ""}
    sign, bound = goal
    met = ratio >= bound if sign == ">=" else ratio <= bound
    return {"goal": f"{sign} {bound:.2f}", "met": "yes" if met else "no"}


def _measured(results: Mapping[str, Any], workload: str, name: str, dtype: str) -> Mapping[str, Any]:
    for entry in results["measurements"]:
        if (entry["workload"], entry["name"], entry["dtype"]) == (workload, name, dtype):
            return entry
    return {}


def draw_speed(results: Mapping[str, Any], path: Path) -> None:
    """Draw words per second as bars, with the range over rounds, in a panel for each workload and dtype."""
    panels = [
        (workload, dtype)
        for workload in WORKLOADS
        for dtype in ("float32", "bfloat16")
        if _measured(results, workload, "none", dtype)
    ]
    measured = {entry["name"] for entry in results["measurements"]}
    names = [name for name in reversed(list(NAMES)) if name in measured]
    figure = Figure(figsize=(11, 3.8 * ((len(panels) + 1) // 2)), layout=ConstrainedLayoutEngine(hspace=0.06))
    for index, (workload, dtype) in enumerate(panels, 1):
        axes = figure.add_subplot((len(panels) + 1) // 2, min(2, len(panels)), index)
        entries = {e["name"]: e for e in results["measurements"] if (e["workload"], e["dtype"]) == (workload, dtype)}
        shown = [entries[name] for name in names if name in entries]
        places = [place for place, name in enumerate(names) if name in entries]
        rates = [entry["words_per_second"] for entry in shown]
        spread = [[entry["words_per_second"] - entry["min"] for entry in shown]]
        spread += [[entry["max"] - entry["words_per_second"] for entry in shown]]
        colors = [NAMES[entry["name"]][1] for entry in shown]
        axes.barh(places, rates, color=colors, xerr=spread, error_kw={"lw": 0.8})
        axes.set_yticks(range(len(names)))
        axes.set_yticklabels([NAMES[name][0] if index % 2 else "" for name in names])  # once for two panels
        axes.axvline(entries["limit"]["words_per_second"], color="#555555", linewidth=0.8, linestyle=":")
        axes.set_title(f"{TITLES[workload]}\n{dtype}", fontsize=9)
        axes.set_xlabel("words/s in training (median; line: least to most)", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(labelsize=8)
    save(figure, path)


def draw_growth(results: Mapping[str, Any], path: Path) -> None:
    """Draw time per step (ms) and peak memory (MiB) against one dimension at a time."""
    growth = results["growth"]
    axes_names = [name for name in GROWTH if any(name in entry for entry in growth)]
    rows = -(-len(axes_names) // 3)
    figure = Figure(figsize=(11, 2.8 * rows), layout=ConstrainedLayoutEngine(wspace=0.1, hspace=0.04))
    for index, dimension in enumerate(axes_names, 1):
        axes = figure.add_subplot(rows, 3, index)
        memory = axes.twinx()
        for name, face in zip(GROWING[dimension], (None, "white")):
            entries = [entry for entry in growth if dimension in entry and entry["name"] == name]
            if not entries:
                continue
            entries.sort(key=lambda entry: entry[dimension])
            values = [entry[dimension] for entry in entries]
            times, peaks = [step_milliseconds(entry) for entry in entries], [entry["peak_mib"] for entry in entries]
            axes.plot(values, times, "o-", color="#0072B2", label=NAMES[name][0].split(", ")[-1], markerfacecolor=face)
            memory.plot(values, peaks, "s--", color="#D55E00", markersize=4, markerfacecolor=face)
        axes.set_ylim(0, 1.3 * axes.dataLim.y1)
        memory.set_ylim(0, 1.5 * memory.dataLim.y1)
        if len(axes.lines) > 1:
            axes.legend(frameon=False, fontsize=8, loc="upper left")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(DIMENSIONS[dimension])
        axes.set_ylabel("time per step (ms)", color="#0072B2")
        memory.set_ylabel("peak memory (MiB)", color="#D55E00")
        axes.grid(alpha=0.25)
    title = f"Cost of a NOISIN training step, float32; what is not varied is as in: {TITLES[growth[0]['workload']]}"
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Draw all figures into `folder`."""
    draw_speed(results, folder / SPEED_PICTURE)
    if results["growth"]:
        draw_growth(results, folder / GROWTH_PICTURE)


def step_milliseconds(entry: Mapping[str, Any]) -> float:
    """Return the milliseconds per training step of a growth measurement."""
    change = {name: entry[name] for name in GROWTH if name in entry}
    return 1000 * WORKLOADS[entry["workload"]].changed(change).words / entry["words_per_second"]


def workloads_in(results: Mapping[str, Any]) -> List[str]:
    """Return the workloads that were measured, in the order of `WORKLOADS`."""
    return [name for name in WORKLOADS if any(entry["workload"] == name for entry in results["measurements"])]


def sections(results: Mapping[str, Any]) -> Sequence[str]:
    """Return title, table and ratios of each workload, as Markdown."""
    return [
        "\n\n".join(
            filter(
                None,
                (
                    f"**{TITLES[workload]}**",
                    markdown(table(results, workload)),
                    _compiling(results, workload),
                    markdown(ratios(results, workload)),
                ),
            )
        )
        for workload in workloads_in(results)
    ]


def _compiling(results: Mapping[str, Any], workload: str) -> str:
    """Say how long the peers that compile take for their first steps; empty if there are none."""
    found = [
        f"{NAMES[name][0]} {entry['warm_up_seconds']:,.0f} s ({dtype})"
        for dtype in ("float32", "bfloat16")
        for name in ("pytorch-compiled", "jax")
        for entry in [_measured(results, workload, name, dtype)]
        if entry
    ]
    return f"Compiling, with the first three steps: {', '.join(found)}. It is not in the rates." if found else ""
