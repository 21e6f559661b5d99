"""One training run: truncated backpropagation through time, schedule, early stopping, and the record at its end."""

from __future__ import annotations

import datetime
import math
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

import gluonnlp
import mxnet as mx
import numpy as np
from tqdm import tqdm

import noisin
from noisin.checkpoint import Progress, RunDirectory
from noisin.config import Config, recorded_config
from noisin.data.batches import number_of_training_batches, training_batches
from noisin.data.corpus import Corpus
from noisin.evaluation import Evaluator
from noisin.events import Events
from noisin.model import LanguageModel, make_model
from noisin.objective import perplexity
from noisin.record import finite_or_null, read_record, seal, write_record
from noisin.step import Diverged, TrainingStep
from noisin.system.device import check_dtype, device_name
from noisin.system.errors import UserError
from noisin.system.files import MEMORY
from noisin.system.threads import threads

# A batch has exploded if its loss per word is this many times that of a uniform guess. Networks of ReLUs do so at the
# start, for some tens of batches in which the hidden state grows without bound, and come back; so they do in PyTorch.
EXPLOSION = 3.0
LONGEST_EXPLOSION = 100

# Numbers in one array of MXNet, as it is built for PyPI.
LARGEST_ARRAY = 2**31 - 1


def train(
    config: Config,
    run_directory: Any,
    corpus: Corpus,
    device: Optional[mx.Context] = None,
    report: Callable[[str], None] = tqdm.write,
    progress: bool = True,
    events: bool = False,
) -> Dict[str, Any]:
    """Train one run to its end, going on from its last checkpoint if it has one, and return its record.

    Parameters
    ----------
    config : Config
    run_directory : str or Path
        Where config, metrics, weights and record go. A run of the same configuration found there goes on; a finished
        one is returned as it is.
    corpus : Corpus
    device : mxnet.Context, default cpu
    report : callable, default tqdm.write
        Receives one line an epoch.
    progress : bool, default True
        Show progress bars where standard error is a terminal.
    events : bool, default False
        Write events for TensorBoard into the run directory too.

    Returns
    -------
    dict
        The record (DESIGN, section 7).

    Raises
    ------
    UserError
        If the directory holds a run of another configuration, is in use by another process, or cannot be written; if
        the device cannot multiply what `config` says.
    """
    device, directory = device or mx.cpu(), RunDirectory(run_directory)
    training_batches(corpus.train, config.batch_size, config.unroll)  # refuses too short a text, before any file
    if not directory.record_path.exists():  # a finished run multiplies nothing any more
        check_dtype(config.dtype, device)
    watcher = Events(directory.path / "events") if events else None  # refused, where it cannot be, before any file
    with directory.held():
        identity = {"config": config.to_dict(), "corpus_sha256": corpus.digest, "version": noisin.__version__}
        directory.begin(identity, corpus.vocabulary.idx_to_token)
        report(f"run {directory.path}")
        if directory.record_path.exists():
            record = read_record(directory.record_path)
            if recorded_config(record["config"]) != config:
                raise UserError(f"{directory.record_path} is another run's record: delete it, and this one goes on")
            directory.drop_checkpoints(record["best_epoch"])  # which a kill may have prevented
            if watcher:
                watcher.begin(record["epochs"])
                watcher.close()
            report(f"already {_summary_line(record)}")
            return record
        return _Run(config, directory, corpus, device, report, progress, watcher).train()


