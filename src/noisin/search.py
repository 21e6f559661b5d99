"""What `noisin tune` searches: options and their ranges, and the configurations of its trials."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence, Tuple

import noisin
from noisin.config import Config, flag, shown
from noisin.data.corpus import Corpus
from noisin.data.published import NAMES
from noisin.noise import FAMILIES, MODES
from noisin.runs.formats import seal
from noisin.system.errors import UserError

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


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
        For an unknown method or an invalid value, as `Config`; for a method in which nothing is left to search.
    """

    def __init__(self, methods: Sequence[str], fixed: Mapping[str, Any]) -> None:
        if "noise_parameters" in fixed and "noise" not in fixed:
            raise UserError("--noise-parameters needs --noise, because each family has its own")
        self._fixed = dict(fixed)
        optimizer = fixed.get("optimizer", Config.optimizer)
        free = (searched for searched in SPACE if searched.option not in fixed)
        self.searched = [searched for searched in free if searched.optimizer in (None, optimizer)]
        tops = {searched.option: searched.top for searched in self.searched}
        self.bases = {method: self.config({"method": method, **tops}) for method in dict.fromkeys(methods)}
        for method, base in self.bases.items():
            if not any(base.acts(searched.option) for searched in self.searched):
                raise UserError(
                    f"with --method {method} every searched option is fixed: remove {method} from --methods, or give "
                    "fewer options"
                )

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
        return {"method": config.method, **{name: shown(getattr(config, name)) for name in acting}}

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


def train_command(config: Config, options: Sequence[str] = ()) -> str:
    """Return the command `noisin train` of a configuration, with further options, for a shell."""
    words = ["noisin", "train", *options]
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if value != entry.metadata["default"] and config.acts(entry.name):
            words += [flag(entry.name), shown(value)]
    return " ".join(map(shlex.quote, words))
