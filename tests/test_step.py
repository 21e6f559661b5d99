"""The training step: clipping by the optimizer's rescaling, a gradient that is not finite, states carried on."""

import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from helpers.machine import DTYPES
from helpers.models import make_language_model
from mxnet import autograd, gluon

from noisin.config import Config
from noisin.objective import AveragedLikelihood
from noisin.optimizers import OPTIMIZERS, ClippingTrainer, Diverged
from noisin.system import mxnet_import
from noisin.training import TrainingStep

SMALL = {"cell": "rnn", "activation": "sigmoid", "layers": 2, "hidden": 5, "embedding": 4, "batch_size": 3, "unroll": 4}


def parameters_with_gradients(scale):
    """Two parameters with known gradients, `scale` times random numbers."""
    parameters = gluon.ParameterDict()
    draws = np.random.RandomState(0)
    for name, shape in (("a", (7, 5)), ("b", (3,))):
        parameter = parameters.get(name, shape=shape, init=mx.init.Constant(0.5))
        parameter.initialize()
        parameter.grad()[:] = mx.nd.array(scale * draws.normal(size=shape))
        parameter._data[0]._fresh_grad = True
    return parameters


def values(parameters):
    return [parameter.data().asnumpy() for parameter in parameters.values()]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_clipping_equals_gluons(optimizer, scale):
    clip, batch_size = 0.3, 4
    ours, gluons = parameters_with_gradients(scale), parameters_with_gradients(scale)
    options = {"learning_rate": 0.1, "wd": 0.01}
    ClippingTrainer(ours, OPTIMIZERS[optimizer](**options), clip).step(batch_size)
    gluon.utils.clip_global_norm([p.grad() for p in gluons.values()], clip * batch_size)
    gluon.Trainer(gluons, optimizer, options, kvstore=None).step(batch_size)
    for ours_value, gluons_value in zip(values(ours), values(gluons)):
        assert not np.allclose(ours_value, 0.5, atol=1e-6)
        np.testing.assert_allclose(ours_value, gluons_value, rtol=1e-6)


@pytest.mark.parametrize("clip", [0.05, 50.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_options_of_a_configuration_reach_the_update(clip, dtype):
    config = Config(optimizer="sgd", learning_rate=0.3, weight_decay=0.1, clip=clip, dtype=dtype, **SMALL)
    model = make_language_model(method="none", layers=2)
    step = TrainingStep(model, config, mx.cpu())
    weights = model.collect_params()
    before = values(weights)
    inputs, targets = np.random.randint(0, model.vocabulary_size, (2, 4, 3))
    loss = step(inputs, targets)
    gradients = [parameter.grad().asnumpy() / 3 for parameter in weights.values()]
    norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
    assert (norm > clip) == (clip == 0.05)
    for old, gradient, new in zip(before, gradients, values(weights)):
        expected = old - 0.3 * (gradient * min(1, clip / norm) + 0.1 * old)
        np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-6)
    assert type(step.trainer._optimizer) is OPTIMIZERS["sgd"]
    assert type(TrainingStep(model, Config(**SMALL), mx.cpu()).trainer._optimizer) is OPTIMIZERS["adam"]
    # The products of float32 are not those of bfloat16, but close to them.
    for parameter, value in zip(weights.values(), before):
        parameter.set_data(mx.nd.array(value))
    exact = TrainingStep(model, Config(**SMALL), mx.cpu())(inputs, targets)
    assert (loss == exact) == (dtype == "float32") and loss == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("scale", [1e19, 1e25, 1e36])
def test_a_gradient_whose_squares_float32_cannot_hold_is_clipped_as_any_other(scale):
    ours, small = parameters_with_gradients(scale), parameters_with_gradients(1.0)
    for parameters, clip in ((ours, 0.3), (small, 0.3)):
        ClippingTrainer(parameters, OPTIMIZERS["sgd"](learning_rate=0.1), clip).step(4)
    for ours_value, small_value in zip(values(ours), values(small)):
        np.testing.assert_allclose(ours_value, small_value, rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(poison):
    parameters = parameters_with_gradients(1.0)
    trainer = ClippingTrainer(parameters, OPTIMIZERS["adam"](learning_rate=0.1), clip=1.0)
    parameters["b"].grad()[1] = poison
    with pytest.raises(Diverged, match="norm is"):
        trainer.step(1)
    assert trainer._optimizer.num_update == 0
    for value in values(parameters):
        np.testing.assert_array_equal(value, np.full_like(value, 0.5))


NOISY = {"method": "noisin", "gamma": [0.3], "samples": 3}


@pytest.mark.parametrize("options", [{"method": "none"}, NOISY, {**NOISY, "objective": "log-averaged"}])
def test_the_loss_is_that_of_the_objective_and_states_are_carried(options):
    config = Config(**SMALL, **options)
    draws = np.random.RandomState(1)
    segments = [draws.randint(0, 7, (2, 4, 3)) for _ in range(2)]
    model = make_language_model(**SMALL, **options)
    step = TrainingStep(model, config, mx.cpu())
    step.trainer.set_learning_rate(0.0)  # the weights stay, so that the reference below is the same model
    mx.random.seed(5)
    losses = [step(*segment) for segment in segments]
    assert losses[0] == pytest.approx(_losses(model, config, segments)[0], rel=1e-5)
    assert losses == pytest.approx(_losses(model, config, segments), rel=1e-5)
    mx.random.seed(5)
    step.begin()
    assert step(*segments[1]) != pytest.approx(losses[1], rel=1e-3), "a state that is not carried goes unnoticed"


def _losses(model, config, segments):
    objective = AveragedLikelihood(model, config.unroll, config.samples, objective=config.objective)
    states, losses = objective.begin_state(config.batch_size), []
    mx.random.seed(5)
    for inputs, targets in segments:
        with autograd.record():
            loss, _, states = objective(mx.nd.array(inputs), mx.nd.array(targets), states)
        losses.append(float(loss.sum().asscalar()))
    return losses


FAULTS = """
import ctypes, resource, runpy, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would be one fault for 512
with runpy.run_path(sys.argv[1])["stand_ins"]():
    import mxnet as mx
def use():
    for _ in range(5):
        mx.nd.ones((40, 1 << 18)).wait_to_read()
for _ in range(4):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept_for_the_next_step():
    def faults(first):
        command = [sys.executable, "-W", "ignore", "-c", first + FAULTS, mxnet_import.__file__]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    # Five arrays of 40 MB: 51,200 pages if each is mapped anew.
    assert faults("") > 20_000, "without noisin there is nothing to keep: this test cannot fail any more"
    assert faults("import sys; sys.argv[0] = 'noisin'; import noisin") < 2_000  # as the command does
    assert faults("import noisin") > 20_000  # a host process keeps its allocator