class _Run:
    """A run in memory: model, optimizer and progress."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        corpus: Corpus,
        device: mx.Context,
        report: Callable[[str], None],
        progress: bool,
        events: Optional[Events],
    ) -> None:
        self.config, self.directory, self.corpus, self.device = config, directory, corpus, device
        self.report, self.show_bar, self.events = report, progress, events
        self.revision = _git_revision()  # of the code that is loaded now, not of what the checkout holds hours later
        self.model = initial_model(config, len(corpus.vocabulary), device)
        self.step = TrainingStep(self.model, config, device)
        self.evaluator = make_evaluator(self.model, config, corpus, device, progress)
        self.progress = directory.recover(report) or Progress(started=_now())
        if self.progress.epochs and self.progress.status == "running":
            directory.restore(self.model, self.step.trainer, self.progress)
            report(f"going on after epoch {len(self.progress.epochs)}")

    def train(self) -> Dict[str, Any]:
        if self.events:
            self.events.begin(self.progress.epochs)
        try:
            while self.progress.status == "running":
                self._train_epoch(len(self.progress.epochs) + 1)
        finally:
            if self.events:
                self.events.close()
        return self._finish()

    def _train_epoch(self, epoch: int) -> None:
        if self.revision and self.revision not in self.progress.revisions:
            self.progress.revisions.append(self.revision)
        # MXNet cannot save its random state: each epoch starts from a state of its own, so that a resumed run is exact.
        mx.random.seed(_stream(self.config.seed, epoch))
        self.step.trainer.set_learning_rate(learning_rate(self.config, epoch))
        start = time.perf_counter()
        try:
            train_ppl, words = self._pass_over_training_set(epoch)
            seconds = time.perf_counter() - start
            valid_ppl = self.evaluator.clean(self.corpus.valid)
            if not valid_ppl < math.inf:
                raise Diverged(f"validation: the perplexity is {valid_ppl}")
        except Diverged as reason:
            self.progress.status, self.progress.reason = "diverged", f"epoch {epoch}, {reason}"
            self.directory.end(self.progress)
            self.report(
                f"diverged in {self.progress.reason}; {self._what_is_left()}; "
                "try a smaller --learning-rate, a smaller --clip, or another --recurrent-init"
            )
            return
        entry = {
            "epoch": epoch,
            "train_ppl": train_ppl,
            "valid_ppl": valid_ppl,
            "seconds": seconds,
            "tokens_per_second": words / seconds,
            **spreads(self.model),
        }
        self.progress.epochs.append(entry)
        self._judge(entry)
        self.directory.save(self.model, self.step.trainer, self.progress)
        if self.events:
            self.events.add(entry)
        self.report(_epoch_line(entry, improved=self.progress.best_epoch == epoch))

    def _pass_over_training_set(self, epoch: int) -> Tuple[float, int]:
        """One epoch of updates; returns train perplexity, with the noise on, and the number of words.

        An exploded batch counts with the least loss of one, since perplexity would overflow.
        """
        config, tokens = self.config, self.corpus.train
        batches = number_of_training_batches(tokens, config.batch_size, config.unroll)
        words_a_batch = config.batch_size * config.unroll
        ceiling = EXPLOSION * math.log(len(self.corpus.vocabulary)) * words_a_batch
        total, exploded = 0.0, 0
        self.step.begin()
        with tqdm(
            total=batches * words_a_batch,
            desc=f"epoch {epoch}/{config.epochs}",
            unit=" words",
            unit_scale=True,
            leave=False,
            disable=None if self.show_bar else True,
        ) as bar:
            for batch, (inputs, targets) in enumerate(training_batches(tokens, config.batch_size, config.unroll), 1):
                where = f"batch {batch} (step {self.progress.updates + 1})"
                try:
                    loss = self.step(inputs, targets)
                except Diverged as reason:
                    raise Diverged(f"{where}: {reason}") from None
                if not loss < math.inf:  # NaN too
                    raise Diverged(f"{where}: the loss is {loss}")
                in_a_row = self.progress.exploding + 1 if loss > ceiling else 0
                exploded += loss > ceiling
                if in_a_row > LONGEST_EXPLOSION:
                    raise Diverged(f"{where}: {in_a_row} batches in a row have a loss above {ceiling:.4g}")
                self.progress.exploding = in_a_row
                self.progress.updates += 1
                total += min(loss, ceiling)
                bar.set_postfix_str(f"ppl {perplexity(-total, batch * words_a_batch):.1f}", False)
                bar.update(words_a_batch)
        if exploded:
            self.report(
                f"{exploded} of the {batches} batches of epoch {epoch} exploded: in its training perplexity "
                f"each counts with a loss of {ceiling:.4g}"
            )
        words = batches * words_a_batch
        return perplexity(-total, words), words

    def _what_is_left(self) -> str:
        """Of a run that has diverged, in words."""
        best = self.progress.best_epoch
        if best is None:
            return "no epoch was finished"
        return f"{self.directory.best_path(best)} keeps the weights of epoch {best}, the best one"

    def _judge(self, entry: Dict[str, Any]) -> None:
        """Early stopping, on clean validation perplexity alone."""
        progress = self.progress
        if progress.best_valid_ppl is None or entry["valid_ppl"] < progress.best_valid_ppl:
            progress.best_epoch, progress.best_valid_ppl = entry["epoch"], entry["valid_ppl"]
        if entry["epoch"] - progress.best_epoch >= self.config.patience:
            progress.status = "early-stopped"
        elif entry["epoch"] >= self.config.epochs:
            progress.status = "finished"

    def _finish(self) -> Dict[str, Any]:
        """Test the best weights, once, and write the record."""
        test_ppl = None
        if self.progress.best_epoch is not None:
            self.directory.load_best_weights(self.model)
            test_ppl = finite_or_null(self.evaluator.all(self.corpus.test, seed=_stream(self.config.seed, 0)))
        record = make_record(self.config, self.progress, self.model, test_ppl, self.corpus, self.device)
        write_record(self.directory.record_path, record)
        self.directory.drop_checkpoints(self.progress.best_epoch)
        self.report(_summary_line(record))
        return record


def initial_model(
    config: Config, vocabulary_size: int, device: mx.Context, predictions: Optional[int] = None
) -> LanguageModel:
    """The model of `config` with its parameters initialised from the seed.

    Parameters
    ----------
    config : Config
    vocabulary_size : int
    device : mxnet.Context
    predictions : int, optional
        How many words it will predict at once; by default as many as in training or in evaluation.

    Raises
    ------
    UserError
        If this machine's memory cannot hold it.
    """
    mx.random.seed(_stream(config.seed, 0))
    model = make_model(config, vocabulary_size)
    if predictions is None:
        predictions = max(config.unroll * config.batch_size * config.samples, evaluated_at_once(config))
    _check_memory(model, predictions * vocabulary_size)
    model.initialize(ctx=device)
    return model


def evaluated_at_once(config: Config) -> int:
    """Words that evaluation predicts at once."""
    return config.unroll * config.eval_batch_size * (config.eval_samples if config.acts("eval_samples") else 1)


def _check_memory(model: LanguageModel, predictions: int) -> None:
    """Refuse what no memory of this machine can hold, before MXNet takes it piece by piece until it is killed."""
    weights = sum(math.prod(parameter.shape) for parameter in model.collect_params().values())
    least = 4 * (2 * weights + predictions)  # each weight has a gradient
    if least > MEMORY:
        raise UserError(
            f"this model needs {least / 2**30:,.0f} GiB of memory or more, this machine has {MEMORY / 2**30:,.0f}: "
            "lower hidden, embedding, layers or max_vocabulary, or batch_size, unroll, samples and their like"
        )
    largest = max(predictions, *(math.prod(parameter.shape) for parameter in model.collect_params().values()))
    if largest > LARGEST_ARRAY:
        raise UserError(
            f"this model needs an array of {largest:,} numbers, MXNet has none of more than {LARGEST_ARRAY:,}: "
            "lower hidden, embedding or max_vocabulary, or batch_size, unroll, samples and their like"
        )


def make_evaluator(
    model: LanguageModel, config: Config, corpus: Corpus, device: mx.Context, progress: bool = False
) -> Evaluator:
    """The evaluator that `config` describes."""
    eos = corpus.vocabulary["<eos>"]
    return Evaluator(model, eos, config.eval_batch_size, config.unroll, config.eval_samples, device, progress)


def learning_rate(config: Config, epoch: int) -> float:
    """The rate in epoch 1, 2, ...: constant up to `decay_after`, then times `decay` each epoch (paper, section 4)."""
    return config.learning_rate * config.decay ** max(0, epoch - config.decay_after)


def spreads(model: LanguageModel) -> Dict[str, Any]:
    """The spreads as they stand: `gamma` of each layer, bottom first, and `input_gamma` where the input has noise."""
    gamma = [noise.gamma for noise in model.noises]
    return {"gamma": gamma} if model.input_noise is None else {"gamma": gamma, "input_gamma": model.input_noise.gamma}


def _stream(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch of each run; 0 is for the initial weights and the test."""
    return (seed * 1_000_003 + epoch * 7_919) % (2**31)


