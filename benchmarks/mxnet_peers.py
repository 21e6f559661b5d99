"""The peers on MXNet, without noisin; each function builds a model and returns its training step."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, List, Tuple, Union

from benchmarks.workloads import Workload

# Only the part of noisin that lets MXNet be imported on today's NumPy; `import noisin` would set more.
_FILE = Path(str(find_spec("noisin").origin)).parent / "system" / "mxnet_import.py"  # type: ignore[union-attr]
with runpy.run_path(str(_FILE))["stand_ins"]():
    import gluonnlp
    import mxnet as mx
    from mxnet import autograd, gluon
    from mxnet.contrib import amp

Step = Callable[[], mx.nd.NDArray]  # queues one training step; returns the loss per word before it
Tensor = Union[mx.nd.NDArray, mx.sym.Symbol]


class _PlainCells(gluon.HybridBlock):
    """The straightforward model: Gluon's cells stepped one by one, with noise added to each hidden state."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self._workload = workload
        cell, size = {"rnn": gluon.rnn.RNNCell, "lstm": gluon.rnn.LSTMCell}[workload.cell], workload.hidden
        with self.name_scope():
            self.embedding = gluon.nn.Embedding(workload.vocabulary, size)
            self.cells = gluon.rnn.HybridSequentialRNNCell()
            for _ in range(workload.layers):
                self.cells.add(cell(size, input_size=size))
            self.decoder = gluon.nn.Dense(workload.vocabulary, in_units=size, flatten=False)

    def hybrid_forward(self, F: ModuleType, tokens: Tensor, states: List[Tensor]) -> Tuple[Tensor, List[Tensor]]:
        outputs, per_layer = [], len(states) // self._workload.layers
        for word in F.split(self.embedding(tokens), num_outputs=self._workload.unroll, axis=0, squeeze_axis=True):
            hidden, fresh = word, []
            for layer, cell in enumerate(self.cells._children.values()):
                hidden, own = cell(hidden, states[layer * per_layer : (layer + 1) * per_layer])
                hidden = F.broadcast_add(hidden, self._workload.gamma * F.random.normal_like(hidden))
                fresh += [hidden, *own[1:]]
            states = fresh
            outputs.append(hidden)
        return self.decoder(F.stack(*outputs, axis=0)), states


def plain_cell(workload: Workload, dtype: str) -> Step:
    """Return the training step of a noisy language model of Gluon's own cells, hybridized."""
    _use(dtype)
    model = _PlainCells(workload)
    model.initialize()
    model.hybridize()
    states = model.cells.begin_state(batch_size=workload.batch_size, func=mx.nd.zeros)
    return _gluon_step(workload, model, states)


def gluonnlp_model(workload: Workload, dtype: str) -> Step:
    """Return the training step of GluonNLP's own model: fused layers, no noise."""
    _use(dtype)
    mode = {"rnn": "rnn_tanh", "lstm": "lstm"}[workload.cell]
    size = workload.hidden
    model = gluonnlp.model.train.StandardRNN(mode, workload.vocabulary, size, size, workload.layers, dropout=0.0)
    model.initialize()
    model.hybridize(static_alloc=True)
    return _gluon_step(workload, model, model.begin_state(workload.batch_size, func=mx.nd.zeros))


def _use(dtype: str) -> None:
    if dtype == "bfloat16":
        amp.init(target_dtype="bfloat16")


def _gluon_step(workload: Workload, model: gluon.Block, states: List[Any]) -> Step:
    """Return the training step of GluonNLP's scripts, for a model that returns logits and states first."""
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    loss_function.hybridize(static_alloc=True)
    parameters = model.collect_params()
    for parameter, value in zip(parameters.values(), workload.weights().in_order()):
        parameter.set_data(mx.nd.array(value))
    trainer = gluon.Trainer(parameters, workload.optimizer, {"learning_rate": workload.learning_rate}, kvstore=None)
    batches = workload.batches()

    def detached(state: Any) -> Any:
        return [detached(part) for part in state] if isinstance(state, (list, tuple)) else state.detach()

    def step() -> mx.nd.NDArray:
        nonlocal states
        inputs, targets = (mx.nd.array(ids) for ids in next(batches))
        with autograd.record():
            logits, states = model(inputs, detached(states))[:2]
            loss = loss_function(logits.reshape((-3, -1)).astype("float32"), targets.reshape((-1,))).sum()
        loss.backward()
        gradients = [parameter.grad() for parameter in parameters.values()]
        gluon.utils.clip_global_norm(gradients, 5.0 * workload.batch_size, check_isfinite=False)
        trainer.step(workload.batch_size)
        return loss / workload.words

    return step


CONTENDERS: Dict[str, Callable[[Workload, str], Step]] = {"gluonnlp": gluonnlp_model, "plain-cell": plain_cell}


def finish() -> None:
    """Wait until every queued step is done."""
    mx.nd.waitall()
