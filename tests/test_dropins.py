"""Our cells and regularisers beside Gluon's own cells, in every container and way of use; and their documentation."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from contextlib import nullcontext

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import rnn

import noisin
from noisin import cells, graphs, noise, regularisers
from noisin.cells import ElmanCell, GRUCell, LSTMCell
from noisin.graphs import traced_for
from noisin.native import normals
from noisin.noise import Noise
from noisin.regularisers import NoisyCell, StandardDropoutCell, VariationalDropoutCell
from noisin.system import mxnet_import

T, B, SIZE = 4, 4, 5  # as many steps as rows: what confuses the two then has a shape that fits
KINDS = {"rnn": (rnn.RNNCell, ElmanCell), "lstm": (rnn.LSTMCell, LSTMCell), "gru": (rnn.GRUCell, GRUCell)}
STATIC = {"static_alloc": True, "static_shape": True}
RATES = {"inputs": 0.4, "states": 0.4, "outputs": 0.4}


def noisy(cell, gamma=0.5, **options):
    return NoisyCell(cell, Noise("gaussian", gamma, **options))


# What each makes of a cell; those that act are compared in predict mode, the others in train mode.
IDLE = {
    "plain": lambda cell: cell,
    "noisy": lambda cell: noisy(cell, 0.0),
    "dropout": VariationalDropoutCell,
    "standard dropout": StandardDropoutCell,
    "noisy dropout": lambda cell: noisy(VariationalDropoutCell(cell), 0.0),
    "dropout of noisy": lambda cell: VariationalDropoutCell(noisy(cell, 0.0)),
}
ACTING = {
    "noisy": noisy,
    "dropout": lambda cell: VariationalDropoutCell(cell, **RATES),
    "standard dropout": lambda cell: StandardDropoutCell(cell, 0.4, 0.4),
    "noisy dropout": lambda cell: noisy(VariationalDropoutCell(cell, **RATES), mode="multiplicative"),
    "dropout of noisy": lambda cell: VariationalDropoutCell(noisy(cell, learned=True), **RATES),
}
WRAPPERS = [("idle", name, make) for name, make in IDLE.items()]
WRAPPERS += [("acting", name, make) for name, make in ACTING.items()]
each_wrapper = pytest.mark.parametrize(
    "acts, name, wrap", WRAPPERS, ids=[f"{acts} {name}" for acts, name, _ in WRAPPERS]
)
each_acting = pytest.mark.parametrize("wrap", ACTING.values(), ids=ACTING)
each_kind = pytest.mark.parametrize("kind", KINDS)


def sequential(kind):
    def make(new):
        stack = kind()
        for _ in range(2):
            stack.add(new())
        return stack

    return make


CONTAINERS = {
    "alone": lambda new: new(),
    "SequentialRNNCell": sequential(rnn.SequentialRNNCell),
    "HybridSequentialRNNCell": sequential(rnn.HybridSequentialRNNCell),
    "CellStack": sequential(cells.CellStack),
    "BidirectionalCell": lambda new: rnn.BidirectionalCell(new(), new()),
    "ResidualCell": lambda new: rnn.ResidualCell(new()),
    "ZoneoutCell": lambda new: rnn.ZoneoutCell(new(), 0.5, 0.5),
    "DropoutCell above": lambda new: above(new, rnn.DropoutCell(0.5)),
}


def above(new, cell):
    stack = cells.CellStack()
    stack.add(new())
    stack.add(cell)
    return stack


def initialised(block, **options):
    """Weights that depend on their place alone: what Gluon's cell and ours share."""
    block.initialize(**options)
    names = block._collect_params_with_prefix()
    for name in sorted(names):
        if not name.endswith(("gamma", "rho")):
            random = np.random.RandomState(sum(map(ord, name)))
            shape = [size or SIZE for size in names[name].shape]
            names[name].set_data(mx.nd.array(random.uniform(-0.7, 0.7, shape)))
    return block


