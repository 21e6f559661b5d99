"""Weights and optimizer state as bytes in the format of safetensors: named arrays, and nothing that could be run."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Mapping, Optional, Tuple

import mxnet as mx
import numpy as np
import safetensors
import safetensors.numpy
from mxnet.gluon import Block, Parameter, Trainer

from noisin.system.errors import UserError


def pack(model: Block, trainer: Optional[Trainer] = None) -> bytes:
    """Return the parameters of a model and, with a trainer, its optimizer's state."""
    arrays = {f"weight:{name}": parameter.data() for name, parameter in _parameters(model).items()}
    if trainer is not None:
        arrays.update(_optimizer_arrays(trainer))
    return safetensors.numpy.save({name: value.asnumpy() for name, value in arrays.items()})


def unpack(content: bytes) -> Dict[str, np.ndarray]:
    """Return the arrays by name.

    Raises
    ------
    ValueError
        If it is anything but float32 arrays of finite numbers, saying what.
    """
    try:
        tensors = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        raise ValueError(error) from None
    for name, tensor in tensors.items():
        if tensor["dtype"] != "F32":
            raise ValueError(f"{name} is not float32")
    arrays = {name: np.frombuffer(tensor["data"], "<f4").reshape(tensor["shape"]) for name, tensor in tensors.items()}
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has values that are not finite")
    return arrays


def set_parameters(model: Block, arrays: Mapping[str, np.ndarray], where: Path) -> None:
    """Set the parameters of a model.

    Raises
    ------
    UserError
        If an array is missing or of another shape than the model's; also in `set_optimizer`.
    """
    for name, parameter in _parameters(model).items():
        parameter.set_data(_array(arrays, f"weight:{name}", parameter.shape, where))


def set_optimizer(trainer: Trainer, arrays: Mapping[str, np.ndarray], updates: int, where: Path) -> None:
    """Set an optimizer to its state after so many updates."""
    optimizer, updater = trainer._optimizer, trainer._updaters[0]
    for index, parameter in enumerate(trainer._params):
        if parameter.grad_req == "null":
            continue
        state = optimizer.create_state_multi_precision(index, parameter.data())
        for place, value in enumerate(state if isinstance(state, (tuple, list)) else [state]):
            if value is not None:
                value[:] = _array(arrays, f"optimizer:{index}:{place}", value.shape, where)
        updater.states[index] = state
        updater.states_synced[index] = True
        optimizer._set_current_context(parameter.data().context.device_id)  # each device has counts of its own
        optimizer._index_update_count[index] = updates
    optimizer.num_update = updates


def _parameters(model: Block) -> Dict[str, Parameter]:
    """Each parameter by name; one that two parts of a model share, as a tied decoder, by the first of its names."""
    named = model._collect_params_with_prefix()
    first = {id(parameter): name for name, parameter in reversed(list(named.items()))}
    return {name: named[name] for name in named if name in first.values()}


def _array(arrays: Mapping[str, np.ndarray], name: str, shape: Tuple[int, ...], where: Path) -> mx.nd.NDArray:
    """The array of this name, if it has the shape that the model needs: another one MXNet might broadcast to it."""
    value = arrays.get(name)
    if value is None or value.shape != shape:
        found = "missing" if value is None else f"of shape {value.shape}"
        raise UserError(f"{where}: {name} is {found}, the model has {shape}")
    return mx.nd.array(value)


def _optimizer_arrays(trainer: Trainer) -> Dict[str, mx.nd.NDArray]:
    """The optimizer's state as named arrays, instead of `Trainer.save_states`, which pickles."""
    arrays = {}
    for index, state in trainer._updaters[0].states.items():
        values = state if isinstance(state, (tuple, list)) else [state]
        for place, value in enumerate(values):
            if value is not None:  # plain SGD has no state
                arrays[f"optimizer:{index}:{place}"] = value
    return arrays
