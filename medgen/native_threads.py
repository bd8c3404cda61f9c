"""How many threads native libraries (BLAS, OpenMP, OpenCV) take in a process: read when they are loaded."""

import os

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


def limit_native_threads(threads: int, *, overrule: bool = False) -> None:
    """Sets the libraries' variables for this process and those that it starts.

    Args:
        overrule: what the environment says already, too.
    """
    for variable in VARIABLES:
        if overrule or variable not in os.environ:
            os.environ[variable] = str(threads)
