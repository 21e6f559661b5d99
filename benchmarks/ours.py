"""The limit and our own training step; each function returns a step."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Dict, Iterator, Optional

import noisin  # noqa: F401  before mxnet: it sets threads

# isort: split
import mxnet as mx
import numpy as np

from benchmarks.workloads import Workload
from noisin.config import Config
from noisin.data.batches import training_batches
from noisin.evaluation import Evaluator
from noisin.graphs import BFLOAT16
from noisin.methods import DROPOUT, NOISIN, NOISIN_STAR, NONE
from noisin.model import LanguageModel, initial_model
from noisin.training import TrainingStep

METHODS_TIMED = (NONE.name, DROPOUT.name, NOISIN.name, NOISIN_STAR.name, f"{DROPOUT.name}+{NOISIN.name}")

Step = Callable[[], Optional[float]]  # queues one training step; returns the loss per word before it, if it has one


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


def ours(method: str, workload: Workload, dtype: str, **options: Any) -> Step:
    """Return the training step of `noisin train`.

    Parameters
    ----------
    method : str
        Key of `METHODS`.
    workload : Workload
    dtype : {'float32', 'bfloat16'}
    options
        Of `Config`, in place of those that the workload gives.

    Returns
    -------
    function ()
        Queues one training step; returns the loss per word before it.
    """
    config = _config(method, workload, dtype, **options)
    training_step = TrainingStep(_model(config, workload), config, mx.cpu())

    def endless() -> Iterator[Any]:
        while True:
            yield from training_batches(workload.tokens(), workload.batch_size, workload.unroll)

    batches = endless()
    return lambda: training_step(*next(batches)) / workload.words


def _config(method: str, workload: Workload, dtype: str, **options: Any) -> Config:
    from_workload: Dict[str, Any] = {
        name: getattr(workload, name)
        for name in ("cell", "layers", "hidden", "optimizer", "learning_rate", "batch_size", "unroll", "samples")
    }
    more = {"method": method, "activation": "tanh", "gamma": [workload.gamma], "dtype": dtype, **options}
    return Config(**from_workload, **more)


def _model(config: Config, workload: Workload) -> LanguageModel:
    model, weights = initial_model(config, workload.vocabulary, mx.cpu()), workload.weights()
    parameters = model.collect_params()
    model.embedding_weight.set_data(weights.embedding)
    model.decoder_weight.set_data(weights.decoder)
    model.decoder_bias.set_data(weights.decoder_bias)
    for layer, arrays in enumerate(weights.layers):
        for name, array in zip(("i2h_weight", "h2h_weight", "i2h_bias", "h2h_bias"), arrays):
            parameters[f"cells_l{layer}_{name}"].set_data(array)
    return model


def particle_filter(workload: Workload, dtype: str) -> Step:
    """Return a step of evaluation: a segment of each column by a particle filter, as `noisin evaluate --particles`."""
    model = _model(_config(NOISIN.name, workload, dtype), workload)
    evaluator = Evaluator(model, eos=1, batch_size=workload.batch_size, unroll=workload.unroll)
    segment = workload.tokens()[: workload.words]
    return lambda: np.log(evaluator.marginal(segment, workload.particles, repetitions=1)["marginal"])


CONTENDERS: Dict[str, Callable[[Workload, str], Step]] = {
    "limit": limit,
    **{method: partial(ours, method) for method in METHODS_TIMED},
    "noisin-s4": lambda workload, dtype: ours(NOISIN.name, workload.changed({"samples": 4}), dtype),
    "log-averaged": partial(ours, NOISIN.name, objective="log-averaged"),
    "particle-filter": particle_filter,
}


def finish() -> None:
    """Wait until every queued step is done."""
    mx.nd.waitall()
