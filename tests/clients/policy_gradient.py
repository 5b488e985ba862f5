"""REINFORCE with a baseline on a small grid: categorical actions, host-side loops, discounted returns, entropy."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np


class Grid:
    """Walk from one corner to the other; a move costs 0.1, the goal pays 1."""

    def __init__(self, size=3):
        self.size, self.at = size, [0, 0]

    def reset(self):
        self.at = [0, 0]
        return self.observe()

    def observe(self):
        return np.array(self.at, dtype=np.float32) / (self.size - 1)

    def step(self, action):
        axis, move = divmod(action, 2)
        self.at[axis] = min(max(self.at[axis] + (1 if move else -1), 0), self.size - 1)
        done = self.at == [self.size - 1] * 2
        return self.observe(), (1.0 if done else -0.1), done


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), nn.ReLU())
        self.actor, self.critic = nn.Linear(16, 4), nn.Linear(16, 1)

    def __call__(self, x):
        h = self.body(x)
        return self.actor(h), self.critic(h).squeeze(-1)


def loss_fn(policy, states, actions, returns):
    logits, values = policy(states)
    log_probs = nn.log_softmax(logits, axis=-1)
    chosen = mx.take_along_axis(log_probs, actions[:, None], axis=-1).squeeze(-1)
    advantage = mx.stop_gradient(returns - values)
    entropy = -(mx.exp(log_probs) * log_probs).sum(axis=-1).mean()
    return -(chosen * advantage).mean() + 0.5 * (returns - values).square().mean() - 0.01 * entropy


mx.random.seed(0)
policy, optimizer, env = Policy(), optim.Adam(2e-2), Grid()
value_and_grad = nn.value_and_grad(policy, loss_fn)
history = []
for _ in range(6):
    state, states, actions, rewards = env.reset(), [], [], []
    for _ in range(12):
        logits, _ = policy(mx.array(state)[None])
        action = int(mx.random.categorical(logits).item())
        states.append(state)
        state, reward, done = env.step(action)
        actions.append(action)
        rewards.append(reward)
        if done:
            break
    returns, total = [], 0.0
    for reward in reversed(rewards):
        total = reward + 0.9 * total
        returns.insert(0, total)
    loss, grads = value_and_grad(policy, mx.array(np.stack(states)), mx.array(actions), mx.array(returns))
    grads, norm = optim.clip_grad_norm(grads, 1.0)
    optimizer.update(policy, grads)
    mx.eval(policy.parameters(), optimizer.state)
    history.append([len(rewards), sum(rewards), loss.item(), norm.item()])
print(json.dumps({"history": history}))
