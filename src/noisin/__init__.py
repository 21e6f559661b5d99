"""Recurrent neural networks with unbiased noise on their hidden state (NOISIN), on Apache MXNet and Gluon.

    h_t = f(x_t, z_{t-1})            an RNN, LSTM or GRU, of this package or of Gluon
    z_t ~ noise(h_t, gamma)          E[z_t] = h_t: unbiased, with spread gamma, fixed or learned
    x_{t+1} ~ softmax(V z_t + b)     the output and the next step see the same z_t

In a network of your own, wrap a cell; the noise acts in train mode, as dropout does:

>>> import noisin
>>> from mxnet import autograd, gluon, nd
>>> cell = noisin.NoisyCell(gluon.rnn.LSTMCell(200), noisin.Noise("gaussian", gamma=0.2))
>>> cell.initialize()
>>> with autograd.record():
...     outputs, states = cell.unroll(35, nd.ones((8, 35, 100)), merge_outputs=True)
>>> outputs.shape
(8, 35, 200)

Noise:         Noise, NoiseFamily, make_family
Cells:         ElmanCell, LSTMCell, GRUCell, CellStack, make_cells, RecurrentInit
Regularisers:  NoisyCell, VariationalDropoutCell, StandardDropoutCell
Methods:       METHODS, Method, Regulariser
Models:        Config, LanguageModel, make_model, AveragedLikelihood, Evaluator
Training:      train, load_corpus, sample_words
Graphs:        traced_for, for a faster hybridized network or a network to export without noise

Import noisin before mxnet. `import noisin` only sets the environment variables that MXNet reads while it is imported,
and lets MXNet load on today's Python and NumPy. Each public name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, List

from noisin.system import startup

__version__ = "0.1.0"

_MODULES = {
    "noise": ("Noise", "NoiseFamily", "make_family"),
    "cells": ("ElmanCell", "LSTMCell", "GRUCell", "CellStack", "make_cells"),
    "initializers": ("RecurrentInit",),
    "regularisers": ("NoisyCell", "VariationalDropoutCell", "StandardDropoutCell"),
    "methods": ("METHODS", "Method", "Regulariser"),
    "config": ("Config",),
    "model": ("LanguageModel", "make_model"),
    "objective": ("AveragedLikelihood",),
    "evaluation": ("Evaluator",),
    "training": ("train",),
    "data.corpus": ("load_corpus",),
    "sampling": ("sample_words",),
    "graphs": ("traced_for",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'noisin' has no attribute {name!r}")
    return getattr(import_module(f"noisin.{_HOMES[name]}"), name)


def __dir__() -> List[str]:
    return sorted([*globals(), *__all__])


startup.prepare()
