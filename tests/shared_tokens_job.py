"""`models.training` whose processes share tokens, on CPUs, where diffusers asks for the number of GPUs."""

import sys

import torch

from models.training.__main__ import main

if __name__ == "__main__":
    torch.accelerator.device_count = lambda: 1
    sys.exit(main())
