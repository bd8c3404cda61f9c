"""`models.training` with FSDP 2 on CPUs: `python -m torch.distributed.run -m tests.sharded_job JOB.json [JOB.json …]`.

accelerate shards over GPUs only, so the processes are shown to it as ones with a GPU. The rest is what it is on GPUs:
accelerate's own wrapping, PyTorch's shards and collectives (over gloo). Several jobs run one after the other: to start
the processes takes longer than a tiny job.
"""

import os
import sys

from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType

from models.training.__main__ import main

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_SYNC_MODULE_STATES": "false",
}

if __name__ == "__main__":
    os.environ |= FSDP
    PartialState(cpu=True)
    for job in sys.argv[1:]:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        if code := main([job]):
            sys.exit(code)
        AcceleratorState._reset_state()
        GradientState._reset_state()
