"""Figures, drawn only from records (docs/formats.md). Each function returns a matplotlib Figure; `save` writes it."""

from __future__ import annotations

import io
import math
import textwrap
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from noisin.config import recorded_config
from noisin.methods import METHODS
from noisin.system.files import write_file

# Styles of one method's curves, one per variant: full, hollow or half markers; dark or light, thin or thick lines.
SHADES: Tuple[Dict[str, Any], ...] = (
    {"linewidth": 1.4},
    {"linewidth": 0.8, "markerfacecolor": "white", "markersize": 5},
    {"linewidth": 2.6, "alpha": 0.5},
    {"linewidth": 0.8, "alpha": 0.5, "markerfacecolor": "white", "markersize": 5},
    {"linewidth": 1.4, "fillstyle": "left", "markersize": 6, "markerfacecoloralt": "white"},
    {"linewidth": 2.6, "alpha": 0.5, "fillstyle": "top", "markersize": 7, "markerfacecoloralt": "white"},
)
FEWEST = 30  # words whose share of right predictions says something
# Okabe and Ito's colours for runs, dashes for layers or for more runs than there are colours.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")


def figure2(
    records: Sequence[Mapping[str, Any]],
    title: str = "",
    floor: Optional[float] = None,
    compared_with: Sequence[Mapping[str, Any]] = (),
) -> Figure:
    """Draw Figure 2 of the paper: validation (left) and training (right) perplexity against the epoch.

    Parameters
    ----------
    records : sequence of dict
        Records of runs. Their curves are labelled by method, and by gamma or dropout rates where a method has several.
    title : str, default none
    floor : float, optional
        Perplexity of the text's source, drawn as a line. On new text no model can be below it.
    compared_with : sequence of dict, default `records`
        Records of all figures in which the same gamma or rates have the same style.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = _both_panels(_curves_by_method(records, compared_with), floor)
    figure.suptitle(title)
    return figure


def comparison(runs: Mapping[str, Mapping[str, Any]], floor: Optional[float] = None) -> Figure:
    """Draw validation (left) and training (right) perplexity against the epoch, each run in a style of its own.

    Parameters
    ----------
    runs : mapping of str to dict
        Label of each run in the legend, and its record.
    floor : float, optional
        As in `figure2`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    looks = cycle({"color": color, "linestyle": dashes} for dashes in DASHES for color in COLORS)
    found = [
        _Curve(record, label.replace("$", r"\$"), {**look, "marker": "o", "markersize": 3.5, "linewidth": 1.4})
        for (label, record), look in zip(runs.items(), looks)
    ]
    return _both_panels(found, floor)


def _both_panels(curves: Sequence[_Curve], floor: Optional[float]) -> Figure:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    validation, training = figure.subplots(1, 2)
    _panel(validation, curves, "valid_ppl", floor)
    _panel(training, curves, "train_ppl", floor)
    validation.set_ylabel("perplexity (log scale)")
    handles, labels = training.get_legend_handles_labels()
    _legend_below(figure, handles, labels, any(curve.of > 1 for curve in curves))
    return figure


def gamma_paths(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each layer's gamma against the epoch, and the lower bound of a learned gamma.

    Parameters
    ----------
    records : sequence of dict
        Records of runs with noise.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    variants = _variants(records)
    for index, record in enumerate(record for record in _by_method(records) if record["epochs"]):
        epochs = [entry["epoch"] for entry in record["epochs"]]
        layers = len(record["epochs"][0]["gamma"])
        for layer in range(layers):
            style: Dict[str, Any] = {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[layer % len(DASHES)]}
            label = _label(record, variants, records) + (f", layer {layer + 1}" if layers > 1 else "")
            values = [entry["gamma"][layer] for entry in record["epochs"]]
            axes.plot(epochs, values, marker="D", markersize=3.5, linewidth=1.4, label=label, **style)
    configs = [recorded_config(record["config"]) for record in records]
    for bound in sorted({config.lower_bound for config in configs if config.acts("lower_bound")}):
        axes.axhline(bound, color="#777777", linewidth=1)
        place: Dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "top"}
        axes.annotate(f"lower bound {bound:g}", (0, bound), xytext=(4, -2), textcoords="offset points", **place)
    _label_axes(axes, "spread γ at the end of each epoch")
    axes.set_yscale("linear")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("spread γ")
    axes.legend(frameon=False, fontsize=9)
    return figure


# Of more runs than this, those that differ only in seed or dtype share a legend entry and a style.
CROWD = 6
# Title of a panel, and the upper limit of its axis as a multiple of the highest minimum.
PANELS = {"valid_ppl": ("validation, noise off (★ best epoch)", 1.5), "train_ppl": ("training, noise on", 2.2)}