def _epoch_line(entry: Dict[str, Any], improved: bool) -> str:
    gamma = f"  gamma {', '.join(f'{g:.3f}' for g in entry['gamma'])}" if entry["gamma"] else ""
    return (
        f"epoch {entry['epoch']:3d}  train {entry['train_ppl']:8.2f}  valid {entry['valid_ppl']:8.2f}"
        f"{' *' if improved else '  '}{gamma}  {entry['tokens_per_second']:7,.0f} words/s  {entry['seconds']:6.1f} s"
    )


def _summary_line(record: Dict[str, Any]) -> str:
    if record["test_ppl"] is None:
        return f"{record['status']}: no epoch was finished"
    test = record["test_ppl"]
    clean, averaged = (_shown(test[name]) for name in ("clean", "averaged"))
    line = (
        f"{record['status']}: best epoch {record['best_epoch']}, valid {record['valid_ppl']:.2f}, "
        f"test {clean} clean, {averaged} averaged over {test['samples']} samples"
    )
    if test.get("averaged_limit_error"):  # 0 where nothing is random, null or missing where it is not known
        line += f" ({test['averaged_limit']:.2f} ± {test['averaged_limit_error']:.2f} in the limit of many)"
    return line


def _shown(perplexity: Optional[float]) -> str:
    return "not finite" if perplexity is None else f"{perplexity:.2f}"


