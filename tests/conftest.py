import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bit-for-bit properties hold on one thread; two are slower on small tensors anyway."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations are in this process, unless a test asks for workers."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
