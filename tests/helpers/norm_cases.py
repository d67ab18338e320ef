"""One small model for each kind of layer, and the error of its exact norms.

`python -m examples.benchmarks.norms accuracy` goes through all of them in every mode;
the tests through a selection.
"""

import keras
import numpy as np
import tensorflow as tf

import keras_osgd

EXAMPLES = 3
REDUCTIONS = ("sum", "sum_over_batch_size")
MODES = ("eager", "graph", "jit")
L = keras.layers


def _convolutions() -> dict:
    cases = {}
    geometries = {
        "valid": {},
        "same, strided": {"padding": "same", "strides": 2},
        "valid, strided": {"strides": 3},
        "same, dilated": {"padding": "same", "dilation_rate": 2},
    }
    shapes = {1: (9, 6), 2: (8, 7, 6), 3: (5, 6, 5, 6)}
    for rank, shape in shapes.items():
        conv = getattr(L, f"Conv{rank}D")
        transpose = getattr(L, f"Conv{rank}DTranspose")
        for name, options in geometries.items():
            cases[f"Conv{rank}D, {name}"] = (
                shape,
                lambda c=conv, o=options: [c(4, 3, activation="tanh", **o)],
            )
            # XLA on CPU has no dilated transposed convolution of rank 3.
            if rank < 3 or "dilation_rate" not in options:
                small = tuple(min(n, 5) for n in shape)
                cases[f"Conv{rank}DTranspose, {name}"] = (
                    small,
                    lambda c=transpose, o=options: [c(4, 3, **o)],
                )
        cases[f"Conv{rank}D, grouped"] = (
            shape,
            lambda c=conv: [c(4, 3, groups=2, use_bias=False)],
        )
        cases[f"Conv{rank}D, one channel"] = (*shape[:-1], 1), lambda c=conv: [c(4, 3)]
    cases["Conv1D, causal"] = shapes[1], lambda: [L.Conv1D(4, 3, padding="causal")]
    cases["Conv1DTranspose, output padding"] = (
        (5, 6),
        lambda: [L.Conv1DTranspose(4, 3, strides=2, output_padding=1)],
    )
    cases["Conv2DTranspose, output padding"] = (
        (5, 4, 6),
        lambda: [L.Conv2DTranspose(4, 3, strides=2, padding="same", output_padding=1)],
    )
    cases["Conv2D, rectangular"] = (
        shapes[2],
        lambda: [
            L.Conv2D(4, (2, 3), strides=(1, 2), padding="same", activation="relu")
        ],
    )
    cases["Conv2D twice, gram form"] = (
        (4, 4, 5),
        lambda: [
            L.Conv2D(6, 3, padding="same", activation="tanh"),
            L.Conv2D(40, 3, padding="valid"),
        ],
    )
    for rank in (1, 2):
        depthwise = getattr(L, f"DepthwiseConv{rank}D")
        separable = getattr(L, f"SeparableConv{rank}D")
        for name, options in geometries.items():
            for label, layer, own in (
                ("DepthwiseConv", depthwise, {}),
                ("SeparableConv", separable, {"filters": 5}),
            ):
                cases[f"{label}{rank}D, {name}"] = (
                    shapes[rank],
                    lambda c=layer, o=options, w=own: [
                        c(kernel_size=3, depth_multiplier=2, **w, **o)
                    ],
                )
    return cases


