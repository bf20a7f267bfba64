"""What the local runner leaves behind while it works, also where there is no space for it."""

import errno
import resource

import numpy as np
import pytest

from gpt_jax.data.curation.work_folder import save


def test_an_array_is_read_as_it_was_written(tmp_path):
    array = np.arange(12).reshape(3, 4)
    save(tmp_path / "a.npy", array)
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), array)


def test_an_array_of_which_only_a_part_could_be_written_says_why(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # stands for the full disk: it too ends in the midst
    try:
        with pytest.raises(OSError) as error:
            save(tmp_path / "a.npy", np.zeros(2**18))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