@dataclass(frozen=True)
class _Curve:
    """A run as a panel shows it.

    Parameters
    ----------
    record : dict
    label : str
    style : dict
        Of the line, for matplotlib.
    number, of : int
        Its place among the curves with this label, from 0, and how many there are.
    """

    record: Mapping[str, Any]
    label: str
    style: Mapping[str, Any]
    number: int = 0
    of: int = 1


def _curves_by_method(
    records: Sequence[Mapping[str, Any]], compared_with: Sequence[Mapping[str, Any]] = (), seeds: bool = True
) -> List[_Curve]:
    """Return the curves of these runs by method; a label stands for one style in all of `compared_with`.

    With `seeds`, the labels of few runs also tell seeds and dtypes apart.
    """
    ordered, every = _by_method(records), compared_with or records
    among = records if seeds and len(records) <= CROWD else ()
    variants = _variants(every)
    labels = [_label(record, variants, among) for record in ordered]
    return [
        _Curve(record, label, _look(record, variants), labels[:index].count(label), labels.count(label))
        for index, (record, label) in enumerate(zip(ordered, labels))
    ]


def _panel(axes: Axes, curves: Sequence[_Curve], key: str, floor: Optional[float]) -> None:
    title, headroom = PANELS[key]
    for curve in curves:
        _draw_curve(axes, curve, key)
    _label_axes(axes, title)
    axes.set_ylim(*_limits([curve.record for curve in curves], key, floor, headroom))
    if floor is not None:
        axes.axhline(floor, color="#777777", linewidth=1)
        said = f"text's source: {floor:{'.2f' if floor < 1e7 else '.3g'}}"
        crossed = any(entry[key] < floor for curve in curves for entry in curve.record["epochs"])
        beside: Dict[str, Any] = {"xytext": (4, -3), "va": "top"} if crossed else {"xytext": (4, 3)}
        place: Dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 9}
        axes.annotate(said, (0, floor), **beside, **place).set_in_layout(False)


def validation_panels(panels: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "") -> Figure:
    """Draw validation perplexity against the epoch in a panel for each setting.

    Parameters
    ----------
    panels : mapping of str to sequence of dict
        Title of each panel and records of its runs; one in which no run has finished an epoch is left out.
    title : str, default none

    Returns
    -------
    matplotlib.figure.Figure
    """
    panels = {
        name: records for name, records in panels.items() if any(record["epochs"] for record in records)
    } or panels
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    every = [record for records in panels.values() for record in records]
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    several = False
    for index, (name, records) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, index)
        for curve in _curves_by_method(records, every, seeds=False):
            _draw_curve(axes, curve, "valid_ppl")
            several = several or curve.of > 1
        _label_axes(axes, textwrap.fill(name, 44))
        axes.set_ylim(*_limits(every, "valid_ppl", None, headroom=1.2))  # one scale for all panels
        if (index - 1) % columns == 0:
            axes.set_ylabel("validation perplexity\n(noise off, log scale)")
    legend = {curve.label: Line2D([], [], **curve.style) for curve in _curves_by_method(every, seeds=False)}
    legend["best epoch"] = Line2D([], [], color="#777777", marker="*", markersize=10, linestyle="")
    _legend_below(figure, list(legend.values()), list(legend), several)
    figure.suptitle(title)
    return figure


# Markers in `test_perplexities` of our estimators and of the published number.
MARKS: Dict[str, Dict[str, Any]] = {
    "clean": {"linestyle": "", "zorder": 2},
    "limit": {"linestyle": "", "markerfacecolor": "white", "markersize": 9, "zorder": 1.5},
}
PAPER: Dict[str, Any] = {"color": "#777777", "marker": "x", "markersize": 8, "markeredgewidth": 2, "linestyle": ""}


