"""Recurrent networks on sequences of different lengths: LSTM, GRU and RNN, a language model over characters."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim


class CharModel(nn.Module):
    def __init__(self, vocab, dims):
        super().__init__()
        self.embed, self.drop = nn.Embedding(vocab, dims), nn.Dropout(0.1)
        self.lstm, self.gru, self.rnn = nn.LSTM(dims, dims), nn.GRU(dims, dims), nn.RNN(dims, dims)
        self.head = nn.Linear(dims, vocab)

    def __call__(self, tokens, states=None):
        h, c, g, r = states if states is not None else (None,) * 4
        x = self.embed(tokens)
        hs, cs = self.lstm(x, h, c)
        gs = self.gru(self.drop(hs), g)
        rs = self.rnn(gs, r)
        return self.head(rs), (hs[:, -1], cs[:, -1], gs[:, -1], rs[:, -1])


mx.random.seed(15)
text = "recurrent networks remember what they have read "
vocabulary = sorted(set(text))
data = mx.array([vocabulary.index(c) for c in text])[None]
lengths = mx.array([data.shape[1] - 1])
model = CharModel(len(vocabulary), 12)
optimizer = optim.RMSprop(learning_rate=optim.exponential_decay(1e-2, 0.95))


def loss_fn(model, inputs, targets, states):
    logits, states = model(inputs, states)
    mask = mx.arange(inputs.shape[1])[None] < lengths[:, None]
    return (nn.losses.cross_entropy(logits, targets) * mask).mean(), states


states, losses = None, []
for start in range(0, 40, 8):  # truncated backpropagation: states go on, gradients do not
    chunk = data[:, start : start + 9]
    (loss, states), grads = nn.value_and_grad(model, loss_fn)(model, chunk[:, :-1], chunk[:, 1:], states)
    states = [mx.stop_gradient(s) for s in states]
    optimizer.update(model, grads)
    mx.eval(model.parameters(), optimizer.state, states)
    losses.append(loss.item())
model.eval()
token, states, spoken = data[:, :1], None, []
for _ in range(8):
    logits, states = model(token, states)
    token = mx.argmax(logits, axis=-1)
    spoken.append(vocabulary[token.item()])
print(json.dumps({"losses": losses, "spoken": "".join(spoken), "states": [s.tolist() for s in states]}))
