"""DDP's gradients as bf16 on any device. (No postponed annotations here: DDP looks at them.)"""

from typing import Any

import torch
import torch.distributed as dist


def sum_as_bf16(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """torch's `bf16_compress_hook` without its insistence on CUDA: cast, divide, sum, cast back."""
    buffer = bucket.buffer()
    low = buffer.to(torch.bfloat16).div_(dist.get_world_size())
    work = dist.all_reduce(low, async_op=True)
    assert work is not None

    def cast_back(_: torch.futures.Future[Any]) -> torch.Tensor:
        return buffer.copy_(low)

    return work.get_future().then(cast_back)