def test_perplexities(panels: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "") -> Figure:
    """Draw our test perplexities, beside the published ones if there are any, in a panel for each setting.

    Parameters
    ----------
    panels : mapping of str to sequence of dict
        Title of each panel and its rows, from the top. A row has `label`, `method` (its name), `paper` (a perplexity
        or None) and `runs`, each with perplexities `clean` and `limit`, infinite where a run has none. A panel without
        a finite perplexity of ours is left out, unless there is no other, and so is a row with neither runs nor a
        published perplexity.
    title : str, default none

    Returns
    -------
    matplotlib.figure.Figure
    """
    found = {name: [row for row in rows if row["runs"] or row["paper"] is not None] for name, rows in panels.items()}
    panels = {name: rows for name, rows in found.items() if any(map(_finite_tests, rows))} or {
        name: rows for name, rows in found.items() if any(row["runs"] for row in rows)
    }
    labels = [[row["label"] for row in rows] for rows in panels.values()]
    columns = min(3, len(panels)) if all(one == labels[0] for one in labels) else 1
    heights = [0.6 + 0.25 * len(of_panel) for of_panel in labels[::columns]]
    figure = Figure(figsize=(11, 0.9 + sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    published = [row["paper"] for rows in panels.values() for row in rows if row["paper"] is not None]
    shown = published + [value for rows in panels.values() for row in rows for value in _finite_tests(row)]
    middle = (min(shown) + max(shown)) / 2 if shown else 0.0
    shared = None
    for index, (name, settings) in enumerate(panels.items()):
        axes = shared = figure.add_subplot(grid[divmod(index, columns)], sharex=shared)
        for height, setting in enumerate(settings):
            method = METHODS[setting["method"]]
            style: Dict[str, Any] = {name: method.style[name] for name in ("color", "marker")}
            for estimator, how in MARKS.items():
                for test in setting["runs"]:
                    if math.isfinite(test[estimator]):
                        axes.plot(test[estimator], height, **{**style, **how})
            if setting["paper"] is not None:
                axes.plot(setting["paper"], height, **PAPER)
            if not _finite_tests(setting):
                place = setting["paper"] or middle
                # Beside the published number, towards the middle.
                text: Dict[str, Any] = {"va": "center", "color": "#777777", "textcoords": "offset points"}
                text.update({"ha": "right", "xytext": (-8, 0)} if place > middle else {"ha": "left", "xytext": (8, 0)})
                axes.annotate("diverged" if setting["runs"] else "not run yet", (place, height), **text)
        axes.set_yticks(range(len(settings)), [setting["label"] for setting in settings])
        axes.set_ylim(len(settings) - 0.5, -0.5)
        axes.set_title(textwrap.fill(name, 44), fontsize=10)
        axes.grid(alpha=0.25)
        axes.label_outer()
        if index >= len(panels) - columns:  # the last of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("test perplexity")
    grey = {"color": "#000000", "marker": "o"}
    legend = {"noise off": {**grey, **MARKS["clean"]}, "averaged over noise (limit)": {**grey, **MARKS["limit"]}}
    if published:
        legend = {**{f"ours, {label}": style for label, style in legend.items()}, "published": PAPER}
    _legend_below(figure, [Line2D([], [], **style) for style in legend.values()], list(legend))
    figure.suptitle(title)
    return figure


def _finite_tests(row: Mapping[str, Any]) -> List[float]:
    return [value for test in row["runs"] for value in test.values() if math.isfinite(value)]


def importances(panels: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw how much each searched option mattered, in a panel for each method.

    Parameters
    ----------
    panels : mapping of str to mapping of str to float
        Name of each method, with the importance of each option; importances add up to 1.

    Returns
    -------
    matplotlib.figure.Figure
    """
    heights = [len(shares) for shares in panels.values()]
    figure = Figure(figsize=(5.6, 0.6 + sum(0.6 + 0.25 * height for height in heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (name, shares) in zip(axes, panels.items()):
        ordered = sorted(shares, key=shares.__getitem__)
        bars = panel.barh(
            [option.replace("_", " ") for option in ordered],
            [shares[option] for option in ordered],
            color=METHODS[name].style["color"],
        )
        panel.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        panel.set_title(METHODS[name].title, fontsize=10)
        panel.set_xlim(0, 1.1)
        panel.grid(alpha=0.25, axis="x")
        panel.set_axisbelow(True)
    axes[-1].set_xlabel("importance for a low validation perplexity (sums to 1)")
    return figure


def _legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], seeds: bool = False) -> None:
    """Draw a legend below all panels, in as many columns as fit, and make the figure higher by its rows.

    With `seeds` it says that an entry stands for a line of each seed.
    """
    if not labels:
        return
    width = int(13 * figure.get_figwidth())  # in characters
    columns = max(1, min(len(labels), width // (max(map(len, labels)) + 6)))
    rows = math.ceil(len(labels) / columns) + (1 if seeds else 0)
    figure.set_figheight(figure.get_figheight() + 0.19 * rows)
    title: Dict[str, Any] = {"title": "one line for each seed", "title_fontsize": 9} if seeds else {}
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, **title)


def _by_method(records: Sequence[Mapping[str, Any]]) -> List[Mapping[str, Any]]:
    methods = list(METHODS)
    return sorted(records, key=lambda run: (methods.index(run["method"]), _variant(run), run["seed"]))


def _variant(record: Mapping[str, Any]) -> str:
    """Return what distinguishes a run from runs of its method with other options, e.g. 'γ 0.2'."""
    return METHODS[record["method"]].described(recorded_config(record["config"]))


def _variants(records: Sequence[Mapping[str, Any]]) -> Dict[str, List[str]]:
    """Return by method the variants in these runs, each once, in order."""
    found: Dict[str, List[str]] = {}
    for record in _by_method(records):
        of_method, variant = found.setdefault(record["method"], []), _variant(record)
        if variant not in of_method:
            of_method.append(variant)
    return found


def _look(record: Mapping[str, Any], variants: Mapping[str, Sequence[str]]) -> Dict[str, Any]:
    """Return a curve's style: its method's, in a shade for its options; of one method's variants, a colour for each."""
    index = variants[record["method"]].index(_variant(record))
    if len(variants) > 1 or len(variants[record["method"]]) == 1:
        return {**METHODS[record["method"]].style, "markersize": 3.5, **SHADES[index % len(SHADES)]}
    color, dashes = COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]
    return {**METHODS[record["method"]].style, "markersize": 3.5, "color": color, "linestyle": dashes}


def _draw_curve(axes: Axes, curve: _Curve, key: str) -> None:
    """Draw a run's curve, with a star at its best epoch on validation."""
    record, style = curve.record, curve.style
    label = "_" + curve.label if curve.number else curve.label  # a name with _ is not in the legend
    epochs = [entry["epoch"] for entry in record["epochs"]]
    # Of several seeds each has markers at epochs of its own, or they would hide one another, and at its last epoch.
    step, last = min(curve.of, 3), len(epochs) - 1
    marked = [index for index in range(last + 1) if index % step == curve.number % step or index == last]
    axes.plot(epochs, [entry[key] for entry in record["epochs"]], label=label, markevery=marked, **style)
    if key == "valid_ppl" and record["best_epoch"]:
        star = {"color": style["color"], "alpha": style.get("alpha"), "zorder": 3}
        star.update(markeredgecolor="white", markeredgewidth=0.5)
        axes.plot(record["best_epoch"], record["valid_ppl"], "*", markersize=14 if curve.of == 1 else 11, **star)


def _label(record: Mapping[str, Any], variants: Mapping[str, Sequence[str]], among: Sequence[Mapping[str, Any]]) -> str:
    """Return what distinguishes a run: its method, gamma or rates, and its seed and dtype where they differ `among`."""
    label = METHODS[record["method"]].title
    if len(variants[record["method"]]) > 1:
        label += f" {_variant(record)}"
    twins = [other for other in among if other["method"] == record["method"]]
    if len({other["seed"] for other in twins}) > 1:
        label += f", seed {record['seed']}"
    if len({other.get("dtype") for other in twins}) > 1:
        label += f", {record.get('dtype')}"
    return label


def _label_axes(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_yscale("log")
    axes.set_xlim(left=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.25)


def _limits(
    records: Sequence[Mapping[str, Any]], key: str, floor: Optional[float], headroom: float
) -> Tuple[Optional[float], Optional[float]]:
    """Return the limits of the y axis: just below the lowest point, and `headroom` times the highest minimum.

    The steep first descent is cut off, because it would hide the rest.
    """
    lowest = [min(entry[key] for entry in record["epochs"]) for record in records if record["epochs"]]
    if not lowest:
        return None, None
    return 0.96 * min([*lowest, floor or lowest[0]]), headroom * max(lowest)


def save(figure: Figure, path: Path) -> None:
    """Write a figure so that equal records give equal files.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : Path
        PNG or SVG file.
    """
    buffer = io.BytesIO()
    kind = path.suffix[1:].lower()
    with rc_context({"svg.hashsalt": "noisin"}):
        figure.savefig(buffer, dpi=150, format=kind, metadata={"Software" if kind == "png" else "Date": None})
    write_file(path, buffer.getvalue())


def robustness(found: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how often the likeliest word is right by its probability (left), and perplexity against noise (right).

    Parameters
    ----------
    found : sequence of dict
        For each run its name `run`, its `method` (a Method), `calibration` (a Calibration by name of the estimator) and
        `perplexities` by the spread of the noise.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    reliability, growth = figure.subplots(1, 2)
    reliability.plot([0, 1], [0, 1], color="#777777", linewidth=1, label="perfectly calibrated")
    methods = [entry["method"] for entry in found]
    for entry in sorted(found, key=lambda entry: list(METHODS).index(entry["method"].name)):
        method = entry["method"]
        color, dash, marker = method.look
        label = method.title + (f" ({entry['run']})" if methods.count(method) > 1 else "")
        style: Dict[str, Any] = {"color": color, "linestyle": dash, "marker": marker, "markersize": 4, "label": label}
        curve = entry["calibration"]["noise off"]
        shown = curve.words >= FEWEST
        reliability.plot(curve.confidence[shown], curve.accuracy[shown], **style)
        growth.plot(list(entry["perplexities"]), list(entry["perplexities"].values()), **style)
    reliability.set(
        title="Calibration, noise off", xlabel="probability of the likeliest next word", ylabel="how often it comes"
    )
    growth.set(
        title="Noise added at test time",
        xlabel="spread γ of the noise on each hidden state",
        ylabel="perplexity",
    )
    handles, labels = reliability.get_legend_handles_labels()
    _legend_below(figure, handles, labels)
    return figure
