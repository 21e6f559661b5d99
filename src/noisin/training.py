"""The training step, and the loop of a run: truncated backpropagation through time, schedule and early stopping."""

from __future__ import annotations

import math
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import mxnet as mx
import numpy as np
from tqdm import tqdm

from noisin.config import Config
from noisin.data.batches import left_out_notice, number_of_training_batches, training_batches
from noisin.data.corpus import Corpus
from noisin.data.published import NAMES
from noisin.evaluation import make_evaluator
from noisin.model import LanguageModel, evaluation_seed, initial_model, stream
from noisin.objective import AveragedLikelihood, FusedLikelihood, perplexity
from noisin.optimizers import OPTIMIZERS, ClippingTrainer, Diverged
from noisin.runs.directory import RunDirectory
from noisin.runs.events import Events
from noisin.runs.formats import LARGEST, Progress, differences
from noisin.runs.record import finite_or_null, make_record, origin, write_record
from noisin.system.device import check_dtype
from noisin.system.errors import UserError, plural
from noisin.system.files import BRIEF
from noisin.system.provenance import now

# A batch has exploded if its loss per word is this many times that of a uniform guess. Networks of ReLUs do so at the
# start, for some tens of batches in which the hidden state grows without bound, and come back; so they do in PyTorch.
EXPLOSION = 3.0
LONGEST_EXPLOSION = 100


class TrainingStep:
    """Train a model on one segment after the other, carrying its states on (truncated backpropagation through time).

    Parameters
    ----------
    model : LanguageModel
        Initialised on `device`.
    config : Config
        Its optimizer, learning rate, weight decay, clip, batch size, unroll, samples and dtype.
    device : mxnet.Context
    """

    def __init__(self, model: LanguageModel, config: Config, device: mx.Context) -> None:
        self._model, self._device, self._batch_size = model, device, config.batch_size
        kind = FusedLikelihood if device.device_type == "cpu" else AveragedLikelihood
        self._objective = kind(model, config.unroll, config.samples, config.dtype, config.objective)
        self._objective.hybridize(static_alloc=True, static_shape=True)
        optimizer = OPTIMIZERS[config.optimizer](learning_rate=config.learning_rate, wd=config.weight_decay)
        self.trainer = ClippingTrainer(model.collect_params(), optimizer, config.clip)
        self.begin()

    def begin(self) -> None:
        """Start from zero states: the next segment is the first of the text."""
        self._states: List[Any] = self._objective.begin_state(self._batch_size, self._device)

    def __call__(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        """Update the weights once.

        Parameters
        ----------
        inputs, targets : array (T, B)
            Token ids.

        Returns
        -------
        float
            The loss before the update, summed over all words.

        Raises
        ------
        Diverged
            If the gradient is not finite; the weights are then left as they were.
        """
        states = self._model.begin_sequence(self._states)
        inputs, targets = (mx.nd.array(ids, ctx=self._device) for ids in (inputs, targets))
        loss, self._states = self._objective.backward(inputs, targets, states)
        self.trainer.step(self._batch_size)
        return loss


def train(
    config: Config,
    run_directory: Any,
    corpus: Corpus,
    device: Optional[mx.Context] = None,
    report: Callable[[str], None] = tqdm.write,
    progress: bool = True,
    events: bool = False,
    wait: bool = False,
    test: bool = True,
) -> Dict[str, Any]:
    """Train one run to its end, going on from its last checkpoint if it has one, and return its record.

    Parameters
    ----------
    config : Config
    run_directory : str or Path
        Where config, metrics, weights and record go. A run of the same configuration and text found there goes on, a
        finished one if it is to have more epochs; else it is returned as it is.
    corpus : Corpus
    device : mxnet.Context, default cpu
    report : callable, default tqdm.write
        Receives one line an epoch.
    progress : bool, default True
        Show progress bars where standard error is a terminal.
    events : bool, default False
        Write events for TensorBoard into the run directory too.
    wait : bool, default False
        Wait while another process trains in the run directory, instead of refusing after 3 seconds.
    test : bool, default True
        Evaluate the test split when training ends, and write the record. A later call can still do that. A run
        without a finished epoch has its record either way.

    Returns
    -------
    dict
        The record (docs/formats.md); without `test`, its `test_ppl` is None.

    Raises
    ------
    UserError
        If `corpus` is not the one that `config` names; if the directory holds a run of another configuration, is in use
        by another process, or cannot be written; if the device cannot multiply what `config` says.
    """
    device, directory = device or mx.cpu(), RunDirectory(run_directory)
    if {config.corpus, corpus.name} & set(NAMES) and config.corpus != corpus.name:
        raise UserError(f"the corpus is {corpus.name}, but config has corpus='{config.corpus}': give both the same")
    training_batches(corpus.train, config.batch_size, config.unroll)  # refuses too short a text, before any file
    if not directory.record_path.exists():  # a finished run multiplies nothing any more
        check_dtype(config.dtype, device)
    watcher = Events(directory.path / "events") if events else None  # refused, where it cannot be, before any file
    with directory.lock(math.inf if wait else BRIEF):
        directory.begin(config, corpus)
        report(f"run {directory.path}")
        notice = left_out_notice(corpus.train, config.batch_size, config.unroll)
        if notice:
            report(notice)
        record = directory.read_record()
        if record is not None:
            directory.check_usable(record)
            directory.tidy(record)  # which a kill may have prevented
            if watcher:
                watcher.begin(record["epochs"])
                watcher.close()
            report(f"already {_summary_line(record)}")
            return record
        check_dtype(config.dtype, device)  # also for more epochs of a finished run
        return _Run(config, directory, corpus, device, report, progress, watcher).train(test)


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
        self.origin = origin(device)  # of the code that is loaded now, not of what the checkout holds hours later
        self.model = initial_model(config, len(corpus.vocabulary), device)
        self.step = TrainingStep(self.model, config, device)
        self.evaluator = make_evaluator(self.model, config, corpus.vocabulary, device, progress)
        self.progress = directory.recover(report) or Progress(started=now())
        if self.progress.epochs and self.progress.status == "running":
            directory.restore(self.model, self.step.trainer, self.progress)
            report(f"resuming after epoch {len(self.progress.epochs)}")
            self._say_what_has_changed()

    def _say_what_has_changed(self) -> None:
        before = self.progress.origins[-1]
        changed = [line for part in ("versions", "hardware") for line in differences(before[part], self.origin[part])]
        if changed:
            self.report(f"{'; '.join(changed)}: the result may differ by rounding from that of an uninterrupted run")

    def train(self, test: bool) -> Dict[str, Any]:
        if self.events:
            self.events.begin(self.progress.epochs)
        try:
            while self.progress.status == "running":
                self._train_epoch(len(self.progress.epochs) + 1)
        finally:
            if self.events:
                self.events.close()
        return self._finish(test)

    def _train_epoch(self, epoch: int) -> None:
        if self.origin not in self.progress.origins:
            self.progress.origins.append(self.origin)
        # MXNet cannot save its random state: each epoch starts from a state of its own, so that a resumed run is exact.
        mx.random.seed(stream(self.config.seed, epoch))
        self.step.trainer.set_learning_rate(learning_rate(self.config, epoch))
        start = time.perf_counter()
        try:
            train_ppl, words = self._pass_over_training_set(epoch)
            seconds = time.perf_counter() - start
            valid_ppl = self.evaluator.clean(self.corpus.valid)
            if not valid_ppl <= LARGEST:
                raise Diverged(f"validation: the perplexity is {valid_ppl}")
        except Diverged as reason:
            self.progress.status, self.progress.reason = "diverged", f"epoch {epoch}, {reason}"
            self.directory.end(self.progress)
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
                f"{exploded} of the {batches} batches of epoch {epoch} exploded: in the training perplexity "
                f"the loss of each is capped at {ceiling:.4g}"
            )
        words = batches * words_a_batch
        return perplexity(-total, words), words

    def _judge(self, entry: Dict[str, Any]) -> None:
        """Early stopping, on clean validation perplexity alone."""
        progress = self.progress
        if progress.valid_ppl is None or entry["valid_ppl"] < progress.valid_ppl:
            progress.best_epoch, progress.valid_ppl = entry["epoch"], entry["valid_ppl"]
        if entry["epoch"] - progress.best_epoch >= self.config.patience:
            progress.status = "early-stopped"
        elif entry["epoch"] >= self.config.epochs:
            progress.status = "finished"

    def _finish(self, test: bool) -> Dict[str, Any]:
        """Test the best weights and write the record. Without `test` do neither, unless no epoch was finished."""
        test_ppl = None
        testable = self.progress.best_epoch is not None
        if test and testable:
            self.directory.load_best_weights(self.model)
            seed, particles = evaluation_seed(self.config.seed), self.config.eval_particles
            found = self.evaluator.all(self.corpus.test, seed)
            if particles:
                found.update(self.evaluator.marginal(self.corpus.test, particles, seed=seed))
            test_ppl = finite_or_null(found)
        record = make_record(self.config, self.progress, self.model, test_ppl, self.corpus)
        if test or not testable:
            write_record(self.directory.record_path, record)
            self.directory.tidy(record)
        self.report(_summary_line(record))
        return record


