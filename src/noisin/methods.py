"""The methods that are compared, one object each: regularisers, their options, and how tables and figures show them.

To add a method, write a `Regulariser` for what it does to a cell and a `Method` of one or several of them, and name the
method in `METHODS`. An option of its own is a field of `Config` in a group that the regulariser names, and a property
of `Options`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, List, Mapping, Protocol, Tuple

from mxnet.gluon.rnn import HybridRecurrentCell

from noisin.noise import Noise, make_family
from noisin.regularisers import NoisyCell, StandardDropoutCell, VariationalDropoutCell


class Options(Protocol):
    """The options of a run that methods read; `noisin.config.Config`, which imports this module, has these and more."""

    @property
    def layers(self) -> int: ...
    @property
    def noise(self) -> str: ...
    @property
    def noise_parameters(self) -> Dict[str, float]: ...
    @property
    def noise_mode(self) -> str: ...
    @property
    def gamma(self) -> List[float]: ...
    @property
    def lower_bound(self) -> float: ...
    @property
    def dropout_inputs(self) -> float: ...
    @property
    def dropout_states(self) -> float: ...
    @property
    def dropout_outputs(self) -> float: ...
    @property
    def dropout_output_layers(self) -> str: ...
    @property
    def dropout_embedding(self) -> float: ...
    @property
    def standard_dropout(self) -> float: ...
    def acts(self, name: str) -> bool: ...
    def layer_gammas(self) -> List[float]: ...


@dataclass(frozen=True)
class Regulariser:
    """A regulariser that wraps every cell of a model.

    Parameters
    ----------
    groups : tuple of str
        Groups of `Config`'s options that have an effect with it.
    around : function (cell, config, layer) -> cell
        Wraps the cell of a layer; layer 0 is the bottom.
    described : function (config) -> str
        Describes the values of its options that distinguish variants of a method, e.g. 'γ 0.2'.
    columns : mapping of str to function (config) -> str, default none
        Extra columns of tables where a method has several variants: title and cell. An empty text shows nothing.
    """

    groups: Tuple[str, ...]
    around: Callable[[HybridRecurrentCell, Options, int], HybridRecurrentCell]
    described: Callable[[Options], str]
    columns: Mapping[str, Callable[[Options], str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A method that is compared: its names, the style of its curves, and the regularisers that act together.

    Parameters
    ----------
    name : str
        Name in configurations, records and commands, e.g. 'dropout+noisin*'.
    title : str
        Name in tables and figures, as in the paper, e.g. 'Dropout + NOISIN*'.
    look : tuple of str
        Colour, line style and marker of its curves, for matplotlib.
    regularisers : tuple of Regulariser, default ()
        From the inside out; empty for the deterministic network.
    """

    name: str
    title: str
    look: Tuple[str, str, str]
    regularisers: Tuple[Regulariser, ...] = ()

    @property
    def groups(self) -> Tuple[str, ...]:
        """The groups of `Config`'s options that have an effect with it."""
        return tuple(group for regulariser in self.regularisers for group in regulariser.groups)

    @property
    def stochastic(self) -> bool:
        """Whether trajectories differ from one another."""
        return bool(self.regularisers)

    def regularise(self, cell: HybridRecurrentCell, config: Options, layer: int) -> HybridRecurrentCell:
        """Wrap a cell in all regularisers.

        Parameters
        ----------
        cell : HybridRecurrentCell
        config : Config
        layer : int
            The cell's layer; 0 is the bottom.

        Returns
        -------
        HybridRecurrentCell
        """
        for regulariser in self.regularisers:
            cell = regulariser.around(cell, config, layer)
        return cell

    def described(self, config: Options) -> str:
        """Describe what distinguishes this variant of the method, e.g. 'γ from 0.3'; '' without regularisers."""
        return "; ".join(regulariser.described(config) for regulariser in self.regularisers)

    @property
    def columns(self) -> Dict[str, Callable[[Options], str]]:
        """The extra columns of tables that show its variants, as in `Regulariser`."""
        return {name: show for regulariser in self.regularisers for name, show in regulariser.columns.items()}

    @property
    def style(self) -> Dict[str, str]:
        """Its look as keyword arguments of matplotlib's `plot`."""
        return dict(zip(("color", "linestyle", "marker"), self.look))


