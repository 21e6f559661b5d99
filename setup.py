"""The compiled parts, which pyproject.toml cannot declare: C without Python, loaded by noisin/native/compiled.py."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("src/noisin/native")
FLAGS = {"updates": ["-ffp-contract=off"]}  # no fused multiply-add, whose rounding would not be MXNet's

setup(
    ext_modules=[
        Extension(
            f"noisin.native._{source.stem}",
            [str(source)],
            depends=[str(NATIVE / "vector.h")],
            extra_compile_args=[
                *"-O3 -fopenmp -fno-math-errno -fno-trapping-math".split(),
                *FLAGS.get(source.stem, []),
            ],
            extra_link_args=["-fopenmp"],  # GNU's library of threads, which MXNet uses too
            libraries=["m"],
        )
        for source in sorted(NATIVE.glob("*.c"))
    ],
)