def learning_rate(config: Config, epoch: int) -> float:
    """The rate in epoch 1, 2, ...: constant up to `decay_after`, then times `decay` each epoch (paper, section 4)."""
    return config.learning_rate * config.decay ** max(0, epoch - config.decay_after)


def spreads(model: LanguageModel) -> Dict[str, Any]:
    """The spreads as they stand: `gamma` of each layer, bottom first, and `input_gamma` where the input has noise."""
    gamma = [noise.gamma for noise in model.noises]
    return {"gamma": gamma} if model.input_noise is None else {"gamma": gamma, "input_gamma": model.input_noise.gamma}


def _epoch_line(entry: Dict[str, Any], improved: bool) -> str:
    gamma = f"  gamma {', '.join(f'{g:.3f}' for g in entry['gamma'])}" if entry["gamma"] else ""
    return (
        f"epoch {entry['epoch']:3d}  train {entry['train_ppl']:8.2f}  valid {entry['valid_ppl']:8.2f}"
        f"{' *' if improved else '  '}{gamma}  {entry['tokens_per_second']:7,.0f} words/s  {entry['seconds']:6.1f} s"
    )


def _summary_line(record: Dict[str, Any]) -> str:
    if record["best_epoch"] is None:
        return f"{record['status']}: no epoch was finished"
    line = f"{record['status']}: best epoch {record['best_epoch']}, valid {record['valid_ppl']:.2f}, "
    test = record["test_ppl"]
    if test is None:
        return line + "not tested"
    clean, averaged = (_shown(test[name]) for name in ("clean", "averaged"))
    line += f"test {clean} clean, {averaged} averaged over {plural(test['samples'], 'sample')}"
    if test.get("averaged_limit_error"):  # 0 where nothing is random, null or missing where it is not known
        line += f" ({test['averaged_limit']:.2f} ± {test['averaged_limit_error']:.2f} in the limit of many)"
    return line


def _shown(perplexity: Optional[float]) -> str:
    return "not finite" if perplexity is None else f"{perplexity:.2f}"
