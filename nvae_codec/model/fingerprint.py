"""The fingerprint of a network."""

import json
from hashlib import sha256

import torch

from nvae_codec.model.config import NVAEConfig


def fingerprint(config: NVAEConfig, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256, 64 hexadecimal digits, over the configuration and all tensors.

    Of a tensor the name, the type, the shape and the little-endian bytes count.
    """
    digest = sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
