"""The compiled parts on aarch64, in an emulator, against the same on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.processes import ROOT

CROSS = "aarch64-linux-gnu-gcc"
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


def numbers(folder, compiler, *emulator):
    """Build the C files with setup.py and the compiler, and return what tests/native/compiled.c prints, by name."""
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder, "--build-temp", folder / "objects"]
    subprocess.run(build, cwd=ROOT, check=True, env={**os.environ, "CC": compiler})
    libraries = sorted((folder / "noisin" / "native").glob("*.so"))
    assert len(libraries) == len(list((ROOT / "src/noisin/native").glob("*.c")))
    program = folder / "compiled"
    sources = [ROOT / "tests/native/compiled.c", *libraries, f"-Wl,-rpath,{folder / 'noisin' / 'native'}"]
    subprocess.run([*compiler.split(), *sources, "-o", program], check=True)
    output = subprocess.run([*emulator, program], check=True, stdout=subprocess.PIPE, text=True).stdout
    values = {}
    for name, value in map(str.split, output.splitlines()):
        values.setdefault(name, []).append(float.fromhex(value))
    return {name: np.array(value) for name, value in values.items()}


@pytest.mark.skipif(not shutil.which(CROSS), reason=f"no {CROSS}: apt-get install gcc-aarch64-linux-gnu")
@pytest.mark.skipif(not QEMU, reason="no qemu-aarch64: apt-get install qemu-user-static")
def test_the_compiled_parts_give_the_same_numbers_on_aarch64(tmp_path):
    here = numbers(tmp_path / "here", os.environ.get("CC", "cc"))
    there = numbers(tmp_path / "aarch64", CROSS, QEMU, "-L", "/usr/aarch64-linux-gnu")
    assert set(here) == set(there) and len(here) == 20
    for name, expected in here.items():
        if name.startswith(("adam", "sgd")):  # no fused multiply-add: the same bits
            np.testing.assert_array_equal(there[name], expected, err_msg=name)
        elif name in ("gradient_half", "scaled_half"):  # bits of bfloat16
            assert np.abs(there[name] - expected).max() <= 1, name
        else:
            np.testing.assert_allclose(there[name], expected, rtol=2e-6, atol=5e-7, err_msg=name)
