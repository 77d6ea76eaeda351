"""One thread a test process: the tensors are small, and several processes share the cores.

Random examples are the same in every run, so that what was green stays green; `--hypothesis-profile=default` looks for
others.
"""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("same", derandomize=True)
settings.load_profile("same")
