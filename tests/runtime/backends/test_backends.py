"""The contract that every backend keeps, shown on the fake that ships."""

import numpy as np
import pytest

from adedge.errors import EngineError
from adedge.runtime.backends import Backend, FunctionBackend


def negative_and_mean(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return 1 - x, x.mean(axis=(1, 2, 3))


def test_the_fake_fills_the_first_n_frames_and_leaves_the_rest() -> None:
    backend: Backend = FunctionBackend(negative_and_mean, shape=(1, 8, 9), batch=3)
    backend.input[:] = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1)
    backend.outputs[1][:] = -7
    backend.run(2)
    assert backend.outputs[0].shape == (3, 1, 8, 9)
    np.testing.assert_array_equal(backend.outputs[0][:2, 0, 0, 0], [1, 0])
    np.testing.assert_array_equal(backend.outputs[1], [0, 1, -7])


def test_buffers_stay_where_they_are() -> None:
    with FunctionBackend(negative_and_mean, shape=(3, 8, 8), batch=2) as backend:
        before = [backend.input.ctypes.data, *(output.ctypes.data for output in backend.outputs)]
        backend.run(1)
        backend.run(2)
        assert before == [backend.input.ctypes.data, *(output.ctypes.data for output in backend.outputs)]
        assert backend.calls == [1, 2]


@pytest.mark.parametrize("n", [0, -1, 3])
def test_n_out_of_range_is_refused(n: int) -> None:
    backend = FunctionBackend(negative_and_mean, shape=(3, 8, 8), batch=2)
    with pytest.raises(EngineError, match="takes 1 to 2 frames"):
        backend.run(n)


def test_a_closed_backend_refuses_to_run() -> None:
    backend = FunctionBackend(negative_and_mean, shape=(3, 8, 8))
    backend.close()
    backend.close()
    with pytest.raises(EngineError, match="closed"):
        backend.run(1)
