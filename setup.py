"""Build recipe: which folder is which package, and the C++ extension."""

import sys
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

# The repository keeps its folders at the top level; here they become one package.
PACKAGE_DIR = {
    "videoar": "videoar",
    "videoar.kernels": "kernels",
    "videoar.runtime": "runtime",
    "videoar.training": "training",
    "videoar.benchmarks": "benchmarks",
    "videoar.assets": "assets",
}

# OpenMP only where the stock compiler ships it: Apple's clang does not. No -march=native: a wheel
# must run on processors older than the one that built it, so the kernels choose at run time
# (csrc/foreach_isa.h). No -ffast-math: NaN, infinity and the order of sums keep their meaning; off
# are errno and traps, which nobody reads, and silent fusing of a * b + c.
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
OPTIMIZE = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
OPTIMIZE = [] if sys.platform == "win32" else OPTIMIZE

ParallelCompile("NPY_NUM_BUILD_JOBS").install()

setup(
    package_dir=PACKAGE_DIR,
    packages=list(PACKAGE_DIR),
    package_data={
        "videoar": ["py.typed"],
        "videoar.assets": ["**/*.safetensors", "**/*.json"],
    },
    ext_modules=[
        Pybind11Extension(
            "videoar._C",
            sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.h") + glob("csrc/*.inl")),
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=[*OPTIMIZE, *OPENMP],
            extra_link_args=OPENMP,
        )
    ],
    cmdclass={"build_ext": build_ext},
)
