"""A bootstrap particle filter: the marginal likelihood of a state-space model, log p(x), from simulated states."""

from __future__ import annotations

from typing import Optional

import numpy as np


class ParticleFilter:
    r"""Log weights of P particles in each of B independent sequences, and the marginal likelihood they estimate.

    A network with noisy hidden states is a state-space model: z_t depends on z_{t-1} and on noise, x_t on z_t. Each
    particle is one trajectory of z. With its normalised weight w_{t-1}^s before word t,

    .. math:: \hat p(x_t | x_{<t}) = \sum_s w_{t-1}^s \, p(x_t | z_t^s), \quad
              w_t^s = \frac{w_{t-1}^s \, p(x_t | z_t^s)}{\hat p(x_t | x_{<t})}

    The product over t is an unbiased estimate of p(x), so the expectation of its logarithm is a lower bound on
    log p(x), which rises with P (Gordon et al., 1993; Doucet and Johansen, 2009).

    Parameters
    ----------
    particles : int
        P, at least 1.
    sequences : int
        B.
    random : numpy.random.RandomState
        Draws the offsets of the systematic resampling.

    Raises
    ------
    ValueError
        If there is not one particle.
    """

    def __init__(self, particles: int, sequences: int, random: np.random.RandomState) -> None:
        if particles < 1:
            raise ValueError(f"particles is {particles}: it must be at least 1")
        self._random = random
        self._log_weights = np.full((particles, sequences), -np.log(particles))

    def weigh(self, log_p: np.ndarray) -> np.ndarray:
        """Take in what each particle says of the next word.

        Parameters
        ----------
        log_p : array (P, B)
            log p(x_t | z_t^s).

        Returns
        -------
        array (B,), float64
            The estimate of log p(x_t | x_{<t}); minus infinity where every particle excludes the word.
        """
        log_weights = self._log_weights + log_p.astype(np.float64)
        log_estimate = _log_sum_exp(log_weights)
        possible = np.isfinite(log_estimate)
        # Where no particle is possible any more, all are as good: the estimate says so already.
        equal = np.full(len(log_weights), -np.log(len(log_weights)))
        self._log_weights = np.where(possible, log_weights - np.where(possible, log_estimate, 0), equal[:, None])
        return log_estimate

    @property
    def effective(self) -> np.ndarray:
        """The effective sample size of each sequence, 1 / sum_s w_s^2, from 1 to P: (B,)."""
        return np.exp(-_log_sum_exp(2 * self._log_weights))

    def resample(self) -> Optional[np.ndarray]:
        """Replace the particles of each sequence whose effective sample size is below P / 2, by systematic resampling.

        Returns
        -------
        array (P, B) of int, or None
            Which particle each one goes on from; None where all go on as they are.
        """
        count, sequences = self._log_weights.shape
        depleted = np.flatnonzero(self.effective < count / 2)
        if not len(depleted):
            return None
        ancestors = np.tile(np.arange(count)[:, None], (1, sequences))
        offsets = (self._random.uniform(size=len(depleted)) + np.arange(count)[:, None]) / count
        for column, points in zip(depleted, offsets.T):
            cumulative = np.cumsum(np.exp(self._log_weights[:, column]))
            ancestors[:, column] = np.searchsorted(cumulative / cumulative[-1], points, side="right")
        self._log_weights[:, depleted] = -np.log(count)
        return ancestors


def _log_sum_exp(values: np.ndarray) -> np.ndarray:
    highest = values.max(axis=0)
    finite = np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):
        return finite + np.log(np.exp(values - finite).sum(axis=0))
