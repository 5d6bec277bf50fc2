import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bit-for-bit properties hold on one thread; two are slower on small tensors anyway."""
    torch.set_num_threads(1)