def make_noise(config: Options, gamma: float, prefix: str) -> Noise:
    """Build the noise that a configuration describes.

    Parameters
    ----------
    config : Config
        Gives family, mode and bound, and whether gamma is learned.
    gamma : float
        The spread, or its initial value if it is learned.
    prefix : str
        Prefix of the parameter's name, e.g. 'l0'.

    Returns
    -------
    Noise
    """
    family, learned = make_family(config.noise, **config.noise_parameters), config.acts("lower_bound")
    return Noise(family, gamma, config.noise_mode, learned, config.lower_bound, prefix=f"{prefix}_noise_")


def _noisy(cell: HybridRecurrentCell, config: Options, layer: int) -> HybridRecurrentCell:
    return NoisyCell(cell, make_noise(config, config.layer_gammas()[layer], f"l{layer}"))


def _variational(cell: HybridRecurrentCell, config: Options, layer: int) -> HybridRecurrentCell:
    masked = config.dropout_output_layers == "every" or layer == config.layers - 1
    outputs = config.dropout_outputs if masked else 0.0
    return VariationalDropoutCell(cell, config.dropout_inputs, config.dropout_states, outputs)


def _standard(cell: HybridRecurrentCell, config: Options, layer: int) -> HybridRecurrentCell:
    rate = config.standard_dropout
    return StandardDropoutCell(cell, rate, rate if layer == config.layers - 1 else 0.0)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _family(config: Options) -> str:
    """Describe the noise, unless it is the paper's: additive and Gaussian."""
    parameters = "".join(f" {name}={value:g}" for name, value in sorted(config.noise_parameters.items()))
    mode = "" if config.noise_mode == "additive" else f" {config.noise_mode}"
    described = f"{mode} {config.noise}{parameters}"
    return "" if described == " gaussian" else described


def _learned_spread(config: Options) -> str:
    bound = "" if config.lower_bound == 0.1 else f", bound {config.lower_bound:g}"
    return f"γ from {_numbers(config.gamma)}{bound}{_family(config)}"


def _rates(config: Options) -> str:
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

# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes and markers for print in grey.
NONE = Method("none", "None", ("#000000", "-", "o"))
DROPOUT = Method("dropout", "Dropout", ("#E69F00", "--", "s"), (VARIATIONAL,))
NOISIN = Method("noisin", "NOISIN", ("#0072B2", "-.", "^"), (NOISE,))
NOISIN_STAR = Method("noisin*", "NOISIN*", ("#D55E00", ":", "D"), (LEARNED_NOISE,))
STANDARD_DROPOUT = Method("standard-dropout", "Standard dropout", ("#56B4E9", "--", "v"), (STANDARD,))


def _together(first: Method, second: Method, color: str, marker: str) -> Method:
    """Combine two methods in one model."""
    name, title = f"{first.name}+{second.name}", f"{first.title} + {second.title}"
    return Method(name, title, (color, second.look[1], marker), first.regularisers + second.regularisers)


DROPOUT_NOISIN = _together(DROPOUT, NOISIN, "#009E73", "P")
METHODS: Dict[str, Method] = {
    method.name: method
    for method in (
        NONE,
        DROPOUT,
        NOISIN,
        NOISIN_STAR,
        DROPOUT_NOISIN,
        _together(DROPOUT, NOISIN_STAR, "#CC79A7", "X"),
        STANDARD_DROPOUT,
        _together(STANDARD_DROPOUT, NOISIN, "#8C510A", "<"),
        _together(STANDARD_DROPOUT, NOISIN_STAR, "#777777", ">"),
    )
}
