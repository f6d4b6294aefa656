"""Whether the values of an argument may be read before a launch, to check them.

Shapes and dtypes are always known. Values on a GPU are not: reading them makes the host wait for
everything that was launched before. So they are trusted, unless `VIDEOAR_DEBUG=1` asks for them.
"""

import torch
from torch import Tensor

from videoar.environment import debug
from videoar.kernels.dispatch import forced_backend


def values_known(x: Tensor) -> bool:
    """Whether to check the values of `x`: on the host always, on a device under the debug switch.

    Where the "triton" backend is forced, a CPU tensor stands for one on the device, as it does in
    Triton's interpreter. While a CUDA graph is being captured nothing can be read.
    """
    if x.device.type == "cpu" and forced_backend() != "triton":
        return True
    if x.device.type == "meta" or not debug():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())
