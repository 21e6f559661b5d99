"""Noise families: standardised random variables that perturb a tensor without bias.

Every family is a random variable eps of mean 0 and variance 1 (docs/method.md). It acts in one of two modes:

    additive        z = h + gamma * eps
    multiplicative  z = h * (1 + gamma * eps)

So E[z | h] = h, and gamma is the (relative) standard deviation for every family. To add a family, write one class
below: a `name`, its parameters as dataclass fields, and `sample`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Dict, Optional, Type, Union

import mxnet as mx
from mxnet import autograd
from mxnet.gluon import HybridBlock, ParameterDict

from noisin.graphs import Tensor, block_parameters, purpose, training_gate
from noisin.native.normals import normal_like

FAMILIES: Dict[str, Type[NoiseFamily]] = {}
MODES = ("additive", "multiplicative")

# Uniform draws are clipped to this distance from 0 and 1 before a logarithm: MXNet's generator does return 0, and one
# infinite draw would end a run. Clipping moves the moments by less than 1e-5.
_UNIFORM_MARGIN = 1e-7


class NoiseFamily:
    """A standardised noise distribution: `sample` draws eps with E[eps] = 0 and Var[eps] = 1.

    A subclass is registered in `FAMILIES` under its `name`.

    Raises
    ------
    TypeError
        When a subclass is defined without a `name` of its own.
    """

    name = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):  # with an inherited name it would replace its parent
            raise TypeError(f"{cls.__name__} needs a `name` of its own")
        FAMILIES[cls.name] = cls

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        """Draw eps, independently for every element.

        Parameters
        ----------
        F : module
            `mxnet.nd` or `mxnet.sym`.
        like : NDArray or Symbol
            Tensor of any shape; its values are not used.

        Returns
        -------
        NDArray or Symbol
            eps, of the shape of `like`.

        Raises
        ------
        TypeError
            If the subclass does not define `sample`.
        """
        raise TypeError(f"{type(self).__name__} does not define sample")


def make_family(name: str, /, **parameters: float) -> NoiseFamily:
    """Return the noise family called `name`.

    Parameters
    ----------
    name : str
        A key of `FAMILIES`.
    **parameters : float
        The family's own parameters, e.g. k=2.0; each has a default.

    Returns
    -------
    NoiseFamily

    Raises
    ------
    ValueError
        For an unknown family or parameter, or a value out of its range.
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown noise family '{name}': choose one of {', '.join(sorted(FAMILIES))}")
    known = set(getattr(FAMILIES[name], "__dataclass_fields__", ()))
    unknown = sorted(set(parameters) - known)
    if unknown:
        accepts = ", ".join(sorted(known)) or "none"
        raise ValueError(f"noise family '{name}' has no parameter '{unknown[0]}' (it has: {accepts})")
    return FAMILIES[name](**parameters)


def _check_range(family: NoiseFamily, parameter: str, low: float, high: float) -> None:
    value = getattr(family, parameter)
    if not low <= value <= high:  # also refuses NaN
        raise ValueError(f"{parameter} of noise family '{family.name}' is {value}: it must be from {low:g} to {high:g}")


def _open_uniform(F: ModuleType, like: Tensor) -> Tensor:
    """Draw U(0, 1) without its end points, so that the logarithms of U and of 1 - U are finite."""
    return F.clip(F.random.uniform_like(like), _UNIFORM_MARGIN, 1 - _UNIFORM_MARGIN)


def _exponential(F: ModuleType, like: Tensor) -> Tensor:
    """Draw Exp(1), finite: MXNet's draws are infinite once in 20 million, where its uniform draw is 1."""
    return F.clip(F.random.exponential_like(like), 0, -math.log(_UNIFORM_MARGIN))


@dataclass(frozen=True)
class Gaussian(NoiseFamily):
    """eps ~ N(0, 1), the noise of the paper's experiments."""

    name = "gaussian"

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        return normal_like(F, like)


@dataclass(frozen=True)
class Laplace(NoiseFamily):
    """eps ~ Laplace(0, 1/sqrt 2): the difference of two exponentials, scaled."""

    name = "laplace"

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        return (_exponential(F, like) - _exponential(F, like)) / math.sqrt(2)


@dataclass(frozen=True)
class Logistic(NoiseFamily):
    """eps ~ Logistic(0, sqrt 3 / pi): the scaled logit of a uniform."""

    name = "logistic"

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        uniform = _open_uniform(F, like)
        return (F.log(uniform) - F.log(1 - uniform)) * (math.sqrt(3) / math.pi)


@dataclass(frozen=True)
class Gumbel(NoiseFamily):
    """eps = (X - 0.5772...) sqrt 6 / pi, X ~ Gumbel(0, 1)."""

    name = "gumbel"

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        gumbel = -F.log(-F.log(_open_uniform(F, like)))
        return (gumbel - 0.5772156649015329) * (math.sqrt(6) / math.pi)