def sequence(**options):
    return mx.nd.array(np.random.RandomState(1).uniform(-1, 1, (T, B, SIZE)), **options)


def mode(acts):
    return autograd.train_mode() if acts == "idle" else autograd.predict_mode()


def without_masks(states, cell, theirs):
    """The states that Gluon's cell has too."""
    counts = [len(part.state_info()) for part in leaves(cell)]
    kept = [len(part.state_info()) for part in leaves(theirs)]
    carried, start = [], 0
    for count, keep in zip(counts, kept):
        carried += states[start : start + keep]
        start += count
    return carried


def leaves(cell):
    several = isinstance(cell, (rnn.SequentialRNNCell, rnn.HybridSequentialRNNCell, rnn.BidirectionalCell))
    return [leaf for child in cell._children.values() for leaf in leaves(child)] if several else [cell]


@pytest.mark.parametrize(
    "kind, container",
    # A container sees of a cell how many states it has, which the LSTM shows.
    [("lstm", name) for name in CONTAINERS]
    + [(kind, name) for kind in ("rnn", "gru") for name in ("alone", "BidirectionalCell")],
)
@each_wrapper
def test_unrolls_as_gluons_own_cell(kind, acts, name, wrap, container):
    if acts == "idle" and container in ("ZoneoutCell", "DropoutCell above"):
        acts = "these are random in train mode"
    gluons, ours = KINDS[kind]
    theirs = initialised(CONTAINERS[container](lambda: gluons(SIZE, input_size=SIZE)))
    # Over one of ours in its fast path, and over Gluon's step by step.
    for base in (ours, gluons):
        cell = initialised(CONTAINERS[container](lambda base=base: wrap(base(SIZE, input_size=SIZE))))
        for layout, merge, listed, valid in (
            ("NTC", None, False, False),
            ("NTC", False, True, False),
            ("TNC", True, True, False),
            ("NTC", None, False, True),
            ("TNC", True, False, True),
        ):
            inputs = sequence() if layout == "TNC" else sequence().swapaxes(0, 1)
            inputs = list(sequence()) if listed else inputs
            options = {"valid_length": mx.nd.array([1, T, 2, 3])} if valid else {}
            results = []
            for one in (theirs, cell):
                with mode(acts):
                    results.append(one.unroll(T, inputs, None, layout, merge, **options))
            (expected, states), (found, others) = results
            assert isinstance(found, list) == isinstance(expected, list) or container == "CellStack"
            expected, found = (
                [o.asnumpy() for o in (out if isinstance(out, list) else [out])] for out in (expected, found)
            )
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=f"{layout} {merge} {listed}")
            carried = without_masks(others, cell, theirs)
            assert len(carried) == len(states)
            for one, other in zip(carried, states):
                np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), rtol=1e-4, atol=1e-6)


MODIFIERS = {"ResidualCell": rnn.ResidualCell, "ZoneoutCell": lambda cell: rnn.ZoneoutCell(cell, 0.5, 0.5)}


@each_wrapper
@pytest.mark.parametrize("modifier", MODIFIERS)
def test_wraps_gluons_modifiers(acts, name, wrap, modifier):
    theirs, cell = (
        initialised(new(MODIFIERS[modifier](LSTMCell(SIZE, input_size=SIZE)))) for new in (lambda cell: cell, wrap)
    )
    results = []
    for one in (theirs, cell):
        with mode("acting" if modifier == "ZoneoutCell" else acts):
            outputs, states = one.unroll(T, sequence(), None, "TNC", True)
        results.append([array.asnumpy() for array in (outputs, *states[:2])])
    for found, expected in zip(*results):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("noise_mode", noise.MODES)
