"""What this machine and its packages can do."""

from __future__ import annotations

import matplotlib
import mxnet as mx
import pytest

from noisin.system.device import check_dtype
from noisin.system.errors import UserError


def _multiplies_bfloat16():
    try:
        check_dtype("bfloat16", mx.cpu())
    except UserError:
        return False
    return True


MULTIPLIES_BFLOAT16 = _multiplies_bfloat16()
needs_bfloat16 = pytest.mark.skipif(
    not MULTIPLIES_BFLOAT16, reason="this processor has no AVX-512, without which MXNet multiplies no bfloat16"
)
needs_matplotlib = pytest.mark.skipif(
    not matplotlib.__version__.startswith("3.10."), reason="matplotlib 3.10 drew the committed figures"
)
DTYPES = ["float32", pytest.param("bfloat16", marks=needs_bfloat16)]
