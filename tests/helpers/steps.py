"""What a sampled step reads and updates, without a run around it."""

import tensorflow as tf

from keras_osgd.base.replicas import Share
from keras_osgd.gain.gain_ratio import GainRatio
from keras_osgd.pools.stream_run import SkipCount, StreamClock
from keras_osgd.step.skipping import Skips
from keras_osgd.step.state import StepState


def step_state(n: int, losses: list, scorer=None) -> StepState:
    """Returns the state of a step on draws among n examples, at the user's rate."""
    return StepState(
        n=n,
        share=Share(),
        losses=losses,
        metrics=(),
        adapt=False,
        scorer=scorer,
        gain=GainRatio(),
        last_layer_gain=GainRatio(),
        clock=StreamClock(tf.Variable(0.0, dtype=tf.float64)),
        skips=Skips(),
        log=SkipCount(),
    )
