"""Noisy recurrent neural networks: unbiased noise on the hidden state of language models.

Import noisin before mxnet: it lets MXNet load on today's NumPy and Python, and sets the number of threads, which MXNet
reads once.
"""

from __future__ import annotations

from noisin.system import startup

__version__ = "0.1.0"  # setup.py reads this line as text

startup.prepare()