def test_the_draw_of_a_residual_cell_acts_on_its_state_and_its_output(noise_mode):
    cell = initialised(noisy(rnn.ResidualCell(LSTMCell(SIZE, input_size=SIZE)), mode=noise_mode))
    inputs, states = sequence()[0], cell.begin_state(batch_size=B)
    clean, (hidden, memory) = cell(inputs, states)
    with autograd.train_mode():
        output, (perturbed, same) = cell(inputs, states)
    deviation = perturbed - hidden if noise_mode == "additive" else perturbed / hidden - 1
    expected = clean + deviation if noise_mode == "additive" else clean * (1 + deviation)
    np.testing.assert_allclose(output.asnumpy(), expected.asnumpy(), rtol=1e-3, atol=1e-5)
    assert (perturbed != hidden).asnumpy().all() and (memory == same).asnumpy().all()


@pytest.mark.parametrize("activation", ["relu", "softsign"])
@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_activations_are_those_that_gluons_cell_takes(kind, activation):
    results = []
    for new in KINDS[kind]:
        cell = initialised(new(SIZE, input_size=SIZE, activation=activation))
        results.append(cell.unroll(T, sequence(), None, "TNC", True)[0].asnumpy())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)


class Use(gluon.HybridBlock):
    """A sequence (T, B, size) through a cell in one of the ways that a network may take."""

    def __init__(self, cell, how):
        super().__init__()
        self.cell, self._how = cell, how

    def hybrid_forward(self, F, inputs, states):
        if self._how == "foreach":
            outputs, states = F.contrib.foreach(self.cell, inputs, states)
            return outputs, states
        lengths = F.mean(F.ones_like(inputs), axis=(0, 2)) * T if self._how == "unroll with valid lengths" else None
        return self.cell.unroll(T, inputs, states or None, "TNC", True, lengths)


@pytest.mark.parametrize(
    "kind, how, hybrid",
    [("lstm", how, hybrid) for how in ("unroll", "foreach") for hybrid in (None, {}, STATIC)]
    + [(kind, "unroll", STATIC) for kind in ("rnn", "gru")],
)
@each_wrapper
def test_in_a_network_as_gluons_own_cell_gradients_too(kind, acts, name, wrap, how, hybrid):
    gluons, ours = KINDS[kind]
    theirs, cell = (initialised(new(SIZE, input_size=SIZE)) for new in (gluons, lambda *a, **o: wrap(ours(*a, **o))))
    expected_network, network = Use(theirs, "unroll"), Use(cell, how)
    if hybrid is not None:
        network.hybridize(**hybrid)
    states = cell.begin_state(batch_size=B)
    results = []
    for block, start in ((expected_network, states[: len(theirs.state_info())]), (network, states)):
        inputs = sequence()
        inputs.attach_grad()
        with autograd.record(train_mode=acts == "idle"):
            outputs, after = block(inputs, start)
            loss = (outputs * outputs).sum() + sum((state * state).sum() for state in after[: len(theirs.state_info())])
        loss.backward()
        gradients = {
            key: parameter.grad().asnumpy()
            for key, parameter in block.cell._collect_params_with_prefix().items()
            if key.endswith(("weight", "bias"))
        }
        results.append({"outputs": outputs.asnumpy(), "gradient of inputs": inputs.grad.asnumpy(), **gradients})
    assert set(results[0]) == set(results[1])
    for key, values in results[0].items():
        np.testing.assert_allclose(results[1][key], values, rtol=1e-4, atol=1e-5, err_msg=key)


@each_acting
@pytest.mark.parametrize("what", ["", "training"])
def test_foreach_in_a_graph_acts_in_train_mode(wrap, what):
    cell = initialised(wrap(LSTMCell(SIZE, input_size=SIZE)))
    network = Use(cell, "foreach")
    network.hybridize()
    states = cell.begin_state(batch_size=B)
    clean = network(sequence(), states)[0] if not what else None
    with traced_for(what) if what else nullcontext(), autograd.record():
        outputs, after = network(sequence(), states)
        loss = outputs.sum()
    loss.backward()
    clean = network(sequence(), states)[0] if clean is None else clean
    assert (outputs != clean).asnumpy().mean() > 0.3
    assert all(np.isfinite(p.grad().asnumpy()).all() for p in cell.collect_params().values() if p.grad_req != "null")


# Shapes, types, contexts, attributes.