@dataclass(frozen=True)
class Uniform(NoiseFamily):
    """eps ~ U(-sqrt 3, sqrt 3)."""

    name = "uniform"

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        return (F.random.uniform_like(like) - 0.5) * (2 * math.sqrt(3))


@dataclass(frozen=True)
class Bernoulli(NoiseFamily):
    """eps = (b - p) / sqrt(p (1 - p)), b ~ Bernoulli(p).

    In multiplicative mode with gamma = sqrt((1 - p) / p), it is dropout on the hidden state that keeps with probability
    p.

    Parameters
    ----------
    p : float in [0.001, 0.999], default 0.5
    """

    name = "bernoulli"
    p: float = 0.5

    def __post_init__(self) -> None:
        _check_range(self, "p", 0.001, 0.999)

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        kept = F.random.uniform_like(like) < self.p
        return (kept - self.p) / math.sqrt(self.p * (1 - self.p))


@dataclass(frozen=True)
class Exponential(NoiseFamily):
    """eps = E - 1, E ~ Exp(1)."""

    name = "exponential"

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        return _exponential(F, like) - 1


@dataclass(frozen=True)
class Gamma(NoiseFamily):
    """eps = (G - k) / sqrt k, G ~ Gamma(k, 1).

    Parameters
    ----------
    k : float in [0.1, 1e4], default 2
        Shape.
    """

    name = "gamma"
    k: float = 2.0

    def __post_init__(self) -> None:
        _check_range(self, "k", 0.1, 1e4)

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        return (F.random.gamma_like(like, alpha=self.k, beta=1.0) - self.k) / math.sqrt(self.k)


@dataclass(frozen=True)
class ChiSquare(NoiseFamily):
    """eps = (C - k) / sqrt(2 k), C ~ chi-square with k degrees of freedom.

    Parameters
    ----------
    k : float in [0.2, 2e4], default 4
    """

    name = "chi_square"
    k: float = 4.0

    def __post_init__(self) -> None:
        _check_range(self, "k", 0.2, 2e4)

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        chi_square = F.random.gamma_like(like, alpha=self.k / 2, beta=2.0)
        return (chi_square - self.k) / math.sqrt(2 * self.k)


@dataclass(frozen=True)
class Beta(NoiseFamily):
    """eps = (B - m) / s, B ~ Beta(a, b) of mean m and standard deviation s.

    Parameters
    ----------
    a, b : float in [0.5, 1e4], default 2
        Shapes.
    """

    name = "beta"
    a: float = 2.0
    b: float = 2.0

    def __post_init__(self) -> None:
        # Below 0.5 both gamma draws underflow to 0 often enough to matter: 0 / 0.
        _check_range(self, "a", 0.5, 1e4)
        _check_range(self, "b", 0.5, 1e4)

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        first = F.random.gamma_like(like, alpha=self.a, beta=1.0)
        second = F.random.gamma_like(like, alpha=self.b, beta=1.0)
        total = self.a + self.b
        deviation = math.sqrt(self.a * self.b / (total + 1)) / total
        return (first / (first + second) - self.a / total) / deviation


@dataclass(frozen=True)
class Poisson(NoiseFamily):
    """eps = (N - lam) / sqrt lam, N ~ Poisson(lam).

    Parameters
    ----------
    lam : float in [0.01, 1e4], default 4
        Mean.
    """

    name = "poisson"
    lam: float = 4.0

    def __post_init__(self) -> None:
        _check_range(self, "lam", 0.01, 1e4)

    def sample(self, F: ModuleType, like: Tensor) -> Tensor:
        return (F.random.poisson_like(like, lam=self.lam) - self.lam) / math.sqrt(self.lam)


