"""The peer on JAX, an optional extra: `lax.scan` over the steps, the whole training step under `jit`."""

from __future__ import annotations

from typing import Any, Callable, Dict, Tuple

import jax
import jax.numpy as jnp
import optax
from jax import lax, nn

from benchmarks.workloads import Weights, Workload

State = Tuple[jax.Array, ...]  # h, or h and c, each (layers, batch, hidden)


def _lstm(gates: jax.Array, c: jax.Array) -> State:
    of_input, forget, cell, output = jnp.split(gates, 4, axis=-1)
    c = nn.sigmoid(forget) * c + nn.sigmoid(of_input) * jnp.tanh(cell)
    return nn.sigmoid(output) * jnp.tanh(c), c


def _layer(weights: Any, inputs: jax.Array, state: State, noise: jax.Array) -> Tuple[jax.Array, State]:
    """Run a layer over (T, B, hidden), with noise of that shape on its hidden state; return outputs and last state."""
    of_input, of_state, input_bias, state_bias = weights
    projected = inputs @ of_input.T + (input_bias + state_bias)  # of all steps at once

    def step(state: State, now: Tuple[jax.Array, jax.Array]) -> Tuple[State, jax.Array]:
        gates = now[0] + state[0] @ of_state.T
        h, *c = _lstm(gates, state[1]) if len(state) == 2 else (jnp.tanh(gates),)
        return (h + now[1], *c), h + now[1]

    last, outputs = lax.scan(step, state, (projected, noise))
    return outputs, last


def jax_noise(workload: Workload, dtype: str) -> Callable[[], jax.Array]:
    """Return the training step of a noisy model; only the decoder's product has bfloat16 operands, as in ours.

    Returns
    -------
    function ()
        Queues one training step; returns the loss per word before it.
    """
    of_decoder = jnp.bfloat16 if dtype == "bfloat16" else jnp.float32
    rule = optax.adam if workload.optimizer == "adam" else optax.sgd
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), rule(workload.learning_rate))

    def loss_of(weights: Weights, states: Any, inputs: jax.Array, targets: jax.Array, noise: jax.Array) -> Any:
        hidden, lasts = weights.embedding[inputs], []
        for layer, state, of_layer in zip(weights.layers, states, noise):
            hidden, last = _layer(layer, hidden, state, of_layer)
            lasts.append(last)
        # Not `preferred_element_type`: JAX 0.7, the newest for NumPy 1, has no such product on a CPU.
        product = jnp.matmul(hidden.astype(of_decoder), weights.decoder.T.astype(of_decoder))
        losses = optax.softmax_cross_entropy_with_integer_labels(product + weights.decoder_bias, targets)
        return losses.sum() / workload.batch_size, lasts

    def update(
        weights: Weights, moments: Any, states: Any, key: jax.Array, inputs: jax.Array, targets: jax.Array
    ) -> Any:
        key, fresh = jax.random.split(key)
        noise = workload.gamma * jax.random.normal(fresh, (workload.layers, *inputs.shape, workload.hidden))
        (loss, states), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, states, inputs, targets, noise)
        changes, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(weights, changes), moments, states, key, loss / workload.unroll

    jitted = jax.jit(update, donate_argnums=(0, 1, 2, 3))
    weights = jax.tree.map(jnp.asarray, workload.weights())
    zeros = (2 if workload.cell == "lstm" else 1) * (jnp.zeros((workload.batch_size, workload.hidden)),)
    held: Any = (weights, optimizer.init(weights), jax.tree.map(jnp.copy, [zeros] * workload.layers), jax.random.key(0))
    batches = workload.batches()

    def step() -> jax.Array:
        nonlocal held
        *held, loss = jitted(*held, *next(batches))
        latest.append(loss)
        return loss

    return step


latest: list = []  # what `finish` waits for

CONTENDERS: Dict[str, Callable[[Workload, str], Callable[[], jax.Array]]] = {"jax": jax_noise}


def finish() -> None:
    """Wait until every queued step is done."""
    jax.block_until_ready(latest)
    latest.clear()
