"""What several test modules use: the real corpus beside the project, a sample corpus, the CLI."""

from pathlib import Path

import pytest

LIEDER8 = Path(__file__).parents[2] / "shared" / "data" / "lieder8"


@pytest.fixture(scope="session")
def lieder8():
    """Folder of the lieder8 corpus, where it lies beside the project."""
    if not LIEDER8.is_dir():
        pytest.skip("the lieder8 corpus is not beside the project (../shared/data/lieder8)")
    return LIEDER8


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """Folder of a small sample corpus; do not write into it."""
    from mmfuse.pipeline.sample import write_sample

    folder = tmp_path_factory.mktemp("sample") / "corpus"
    write_sample(folder, clips=48, seed=3)
    return folder


@pytest.fixture
def features_toml(tmp_path):
    """A configuration that asks for every stream."""
    path = tmp_path / "features.toml"
    path.write_text("[preprocessing.audio]\n[preprocessing.midi]\n[preprocessing.text]\n")
    return path
