"""Package metadata of noisin; tool settings are in pyproject.toml, exact versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).resolve().parent
# Read as text: importing the package would need MXNet before it is installed.
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (HERE / "src/noisin/__init__.py").read_text(encoding="utf-8"), re.MULTILINE
).group(1)
FLAGS = {"updates": ["-ffp-contract=off"]}  # no fused multiply-add, whose rounding would not be MXNet's

setup(
    name="noisin",
    version=VERSION,
    description="Recurrent language models with unbiased noise on the hidden state (NOISIN), in MXNet/Gluon",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The noisin authors",
    license="Apache-2.0",
    python_requires=">=3.8,<3.15",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"noisin": ["py.typed"]},
    ext_modules=[
        Extension(  # no Python in it: noisin/native/compiled.py loads it with ctypes
            f"noisin.native._{source.stem}",
            [f"src/noisin/native/{source.name}"],
            depends=["src/noisin/native/vector.h"],
            extra_compile_args=[
                *"-O3 -fopenmp -fno-math-errno -fno-trapping-math".split(),
                *FLAGS.get(source.stem, []),
            ],
            extra_link_args=["-fopenmp"],  # GNU's library of threads, which MXNet uses too
            libraries=["m"],
        )
        for source in sorted((HERE / "src/noisin/native").glob("*.c"))
    ],
    install_requires=[
        # Not a range: on platforms without a wheel of 1.9.1 pip would silently take 1.6 or 1.7. Its metadata refuse
        # NumPy 2, and older ones have no wheels for Python 3.13: there it is installed with --no-deps.
        'mxnet==1.9.1; python_version < "3.13"',
        "gluonnlp==0.10.0",  # vocabulary, corpora, BPTT batches
        "numpy>=1.19",
        "matplotlib>=3.7",  # figures
        "pandas>=1.4",  # tables of runs
        "safetensors>=0.4",  # weights on disk
        "fastjsonschema>=2.16",  # states and records
        "tqdm>=4.60",  # progress bars
        # MXNet imports requests, which brings urllib3; the floors are the versions without known vulnerabilities.
        'requests; python_version < "3.10"',
        'requests>=2.33.0; python_version >= "3.10"',
        'urllib3>=2.7.0; python_version >= "3.10"',
    ],
    extras_require={
        "test": ["pytest>=7", "pytest-timeout>=2.1", "hypothesis>=6.80"],
        "lint": ["ruff>=0.6", "mypy>=1.8"],
        "peers": ["torch>=2.4"],  # only for `make bench`; PyTorch's CPU build is enough
        "fuzz": ["atheris>=2.3"],  # only for tests/fuzz.py, see SECURITY.md
        "tensorboard": ["tensorboardX>=2.6"],
        "notebooks": ["nbclient>=0.8", "ipykernel>=6.20"],
        "cluster": ["distributed>=2023.5", "bokeh>=3.1"],  # runs on machines beyond this one; bokeh: Dask's dashboard
    },
    entry_points={"console_scripts": ["noisin=noisin.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(8, 15)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
