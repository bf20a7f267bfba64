"""What the local runner leaves behind while it works, on a disk that is full."""

import errno
from pathlib import Path

import numpy as np
import pytest

from gpt_jax.data.curation.work_folder import save
from gpt_jax.disk import is_full


def test_an_array_is_read_as_it_was_written(tmp_path):
    array = np.arange(12).reshape(3, 4)
    save(tmp_path / "a.npy", array)
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), array)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is always full, on this system")
def test_an_array_that_finds_no_space_says_so(tmp_path):
    (tmp_path / "a.npy").symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        save(tmp_path / "a.npy", np.zeros(10**6))
    assert error.value.errno == errno.ENOSPC and is_full(error.value)
