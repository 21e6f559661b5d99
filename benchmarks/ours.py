"""The limit and our own training step; each function returns a step."""

from __future__ import annotations

from functools import partial
from typing import Callable, Dict

import noisin  # noqa: F401  before mxnet: it sets threads

# isort: split
import mxnet as mx

from benchmarks.workloads import GAMMA, Workload
from noisin.config import Config
from noisin.data.batches import training_batches
from noisin.graphs import BFLOAT16
from noisin.methods import DROPOUT, NOISIN, NOISIN_STAR, NONE
from noisin.model import initial_model
from noisin.training import TrainingStep

Step = Callable[[], object]  # queues one training step, which `finish` waits for


def limit(workload: Workload, dtype: str) -> Step:
    """Return a step of matrix products alone, forward and backward, with operands and results allocated beforehand.

    As in our training step, only the decoder's product has bfloat16 operands. Each product is a b^T, with operands laid
    out for it: `FullyConnected`, MXNet's fastest.
    """
    products = []
    for times, rows, inner, columns, decoder in workload.products():
        # y = x W^T, then dx = dy W and dW = dy^T x: three products of the same three numbers.
        for left, shared, right in ((rows, inner, columns), (rows, columns, inner), (columns, rows, inner)):
            operands = [mx.nd.random.normal(shape=shape) for shape in ((left, shared), (right, shared))]
            if decoder and dtype == "bfloat16":
                operands = [mx.nd.amp_cast(operand, dtype=BFLOAT16) for operand in operands]
            result = mx.nd.FullyConnected(*operands, no_bias=True, num_hidden=right)
            products += [(operands, right, result)] * times

    def step() -> None:
        for operands, columns, result in products:
            mx.nd.FullyConnected(*operands, no_bias=True, num_hidden=columns, out=result)

    return step


def ours(method: str, samples: int, workload: Workload, dtype: str) -> Step:
    """Return the training step of `noisin train`.

    Parameters
    ----------
    method : str
        Key of `METHODS`.
    samples : int
        S, noise trajectories.
    workload : Workload
    dtype : {'float32', 'bfloat16'}

    Returns
    -------
    function ()
        Queues one training step.
    """
    config = Config(
        method=method,
        cell=workload.cell,
        activation="tanh",
        layers=workload.layers,
        hidden=workload.hidden,
        gamma=[GAMMA],
        optimizer=workload.optimizer,
        learning_rate=workload.learning_rate,
        batch_size=workload.batch_size,
        unroll=workload.unroll,
        samples=samples,
        dtype=dtype,
    )
    training_step = TrainingStep(initial_model(config, workload.vocabulary, mx.cpu()), config, mx.cpu())

    def endless():
        while True:
            yield from training_batches(workload.tokens(), workload.batch_size, workload.unroll)

    batches = endless()
    return lambda: training_step(*next(batches))


CONTENDERS: Dict[str, Callable[[Workload, str], Step]] = {
    "limit": limit,
    **{method.name: partial(ours, method.name, 1) for method in (NONE, DROPOUT, NOISIN_STAR)},
    NOISIN.name: lambda workload, dtype: ours(NOISIN.name, workload.samples, workload, dtype),
    "noisin-s4": partial(ours, NOISIN.name, 4),
}


def finish() -> None:
    """Wait until every queued step is done."""
    mx.nd.waitall()
