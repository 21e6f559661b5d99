"""Time the cost of reading the gradient's norm in each step: `python -m benchmarks.gradient_check [HIDDEN]`.

Three trainers train the same model in turns on the synthetic corpus. Ours reads the norm and stops if it is not finite.
Gluon's clipping without that check scales on the device and lets a NaN spread. The third does not clip, which gives the
shortest possible step.
"""

import random
import statistics
import sys
import time

import noisin  # noqa: F401  before mxnet: it sets threads

# isort: split
from mxnet import gluon, nd

from noisin.config import Config
from noisin.data.batches import training_batches
from noisin.data.corpus import load_corpus
from noisin.model import initial_model
from noisin.optimizers import ClippingTrainer
from noisin.system.device import find_device
from noisin.training import TrainingStep

VOCABULARY, BLOCK, ROUNDS = 10_000, 10, 15  # word types, as in the Penn Treebank; steps per turn; turns per trainer


class Unwatched(ClippingTrainer):
    """Clip the gradient without reading its norm."""

    def step(self, batch_size: int, ignore_stale_grad: bool = False) -> None:
        gradients = [p.list_grad()[0] for p in self._params if p.grad_req != "null"]
        gluon.utils.clip_global_norm(gradients, self._clip * batch_size, check_isfinite=False)
        gluon.Trainer.step(self, batch_size, ignore_stale_grad)


class Unclipped(ClippingTrainer):
    """Do not clip."""

    def step(self, batch_size: int, ignore_stale_grad: bool = False) -> None:
        gluon.Trainer.step(self, batch_size, ignore_stale_grad)


def main() -> None:
    """Print each trainer's milliseconds per step (median over turns) and the cost of ours over it; takes a minute."""
    hidden = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    config, device, corpus = Config(method="noisin", hidden=hidden), find_device("cpu"), load_corpus("synthetic")
    ways = {way.__name__: TrainingStep(initial_model(config, VOCABULARY, device), config, device) for way in WAYS}
    for way in WAYS:
        ways[way.__name__].trainer.__class__ = way
    batches = list(training_batches(corpus.train, config.batch_size, config.unroll))[:BLOCK]
    seconds = {name: [] for name in ways}  # type: ignore[var-annotated]
    for turn in range(ROUNDS + 1):
        for name in random.sample(sorted(ways), len(ways)):
            start = time.perf_counter()
            for batch in batches:
                ways[name](*batch)
            nd.waitall()
            if turn:  # the first turn builds the graph
                seconds[name].append((time.perf_counter() - start) / len(batches))
    ours = seconds[ClippingTrainer.__name__]
    for name, times in seconds.items():
        ratios = sorted(mine / other - 1 for mine, other in zip(ours, times))
        low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
        print(
            f"{name:16} {1e3 * statistics.median(times):7.2f} ms a step; ours costs {statistics.median(ratios):+.2%} "
            f"of it (quartiles {low:+.2%} to {high:+.2%})"
        )


WAYS = (ClippingTrainer, Unwatched, Unclipped)

if __name__ == "__main__":
    main()
