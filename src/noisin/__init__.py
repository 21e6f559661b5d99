"""Noisy recurrent neural networks: unbiased noise on the hidden state of language models.

Import noisin before mxnet: the environment is checked and the number of threads is set here, because MXNet reads
both once, while it loads.
"""

from __future__ import annotations

from noisin import _environment

__version__ = "0.1.0"  # setup.py reads this line as text

_environment.prepare()