@each_kind
@pytest.mark.parametrize("wrap", IDLE.values(), ids=IDLE)
@pytest.mark.parametrize("base", [0, 1], ids=["over Gluon's", "over ours"])
@pytest.mark.parametrize("hybrid", [False, True])
def test_the_first_inputs_tell_their_size(kind, wrap, base, hybrid):
    cell = wrap(KINDS[kind][base](SIZE))
    cell.initialize()
    network = Use(cell, "unroll")
    if hybrid:
        network.hybridize()
    with autograd.record():
        outputs, states = network(sequence(), [])
    assert outputs.shape == (T, B, SIZE)
    assert [state.shape for state in states] == [info["shape"] for info in cell.state_info(B)]
    deferred = wrap(KINDS[kind][base](SIZE))
    deferred.initialize()
    deferred(sequence()[0], states)  # a step too


@each_acting
def test_a_graph_begins_from_states_of_its_own(wrap):
    cell = initialised(wrap(LSTMCell(SIZE)))
    network = Use(cell, "unroll")
    network.hybridize()
    with autograd.train_mode():
        calls = [network(sequence(), []) for _ in range(2)]
    assert (calls[0][0] != calls[1][0]).asnumpy().mean() > 0.3  # another draw each time


@each_acting
@pytest.mark.parametrize("hybrid", [False, True])
def test_an_unroll_with_valid_lengths_begins_from_states_of_its_own(wrap, hybrid):
    network = Use(initialised(wrap(LSTMCell(SIZE))), "unroll with valid lengths")
    if hybrid:
        network.hybridize()
    inputs = sequence()
    with autograd.train_mode():
        calls = [network(inputs, [])[0] for _ in range(2)]
    assert (calls[0] != calls[1]).asnumpy().mean() > 0.3  # another draw each time
    whole, _ = network.cell.unroll(T, inputs, None, "TNC", True)
    masked = network(inputs, [])[0]  # without noise; all lengths are T
    np.testing.assert_allclose(masked.asnumpy(), whole.asnumpy(), rtol=1e-4, atol=1e-6)


@each_acting
@pytest.mark.parametrize("steps", [1, T - 1, 2 * T, 3 * T])
def test_a_sequence_of_another_length_is_refused_in_a_graph(wrap, steps):
    network = Use(initialised(wrap(LSTMCell(SIZE, input_size=SIZE))), "unroll")
    network.hybridize()
    with pytest.raises(mx.MXNetError):
        network(mx.nd.ones((steps, B, SIZE)), [])[0].wait_to_read()


def test_masks_that_cannot_be_drawn_are_refused():
    cell = VariationalDropoutCell(LSTMCell(SIZE), **RATES)
    with pytest.raises(ValueError, match=r"cannot draw masks of shapes \(3, 0\)"):
        cell.begin_state(batch_size=3)
    with pytest.raises(ValueError, match="give begin_state a batch size"):
        VariationalDropoutCell(LSTMCell(SIZE, input_size=SIZE)).begin_state(func=mx.sym.zeros)


@each_acting
def test_float64(wrap):
    cell = initialised(wrap(LSTMCell(SIZE, input_size=SIZE)))
    cell.cast("float64")
    states = cell.begin_state(batch_size=B, dtype="float64")
    for _ in range(2):
        assert {state.dtype for state in states} == {np.float64}
        with autograd.train_mode():
            outputs, states = cell.unroll(T, sequence(dtype="float64"), states, "TNC", True)
        assert outputs.dtype == np.float64
        states = cells.begin_sequence(cell, states)


@each_acting
def test_a_network_on_other_contexts_than_the_current_one(wrap):
    contexts = [mx.cpu(1), mx.cpu(2)]
    cell = initialised(wrap(LSTMCell(SIZE, input_size=SIZE)), ctx=contexts)
    for context in contexts:
        states = cell.begin_state(batch_size=B, ctx=context)
        with autograd.train_mode():
            outputs, states = cell.unroll(T, sequence(ctx=context), states, "TNC", True)
            cell.unroll(T, sequence(ctx=context), None, "TNC", True)
            cell(sequence(ctx=context)[0], states)
        states = cells.begin_sequence(cell, states)
        assert {array.context for array in (outputs, *states)} == {context}
    for one in regularisers.noises([cell]):
        assert one.gamma == pytest.approx(0.5)