def _others() -> dict:
    return {
        "Dense": ((5,), lambda: [L.Dense(6, "relu"), L.Dense(3, "tanh")]),
        "Dense without bias": ((5,), lambda: [L.Dense(6, use_bias=False)]),
        "Dense on sequences": ((7, 3), lambda: [L.Dense(4, "tanh"), L.Dense(2)]),
        "Dense on short sequences": ((2, 9), lambda: [L.Dense(8, "tanh")]),
        "Dense on images": ((3, 4, 5), lambda: [L.Dense(4, "softmax")]),
        "Dense, activation a layer": ((5,), lambda: [L.Dense(4, L.PReLU())]),
        "Embedding": (9, lambda: [L.Embedding(5, 4)]),
        "Embedding, masked": (9, lambda: [L.Embedding(5, 4, mask_zero=True)]),
        "LayerNormalization": (
            (6, 5),
            lambda: [L.Dense(4), L.LayerNormalization(), L.Dense(3)],
        ),
        "LayerNormalization, two axes": (
            (3, 4, 5),
            lambda: [L.LayerNormalization(axis=(1, -1)), L.Dense(3, "tanh")],
        ),
        "LayerNormalization, no offset": (
            (6, 5),
            lambda: [L.LayerNormalization(center=False)],
        ),
        "GroupNormalization": ((4, 3, 6), lambda: [L.GroupNormalization(3)]),
        "GroupNormalization, axis 1": (
            (4, 3, 6),
            lambda: [L.GroupNormalization(2, axis=1)],
        ),
        "RMSNormalization": ((4, 6), lambda: [L.RMSNormalization(), L.Dense(3)]),
        "BatchNormalization, statistics held": (
            (4, 6),
            lambda: [L.BatchNormalization(), L.Dense(3)],
        ),
        "EinsumDense": (
            (4, 5),
            lambda: [L.EinsumDense("abc,cd->abd", (4, 3), bias_axes="d")],
        ),
        "EinsumDense, heads": (
            (4, 5),
            lambda: [
                L.EinsumDense("abc,cde->abde", (4, 2, 3), bias_axes="de"),
                L.EinsumDense("abde,deh->abh", (4, 5), bias_axes="h"),
            ],
        ),
        "EinsumDense, ellipsis": (
            (4, 3, 5),
            lambda: [L.EinsumDense("...x,xy->...y", 2, activation="tanh")],
        ),
        "EinsumDense, a kernel for each position": (
            (4, 5),
            lambda: [L.EinsumDense("abc,bcd->abd", (4, 3), bias_axes="bd")],
        ),
        "EinsumDense, summed axis": (
            (4, 5),
            lambda: [L.EinsumDense("abc,cd->ad", (3,))],
        ),
        "MultiHeadAttention": ((5, 6), lambda: [_SelfAttention()]),
        "PReLU": ((4, 6), lambda: [L.PReLU()]),
        "PReLU, shared axes": ((4, 3, 6), lambda: [L.PReLU(shared_axes=[1, 2])]),
        "a layer used twice": ((5,), lambda: 2 * [L.Dense(5, "tanh")]),
        "a sequence layer used twice": ((4, 5), lambda: 2 * [L.Dense(5, "tanh")]),
        "a convolution used twice": (
            (6, 5),
            lambda: 2 * [L.Conv1D(5, 3, padding="same", activation="tanh")],
        ),
        "a weight of two layers": ((5,), _with_shared_kernel),
        "a weight borrowed by an unknown layer": ((5,), _with_borrowed_kernel),
        "a table used as kernel as well": (9, _with_tied_embedding),
        "a frozen layer": (
            (5,),
            lambda: [
                L.Dense(4, "tanh"),
                L.Dense(4, "tanh", trainable=False),
                L.Dense(2),
            ],
        ),
        "nested models": ((5,), _nested),
        "TimeDistributed": ((3, 5), lambda: [L.TimeDistributed(L.Dense(4, "tanh"))]),
        "an unknown layer": ((4, 5), lambda: [_Unknown(), L.Dense(2)]),
        "an unknown layer around known ones": ((4, 5), lambda: [_Around()]),
        "positions without a batch axis": (EXAMPLES, lambda: [_WithPositions()]),
        "examples folded into positions": ((6, 5), lambda: [_Folding()]),
    }


class _SelfAttention(L.Layer):
    def __init__(self):
        super().__init__()
        self.attention = L.MultiHeadAttention(2, 3)

    def call(self, x):
        return self.attention(x, x)


class _Unknown(L.Layer):
    """Scales and mixes; no rule is registered for it."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.mix = self.add_weight(shape=(shape[1], shape[1]))

    def call(self, x):
        return tf.tanh(
            tf.einsum("btc,ts->bsc", x, keras.ops.exp(self.mix)) * self.scale
        )


class _Around(L.Layer):
    """Uses the kernel of a layer that it calls as well."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = L.Dense(6, "tanh"), L.LayerNormalization()

    def call(self, x):
        inner = self.norm(self.inner(x))
        return keras.ops.matmul(inner, keras.ops.transpose(self.inner.kernel))


class _Borrowing(L.Layer):
    """Uses the kernel of another layer, backwards."""

    def __init__(self, owner):
        super().__init__()
        self.owner = owner

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.owner.kernel))


class _WithPositions(L.Layer):
    """Adds an embedding of positions, whose call has no batch axis, to every example.

    As many positions as examples: lengths alone do not tell the two apart.
    """

    def __init__(self):
        super().__init__()
        self.tokens, self.places = L.Embedding(5, 4), L.Embedding(EXAMPLES, 4)

    def call(self, x):
        return tf.tanh(self.tokens(x) * self.places(keras.ops.arange(EXAMPLES)))


