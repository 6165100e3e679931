"""Adds the compiled kernels to a built package; everything else is in pyproject.toml.

The kernels are optional: without a C++ compiler, or when it fails, the package installs without them and
compiles them on first use if a compiler has appeared by then (see `canvaslm/ops/cpu/build.py`), else runs
on plain PyTorch.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path(__file__).parent / "src" / "canvaslm" / "ops" / "cpu"


def load_builder():
    """The package's build.py by itself: importing the package would need its dependencies."""
    spec = importlib.util.spec_from_file_location("canvaslm_native_build", NATIVE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a source tree compiles on first use, and again when its sources change
            return
        builder = load_builder()
        target = Path(self.build_lib) / "canvaslm" / "ops" / "cpu" / builder.LIBRARY
        try:
            builder.compile_library(target)
        except (builder.BuildFailed, OSError) as error:
            self.warn(f"installing without the native kernels: {error}")


class PlatformWheel(bdist_wheel):
    """The library holds no Python: one wheel per platform serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class WithLibrary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(distclass=WithLibrary, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