def make_record(
    config: Config,
    progress: Progress,
    model: LanguageModel,
    test_ppl: Optional[Dict[str, Any]],
    corpus: Corpus,
    device: mx.Context,
) -> Dict[str, Any]:
    """The sealed record of a run (DESIGN, section 7); a diverged one has null where there is no number."""
    best = progress.epochs[progress.best_epoch - 1] if progress.best_epoch else None
    parameters = model.collect_params().values()
    content = {
        "corpus": corpus.name,
        "cell": config.cell,
        "activation": config.activation,
        "layers": config.layers,
        "hidden": config.hidden,
        "method": config.method,
        "noise": config.noise if model.noises else None,
        "gamma": best["gamma"] if best else [],
        "seed": config.seed,
        "dtype": config.dtype,
        "parameters": sum(p.data().size for p in parameters if p.grad_req != "null"),
        "epochs": progress.epochs,
        "best_epoch": progress.best_epoch,
        "valid_ppl": progress.best_valid_ppl,
        "test_ppl": test_ppl,
        "status": progress.status,
        "reason": progress.reason,
        "config": config.to_dict(),
        "corpus_sha256": corpus.digest,
        "floor_ppl": corpus.floor,
        "git": ", ".join(progress.revisions) or None,
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (mx, gluonnlp, np)},
            "noisin": noisin.__version__,
        },
        "hardware": {"cpu": cpu_name(), "threads": threads(), "device": device_name(device)},
        "started": progress.started,
        "finished": _now(),
    }
    return seal(content)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _git_revision() -> Optional[str]:
    """The commit of this package, with '+' where its tracked files differ from it; None outside a checkout of it."""
    try:
        # Installed below another project's checkout, it is that project whose commit git would say.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    """What git says of the folder of this package; raises SubprocessError where it fails."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def cpu_name() -> str:
    """The processor's model, for records."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # only Linux has that file
    return platform.processor() or platform.machine()
