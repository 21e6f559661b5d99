"""A trained network, with the noise off, as an ONNX model; needs onnx, an extra."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Sequence, Union

import numpy as np
from mxnet.gluon import Block
from onnx import NodeProto, TensorProto, ValueInfoProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info, set_model_props
from onnx.numpy_helper import from_array

from noisin import __version__
from noisin.config import Config
from noisin.data.corpus import short_name
from noisin.model import LanguageModel
from noisin.system.errors import UserError

LARGEST = 2**31 - 2**20  # bytes of weights and words; a whole ONNX file has less than 2 GiB


class Operator(NamedTuple):
    """The ONNX operator for a cell.

    Attributes
    ----------
    name : str
    gates : tuple of int
        For each gate in the operator's order, its place in Gluon's.
    states : int
        Number of states in a layer.
    """

    name: str
    gates: Sequence[int]
    states: int


OPERATORS = {
    "rnn": Operator("RNN", (0,), 1),
    "lstm": Operator("LSTM", (0, 3, 1, 2), 2),  # Gluon's i, f, g, o as i, o, f, g
    "gru": Operator("GRU", (1, 0, 2), 1),  # Gluon's r, z, n as z, r, n
}


def to_onnx(model: LanguageModel, config: Config, vocabulary: Sequence[str]) -> bytes:
    """Return the network as the content of an ONNX file: one graph, for steps and for sequences, with the noise off.

    Inputs are `tokens` (T, B), int64, and `state_0`, `state_1`, ... (B, hidden): the states of each layer, bottom
    first, h before an LSTM's c. Outputs are `log_probabilities` (T, B, V) of the word after each token, and
    `next_state_0`, `next_state_1`, ... T and B may differ from call to call; a step is T = 1. The metadata have the
    `vocabulary`, one word a line, `noisin_version` and the name of the `corpus`.

    Parameters
    ----------
    model : LanguageModel
    config : Config
        The configuration that `make_model` built it from.
    vocabulary : sequence of str
        The V words by id.

    Returns
    -------
    bytes

    Raises
    ------
    UserError
        If the model is too large for one ONNX file.
    """
    decoder = "embedding_weight" if config.decoder == "tied" else "decoder_weight"
    constants = {name: _array(model, name) for name in ("embedding_weight", decoder, "decoder_bias")}
    constants.update(axis_0=np.array([0]), axis_1=np.array([1]))
    nodes = [make_node("Gather", ["embedding_weight", "tokens"], ["outputs_0"])]
    states: List[str] = []
    for layer, cell in enumerate(model.cells):
        own = [f"state_{len(states) + number}" for number in range(OPERATORS[config.cell].states)]
        constants.update(_layer_constants(config, layer, cell))
        nodes += _layer_nodes(config, layer, own)
        states += own
    nodes += [
        make_node("Transpose", [decoder], ["decoder"], perm=[1, 0]),
        make_node("MatMul", [f"outputs_{config.layers}", "decoder"], ["products"]),
        make_node("Add", ["products", "decoder_bias"], ["logits"]),
        make_node("LogSoftmax", ["logits"], ["log_probabilities"], axis=-1),
    ]
    words = "\n".join(vocabulary)
    size = sum(array.nbytes for array in constants.values()) + len(words.encode())
    if size > LARGEST:
        raise UserError(f"the model has {size:,} bytes, an ONNX file at most {LARGEST:,}: train a smaller one")
    graph = make_graph(
        nodes,
        "noisin",
        [make_tensor_value_info("tokens", TensorProto.INT64, ["T", "B"])]
        + [_float_info(state, ["B", config.hidden]) for state in states],
        [_float_info("log_probabilities", ["T", "B", model.vocabulary_size])]
        + [_float_info(f"next_{state}", ["B", config.hidden]) for state in states],
        [from_array(array, name) for name, array in constants.items()],
    )
    # Versions that runtimes from 2022 on read.
    exported = make_model(graph, producer_name="noisin", opset_imports=[make_opsetid("", 17)], ir_version=8)
    metadata = {"vocabulary": words, "noisin_version": __version__, "corpus": short_name(config.corpus)}
    set_model_props(exported, metadata)
    return exported.SerializeToString()


def _float_info(name: str, shape: Sequence[Union[str, int]]) -> ValueInfoProto:
    return make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _array(block: Block, name: str) -> np.ndarray:
    return getattr(block, name).data().asnumpy()


def _layer_constants(config: Config, layer: int, cell: Block) -> Dict[str, np.ndarray]:
    """Return a layer's weights by name, with the gates in the operator's order and a first axis for directions."""
    while hasattr(cell, "base_cell"):  # regularisers
        cell = cell.base_cell
    order = OPERATORS[config.cell].gates

    def ordered(name: str) -> np.ndarray:
        gates = np.split(_array(cell, name), len(order))
        return np.concatenate([gates[place] for place in order])

    return {
        f"cells.{layer}.i2h_weight": ordered("i2h_weight")[None],
        f"cells.{layer}.h2h_weight": ordered("h2h_weight")[None],
        f"cells.{layer}.bias": np.concatenate([ordered("i2h_bias"), ordered("h2h_bias")])[None],
    }


def _layer_nodes(config: Config, layer: int, states: Sequence[str]) -> List[NodeProto]:
    """Return the nodes that turn `outputs_{layer}` (T, B, units) and the layer's states into the next ones."""
    attributes: Dict[str, Any] = {"hidden_size": config.hidden}
    if config.activation:
        attributes["activations"] = [config.activation.capitalize()]
    if config.cell == "gru":
        attributes["linear_before_reset"] = 1  # the reset gate acts after the product
    weights = [f"cells.{layer}.{name}" for name in ("i2h_weight", "h2h_weight", "bias")]
    before, after = ([f"{when}_{state}" for state in states] for when in ("before", "after"))
    outputs = f"outputs_{layer + 1}"
    lengths = ""  # all sequences are of one length
    return [
        *(make_node("Unsqueeze", [state, "axis_0"], [name]) for state, name in zip(states, before)),
        make_node(
            OPERATORS[config.cell].name,
            [f"outputs_{layer}", *weights, lengths, *before],
            [f"directed_{outputs}", *after],
            **attributes,
        ),
        make_node("Squeeze", [f"directed_{outputs}", "axis_1"], [outputs]),
        *(make_node("Squeeze", [name, "axis_0"], [f"next_{state}"]) for state, name in zip(states, after)),
    ]
