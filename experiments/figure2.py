"""Figure 2 and its rows of Table 2: one-layer sigmoid RNN of 256 units on the Penn Treebank."""

from __future__ import annotations

from typing import Any, Dict

# The paper states the corpus, the network, Adam at a fixed 0.001, and gradients clipped at 5 (for WikiText-2). It leaves
# open batch, BPTT length, initialisation, gamma and dropout rates: batch 32 as on WikiText-2, 35 steps as in Zaremba et
# al. (2014), whose set-up it follows there, orthogonal recurrent weights (initialisation "played a very big role").
SETTING: Dict[str, Any] = {
    "corpus": "ptb",
    "cell": "rnn",
    "activation": "sigmoid",
    "layers": 1,
    "hidden": 256,
    "optimizer": "adam",
    "learning_rate": 0.001,
    "clip": 5.0,
    "batch_size": 32,
    "unroll": 35,
    "epochs": 40,
    "patience": 3,
}

METHODS: Dict[str, Dict[str, Any]] = {
    "none": {},
    # Light rates for a small network; weight decay as in Gal and Ghahramani's published code.
    "dropout": {
        "dropout_inputs": 0.2,
        "dropout_states": 0.2,
        "dropout_outputs": 0.2,
        "dropout_embedding": 0.1,
        "weight_decay": 1e-7,
    },
    "noisin": {"gamma": [0.2]},
    "noisin*": {"gamma": [0.3], "lower_bound": 0.1},
}

# The paper's numbers beside ours: test perplexity (Table 2, one layer, sigmoid).
PAPER: Dict[str, float] = {"none": 157.4, "dropout": 146.9, "noisin": 166.0, "noisin*": 144.7}
