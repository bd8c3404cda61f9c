"""What worker and inference processes hold from their start on: the process whose forks they are imports this.

It is what costs most of their start, and what most of them need; they share its memory. Prefect is among it, whose task
decorator the steps' modules use, and pandas, which Arrow imports when it makes a table of rows: 100 MiB of each worker.
Nothing of it may touch CUDA when it is imported: a fork could not use it any more.
"""

import atexit
import gc
from importlib import import_module

from medgen.native_threads import limit_native_threads

limit_native_threads(1, overrule=True)  # it is read when the libraries are loaded
for _module in ("cv2", "torch", "torchvision", "pandas", "prefect", "medgen.shard"):
    import_module(_module)
# Else the first search for garbage in each fork would write to, and so copy, every page that they share.
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # at its own end libraries that count what they leave behind would complain
