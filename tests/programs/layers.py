"""Layers, activations, losses and optimizers of mlx.nn: prints numbers of each. An ordinary MLX program."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.linear, self.out = nn.Embedding(10, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.layer_norm, self.rms_norm, self.group_norm = nn.LayerNorm(16), nn.RMSNorm(16), nn.GroupNorm(4, 16)
        self.batch_norm, self.dropout, self.rope = nn.BatchNorm(16), nn.Dropout(0.1), nn.RoPE(16)
        self.attention = nn.MultiHeadAttention(16, 4)

    def __call__(self, x):
        h = self.embed(x)
        h = h + nn.gelu(self.linear(self.layer_norm(h)))
        q = self.rope(self.rms_norm(self.dropout(h)))
        h = h + self.attention(q, q, q, nn.MultiHeadAttention.create_additive_causal_mask(x.shape[1]))
        return self.out(self.batch_norm(self.group_norm(h)))


def loss(model, x):
    return nn.losses.cross_entropy(model(x[:, :-1]), x[:, 1:], reduction="mean")


found = {}
OPTIMIZERS = [
    optim.SGD(1e-2, momentum=0.9),
    optim.Adam(1e-2),
    optim.AdamW(1e-2),
    optim.Lion(1e-3),
    optim.Adafactor(1e-2),
    optim.RMSprop(1e-3),
    optim.Adagrad(1e-2),
    optim.AdaDelta(1e-1),
    optim.Adamax(1e-2),
]
for optimizer in OPTIMIZERS:
    mx.random.seed(0)
    model = Model()
    x = mx.random.randint(0, 10, (4, 7))
    step = nn.value_and_grad(model, loss)
    losses = []
    for _ in range(3):
        value, grads = step(model, x)
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state, value)
        losses.append(value.item())
    found[type(optimizer).__name__] = losses

mx.random.seed(1)
a, b = mx.random.normal((2, 4)), mx.random.uniform(shape=(2, 4))
for name in [
    "relu",
    "relu6",
    "relu2",
    "silu",
    "softplus",
    "mish",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "gelu_approx",
    "gelu_fast_approx",
    "hardswish",
    "log_softmax",
    "softsign",
    "tanh",
    "sigmoid",
    "hard_tanh",
    "log_sigmoid",
    "softshrink",
    "hard_shrink",
    "softmin",
    "glu",
]:
    found[name] = getattr(nn, name)(a).tolist()
for name in [
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "log_cosh_loss",
    "hinge_loss",
    "binary_cross_entropy",
    "kl_div_loss",
    "cosine_similarity_loss",
]:
    found[name] = getattr(nn.losses, name)(a, b).tolist()
image, line = mx.random.normal((1, 4, 4, 2)), mx.random.normal((2, 5, 4))
LAYERS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.AvgPool2d(2, stride=1),
    nn.Conv2d(2, 4, 3, 2, 1, groups=2),
    nn.ConvTranspose2d(2, 3, 3, stride=2),
    nn.Upsample(2),
    nn.Upsample(2, mode="linear"),
    nn.InstanceNorm(2),
]
for layer in LAYERS:
    found[str(layer)] = layer(image).tolist()
found["GRU"] = nn.GRU(4, 3)(line).tolist()
found["LSTM"] = [y.tolist() for y in nn.LSTM(4, 3)(line)]
found["RNN"] = nn.RNN(4, 3)(line).tolist()
found["encoding"] = nn.SinusoidalPositionalEncoding(8)(mx.arange(4)).tolist()
found["transformer"] = nn.Transformer(4, 2, 1, 1, 8)(line, line, None, None, None).tolist()
print(json.dumps(found))
