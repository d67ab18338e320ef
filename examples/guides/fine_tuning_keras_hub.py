"""
Title: Fine-tuning a KerasHub model
Description: A text classifier with its own preprocessor; then by LoRA alone.
Accelerator: None
Needs: keras-hub (`pip install keras-hub`); two minutes on two CPU cores.
"""

"""
## Introduction

A task of KerasHub, such as `BertTextClassifier`, takes raw texts, and its `fit` applies
its preprocessor. After `keras_osgd.accelerate` the task trains by importance, still
from raw texts. Each text is tokenized once, and not again at every visit.
"""

"""
## Setup
"""

import collections
import math
import pathlib
import re
import sysconfig

import guide_data
import keras
import numpy as np

try:
    import keras_hub
except ImportError as error:
    raise SystemExit("This guide takes: pip install keras-hub") from error

import keras_osgd

"""
The texts are pieces of three lines from seven modules of Python's standard library. The
task is to tell which module a piece is from.
"""

MODULES = ["argparse", "doctest", "inspect", "pydoc", "tarfile", "turtle", "typing"]
folder = pathlib.Path(sysconfig.get_path("stdlib"))
pieces, labels = [], []
for label, module in enumerate(MODULES):
    lines = (folder / f"{module}.py").read_text(errors="replace").lower().splitlines()
    lines = [line for line in lines if line.strip()]
    pieces += ["\n".join(lines[i : i + 3]) for i in range(0, len(lines) - 2, 3)]
    labels += [label] * (len(pieces) - len(labels))
order = np.random.default_rng(0).permutation(len(pieces))
texts, y = np.array(pieces)[order], np.array(labels)[order]
tests, n = guide_data.size(2000, smoke=50), guide_data.size(len(y), smoke=250)
x_train, y_train, x_test, y_test = texts[tests:n], y[tests:n], texts[:tests], y[:tests]
batch_size = guide_data.size(32, smoke=16)
print(f"{len(y_train)} pieces of {len(MODULES)} modules, such as:\n{x_train[0]}")

"""
## The task

For real fine-tuning one line loads a trained model:
`BertTextClassifier.from_preset("bert_tiny_en_uncased", num_classes=7)`. This guide
downloads nothing, and builds a small model with random weights and a vocabulary of its
own.
"""

words = collections.Counter(re.findall(r"\w+|[^\w\s]", " ".join(x_train)))
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
vocabulary = special + [word for word, _ in words.most_common(5000)]

keras.utils.set_random_seed(0)
task = keras_hub.models.BertTextClassifier(
    backbone=keras_hub.models.BertBackbone(
        vocabulary_size=len(vocabulary),
        num_layers=2,
        num_heads=2,
        hidden_dim=guide_data.size(64, smoke=16),
        intermediate_dim=guide_data.size(128, smoke=16),
        max_sequence_length=48,
    ),
    num_classes=len(MODULES),
    preprocessor=keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer(vocabulary=vocabulary), sequence_length=48
    ),
)

"""
## Train all weights

`accelerate` changes the task in place. Everything else is as in KerasHub.
"""

keras_osgd.accelerate(task)


def fit_and_test(name, rate, epochs):
    task.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        sampling="rais",
    )
    task.fit(x_train, y_train, batch_size=batch_size, epochs=epochs, verbose=0)
    accuracy = task.evaluate(x_test, y_test, batch_size=250, verbose=0)[1]
    trained = sum(int(np.prod(w.shape)) for w in task.trainable_weights)
    steps = int(task.optimizer.iterations)
    uniform = epochs * math.ceil(len(y_train) / batch_size)
    print(
        f"{name}: {trained} trained weights, {epochs} epochs in {steps} steps "
        f"(uniformly {uniform}), test accuracy {accuracy:.3f}"
    )


fit_and_test("All weights", 0.001, guide_data.size(6, smoke=2))

"""
## Train by LoRA alone

`enable_lora` freezes kernels of the backbone, and trains small matrices beside them.
The importance of an example is then the gradient norm of the weights that still train.
Compile again, as always when `trainable` changes. The scores go on, since the data are
the same.
"""

task.backbone.enable_lora(rank=4)
fit_and_test("LoRA", 0.0005, guide_data.size(2, smoke=1))

"""
## Use it

The task predicts from raw texts, as before. `release` makes it KerasHub's again.
"""

keras_osgd.release(task)
probabilities = keras.ops.softmax(task.predict(["import tarfile"], verbose=0))[0]
print(f"'import tarfile': {MODULES[int(np.argmax(probabilities))]}")

"""
## More to know

- With `preprocessor=None`, pass the output of the preprocessor to `fit`. All else is
  the same.
- Causal language models, such as `GPT2CausalLM`, train in this way too. The examples
  that are drawn are whole texts.
- Fine-tuning is short, and in two or three passes there is little to gain. Ask
  `keras_osgd.estimate_speedup` before a long run, with the output of the preprocessor.
"""