class Noise(HybridBlock):
    r"""Perturb a tensor without bias: z ~ noise(h, gamma), E[z | h] = h (paper, section 3).

    .. math:: z = h + \gamma\epsilon \quad\text{or}\quad z = h(1 + \gamma\epsilon)

    Like `gluon.nn.Dropout`, the noise acts in Gluon's train mode (`autograd.record()`, `autograd.train_mode()`) and is
    off in predict mode. A hybridized network has only MXNet's own operators: once exported, it loads where this package
    is not installed. `graphs.traced_for` makes a graph that trains faster, or a graph for prediction without draws.

    Parameters
    ----------
    family : NoiseFamily or str, default 'gaussian'
        The distribution of eps, or its name.
    gamma : float, default 0.1
        Spread: the standard deviation of z - h (additive) or z / h - 1 (multiplicative). A learned gamma starts here.
    mode : {'additive', 'multiplicative'}, default 'additive'
    learned : bool, default False
        Learn gamma with the weights, as gamma = lower_bound + softplus(rho).
    lower_bound : float, default 0.1
        Lower bound of a learned gamma. Without a bound, learning drives gamma to 0 (paper, section 3).
    prefix, params
        As in `mxnet.gluon.Block`.

    Inputs:
        - **hidden**: tensor h of any shape.

    Outputs:
        - **noisy**: tensor z of the same shape.

    Raises
    ------
    ValueError
        For an unknown family or mode, a negative or non-finite spread, or a learned gamma that starts at or below its
        bound.
    TypeError
        For a family that is neither a name nor a `NoiseFamily`.

    Examples
    --------
    >>> from mxnet import autograd, nd
    >>> noise = Noise("gaussian", gamma=0.5)
    >>> noise.initialize()
    >>> hidden = nd.ones((100, 100))
    >>> bool((noise(hidden) == hidden).asnumpy().all())  # predict mode
    True
    >>> with autograd.train_mode():
    ...     noisy = noise(hidden)
    >>> round(float(noisy.asnumpy().std()), 1), noise.gamma
    (0.5, 0.5)
    """

    def __init__(
        self,
        family: Union[str, NoiseFamily] = "gaussian",
        gamma: float = 0.1,
        mode: str = "additive",
        learned: bool = False,
        lower_bound: float = 0.1,
        prefix: Optional[str] = None,
        params: Optional[ParameterDict] = None,
    ) -> None:
        super().__init__(prefix=prefix, params=params)
        family = make_family(family) if isinstance(family, str) else family
        if not isinstance(family, NoiseFamily):
            raise TypeError(f"{family!r} is no noise family: give a name or an instance of NoiseFamily")
        if mode not in MODES:
            raise ValueError(f"noise mode is '{mode}': it must be one of {', '.join(MODES)}")
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma is {gamma}: it must be a finite number of at least 0")
        if learned and not 0 <= lower_bound < gamma:
            raise ValueError(
                f"a learned gamma starts at {gamma}, with lower bound {lower_bound}: it must start above its bound, "
                "and the bound must be at least 0"
            )
        self.family = family
        self.mode = mode
        self._lower_bound = lower_bound
        with self.name_scope():
            if learned:
                above = gamma - lower_bound
                rho = above + math.log(-math.expm1(-above))  # softplus's inverse, without overflow
                self.rho = self.params.get("rho", shape=(1,), init=mx.init.Constant(rho), wd_mult=0.0)
            else:
                self.fixed_gamma = self.params.get(
                    "gamma", shape=(1,), init=mx.init.Constant(gamma), grad_req="null", differentiable=False
                )

    @property
    def gamma(self) -> float:
        """The current spread."""
        learned = "rho" in self._reg_params
        value = (self.rho if learned else self.fixed_gamma).list_data()[0]  # the same on every context
        return float((self._softplus(mx.nd, value) if learned else value).asscalar())

    def _softplus(self, F: ModuleType, rho: Tensor) -> Tensor:
        # Not oneDNN's softrelu, which is off by 2e-6: where it should be nearly 0, it is negative and has no gradient.
        return F.where(rho > 20, rho, F.log1p(F.exp(F.minimum(rho, 20)))) + self._lower_bound

    def deviation(self, F: ModuleType, like: Tensor) -> Tensor:
        """Draw the deviation gamma * eps, which is 0 in predict mode.

        Parameters
        ----------
        F : module
            `mxnet.nd` or `mxnet.sym`.
        like : NDArray or Symbol
            Tensor of any shape; its values are not used.

        Returns
        -------
        NDArray or Symbol
            z - h (additive) or z / h - 1 (multiplicative), of the shape of `like`.
        """
        parameters = block_parameters(self, like)
        gamma = self._softplus(F, parameters["rho"]) if "rho" in parameters else parameters["fixed_gamma"]
        # Flat, so that the one-element spread broadcasts over a tensor of any rank. The gate takes from the same random
        # stream, and a traced graph draws eps first: drawing it first here too makes the two agree draw for draw.
        eps = F.reshape(self._eps(F, like), shape=(-1,))
        spread = gamma * training_gate(F, gamma)
        return F.reshape_like(F.broadcast_mul(eps, spread), like)

    def _eps(self, F: ModuleType, like: Tensor) -> Tensor:
        if F is mx.sym:
            off = purpose() == "prediction"
        else:
            off = not autograd.is_training()
        return F.zeros_like(like) if off else self.family.sample(F, like)

    def combine(self, F: ModuleType, hidden: Tensor, deviation: Tensor) -> Tensor:
        """Return z, which is h + deviation (additive) or h * (1 + deviation) (multiplicative); all have one shape."""
        if self.mode == "additive":
            return F.broadcast_add(hidden, deviation)  # `+` has wrong gradients here (apache/mxnet#20293)
        return F.broadcast_mul(hidden, 1 + deviation)

    def reset(self) -> None:
        """Do nothing: a recurrent cell resets each of its children, and noise has no state."""

    def hybrid_forward(self, F: ModuleType, hidden: Tensor, **_parameters: Tensor) -> Tensor:
        return self.combine(F, hidden, self.deviation(F, hidden))

    def __repr__(self) -> str:
        spread = "learned gamma" if "rho" in self._reg_params else "fixed gamma"
        return f"Noise({self.family}, {self.mode}, {spread})"
