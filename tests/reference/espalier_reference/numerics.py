"""Functions that every part of a model is made of. All arrays are double precision."""

import math

import numpy as np

EPSILON = 1e-5  # of all norms


def softmax(z, axis=-1):
    e = np.exp(z - np.max(z, axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def log_sum_exp(z, axis=-1):
    most = np.max(z, axis=axis)
    return most + np.log(np.exp(z - np.expand_dims(most, axis)).sum(axis=axis))


def sigmoid(z):
    return np.exp(-np.logaddexp(0, -z))  # exact to the last digits of small values, too


_erf = np.vectorize(math.erf, otypes=[float])


def normal_cdf(x):
    return 0.5 * (1 + _erf(np.asarray(x, float) / math.sqrt(2)))


def gelu(x):
    return x * normal_cdf(x) if x.size else x


GATES = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": gelu,
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
}

# activation of a config -> (has a gate matrix, function of the gate or of the middle)
ACTIVATIONS = {
    "relu": (False, "relu"),
    "gelu": (False, "gelu"),
    "squared_relu": (False, "squared_relu"),
    "swiglu": (True, "silu"),
    "glu": (True, "sigmoid"),
    "geglu": (True, "gelu"),
    "reglu": (True, "relu"),
    "squared_reglu": (True, "squared_relu"),
}


def top_k(values, k):
    """Indices of the k largest along the last dimension, the largest first; of equal ones the lower index."""
    return np.argsort(-values, axis=-1, kind="stable")[..., :k]


def layer_norm(x, gain, bias):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + EPSILON) * gain + bias


def rms_norm(x, gain):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * gain


def convolution(x, weight, bias, stride, padding):
    """x [N, H, W, C], weight [out, kh, kw, C]."""
    if padding:
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    _, kh, kw, _ = weight.shape
    rows = (x.shape[1] - kh) // stride + 1
    columns = (x.shape[2] - kw) // stride + 1
    y = np.zeros((x.shape[0], rows, columns, weight.shape[0]))
    for i in range(kh):
        for j in range(kw):
            part = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            y += part @ weight[:, i, j].T
    return y if bias is None else y + bias


def depthwise_convolution(x, weight, bias):
    """x [N, H, W, C], weight [k, k, C], zeros outside."""
    k = weight.shape[0]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    y = np.zeros_like(x)
    for i in range(k):
        for j in range(k):
            y += padded[:, i : i + x.shape[1], j : j + x.shape[2]] * weight[i, j]
    return y + bias


def max_pool(x, size):
    n, h, w, c = x.shape
    return x.reshape(n, h // size, size, w // size, size, c).max(axis=(2, 4))


def attention(qkv, heads):
    """qkv [N, T, 3 width]: query, key and value side by side, heads contiguous in each."""
    n, t, three = qkv.shape
    size = three // 3 // heads
    q, k, v = (part.reshape(n, t, heads, size).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, -1))
    weights = softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(size))
    return (weights @ v).transpose(0, 2, 1, 3).reshape(n, t, three // 3)
