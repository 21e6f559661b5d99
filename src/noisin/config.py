"""The typed configuration of a run: every option with its default, its range and what the paper used."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Collection, Dict, List, Optional

from noisin.cells import ACTIVATIONS, CELLS
from noisin.data.corpus import OWN_VOCABULARY
from noisin.data.published import NAMES
from noisin.initializers import RECURRENT_INITS
from noisin.methods import METHODS
from noisin.noise import FAMILIES, MODES, make_family
from noisin.system.errors import UserError, quoted

OBJECTIVES = ("averaged-log", "log-averaged")  # the bounds that noisin.objective maximises

_OF_EVERY_METHOD = ("data", "model", "training", "evaluation")  # groups of options


def option(
    default: Any,
    help: str,
    choices: Collection[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
    group: str = "model",
    nullable: bool = False,
) -> Any:
    """Declare an option: its default and so its type, what it means, and the closed range or choices of its values."""
    metadata = {"default": default, "help": help, "choices": choices, "low": low, "high": high, "group": group}
    metadata.update(kind=type(default), nullable=nullable)
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """What defines a run's result: two runs of equal configuration are the same run.

    Options that do not act (those of `idle`, as the noise of a model without any) are set to their defaults, so that
    they do not tell runs apart. Each field's meaning, range and value in the paper are in its `option`, which
    `noisin train --help` prints.

    Raises
    ------
    UserError
        For a value out of range, naming it, the range and the option.
    """

    corpus: str = option("synthetic", "ptb, wikitext-2, synthetic, or the path of a text file or folder", group="data")
    max_vocabulary: int = option(
        OWN_VOCABULARY, "word types kept of one's own text; the rest are <unk>", low=3, high=1e7, group="data"
    )
    method: str = option("none", "what regularises the model; * learns gamma (paper: the first four)", choices=METHODS)
    cell: str = option("rnn", "recurrent cell (paper: rnn on PTB, lstm on WikiText-2)", choices=tuple(CELLS))
    activation: Optional[str] = option(
        "sigmoid", "of the rnn cell (paper: all three)", choices=ACTIVATIONS, nullable=True
    )
    layers: int = option(1, "recurrent layers (paper: 1 and 2)", low=1, high=64)
    hidden: int = option(256, "units in each layer (paper: 256 in Figure 2, 200 on WikiText-2)", low=1, high=1e5)
    embedding: int = option(0, "size of the word embedding; 0: as hidden (paper: not stated)", low=0, high=1e5)
    decoder: str = option(
        "own", "the decoder's weights: its own, or tied to the embedding's (paper: not stated)", choices=("own", "tied")
    )
    recurrent_init: str = option(
        "orthogonal",
        "initial hidden-to-hidden weights (paper: plays 'a very big role', not stated)",
        choices=RECURRENT_INITS,
    )
    init_scale: float = option(0.1, "half-width of the other weights' uniform start", low=0, high=10)
    forget_bias: float = option(0.0, "initial bias of the LSTM's forget gate", low=-100, high=100)
    noise: str = option(
        "gaussian",
        "noise family of noisin and noisin* (paper: gaussian)",
        choices=tuple(sorted(FAMILIES)),
        group="noise",
    )
    noise_parameters: Dict[str, float] = option({}, "the family's own, as k=2 or a=2,b=3", group="noise")
    noise_mode: str = option("additive", "how the noise acts (paper: additive)", choices=MODES, group="noise")
    gamma: List[float] = option(
        [0.2], "spread: one for all layers or one a layer; a learned one starts here", low=0, high=1e3, group="noise"
    )
    lower_bound: float = option(
        0.1, "what a learned gamma never falls below (paper: 0.1)", low=0, high=1e3, group="learned noise"
    )
    input_gamma: float = option(
        0.0,
        "spread of noise on the embedding too, learned where gamma is; 0: none (paper: names it, reports none)",
        low=0,
        high=1e3,
        group="noise",
    )
    dropout_inputs: float = option(
        0.2, "variational dropout on each layer's inputs", low=0, high=0.99, group="variational dropout"
    )
    dropout_states: float = option(0.2, "... on its recurrent state", low=0, high=0.99, group="variational dropout")
    dropout_outputs: float = option(0.2, "... on its outputs", low=0, high=0.99, group="variational dropout")
    dropout_output_layers: str = option(
        "top",
        "layers whose outputs dropout masks: top, as Gal and Ghahramani (2016), or every, which masks the link between "
        "two layers twice",
        choices=("top", "every"),
        group="variational dropout",
    )
    dropout_embedding: float = option(0.1, "... on whole word types", low=0, high=0.99, group="variational dropout")
    standard_dropout: float = option(
        0.2,
        "dropout with fresh masks at each step, on what goes up and not on what recurs: the embedded words, the links "
        "between layers, the outputs (Zaremba et al., 2014)",
        low=0,
        high=0.99,
        group="standard dropout",
    )
    weight_decay: float = option(0.0, "L2 penalty's gradient factor", low=0, high=1, group="training")
    optimizer: str = option(
        "adam", "(paper: adam on PTB, sgd on WikiText-2)", choices=("adam", "sgd"), group="training"
    )
    learning_rate: float = option(0.001, "(paper: 0.001 for adam, 1 for sgd)", low=0, high=1e3, group="training")
    decay: float = option(
        1.0,
        "learning rate's factor each epoch after decay_after (paper: 0.5 with sgd)",
        low=1e-6,
        high=1,
        group="training",
    )
    decay_after: int = option(
        4, "epochs at the initial learning rate (paper: 4 with sgd)", low=0, high=1e5, group="training"
    )
    clip: float = option(5.0, "largest global norm of the gradient (paper: 5)", low=1e-9, high=1e9, group="training")
    batch_size: int = option(32, "sequences side by side (paper: 32 on WikiText-2)", low=1, high=1e5, group="training")
    unroll: int = option(
        35, "steps of backpropagation through time (paper: not stated)", low=1, high=1e4, group="training"
    )
    samples: int = option(1, "S, trajectories of the noise in training (paper: 1)", low=1, high=1000, group="training")
    objective: str = option(
        "averaged-log",
        "the bound on log p(x) to maximise: the mean of S log-likelihoods (paper, eq. 1), or the log of S likelihoods' "
        "mean, which is tighter",
        choices=OBJECTIVES,
        group="training",
    )
    epochs: int = option(40, "most epochs to train", low=1, high=1e4, group="training")
    patience: int = option(
        3, "epochs without a better validation perplexity before stopping", low=1, high=1e6, group="training"
    )
    seed: int = option(1, "of the weights and all noise", low=0, high=2**31 - 1, group="training")
    dtype: str = option(
        "float32",
        "of the decoder's product in training; bfloat16 needs a processor with AVX-512",
        choices=("float32", "bfloat16"),
        group="training",
    )
    eval_batch_size: int = option(10, "columns a split is cut into for evaluation", low=1, high=1e5, group="evaluation")
    eval_samples: int = option(
        10,
        "S of the bound and averaged test perplexities (paper: averages, S not stated)",
        low=1,
        high=1000,
        group="evaluation",
    )

    def __post_init__(self) -> None:
        if self.cell != "rnn":
            object.__setattr__(self, "activation", None)  # LSTM and GRU have their own
        for entry in dataclasses.fields(self):
            _check(entry, getattr(self, entry.name))
            object.__setattr__(self, entry.name, _with_floats(entry, getattr(self, entry.name)))
        if self.cell == "rnn" and self.activation is None:
            raise UserError("activation is missing: an rnn cell needs tanh, sigmoid or relu")
        if self.decoder == "tied" and self.embedding not in (0, self.hidden):
            raise UserError(
                f"embedding is {self.embedding} and hidden {self.hidden}: a tied decoder needs both of one size"
            )
        try:
            make_family(self.noise, **self.noise_parameters)
        except ValueError as error:
            raise UserError(str(error)) from None
        if len(self.gamma) not in (1, self.layers):
            raise UserError(f"gamma has {len(self.gamma)} values for {self.layers} layers: give one, or one a layer")
        if len(set(self.gamma)) == 1:
            object.__setattr__(self, "gamma", self.gamma[:1])  # the same, whichever way it was given
        if self.acts("lower_bound"):
            for name, starts in (("gamma", self.gamma), ("input_gamma", [self.input_gamma or math.inf])):
                if min(starts) <= self.lower_bound:
                    raise UserError(
                        f"{name} starts at {min(starts)} with lower_bound {self.lower_bound}: a learned one must start "
                        "above its bound"
                    )

        idle = self.idle
        for entry in dataclasses.fields(self):
            if entry.name in idle and entry.name != "activation":  # None already
                object.__setattr__(self, entry.name, copy.copy(entry.metadata["default"]))

    @property
    def idle(self) -> Dict[str, str]:
        """The options that do not act, each with the one whose value keeps it from acting."""
        method = METHODS[self.method]
        found = {
            entry.name: "method"
            for entry in dataclasses.fields(self)
            if entry.metadata["group"] not in (*_OF_EVERY_METHOD, *method.groups)
        }
        for name, by, acts in (
            ("samples", "method", method.stochastic),  # all trajectories would be the same
            ("objective", "method", method.stochastic),
            ("objective", "samples", self.samples > 1),
            ("eval_samples", "method", method.stochastic),
            ("activation", "cell", self.cell == "rnn"),
            ("forget_bias", "cell", self.cell == "lstm"),
            ("decay_after", "decay", self.decay != 1),
            ("max_vocabulary", "corpus", self.corpus not in NAMES),
            ("dropout_output_layers", "layers", self.layers > 1),
        ):
            if not acts:
                found.setdefault(name, by)
        return found

    def acts(self, name: str) -> bool:
        """Whether the option `name` acts."""
        return name not in self.idle

    def layer_gammas(self) -> List[float]:
        """One spread a layer, bottom first."""
        return list(self.gamma) * self.layers if len(self.gamma) == 1 else list(self.gamma)

    def to_dict(self) -> Dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self)

    @property
    def name(self) -> str:
        """A file name for the run: what people look for first, and the fingerprint of all of it."""
        cell = f"{self.cell}-{self.activation}" if self.activation else self.cell
        method = self.method.replace("*", "-learned")
        return f"{cell}-{self.layers}x{self.hidden}-{method}-seed{self.seed}-{self.digest}"

    @property
    def digest(self) -> str:
        """A short fingerprint of every value, by which a run is known."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


