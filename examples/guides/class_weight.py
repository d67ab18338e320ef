"""
Title: Coming from class_weight, oversampling or a weighted sampler
Description: Another objective, or the same one in fewer steps? Both go together.
Accelerator: None
Needs: nothing beyond keras_osgd; two minutes on two CPU cores.
"""

"""
## Introduction

Three methods make rare classes count for more: `class_weight`, repeated rows, and a
sampler that draws them more often. All three change the *objective*, the loss that is
minimised: a rare class has a larger part in it.

Importance sampling changes the *draws* and not the objective, since an example that is
drawn more often counts for less each time. So the two go together: `class_weight` says
which loss to minimise, and importance sampling minimises it in fewer steps.

| you have | here |
|---|---|
| `fit(..., class_weight=weights)` | the same |
| the rows of class c, k times each | each once, and `class_weight={c: k}` |
| `WeightedRandomSampler(weights)`, `rejection_resample` | `sample_weight=weights` |
| a sampler that prefers hard examples | nothing: the draws follow the gradients |
"""

"""
## Setup
"""

import math

import guide_data
import keras
import numpy as np

import keras_osgd

"""
Five of the ten classes are made rare: one of thirty of their images is kept. The test
images stay as they are, with the same number of each class. So the error rate on them
is the *balanced error*, in which each class counts the same.
"""

(x, y), (x_test, y_test), class_names = guide_data.images(50_000)
rare = np.arange(10) >= 5
kept = ~rare[y] | (np.random.default_rng(0).uniform(size=len(y)) < 1 / 30)
x, y = (column[kept][: guide_data.size(50_000, smoke=300)] for column in (x, y))
n, batch_size = len(y), guide_data.size(64, smoke=16)
print(f"{n} images, {rare[y].sum()} of them of the five rare classes")


def train(sampling, epochs, seed, rows=slice(None), class_weight=None):
    keras.utils.set_random_seed(seed)
    model = keras_osgd.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    steps = epochs * math.ceil(len(y[rows]) / batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.001, steps)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        sampling=sampling,
    )
    model.fit(
        x[rows],
        y[rows],
        batch_size=batch_size,
        epochs=epochs,
        class_weight=class_weight,
        verbose=0,
    )
    return model


"""
## One objective in two ways

Each class shall count the same. `class_weight` does that by the inverse of the class's
frequency, scaled to a mean of 1 over the rows, so that the learning rate can stay.
Oversampling does it by repeated rows. Both are trained by Keras' own `fit` first. The
repeated rows make an epoch about twice as long, so there are half as many epochs.
"""

epochs, seeds = guide_data.size(8, smoke=2), range(guide_data.size(2, smoke=1))
counts = dict(zip(*np.unique(y, return_counts=True), strict=True))
class_weight = {int(c): n / (len(counts) * count) for c, count in counts.items()}
repeated = np.repeat(np.arange(n), np.where(rare[y], 30, 1))
results = {
    "uniform": [train("uniform", epochs, seed) for seed in seeds],
    "uniform, rows repeated": [
        train("uniform", epochs // 2, seed, repeated) for seed in seeds
    ],
    "uniform, class_weight": [
        train("uniform", epochs, seed, class_weight=class_weight) for seed in seeds
    ],
}

"""
## The same objectives by importance sampling

With `class_weight`, the importance of an example is the norm of its *weighted*
gradient. Nothing else changes.
"""

results["RAIS"] = [train("rais", epochs, seed) for seed in seeds]
results["RAIS, class_weight"] = [
    train("rais", epochs, seed, class_weight=class_weight) for seed in seeds
]


def steps_of(model):
    return int(model.optimizer.iterations)


print(f"{'':24}{'steps':>7}  balanced error, %, of each seed")
for name, models in results.items():
    errors = [100 - 100 * m.evaluate(x_test, y_test, verbose=0)[1] for m in models]
    steps = np.mean([steps_of(model) for model in models])
    print(f"{name:24}{steps:7.0f}  {'  '.join(f'{error:.1f}' for error in errors)}")

"""
The objective decides the balanced error: with `class_weight` it is three to four points
lower than without, uniformly and by RAIS. The draws decide the number of steps: with
`class_weight`, RAIS takes less than a third of them.

A warning says here that a hundredth of the rows take a quarter of all draws, and that
their labels may be wrong. With `class_weight` that is to be expected, since rows that
count for more are drawn more. Look at some of these rows once, and go on.

## What rare classes get

Without `class_weight`, rare rows are drawn more often if they are hard. With it they
are drawn more often because they count for more.
"""

for name in ("RAIS", "RAIS, class_weight"):
    drawn = results[name][0].sampling.most_sampled(n)
    theirs = drawn.share_of_draws[rare[drawn.label]].sum()
    print(
        f"{name}: rare classes are {rare[y].mean():.1%} of the rows and took "
        f"{theirs:.1%} of the draws"
    )

"""
## More to know

- Do not repeat rows and give `class_weight` as well: the class would be weighted twice.
  Pass each row once, since the sampler takes copies for different examples and learns
  about each of them anew.
- A sampler that prefers examples with a high loss, and changes its preference during
  training, minimises no fixed loss. Importance sampling is its unbiased form.
- The guide `rare_classes.py` trains on rare classes without weights.
"""
