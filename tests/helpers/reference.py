"""One layer of each cell in NumPy, from its equations."""

from __future__ import annotations

import numpy as np


def numpy_unroll(cell, activation, weights, inputs, states, masks=(1, 1, 1), deviations=None, mode="additive"):
    """One layer's forward pass written from its equations: outputs (T, B, H) and final states.

    `weights` is (i2h_weight, i2h_bias, h2h_weight, h2h_bias), `deviations` gamma * eps of each step (T, B, H).
    """

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    f = {"tanh": np.tanh, "sigmoid": sigmoid, "relu": lambda x: np.maximum(x, 0), None: None}[activation]
    U, b, W, c = weights
    z, memory = states[0], states[-1]
    outputs = []
    for step, x in enumerate(inputs):
        projected, recurrent = (masks[0] * x) @ U.T + b, (masks[1] * z) @ W.T + c
        if cell == "rnn":
            h = f(projected + recurrent)
        elif cell == "lstm":
            i, forget, g, o = np.split(projected + recurrent, 4, axis=1)
            memory = sigmoid(forget) * memory + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(memory)
        else:
            assert cell == "gru", f"write the equations of {cell} here"
            (pr, pu, pn), (rr, ru, rn) = np.split(projected, 3, axis=1), np.split(recurrent, 3, axis=1)
            update = sigmoid(pu + ru)
            h = (1 - update) * np.tanh(pn + sigmoid(pr + rr) * rn) + update * z
        if deviations is not None:
            h = h + deviations[step] if mode == "additive" else h * (1 + deviations[step])
        z = h
        outputs.append(masks[2] * z)
    return np.stack(outputs), [z, memory] if cell == "lstm" else [z]