# Values of options that did not exist yet when a configuration was recorded, where they are not today's defaults.
_BEFORE = {"dropout_output_layers": "every"}


def recorded_config(values: Any, source: str = "the configuration") -> Config:
    """Build a Config from what a run has left: a missing option has the value that acted when the run was made.

    Raises
    ------
    UserError
        As `config_from_dict`.
    """
    return config_from_dict({**_BEFORE, **values} if isinstance(values, dict) else values, source)


def _check(entry: dataclasses.Field, value: Any) -> None:
    """Raise UserError unless `value` has the type, and is in the range, of the option `entry`."""
    bounds, where = entry.metadata, f"{entry.name} is {quoted(value)}"
    kind = bounds["kind"]
    if bounds["nullable"] and value is None:
        return
    if kind is dict:
        if not isinstance(value, dict) or not all(_is_number(v) for v in value.values()):
            raise UserError(f"{where}: it must be names with numbers, as k=2")
        return
    if kind is list:
        if not isinstance(value, list) or not value or not all(_is_number(v) for v in value):
            raise UserError(f"{where}: it must be one or more numbers")
        values = value
    elif kind is str:
        if not isinstance(value, str) or not _is_unicode(value):
            raise UserError(f"{where}: it must be text")
        if bounds["choices"] and value not in bounds["choices"]:
            raise UserError(f"{where}: it must be one of {', '.join(bounds['choices'])}")
        return
    else:
        if not _is_number(value) or (kind is int and not isinstance(value, int)):
            raise UserError(f"{where}: it must be {'a whole number' if kind is int else 'a number'}")
        values = [value]
    for number in values:
        if not bounds["low"] <= number <= bounds["high"]:  # also refuses NaN
            raise UserError(f"{where}: it must be from {bounds['low']:g} to {bounds['high']:g}")


def _with_floats(entry: dataclasses.Field, value: Any) -> Any:
    """The value with 1.0 for 1 where the option is of floats: equal configurations have one fingerprint."""
    kind = entry.metadata["kind"]
    if kind is dict:
        return {name: float(number) for name, number in value.items()}
    if kind is list:
        return [float(number) for number in value]
    return float(value) if kind is float else value


def _is_unicode(value: str) -> bool:
    """Whether a file can hold it: the name of a file that is not UTF-8 it cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def config_from_dict(values: Any, source: str = "the configuration") -> Config:
    """Build a Config from what a file holds, refusing unknown keys.

    Raises
    ------
    UserError
        Naming the key or value at fault and `source`.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source} is not an object of options")
    known = {entry.name for entry in dataclasses.fields(Config)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"{source} has the unknown option {unknown[0]!r}")
    try:
        return Config(**values)
    except UserError as error:
        raise UserError(f"in {source}, {error}") from None
