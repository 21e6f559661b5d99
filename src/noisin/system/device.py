"""The device to compute on: the CPU, or a GPU that MXNet can really use; and whether the CPU has bfloat16."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Set

import mxnet as mx

from noisin.system.errors import UserError, plural

# oneDNN, which multiplies MXNet's matrices on a CPU, needs these for bfloat16. To be faster than float32, bfloat16 also
# needs AVX512_BF16 or AMX.
_BFLOAT16_NEEDS = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


def find_device(name: str = "auto") -> mx.Context:
    """Return the device called `name`.

    Parameters
    ----------
    name : str, default 'auto'
        `cpu`, `gpu`, `gpu:N`, or `auto`: the first GPU if it is usable, else the CPU.

    Returns
    -------
    mxnet.Context

    Raises
    ------
    UserError
        For another name, or a GPU that is missing or that this MXNet has no code for.
    """
    if name == "cpu":
        return mx.cpu()
    if name == "auto":
        return mx.cpu() if _why_unusable(0) else mx.gpu(0)
    match = re.fullmatch(r"gpu(?::(\d{1,3}))?", name)
    if not match:
        raise UserError(f"--device {name} is unknown: it must be cpu, gpu, gpu:N or auto")
    index = int(match.group(1) or 0)
    problem = _why_unusable(index)
    if problem:
        raise UserError(f"gpu:{index} cannot be used: {problem}; use --device cpu")
    return mx.gpu(index)


def check_dtype(dtype: str, device: mx.Context) -> None:
    """Refuse a type that MXNet cannot multiply matrices in.

    Parameters
    ----------
    dtype : {'float32', 'bfloat16'}
    device : mxnet.Context

    Raises
    ------
    UserError
        For bfloat16 on a CPU without AVX-512.
    """
    if dtype == "bfloat16" and device.device_type == "cpu" and not _BFLOAT16_NEEDS <= processor_features():
        raise UserError(
            "dtype is 'bfloat16', which needs a processor with AVX-512: use float32, which reaches the same perplexity"
        )


def processor_features() -> Set[str]:
    """Return the processor's features by Linux's names, e.g. 'avx512_bf16'; empty where /proc/cpuinfo has none."""
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(found[1].split()) if found else set()


def device_name(device: mx.Context) -> str:
    """Return the name by which `find_device` finds this device: cpu, or gpu:N."""
    return "cpu" if device.device_type == "cpu" else f"{device.device_type}:{device.device_id}"


def _why_unusable(index: int) -> str:
    """Return why GPU `index` cannot be used, or ''."""
    if not mx.runtime.Features().is_enabled("CUDA"):
        return "this MXNet was built for the CPU only (requirements-gpu.txt says how to get the other)"
    try:
        count = mx.context.num_gpus()
        if index >= count:
            return f"MXNet sees {plural(count, 'GPU')} (`nvidia-smi` lists what the driver sees)"
        # The wheels have code for compute capability 5.0 to 8.9; on another GPU, only the first kernel fails.
        mx.nd.ones((1,), ctx=mx.gpu(index)).asnumpy()
    except mx.MXNetError as error:
        reason = next((line for line in str(error).splitlines() if "rror" in line), "unknown reason").strip()
        return f"its first computation failed ({reason[:160]}); MXNet's wheels serve compute capability 5.0 to 8.9"
    return ""