class _Folding(L.Layer):
    """Calls a layer on all positions as if they were examples."""

    def __init__(self):
        super().__init__()
        self.inner, self.conv = L.Dense(4, "tanh"), L.Conv1D(3, 2)

    def call(self, x):
        folded = self.inner(keras.ops.reshape(x, (-1, 5)))
        halves = self.conv(keras.ops.reshape(folded, (-1, 3, 4)))
        return keras.ops.reshape(halves, (-1, 2, 2, 3))


def _with_shared_kernel() -> list:
    first, second = L.Dense(5, "tanh"), L.Dense(5, use_bias=False)
    first.build((None, 5))
    second.build((None, 5))
    vars(second)["_kernel"] = first.kernel
    return [first, second]


def _with_borrowed_kernel() -> list:
    first = L.Dense(4, "tanh")
    return [first, _Borrowing(first)]


def _with_tied_embedding() -> list:
    table = L.ReversibleEmbedding(5, 4)
    return [table, L.Dense(4, "tanh"), lambda x: table(x, reverse=True)]


def _nested() -> list:
    inputs = keras.Input((5,))
    functional = keras.Model(inputs, L.Dense(4, "tanh")(inputs))
    return [functional, keras.Sequential([L.Dense(3, "tanh"), L.Dense(2)])]


def _recurrent() -> dict:
    cases = {}
    for name in ("SimpleRNN", "GRU", "LSTM"):
        layer = getattr(L, name)
        cases[name] = (5, 4), lambda c=layer: [c(3)]
        cases[f"{name}, sequences, backwards"] = (
            (5, 4),
            lambda c=layer: [
                c(3, return_sequences=True, go_backwards=True),
                L.Dense(2, "tanh"),
            ],
        )
        cases[f"{name}, masked"] = (
            6,
            lambda c=layer: [
                L.Embedding(5, 4, mask_zero=True),
                c(3, use_bias=False),
            ],
        )
    cases["GRU, reset before"] = (5, 4), lambda: [L.GRU(3, reset_after=False)]
    cases["Bidirectional"] = (5, 4), lambda: [L.Bidirectional(L.LSTM(3))]
    return cases


CASES = {**_convolutions(), **_others(), **_recurrent()}


def model_and_data(
    case: str, reduction: str, weighted: bool, mode: str
) -> tuple[keras.Model, np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns a compiled model of one kind, x, y and weights (or `None`)."""
    shape, layers = CASES[case]
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    if isinstance(shape, int):  # token numbers
        x = rng.integers(0, 5, (EXAMPLES, shape)).astype("int32")
    else:
        x = rng.normal(size=(EXAMPLES, *shape)).astype(keras.config.floatx())
    outputs = inputs = keras.Input(x.shape[1:], dtype=x.dtype.name)
    for layer in layers():
        outputs = layer(outputs)
    model = keras.Model(inputs, L.Flatten()(outputs))
    for weight in model.trainable_weights:  # biases and scales apart from 0 and 1
        weight.assign(weight + 0.1 * rng.normal(size=weight.shape))
    model.compile(
        "sgd",
        keras.losses.MeanSquaredError(reduction=reduction),
        run_eagerly=mode == "eager",
        jit_compile=mode == "jit",
    )
    y = rng.normal(size=(EXAMPLES, *model.output_shape[1:]))
    weights = rng.uniform(0.5, 2.0, EXAMPLES) if weighted else None
    return model, x, y.astype(keras.config.floatx()), weights


def relative_error(case: str, reduction: str, weighted: bool, mode: str) -> float:
    """Returns the largest relative error of `gradient_norms` on one case."""
    model, x, y, weights = model_and_data(case, reduction, weighted, mode)
    norms = keras_osgd.gradient_norms(model, x, y, weights, batch_size=EXAMPLES)
    expected = norms_one_by_one(model, x, y, weights)
    return float(np.max(np.abs(norms / expected - 1)))


def norms_one_by_one(model, x, y, weights=None) -> np.ndarray:
    """Returns `[n]`: each example's gradient norm, by a pass over it alone."""
    norms = []
    for i in range(len(x)):
        one = slice(i, i + 1)
        weight = None if weights is None else tf.constant(weights[one])
        with tf.GradientTape() as tape:
            y_pred = model(tf.constant(x[one]), training=False)
            loss = model.compute_loss(x[one], tf.constant(y[one]), y_pred, weight)
            loss -= sum(model.losses)
        variables = [v.value for v in model.trainable_weights]
        gradients = tape.gradient(loss, variables)
        squares = [
            np.sum(np.square(tf.convert_to_tensor(g).numpy().astype(np.float64)))
            for g in gradients
            if g is not None
        ]
        norms.append(np.sqrt(np.sum(squares)))
    return np.array(norms)
