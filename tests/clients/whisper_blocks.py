"""A speech model: log-mel spectrogram by FFT, conv1d front, encoder and decoder, half precision."""

import json
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np


def hanning(size):
    return mx.array(np.hanning(size + 1)[:-1])


def stft(x, window, nperseg, noverlap):
    def pad(x, padding):
        return mx.concatenate([x[1 : padding + 1][::-1], x, x[-(padding + 1) : -1][::-1]])

    padding = nperseg // 2
    x = pad(x, padding)
    t = (x.size - nperseg + noverlap) // noverlap
    x = mx.as_strided(x, shape=[t, nperseg], strides=[noverlap, 1])
    return mx.fft.rfft(x * window)


def log_mel_spectrogram(audio, n_mels):
    freqs = stft(audio, hanning(32), nperseg=32, noverlap=16)
    magnitudes = freqs[:-1, :].abs().square()
    filters = mx.maximum(0, 1 - mx.abs(mx.arange(17)[None] - mx.linspace(0, 16, n_mels)[:, None]) / 3)
    log_spec = mx.maximum(magnitudes @ filters.T, 1e-10).log10()
    log_spec = mx.maximum(log_spec, log_spec.max() - 8.0)
    return (log_spec + 4.0) / 4.0


def sinusoids(length, channels, max_timescale=10000):
    increment = math.log(max_timescale) / (channels // 2 - 1)
    inverse = mx.exp(-increment * mx.arange(channels // 2))
    scaled = mx.arange(length)[:, None] * inverse[None, :]
    return mx.concatenate([mx.sin(scaled), mx.cos(scaled)], axis=1)


class MultiHeadAttention(nn.Module):
    def __init__(self, n_state, n_head):
        super().__init__()
        self.n_head = n_head
        self.query, self.key = nn.Linear(n_state, n_state), nn.Linear(n_state, n_state, bias=False)
        self.value, self.out = nn.Linear(n_state, n_state), nn.Linear(n_state, n_state)

    def __call__(self, x, xa=None, mask=None):
        q, source = self.query(x), x if xa is None else xa
        k, v = self.key(source), self.value(source)
        n_batch, n_ctx, n_state = q.shape
        scale = (n_state // self.n_head) ** -0.25
        q = q.reshape(*q.shape[:2], self.n_head, -1).transpose(0, 2, 1, 3) * scale
        k = k.reshape(*k.shape[:2], self.n_head, -1).transpose(0, 2, 3, 1) * scale
        v = v.reshape(*v.shape[:2], self.n_head, -1).transpose(0, 2, 1, 3)
        qk = q @ k
        if mask is not None:
            qk = qk + mask[:n_ctx, :n_ctx]
        w = mx.softmax(qk, axis=-1, precise=True)
        return self.out((w @ v).transpose(0, 2, 1, 3).reshape(n_batch, n_ctx, n_state)), qk


class Block(nn.Module):
    def __init__(self, n_state, n_head, cross=False):
        super().__init__()
        self.attn, self.attn_ln = MultiHeadAttention(n_state, n_head), nn.LayerNorm(n_state)
        self.cross = MultiHeadAttention(n_state, n_head) if cross else None
        self.cross_ln = nn.LayerNorm(n_state) if cross else None
        self.mlp1, self.mlp2 = nn.Linear(n_state, 4 * n_state), nn.Linear(4 * n_state, n_state)
        self.mlp_ln = nn.LayerNorm(n_state)

    def __call__(self, x, xa=None, mask=None):
        x = x + self.attn(self.attn_ln(x), mask=mask)[0]
        if self.cross:
            x = x + self.cross(self.cross_ln(x), xa)[0]
        return x + self.mlp2(nn.gelu(self.mlp1(self.mlp_ln(x))))


class Speech(nn.Module):
    def __init__(self, mels, state, heads, vocab):
        super().__init__()
        self.conv1 = nn.Conv1d(mels, state, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(state, state, kernel_size=3, stride=2, padding=1)
        self.encoder, self.decoder = [Block(state, heads)], [Block(state, heads, cross=True)]
        self.ln_post, self.ln = nn.LayerNorm(state), nn.LayerNorm(state)
        self.token_embedding = nn.Embedding(vocab, state)
        self.positional_embedding = mx.random.normal((8, state)) * 0.02

    def encode(self, mel):
        x = nn.gelu(self.conv2(nn.gelu(self.conv1(mel))))
        x = x + sinusoids(x.shape[1], x.shape[2]).astype(x.dtype)
        for block in self.encoder:
            x = block(x)
        return self.ln_post(x)

    def __call__(self, mel, tokens):
        xa, mask = self.encode(mel), nn.MultiHeadAttention.create_additive_causal_mask(tokens.shape[1])
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        for block in self.decoder:
            x = block(x, xa, mask.astype(x.dtype))
        return self.token_embedding.as_linear(self.ln(x))


mx.random.seed(4)
time = mx.arange(256) / 256
audio = mx.sin(2 * math.pi * 20 * time) + 0.3 * mx.random.normal((256,))
mel = log_mel_spectrogram(audio, 6)[None]
tokens = mx.array([[1, 4, 2, 7]])
model = Speech(6, 16, 2, 11)
logits = model(mel, tokens)
model.set_dtype(mx.float16)
half = model(mel.astype(mx.float16), tokens)
assert half.dtype == mx.float16 and mx.allclose(half.astype(mx.float32), logits, atol=3e-2)
print(json.dumps({"mel": mel.tolist(), "logits": logits.tolist(), "dtype": str(half.dtype).rpartition(".")[2]}))