@each_acting
@pytest.mark.parametrize("what", ["", "training"])
def test_attribute_scopes(wrap, what):
    cell = initialised(wrap(LSTMCell(SIZE, input_size=SIZE)))
    network = Use(cell, "unroll")
    network.hybridize()
    with mx.AttrScope(ctx_group="one"), traced_for(what) if what else nullcontext(), autograd.record():
        outputs, _ = network(sequence(), cell.begin_state(batch_size=B))
        loss = outputs.sum()
    loss.backward()
    assert np.isfinite(outputs.asnumpy()).all()


# Files.


@pytest.mark.parametrize("saving", ["Gluon's", *IDLE])
@pytest.mark.parametrize("loading", ["Gluon's", *IDLE])
@pytest.mark.parametrize("container", ["alone", "HybridSequentialRNNCell"])
def test_files_load_in_both_directions(saving, loading, container, tmp_path):
    def new(name):
        if name == "Gluon's":
            return CONTAINERS[container](lambda: rnn.LSTMCell(SIZE, input_size=SIZE))
        return CONTAINERS[container](lambda: IDLE[name](LSTMCell(SIZE, input_size=SIZE)))

    source, target, path = initialised(new(saving)), new(loading), str(tmp_path / "cell.params")
    source.save_parameters(path)
    # Gluon's own words for a spread that only one of them has.
    more, fewer = "noisy" in saving and "noisy" not in loading, "noisy" in loading and "noisy" not in saving
    if more or fewer:
        with pytest.raises((AssertionError, ValueError)):
            new(loading).load_parameters(path)
    target.initialize()
    target.load_parameters(path, ignore_extra=more, allow_missing=fewer)
    expected, found = source._collect_params_with_prefix(), target._collect_params_with_prefix()
    for name in set(expected) & set(found):
        assert (found[name].data() == expected[name].data()).asnumpy().all(), name
    assert len(set(expected) & set(found)) >= 4


LOADER = """
import json, runpy, sys
with runpy.run_path(sys.argv[1])["stand_ins"]():
    import mxnet as mx
from mxnet import autograd, gluon
arrays = {}
for name, inputs in json.load(open("networks.json")).items():
    network = gluon.SymbolBlock.imports(name + "-symbol.json", inputs, name + "-0000.params")
    given = mx.nd.load(name + "-inputs")
    for mode in (autograd.predict_mode, autograd.train_mode):
        with mode():
            for time in range(2):
                arrays[f"{name} {mode.__name__} {time}"] = network(*given)[0]
mx.nd.save("outputs", arrays)
assert not any(module.split(".")[0] == "noisin" for module in sys.modules)
"""


def test_exported_networks_run_without_noisin(tmp_path):
    networks, expected = {}, {}
    wrappers = {**ACTING, "plain": lambda cell: cell}
    for number, (name, wrap) in enumerate(wrappers.items()):
        for how in ("unroll", "foreach"):
            for what in ("", "prediction"):
                cell = initialised(wrap(LSTMCell(SIZE, input_size=SIZE)))
                network, key = Use(cell, how), f"{number}{how}{what}"
                network.hybridize(static_alloc=True)
                given = [sequence(), *cell.begin_state(batch_size=B)]
                with traced_for(what) if what else nullcontext(), autograd.train_mode():
                    network(given[0], given[1:])
                expected[key] = network(given[0], given[1:])[0].asnumpy()
                network.export(str(tmp_path / key))
                mx.nd.save(str(tmp_path / f"{key}-inputs"), given)
                networks[key] = [f"data{n}" for n in range(len(given))]
                random = "random" in (tmp_path / f"{key}-symbol.json").read_text()
                assert random == (what == "" and "noisy" in name), (name, how, what)
    (tmp_path / "networks.json").write_text(json.dumps(networks))
    subprocess.run([sys.executable, "-c", LOADER, mxnet_import.__file__], cwd=tmp_path, check=True)
    found = mx.nd.load(str(tmp_path / "outputs"))
    for key, values in expected.items():
        for time in range(2):
            np.testing.assert_allclose(found[f"{key} predict_mode {time}"].asnumpy(), values, rtol=1e-5, atol=1e-6)
        name = list(wrappers)[int(key[0])]
        differs = (found[f"{key} train_mode 0"] != found[f"{key} predict_mode 0"]).asnumpy().any()
        assert differs == (name != "plain" and not (name == "noisy" and key.endswith("prediction"))), key


