"""The methods that are compared, one object each: what acts on a cell, which options it has, how it is shown.

To add a method, write a `Regulariser` for what it does to a cell and a `Method` of one or several of them, and name the
method in `METHODS`. An option of its own is a field of `Config` in a group that the regulariser names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, Mapping, Tuple

from mxnet.gluon.rnn import HybridRecurrentCell

from noisin.noise import Noise, make_family
from noisin.regularisers import NoisyCell, StandardDropoutCell, VariationalDropoutCell

Config = Any  # that of config.py, which imports this module: it asks the methods which options act


@dataclass(frozen=True)
class Regulariser:
    """One thing that acts on every cell of a model.

    Parameters
    ----------
    groups : tuple of str
        Groups of `Config`'s options that act with it.
    around : function (cell, config, layer) -> cell
        Wraps the cell of a layer, counted from 0 at the bottom.
    described : function config -> str
        The values of its options that tell variants of a method apart, as 'γ 0.2'.
    columns : mapping of str to function config -> str
        What tables show of it in columns of their own, where a method has several variants; of an empty text nothing.
    """

    groups: Tuple[str, ...]
    around: Callable[[HybridRecurrentCell, Config, int], HybridRecurrentCell]
    described: Callable[[Config], str]
    columns: Mapping[str, Callable[[Config], str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """What is compared: a name, the regularisers that act together, and a look.

    Parameters
    ----------
    name : str
        In configurations, records and commands, as 'dropout+noisin*'.
    title : str
        In tables, as the paper has it: 'Dropout + NOISIN*'.
    label : str
        In figures.
    look : tuple of str
        Colour, line style and marker of its curves, as matplotlib names them.
    regularisers : tuple of Regulariser
        Empty for the deterministic network.
    """

    name: str
    title: str
    label: str
    look: Tuple[str, str, str]
    regularisers: Tuple[Regulariser, ...] = ()

    @property
    def groups(self) -> Tuple[str, ...]:
        """Groups of `Config`'s options that act in it."""
        return tuple(group for regulariser in self.regularisers for group in regulariser.groups)

    @property
    def stochastic(self) -> bool:
        """Whether several samples of it differ."""
        return bool(self.regularisers)

    def regularise(self, cell: HybridRecurrentCell, config: Config, layer: int) -> HybridRecurrentCell:
        """Wrap the cell of a layer, counted from 0 at the bottom, in all that acts on it."""
        for regulariser in self.regularisers:
            cell = regulariser.around(cell, config, layer)
        return cell

    def described(self, config: Config) -> str:
        """Describe what tells this variant of the method from others, as 'γ from 0.3'; nothing for a method of one."""
        return "; ".join(regulariser.described(config) for regulariser in self.regularisers)

    @property
    def columns(self) -> Dict[str, Callable[[Config], str]]:
        """What tables show of its variants in columns of their own."""
        return {name: show for regulariser in self.regularisers for name, show in regulariser.columns.items()}

    @property
    def style(self) -> Dict[str, Any]:
        """Its look, as matplotlib's `plot` takes it."""
        return dict(zip(("color", "linestyle", "marker"), self.look))


def make_noise(config: Config, gamma: float, prefix: str) -> Noise:
    """Build the noise that a configuration describes, with this spread."""
    family, learned = make_family(config.noise, **config.noise_parameters), config.acts("lower_bound")
    return Noise(family, gamma, config.noise_mode, learned, config.lower_bound, prefix=f"{prefix}_noise_")


def _noisy(cell: HybridRecurrentCell, config: Config, layer: int) -> HybridRecurrentCell:
    return NoisyCell(cell, make_noise(config, config.layer_gammas()[layer], f"l{layer}"))


def _variational(cell: HybridRecurrentCell, config: Config, layer: int) -> HybridRecurrentCell:
    masked = config.dropout_output_layers == "every" or layer == config.layers - 1
    outputs = config.dropout_outputs if masked else 0.0
    return VariationalDropoutCell(cell, config.dropout_inputs, config.dropout_states, outputs)


def _standard(cell: HybridRecurrentCell, config: Config, layer: int) -> HybridRecurrentCell:
    rate = config.standard_dropout
    return StandardDropoutCell(cell, rate, rate if layer == config.layers - 1 else 0.0)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _family(config: Config) -> str:
    """The noise where it is not the paper's additive Gaussian one."""
    parameters = "".join(f" {name}={value:g}" for name, value in sorted(config.noise_parameters.items()))
    family = "" if (config.noise, parameters) == ("gaussian", "") else f" {config.noise}{parameters}"
    return family + ("" if config.noise_mode == "additive" else f" {config.noise_mode}")


def _learned_spread(config: Config) -> str:
    bound = "" if config.lower_bound == 0.1 else f", bound {config.lower_bound:g}"
    return f"γ from {_numbers(config.gamma)}{bound}{_family(config)}"


def _rates(config: Config) -> str:
    rates = (config.dropout_inputs, config.dropout_states, config.dropout_outputs, config.dropout_embedding)
    masked = "" if config.dropout_output_layers == "top" else f", outputs of {config.dropout_output_layers} layer"
    return _numbers(rates) + masked


_NOISE_COLUMN = {"noise": lambda config: _family(config).strip()}
NOISE = Regulariser(("noise",), _noisy, lambda config: f"γ {_numbers(config.gamma)}{_family(config)}", _NOISE_COLUMN)
LEARNED_NOISE = Regulariser(
    ("noise", "learned noise"),
    _noisy,
    _learned_spread,
    {"lower bound": lambda config: f"{config.lower_bound:g}", **_NOISE_COLUMN},
)
VARIATIONAL = Regulariser(
    ("variational dropout",),
    _variational,
    lambda config: f"rates {_rates(config)}",
    {"rates: inputs, states, outputs, embedding": _rates},
)
STANDARD = Regulariser(
    ("standard dropout",),
    _standard,
    lambda config: f"rate {config.standard_dropout:g}",
    {"rate": lambda config: f"{config.standard_dropout:g}"},
)

# Colours of Okabe and Ito, which colour-blind readers tell apart; dashes and markers for print in grey.
NONE = Method("none", "None", "deterministic", ("#000000", "-", "o"))
DROPOUT = Method("dropout", "Dropout", "variational dropout", ("#E69F00", "--", "s"), (VARIATIONAL,))
NOISIN = Method("noisin", "NOISIN", "NOISIN", ("#0072B2", "-.", "^"), (NOISE,))
NOISIN_STAR = Method("noisin*", "NOISIN*", "NOISIN* (learned γ)", ("#D55E00", ":", "D"), (LEARNED_NOISE,))
STANDARD_DROPOUT = Method(
    "standard-dropout", "Standard dropout", "standard dropout", ("#56B4E9", "--", "v"), (STANDARD,)
)


def _together(first: Method, second: Method, color: str, marker: str) -> Method:
    """Two methods in one model."""
    names = (f"{first.name}+{second.name}", f"{first.title} + {second.title}", f"{first.label} and {second.label}")
    return Method(*names, (color, second.look[1], marker), first.regularisers + second.regularisers)


METHODS: Dict[str, Method] = {
    method.name: method
    for method in (
        NONE,
        DROPOUT,
        NOISIN,
        NOISIN_STAR,
        _together(DROPOUT, NOISIN, "#009E73", "P"),
        _together(DROPOUT, NOISIN_STAR, "#CC79A7", "X"),
        STANDARD_DROPOUT,
        _together(STANDARD_DROPOUT, NOISIN, "#8C510A", "<"),
        _together(STANDARD_DROPOUT, NOISIN_STAR, "#777777", ">"),
    )
}
