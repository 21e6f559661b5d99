"""The typed configuration of a run: every option with its default, its range and its value in the paper."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Collection, Dict, List, Mapping, Optional

from noisin.cells import ACTIVATIONS, CELLS
from noisin.data.corpus import OWN_VOCABULARY
from noisin.data.published import NAMES, full_name
from noisin.initializers import RECURRENT_INITS
from noisin.methods import DROPOUT, METHODS, NOISIN, NOISIN_STAR, NONE
from noisin.noise import FAMILIES, MODES, make_family
from noisin.system.errors import UserError, escape_control, plural, short_repr

OBJECTIVES = ("averaged-log", "log-averaged")  # the bounds that noisin.objective maximises
_LONGEST = 4096  # characters of a text, as of a path
_OF_EVERY_METHOD = ("data", "model", "training", "evaluation")  # groups of options


class Contradiction(UserError):
    """Options that contradict each other.

    Parameters
    ----------
    text : str
        The message; `{name}` stands for the option of this name.
    spell : function (str) -> str, default str
        Says how a message names an option.
    """

    def __init__(self, text: str, spell: Callable[[str], str] = str) -> None:
        self._text = text
        super().__init__(re.sub(r"\{(\w+)\}", lambda name: spell(name[1]), text))

    def spelled(self, spell: Callable[[str], str]) -> Contradiction:
        """Return the same with options named in another way, e.g. by `flag`."""
        return Contradiction(self._text, spell)


def option(
    default: Any,
    help: str,
    choices: Collection[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
    group: str = "model",
    nullable: bool = False,
) -> Any:
    """Declare an option, as a dataclass field with this metadata.

    Parameters
    ----------
    default : str, int, float, list or dict
        Its type is the option's type.
    help : str
        The option's meaning, unit and value in the paper, for `noisin train --help`.
    choices : collection of str, default any
        Valid texts.
    low, high : float, default unbounded
        Closed range of a number, or of each number of a list.
    group : str, default 'model'
        Group of options; methods name the groups that are active with them.
    nullable : bool, default False
        Whether None is valid.

    Returns
    -------
    dataclasses.Field
        Typed as Any, so that a field of any type can be declared with it.
    """
    metadata = {"default": default, "help": help, "choices": choices, "low": low, "high": high, "group": group}
    metadata.update(kind=type(default), nullable=nullable)
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The options that define a run's result: two runs of equal configuration are the same run.

    Options that have no effect (`inactive_options`, e.g. the noise family of a model without noise) are set to their
    defaults, so that they do not distinguish runs. `noisin train --help` prints each option's meaning, default and
    value in the paper.

    Raises
    ------
    UserError
        For an invalid value, naming the option, the value and what is valid; or for options that contradict each other.
    """

    corpus: str = option(
        "synthetic",
        f"{', '.join(NAMES)}, or the path of a text file, or of a folder with train.txt, valid.txt and test.txt",
        group="data",
    )
    max_vocabulary: int = option(
        OWN_VOCABULARY,
        "largest vocabulary of your own text; rarer words become <unk>",
        low=3,
        high=1e7,
        group="data",
    )
    method: str = option(
        NONE.name,
        f"regularisation method: {DROPOUT.name} is variational dropout; {NOISIN.name} adds noise with a fixed gamma, "
        f"'{NOISIN_STAR.name}' with a learned gamma (quote the * in a shell); + combines two methods (paper: the first "
        "four)",
        choices=METHODS,
    )
    cell: str = option("rnn", "recurrent cell (paper: rnn on PTB, lstm on WikiText-2)", choices=tuple(CELLS))
    activation: Optional[str] = option(
        "sigmoid", "activation of the rnn cell (paper: all three)", choices=ACTIVATIONS, nullable=True
    )
    layers: int = option(1, "number of recurrent layers (paper: 1 and 2)", low=1, high=64)
    hidden: int = option(256, "units per layer (paper: 256 in Figure 2, 200 on WikiText-2)", low=1, high=1e5)
    embedding: int = option(
        0, "units of the word embedding; 0: as many as --hidden (paper: not stated)", low=0, high=1e5
    )
    decoder: str = option(
        "own", "weights of the decoder: its own, or tied to the embedding (paper: not stated)", choices=("own", "tied")
    )
    recurrent_init: str = option(
        "orthogonal",
        "initialisation of hidden-to-hidden weights (paper: not stated)",
        choices=RECURRENT_INITS,
    )
    init_scale: float = option(
        0.1, "other weights are initialised uniformly between minus and plus this value", low=0, high=10
    )
    forget_bias: float = option(0.0, "initial bias of the LSTM's forget gate", low=-100, high=100)
    noise: str = option(
        "gaussian",
        "noise family (paper: gaussian)",
        choices=tuple(sorted(FAMILIES)),
        group="noise",
    )
    noise_parameters: Dict[str, float] = option(
        {}, "parameters of the noise family, e.g. k=2 or a=2,b=3", group="noise"
    )
    noise_mode: str = option(
        "additive",
        "add the noise to the hidden state, or multiply the state by 1 + noise (paper: additive)",
        choices=MODES,
        group="noise",
    )
    gamma: List[float] = option(
        [0.2],
        "spread of the noise, a standard deviation: one value for all layers, or one per layer; the initial value if "
        "it is learned",
        low=0,
        high=1e3,
        group="noise",
    )
    lower_bound: float = option(
        0.1, "lower bound of a learned gamma (paper: 0.1)", low=0, high=1e3, group="learned noise"
    )
    input_gamma: float = option(
        0.0,
        "spread of noise on the word embedding, learned if gamma is; 0: no noise there (paper: not reported)",
        low=0,
        high=1e3,
        group="noise",
    )
    dropout_inputs: float = option(
        0.2, "rate of variational dropout on each layer's inputs", low=0, high=0.99, group="variational dropout"
    )
    dropout_states: float = option(
        0.2, "rate of variational dropout on each layer's state", low=0, high=0.99, group="variational dropout"
    )
    dropout_outputs: float = option(
        0.2, "rate of variational dropout on the outputs", low=0, high=0.99, group="variational dropout"
    )
    dropout_output_layers: str = option(
        "top",
        "layers whose outputs get dropout: top, as in Gal and Ghahramani (2016), or every, which masks each connection "
        "between two layers twice",
        choices=("top", "every"),
        group="variational dropout",
    )
    dropout_embedding: float = option(
        0.1, "rate at which whole word types are dropped from the input", low=0, high=0.99, group="variational dropout"
    )
    standard_dropout: float = option(
        0.2,
        "rate of dropout with new masks at each step on all connections that are not recurrent: embedded words, "
        "connections between layers, outputs (Zaremba et al., 2014)",
        low=0,
        high=0.99,
        group="standard dropout",
    )
    weight_decay: float = option(
        0.0, "L2 penalty: this factor times the weights is added to their gradient", low=0, high=1, group="training"
    )
    optimizer: str = option(
        "adam", "optimizer (paper: adam on PTB, sgd on WikiText-2)", choices=("adam", "sgd"), group="training"
    )
    learning_rate: float = option(
        0.001, "initial learning rate (paper: 0.001 for adam, 1 for sgd)", low=1e-9, high=1e3, group="training"
    )
    decay: float = option(
        1.0,
        "factor of the learning rate in each epoch after the first --decay-after epochs (paper: 0.5 with sgd)",
        low=1e-6,
        high=1,
        group="training",
    )
    decay_after: int = option(
        4, "number of epochs at the initial learning rate (paper: 4 with sgd)", low=0, high=1e5, group="training"
    )
    clip: float = option(
        5.0,
        "largest global norm of the gradient; a larger gradient is scaled down (paper: 5)",
        low=1e-9,
        high=1e9,
        group="training",
    )
    batch_size: int = option(
        32, "parallel sequences in a batch (paper: 32 on WikiText-2)", low=1, high=1e5, group="training"
    )
    unroll: int = option(
        35, "steps of backpropagation through time (paper: not stated)", low=1, high=1e4, group="training"
    )
    samples: int = option(
        1, "noise trajectories per sequence in training, S (paper: 1)", low=1, high=1000, group="training"
    )
    objective: str = option(
        "averaged-log",
        "what to maximise, a lower bound of log p(x): averaged-log, the mean of log p(x|z) over S trajectories z "
        "(paper, eq. 1), or log-averaged, the log of the mean of p(x|z), which is tighter",
        choices=OBJECTIVES,
        group="training",
    )
    epochs: int = option(40, "maximum number of epochs", low=1, high=1e4, group="training")
    patience: int = option(
        3, "stop after this number of epochs without a better validation perplexity", low=1, high=1e6, group="training"
    )
    seed: int = option(1, "random seed for weights and noise", low=0, high=2**31 - 1, group="training")
    dtype: str = option(
        "float32",
        "number type of the decoder's matrix product in training; bfloat16 needs a processor with AVX-512",
        choices=("float32", "bfloat16"),
        group="training",
    )
    eval_batch_size: int = option(
        10, "parallel sequences that a split is cut into", low=1, high=1e5, group="evaluation"
    )
    eval_samples: int = option(
        10,
        "noise trajectories for the bound and averaged perplexities of the test split (paper: not stated)",
        low=1,
        high=1000,
        group="evaluation",
    )
    eval_particles: int = option(
        0,
        "particles of the filter that estimates the marginal perplexity of the test split at the end; 0: no estimate; "
        "takes as long as evaluation with 3 times as many samples",
        low=0,
        high=1e5,
        group="evaluation",
    )

    def __post_init__(self) -> None:
        if self.cell != "rnn":
            object.__setattr__(self, "activation", None)  # LSTM and GRU have their own
        for entry in dataclasses.fields(self):
            _check(entry, getattr(self, entry.name), entry.name)
            object.__setattr__(self, entry.name, _with_floats(entry, getattr(self, entry.name)))
        object.__setattr__(self, "corpus", full_name(self.corpus))
        if self.cell == "rnn" and self.activation is None:
            raise Contradiction("{activation} is missing: an rnn cell needs tanh, sigmoid or relu")
        if self.decoder == "tied" and self.embedding not in (0, self.hidden):
            raise Contradiction(
                f"{{embedding}} is {self.embedding} and {{hidden}} is {self.hidden}: a tied decoder needs equal sizes"
            )
        try:
            make_family(self.noise, **self.noise_parameters)
        except ValueError as error:
            raise UserError(str(error)) from None
        if len(self.gamma) not in (1, self.layers):
            values, layers = plural(len(self.gamma), "value"), plural(self.layers, "layer")
            raise Contradiction(f"{{gamma}} has {values} for {layers}: give one value, or one per layer")
        if len(set(self.gamma)) == 1:
            object.__setattr__(self, "gamma", self.gamma[:1])  # one value for all layers has one form
        if self.acts("lower_bound"):
            for name, starts in (("gamma", self.gamma), ("input_gamma", [self.input_gamma or math.inf])):
                if min(starts) <= self.lower_bound:
                    raise Contradiction(
                        f"{{{name}}} starts at {min(starts)} with {{lower_bound}} {self.lower_bound}: a learned gamma "
                        "must start above its lower bound"
                    )

        idle = self.inactive_options
        for entry in dataclasses.fields(self):
            if entry.name in idle and entry.name != "activation":  # None already
                object.__setattr__(self, entry.name, copy.copy(entry.metadata["default"]))

    @property
    def inactive_options(self) -> Dict[str, str]:
        """The options that have no effect, each with the option whose value disables it."""
        method = METHODS[self.method]
        found = {
            entry.name: "method"
            for entry in dataclasses.fields(self)
            if entry.metadata["group"] not in (*_OF_EVERY_METHOD, *method.groups)
        }
        for name, by, acts in (
            ("samples", "method", method.stochastic),  # else all trajectories are the same
            ("objective", "method", method.stochastic),
            ("objective", "samples", self.samples > 1),
            ("eval_samples", "method", method.stochastic),
            ("eval_particles", "method", method.stochastic),
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
        """Return whether the option `name` has an effect."""
        return name not in self.inactive_options

    def layer_gammas(self) -> List[float]:
        """Return one spread per layer, bottom first."""
        return list(self.gamma) * self.layers if len(self.gamma) == 1 else list(self.gamma)

    def to_dict(self) -> Dict[str, Any]:
        """Return all options by name, as a JSON object."""
        return dataclasses.asdict(self)

    @property
    def name(self) -> str:
        """A file name for the run, e.g. 'rnn-tanh-1x256-noisin-seed1-0123abcd'; it ends with `digest`."""
        cell = f"{self.cell}-{self.activation}" if self.activation else self.cell
        method = self.method.replace("*", "-learned")
        return f"{cell}-{self.layers}x{self.hidden}-{method}-seed{self.seed}-{self.digest}"

    @property
    def digest(self) -> str:
        """The run's identity: the first 8 hexadecimal digits of the sha256 of all options."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


# Options that older configurations lack, with the value that those runs had, where it is not today's default.
_BEFORE = {"dropout_output_layers": "every"}


def recorded_config(values: object, source: str = "the configuration") -> Config:
    """Build a Config from a recorded run, whose missing options have the values that the run had.

    Parameters, result and errors are those of `config_from_dict`.
    """
    return config_from_dict({**_BEFORE, **values} if isinstance(values, dict) else values, source)


def flag(name: str) -> str:
    """Return an option's name on the command line."""
    return f"--{name.replace('_', '-')}"


def shown(value: Any) -> str:
    """Return an option's value as it is written on the command line."""
    if isinstance(value, dict):
        return ",".join(f"{name}={number!r}" for name, number in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _check(entry: dataclasses.Field, value: Any, name: str) -> None:
    wrong = problem(entry, value)
    if wrong:
        raise UserError(f"{name} is {short_repr(value)}: {wrong}")


def problem(entry: dataclasses.Field, value: Any) -> str:
    """Return why a value is invalid for the option `entry`, e.g. 'it must be from 1 to 64'; '' if it is valid."""
    bounds, kind = entry.metadata, entry.metadata["kind"]
    if bounds["nullable"] and value is None:
        return ""
    if kind is dict:
        fits = isinstance(value, dict) and all(map(_is_number, value.values()))
        return "" if fits else "it must be names with numbers, e.g. k=2"
    if kind is str:
        if bounds["choices"]:
            fits = isinstance(value, str) and value in bounds["choices"]
            return "" if fits else f"it must be one of {', '.join(bounds['choices'])}"
        fits = isinstance(value, str) and _is_plain(value)
        return "" if fits else f"it must be text of at most {_LONGEST:,} characters, without control characters"
    if kind is list:
        if not isinstance(value, list) or not value or not all(map(_is_number, value)):
            return "it must be one or more numbers"
    elif not _is_number(value) or (kind is int and not isinstance(value, int)):
        return f"it must be {'a whole number' if kind is int else 'a number'}"
    low, high = bounds["low"], bounds["high"]
    fits = all(low <= number <= high for number in (value if kind is list else [value]))  # NaN does not
    return "" if fits else f"it must be from {low:.10g} to {high:.10g}"


def _with_floats(entry: dataclasses.Field, value: Any) -> Any:
    """Return the value with floats for integers if the option is of floats, so that equal options have one digest."""
    kind = entry.metadata["kind"]
    if kind is dict:
        return {name: float(number) for name, number in value.items()}
    if kind is list:
        return [float(number) for number in value]
    return float(value) if kind is float else value


def _is_plain(value: str) -> bool:
    """Return whether a record can hold the text and a page show it; UTF-8 cannot hold every file name."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return len(value) <= _LONGEST and escape_control(value) == value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def config_from_dict(values: object, source: str = "the configuration") -> Config:
    """Build a Config from the content of a file.

    Parameters
    ----------
    values : dict of str to JSON value
        Options by name; a missing one has its default. Anything else is refused.
    source : str, default 'the configuration'
        Name of the file in messages.

    Returns
    -------
    Config

    Raises
    ------
    UserError
        For an unknown option or an invalid value, naming it and `source`.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source} is not an object of options")
    check_options(values, source)
    try:
        return Config(**values)
    except UserError as error:
        raise UserError(f"in {source}, {error}") from None


def check_options(values: Mapping[str, Any], source: str) -> None:
    """Check each option on its own, not whether they contradict each other.

    Parameters
    ----------
    values : mapping of str to JSON value
        Options by name.
    source : str
        Name of the file in messages.

    Raises
    ------
    UserError
        For an unknown option or an invalid value, naming it and `source`.
    """
    known = {entry.name: entry for entry in dataclasses.fields(Config)}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{source} has the unknown option {short_repr(name)}{hint}")
        _check(known[name], value, f"in {source}, {name}")