# What is drawn, and when.


@pytest.mark.parametrize("hybrid", [False, True])
def test_compiled_normals_are_not_drawn_in_predict_mode(hybrid, monkeypatch):
    drawn = []
    fill = normals.fill_normals
    monkeypatch.setattr(normals, "fill_normals", lambda *arguments: drawn.append(1) or fill(*arguments))
    network = Use(initialised(noisy(LSTMCell(SIZE, input_size=SIZE))), "unroll")
    if hybrid:
        network.hybridize()
    states = network.cell.begin_state(batch_size=B)
    with traced_for("training"):
        clean = network(sequence(), states)[0].asnumpy()
    assert not drawn
    with autograd.train_mode():
        assert (network(sequence(), states)[0].asnumpy() != clean).any()
    assert len(drawn) == 1  # for the whole sequence
    assert (network(sequence(), states)[0].asnumpy() == clean).all() and len(drawn) == 1


def test_the_outer_purpose_of_a_graph_counts_and_an_unknown_one_is_refused():
    with traced_for("prediction"), traced_for("training"):
        assert graphs.purpose() == "prediction"
    assert graphs.purpose() == ""
    with pytest.raises(ValueError, match="'tests': it must be training or prediction"), traced_for("tests"):
        pass


# What does not fit, what says so, and what the documentation shows.


@pytest.mark.parametrize("wrap", ACTING.values(), ids=ACTING)
@pytest.mark.parametrize("container", ["SequentialRNNCell", "HybridSequentialRNNCell", "BidirectionalCell"])
def test_a_cell_of_several_layers_is_refused(wrap, container):
    with pytest.raises(TypeError, match="acts on one layer with a state: wrap each cell of"):
        wrap(CONTAINERS[container](lambda: LSTMCell(SIZE)))
    with pytest.raises(TypeError, match="acts on one layer"):
        wrap(rnn.DropoutCell(0.5))


def test_a_family_goes_by_its_name_or_as_an_instance():
    assert Noise("gaussian").family == Noise().family == Noise(noise.Gaussian()).family == noise.Gaussian()
    with pytest.raises(ValueError, match="unknown noise family 'cauchy'"):
        Noise("cauchy")
    with pytest.raises(TypeError, match="no noise family: give a name or an instance"):
        Noise(noise.Gaussian)


def test_cells_say_whether_they_are_random_and_what_a_sequence_renews():
    assert not cells.is_stochastic(LSTMCell(SIZE)) and not cells.is_stochastic(rnn.ResidualCell(rnn.GRUCell(SIZE)))
    for wrap in ACTING.values():
        for container in CONTAINERS.values():
            cell = container(lambda wrap=wrap: wrap(LSTMCell(SIZE, input_size=SIZE)))
            assert cells.is_stochastic(cell)
            states = cell.begin_state(batch_size=B, func=mx.nd.zeros)
            begun = cells.begin_sequence(cell, states)
            infos = [n for leaf in leaves(cell) for n in range(len(leaf.state_info()))]
            for number, old, new in zip(infos, states, begun):
                assert (old == new).asnumpy().all() == (number < 2)


@pytest.mark.parametrize("module", [noisin, graphs, noise, regularisers])
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed
