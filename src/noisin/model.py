"""The language model (embedding, stack of cells, decoder) and its construction from a configuration."""

from __future__ import annotations

import math
from types import ModuleType
from typing import List, Optional, Tuple

import mxnet as mx
from mxnet.gluon import HybridBlock, ParameterDict

from noisin.cells import CELLS, CellStack, begin_sequence, is_stochastic, make_cells
from noisin.config import Config
from noisin.graphs import BFLOAT16, Tensor, block_parameters, traced_for
from noisin.methods import METHODS, make_noise
from noisin.noise import Noise
from noisin.regularisers import active_mask, check_rate, draw_mask, noises
from noisin.system.errors import UserError
from noisin.system.files import MEMORY

# Most elements in one MXNet array, as MXNet is built for PyPI.
LARGEST_ARRAY = 2**31 - 1


class LanguageModel(HybridBlock):
    r"""A recurrent language model, x_t ~ softmax(V z_t + b) (paper, sections 2.1 and 3).

    A call is one step, as with a cell; `unroll` takes a sequence.

    Parameters
    ----------
    vocabulary_size : int
        Number of word types; V in the shapes below.
    cells : CellStack
        Turns embedded words (T, B, embedding) into hidden states (T, B, hidden).
    embedding : int
        Size of the word embedding.
    hidden : int
        Size of the top layer's hidden state.
    input_noise : Noise, optional
        Perturbs the embedded words (paper, section 3: noise at the input level).
    embedding_dropout : float in [0, 1), default 0
        Rate at which whole word types are dropped, with one mask per sequence.
    init_scale : float, default 0.1
        Half-width of the uniform distribution that initialises embedding and decoder weights.
    tied : bool, default False
        Use the embedding's matrix as the decoder's; its gradient is the sum over both uses (Press and Wolf, 2017).
    prefix, params
        As in `mxnet.gluon.Block`.

    Raises
    ------
    ValueError
        If a rate is out of range, or a tied decoder has `embedding` and `hidden` of different sizes.

    Inputs:
        - **tokens**: (B,) token ids.
        - **states**: list as `begin_state` returns it.

    Outputs:
        - **logits**: (B, V).
        - **next states**: list like `states`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        cells: CellStack,
        embedding: int,
        hidden: int,
        input_noise: Optional[Noise] = None,
        embedding_dropout: float = 0.0,
        init_scale: float = 0.1,
        tied: bool = False,
        prefix: Optional[str] = None,
        params: Optional[ParameterDict] = None,
    ) -> None:
        super().__init__(prefix=prefix, params=params)
        check_rate("the embedding", embedding_dropout)
        if tied and embedding != hidden:
            raise ValueError(f"embedding is {embedding} and hidden {hidden}: a tied decoder needs both of one size")
        self.vocabulary_size = vocabulary_size
        self._embedding_dropout = embedding_dropout
        self._embedding = embedding
        self._carried = len(cells.state_info())
        self.cells = cells
        self.input_noise = input_noise
        uniform = mx.init.Uniform(init_scale)
        with self.name_scope():
            self.embedding_weight = self.params.get(
                "embedding_weight", shape=(vocabulary_size, embedding), init=uniform
            )
            self.decoder_weight = (
                self.embedding_weight
                if tied
                else self.params.get("decoder_weight", shape=(vocabulary_size, hidden), init=uniform)
            )
            self.decoder_bias = self.params.get("decoder_bias", shape=(vocabulary_size,), init="zeros")

    @property
    def stochastic(self) -> bool:
        """Whether noise or dropout acts in train mode."""
        return is_stochastic(self.cells) or self.input_noise is not None or self._embedding_dropout > 0

    @property
    def noises(self) -> List[Noise]:
        """The noise of each layer, bottom first; empty for a deterministic or dropout model."""
        return noises(self.cells)

    def begin_state(self, batch_size: int, ctx: Optional[mx.Context] = None) -> List[mx.nd.NDArray]:
        """Return the states that a text begins with.

        Parameters
        ----------
        batch_size : int
            B.
        ctx : mxnet.Context, default MXNet's current one

        Returns
        -------
        list of NDArray
            Zero states of each layer (B, hidden), bottom first, each followed by the layer's new dropout masks; then
            the embedding's mask (B, V). Without dropout, there are no masks.
        """
        states = self.cells.begin_state(batch_size=batch_size, func=mx.nd.zeros, ctx=ctx)
        return states + self._embedding_mask(batch_size, ctx)

    def begin_sequence(self, states: List[mx.nd.NDArray]) -> List[mx.nd.NDArray]:
        """Begin the next sequence: detach the states from the gradient's past and draw new dropout masks.

        Parameters
        ----------
        states : list of NDArray
            As `begin_state` returns them.

        Returns
        -------
        list of NDArray
            Like `states`.
        """
        carried = [state.detach() for state in states[: self._carried]]
        mask = self._embedding_mask(carried[0].shape[0], carried[0].context)
        return begin_sequence(self.cells, carried) + mask

    def _embedding_mask(self, batch_size: int, ctx: Optional[mx.Context]) -> List[mx.nd.NDArray]:
        if not self._embedding_dropout:
            return []
        ones = mx.nd.ones((batch_size, self.vocabulary_size), ctx)
        return [draw_mask(mx.nd, ones, self._embedding_dropout)]

    def hybrid_forward(
        self,
        F: ModuleType,
        tokens: Tensor,
        states: List[Tensor],
        embedding_weight: Tensor,
        decoder_weight: Tensor,
        decoder_bias: Tensor,
    ) -> Tuple[Tensor, List[Tensor]]:
        # A step is an unroll of length one, which reads the weights from the parameters themselves.
        operands, states = self._operands(1, F.expand_dims(tokens, axis=0), states)
        return F.FullyConnected(*operands, num_hidden=self.vocabulary_size), states

    def unroll(
        self, length: int, tokens: Tensor, states: List[Tensor], dtype: str = "float32"
    ) -> Tuple[Tensor, List[Tensor]]:
        """Predict the word after each of `length` words.

        Parameters
        ----------
        length : int
            T.
        tokens : tensor (T, B)
            Token ids, time first.
        states : list of tensor
            As `begin_state` returns it.
        dtype : {'float32', 'bfloat16'}, default 'float32'
            Type of the operands of the decoder's product; everything else is float32.

        Returns
        -------
        (logits, states)
            Logits (T * B, V), float32, step after step; and the states after the last step.

        Raises
        ------
        ValueError
            For another dtype.
        """
        F = mx.sym if isinstance(tokens, mx.sym.Symbol) else mx.nd
        operands, states = self.decoder_operands(length, tokens, states, dtype)
        if dtype == "bfloat16":
            operands[-1] = F.amp_cast(operands[-1], dtype=BFLOAT16)  # the product takes operands of one dtype only
        logits = F.FullyConnected(*operands, num_hidden=self.vocabulary_size)
        if dtype == "bfloat16":
            logits = F.amp_cast(logits, dtype="float32")
        return logits, states

    def decoder_operands(
        self, length: int, tokens: Tensor, states: List[Tensor], dtype: str
    ) -> Tuple[List[Tensor], List[Tensor]]:
        """Return the operands of the decoder's product in `unroll`, and the next states.

        Parameters
        ----------
        length, tokens, states, dtype
            As in `unroll`.

        Returns
        -------
        (operands, states)
            Operands are hidden states (T * B, hidden) and weight (V, hidden), both of `dtype`, and bias (V,), float32.

        Raises
        ------
        ValueError
            For another dtype.
        """
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is '{dtype}': it must be float32 or bfloat16")
        F = mx.sym if isinstance(tokens, mx.sym.Symbol) else mx.nd
        with traced_for("training"):
            operands, states = self._operands(length, tokens, states)
        if dtype == "bfloat16":
            operands[:2] = [F.amp_cast(operand, dtype=BFLOAT16) for operand in operands[:2]]
        return operands, states

    def _operands(self, length: int, tokens: Tensor, states: List[Tensor]) -> Tuple[List[Tensor], List[Tensor]]:
        F = mx.sym if isinstance(tokens, mx.sym.Symbol) else mx.nd
        weights = block_parameters(self, tokens)
        carried, masks = states[: self._carried], states[self._carried :]
        embedded = F.Embedding(
            tokens, weights["embedding_weight"], input_dim=self.vocabulary_size, output_dim=self._embedding
        )
        if masks:
            embedded = F.broadcast_mul(embedded, F.expand_dims(self._by_word_type(F, masks[0], tokens), axis=2))
        if self.input_noise is not None:
            embedded = self.input_noise(embedded)
        hidden, carried = self.cells.unroll(length, embedded, carried, layout="TNC", merge_outputs=True)
        operands = [F.reshape(hidden, shape=(-3, 0)), weights["decoder_weight"], weights["decoder_bias"]]
        return operands, carried + masks

    def _by_word_type(self, F: ModuleType, mask: Tensor, tokens: Tensor) -> Tensor:
        """Return mask[b, tokens[t, b]] (T, B) of a mask (B, V): all uses of a word in a sequence share one entry."""
        # In integers: B * V may be more than float32 can count to.
        rows = F.cast(F.contrib.arange_like(tokens, axis=1), dtype="int32")
        row_starts = F.expand_dims(rows * self.vocabulary_size, axis=0)
        places = F.broadcast_add(F.cast(tokens, dtype="int32"), row_starts)
        return F.take(F.reshape(active_mask(F, mask), shape=(-1,)), places)


def make_model(config: Config, vocabulary_size: int) -> LanguageModel:
    """Build the model that `config` describes.

    Parameters
    ----------
    config : Config
    vocabulary_size : int
        Number of word types.

    Returns
    -------
    LanguageModel
        Its parameters are not yet initialised.
    """
    method = METHODS[config.method]
    cells = make_cells(
        config.cell,
        config.hidden,
        config.layers,
        input_size=config.embedding or config.hidden,
        activation=config.activation,
        regularise=lambda cell, layer: method.regularise(cell, config, layer),
        recurrent_init=config.recurrent_init,
        init_scale=config.init_scale,
        forget_bias=config.forget_bias,
        prefix="cells_",
    )
    return LanguageModel(
        vocabulary_size,
        cells,
        embedding=config.embedding or config.hidden,
        hidden=config.hidden,
        input_noise=make_noise(config, config.input_gamma, "input") if config.input_gamma else None,
        embedding_dropout=config.dropout_embedding if config.acts("dropout_embedding") else 0.0,
        init_scale=config.init_scale,
        tied=config.decoder == "tied",
        prefix="model_",
    )


def initial_model(
    config: Config, vocabulary_size: int, device: mx.Context, predictions: Optional[int] = None
) -> LanguageModel:
    """Build the model that `config` describes, with parameters initialised from the random seed.

    Parameters
    ----------
    config : Config
    vocabulary_size : int
        Number of word types.
    device : mxnet.Context
    predictions : int, optional
        Words that the model will predict at once; by default the most that training or evaluation does.

    Returns
    -------
    LanguageModel

    Raises
    ------
    UserError
        If this machine's memory, or one MXNet array, cannot hold what the model needs.
    """
    mx.random.seed(stream(config.seed, 0))
    model = make_model(config, vocabulary_size)
    if predictions is None:
        predictions = max(config.unroll * config.batch_size * config.samples, evaluated_at_once(config))
    widest = max(vocabulary_size, CELLS[config.cell].gates * config.hidden, config.embedding or config.hidden)
    _check_memory(model, predictions * widest)
    model.initialize(ctx=device)
    return model


def evaluated_at_once(config: Config) -> int:
    """Return the number of words that evaluation predicts at once, over all trajectories."""
    samples = config.eval_samples if config.acts("eval_samples") else 1
    return config.eval_batch_size * max(config.unroll * samples, config.eval_particles)


def _check_memory(model: LanguageModel, largest: int) -> None:
    """Raise UserError for a model that this machine cannot hold, before MXNet fills the memory and is killed.

    Parameters
    ----------
    model : LanguageModel
    largest : int
        Numbers in the largest array between its layers.
    """
    sizes = [math.prod(parameter.shape) for parameter in model.collect_params().values()]
    least = 4 * (2 * sum(sizes) + largest)  # each weight has a gradient
    if least > MEMORY:
        raise UserError(
            f"this model needs {least / 2**30:,.0f} GiB of memory or more, this machine has {MEMORY / 2**30:,.0f}: "
            "choose a smaller network, vocabulary, batch size, unroll length or number of samples"
        )
    largest = max(largest, *sizes)
    if largest > LARGEST_ARRAY:
        raise UserError(
            f"this model needs an array of {largest:,} numbers, and MXNet's limit is {LARGEST_ARRAY:,}: "
            "choose a smaller network, vocabulary, batch size, unroll length or number of samples"
        )


def stream(seed: int, place: int) -> int:
    """Return the seed of one of a run's random streams: place 0 is for the initial weights, then one for each epoch.

    `evaluation_seed` has the places from `FIRST_EVALUATION` on. 7919 is odd, so no two of the 2**31 places of a run
    have the same seed; nor have two runs in the same place.
    """
    return (seed * 1_000_003 + place * 7_919) % (2**31)


FIRST_EVALUATION = 10_001  # the place behind the most epochs that there can be


def evaluation_seed(seed: int, number: int = 0) -> int:
    """Return the seed of the noise in an evaluation: number 0 is for the record, others for `evaluate --seed`."""
    return stream(seed, FIRST_EVALUATION + number)
