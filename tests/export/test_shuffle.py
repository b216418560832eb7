import numpy as np
import pytest
import torch
import torch.nn.functional as F

from autoq.export.shuffle import gather_kernel, reach


@pytest.mark.parametrize(("block", "size"), [(2, 9), (2, 3), (2, 5), (3, 3), (4, 5), (2, 1)])
def test_a_convolution_before_the_shuffle_gives_the_same_integers(block: int, size: int) -> None:
    random = np.random.default_rng(size)
    image = torch.from_numpy(random.integers(-9, 9, (1, 4 * block**2, 5, 7)).astype(np.float32))
    kernel = random.integers(-7, 7, (3, 4, size, size)).astype(np.float32)
    expected = F.conv2d(F.pixel_shuffle(image, block), torch.from_numpy(kernel), padding=size // 2)
    before, after = reach(size, block)
    padded = F.pad(image, (before, after, before, after))
    found = F.pixel_shuffle(F.conv2d(padded, torch.from_numpy(gather_kernel(kernel, block))), block)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_weight_of_zero_is_its_zero_point() -> None:
    """Integers with a zero point: what the kernel does not reach counts nothing."""
    kernel = np.random.default_rng(0).integers(0, 256, (3, 4, 3, 3)).astype(np.uint8)
    found = gather_kernel(kernel, 2, zero=131)
    np.testing.assert_array_equal(found - 131.0, gather_kernel(kernel - 131.0, 2))
    assert found.dtype == np.uint8
