"""The peers on PyTorch, an optional extra; `pytorch` builds a model and returns its training step."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Callable, Dict, Tuple, Union

import torch
from torch import nn

from benchmarks.workloads import Workload

States = Union[torch.Tensor, Tuple[torch.Tensor, ...]]  # h, or h and c, each (layers, batch, hidden)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class _LanguageModel(nn.Module):
    """Embedding, recurrent layers (or, with noise, a loop over cells) and decoder."""

    def __init__(self, workload: Workload, noisy: bool) -> None:
        super().__init__()
        size, lstm = workload.hidden, workload.cell == "lstm"
        self.noisy, self.lstm, self.gamma = noisy, lstm, workload.gamma
        self.embedding = nn.Embedding(workload.vocabulary, size)
        if noisy:
            cell = nn.LSTMCell if lstm else nn.RNNCell
            self.cells = nn.ModuleList(cell(size, size) for _ in range(workload.layers))
        else:
            self.layers = (nn.LSTM if lstm else nn.RNN)(size, size, workload.layers)
        self.decoder = nn.Linear(size, workload.vocabulary)
        zeros = torch.zeros(workload.layers, workload.batch_size, size)
        self.start = (zeros, zeros) if lstm else zeros
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), workload.weights().in_order()):
                parameter.copy_(torch.as_tensor(value))

    def forward(self, tokens: torch.Tensor, states: States) -> Tuple[torch.Tensor, States]:
        hidden = self.embedding(tokens)
        outputs, states = self._loop(hidden, states) if self.noisy else self.layers(hidden, states)
        return self.decoder(outputs), states

    def _loop(self, words: torch.Tensor, states: Any) -> Tuple[torch.Tensor, States]:
        states = [tuple(part[i] for part in states) if self.lstm else states[i] for i in range(len(self.cells))]
        outputs = []
        for hidden in words:
            for layer, cell in enumerate(self.cells):
                state = cell(hidden, states[layer])
                hidden = state[0] if self.lstm else state
                hidden = hidden + self.gamma * torch.randn_like(hidden)
                states[layer] = (hidden, state[1]) if self.lstm else hidden
            outputs.append(hidden)
        stacked = tuple(torch.stack(part) for part in zip(*states)) if self.lstm else torch.stack(states)
        return torch.stack(outputs), stacked


def pytorch(noisy: bool, compiled: bool, workload: Workload, dtype: str) -> Callable[[], torch.Tensor]:
    """Return the training step of a PyTorch model in its fastest plain form: fused optimizer, bfloat16 by autocast.

    Parameters
    ----------
    noisy : bool
        Step PyTorch's cells with noise on each hidden state, instead of its layers without noise.
    compiled : bool
        Compile model and loss with `torch.compile`.
    workload : Workload
    dtype : {'float32', 'bfloat16'}

    Returns
    -------
    function ()
        Does one training step; returns the loss per word before it.
    """
    model = _LanguageModel(workload, noisy)
    if workload.optimizer == "adam":
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=workload.learning_rate, fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=workload.learning_rate, fused=True)
    batches = workload.batches()
    states: Any = model.start

    def forward(inputs: torch.Tensor, targets: torch.Tensor, states: States) -> Tuple[torch.Tensor, States]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            logits, states = model(inputs, states)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        return loss / workload.batch_size, states

    if compiled:
        forward = torch.compile(forward, dynamic=False)

    def step() -> torch.Tensor:
        nonlocal states
        inputs, targets = (torch.as_tensor(ids).long() for ids in next(batches))
        states = tuple(state.detach() for state in states) if isinstance(states, tuple) else states.detach()
        optimizer.zero_grad(set_to_none=True)
        loss, states = forward(inputs, targets, states)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return loss.detach() / workload.unroll

    return step


CONTENDERS: Dict[str, Callable[[Workload, str], Callable[[], torch.Tensor]]] = {
    "pytorch": partial(pytorch, False, False),
    "pytorch-noise": partial(pytorch, True, False),
    "pytorch-compiled": partial(pytorch, True, True),
}


def finish() -> None:
    """Do nothing: PyTorch queues no work on a CPU."""
