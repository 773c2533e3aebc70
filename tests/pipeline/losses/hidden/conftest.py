"""One thread a test: two that wait for each other on busy cores are thirty times slower than one."""

import torch

torch.set_num_threads(1)
