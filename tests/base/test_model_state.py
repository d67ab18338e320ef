"""What a trial of a model changes, and what is put back."""

import keras
import numpy as np
import tensorflow as tf

from keras_osgd.base.model_state import build, state_kept


class Changing(keras.layers.Layer):
    """Changes with each call all that a layer may hold."""

    def __init__(self):
        super().__init__()
        self.plain = tf.Variable(0.0)
        self.seeds = keras.random.SeedGenerator(1)
        self.mean = keras.metrics.Mean()

    def build(self, shape):
        self.calls = self.add_weight(initializer="zeros", trainable=False)

    def call(self, x):
        self.plain.assign_add(1.0)
        self.calls.assign_add(1.0)
        self.mean.update_state(x)
        return x + keras.random.normal([1], seed=self.seeds)

    def values(self):
        seen = self.plain, self.calls, self.seeds.state, self.mean.result()
        return [np.array(each).tolist() for each in seen]


def test_a_trial_is_put_back_and_building_runs_nothing():
    layer, x = Changing(), tf.ones([3, 2])
    model = keras.Sequential([layer])
    build(model, lambda: x)
    assert model.built and layer.values() == [0.0, 0.0, [1, 0], 0.0]
    model(x)
    before = layer.values()
    with state_kept(model):
        model(x)
        assert not any(a == b for a, b in zip(layer.values()[:3], before, strict=False))
    assert layer.values() == before
