"""The device that the tests in here run on, and the marks that they have.

`SWARM_PEER_GPU_TESTS=cpu` runs them on the CPU: it shows that the tests themselves are sound, and nothing of a GPU.
"""

import os

import pytest
import torch

DEVICE = torch.device(os.environ.get("SWARM_PEER_GPU_TESTS", "cuda:0"))
HERE = torch.device("cpu")

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
    # The first product on one of autograd's own threads says so; it then does what it should.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA context:UserWarning"),
]


@pytest.fixture(autouse=True)
def _whole_float32() -> None:
    """torch's own default, whatever was set before: no TF32 in products of float32."""
    torch.set_float32_matmul_precision("highest")
