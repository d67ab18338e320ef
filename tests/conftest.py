"""What all tests share: no test is decided by timing, and Ctrl-C is listened to."""

import gc
import pathlib
import signal

import pytest
import tensorflow as tf
from hypothesis import settings

from keras_osgd import sampling
from keras_osgd.scores import state, trust

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell starts its background jobs with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A second device, for replicas and for what must not be on a model's device.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)


@pytest.fixture(autouse=True)
def _sampled(request, monkeypatch):
    """Lets small data be sampled by default; tests of the default are marked `auto`."""
    if request.node.get_closest_marker("auto") is None:
        monkeypatch.setitem(sampling._BY_NAME, "auto", sampling.RAIS)


@pytest.fixture(autouse=True, scope="session")
def _followed_at_once():
    """Lets draws follow the scores fully from the second block on, as others after it.

    So weights differ in trainings of few steps; `scores/test_trust.py` is without it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "untrusted", trust.trusted)
        yield


# The modules that take the longest, in this order: two processes at once then end at
# about the same time. `--dist loadscope` would begin with those of the most tests.
LONGEST = (
    "fit/test_workers.py",
    "fit/test_replicas.py",
    "fit/test_fit.py",
    "callbacks/test_checkpoint.py",
    "step/test_own_train_step.py",
    "fit/test_auto.py",
    "fit/test_saving.py",
    "pools/test_presample.py",
    "step/test_skipping.py",
    "step/test_metrics.py",
    "fit/test_faults_of_data.py",
    "data/test_datasets.py",
    "draws/test_oracle.py",
    "step/test_exact_step.py",
    "callbacks/test_monitor.py",
    "callbacks/test_checkpoint_models.py",
    "fit/test_faults_of_training.py",
    "norms/test_last_layer.py",
)
_PLACES = {pathlib.Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: _PLACES.get(item.path, len(LONGEST)))


@pytest.fixture(autouse=True, scope="module")
def _swept():
    """Keeps what a module leaves behind out of the next ones' garbage collections.

    TensorFlow keeps graphs for ever. To go through those of all modules, as Keras'
    `clear_session` does each time, takes seconds in the end.
    """
    yield
    gc.collect()
    gc.freeze()
