"""Gravity between bodies: leapfrog steps under compile, energies, forces as gradients of a potential."""

import json

import mlx.core as mx

mx.random.seed(18)
n, dt, soft = 6, 0.01, 0.05
position, velocity = mx.random.normal((n, 3)), mx.random.normal((n, 3)) * 0.1
mass = mx.random.uniform(0.5, 1.5, (n,))
velocity = velocity - (mass[:, None] * velocity).sum(0) / mass.sum()


def potential(position, mass):
    difference = position[:, None] - position[None]
    distance = mx.sqrt(difference.square().sum(-1) + soft**2)
    pairs = mx.triu(mass[:, None] * mass[None] / distance, k=1)
    return -pairs.sum()


def acceleration(position, mass):
    difference = position[None] - position[:, None]
    inverse = (difference.square().sum(-1) + soft**2) ** -1.5
    return (mass[None, :, None] * difference * inverse[..., None]).sum(axis=1)


assert mx.allclose(-mx.grad(potential)(position, mass) / mass[:, None], acceleration(position, mass), atol=1e-3)


@mx.compile
def leapfrog(position, velocity, mass):
    velocity = velocity + 0.5 * dt * acceleration(position, mass)
    position = position + dt * velocity
    return position, velocity + 0.5 * dt * acceleration(position, mass)


def energy(position, velocity):
    return (0.5 * mass * velocity.square().sum(-1)).sum() + potential(position, mass)


energies = [energy(position, velocity).item()]
for _ in range(10):
    position, velocity = leapfrog(position, velocity, mass)
    mx.eval(position, velocity)
    energies.append(energy(position, velocity).item())
assert abs(energies[-1] - energies[0]) < 0.05 * abs(energies[0])
momentum = (mass[:, None] * velocity).sum(axis=0)


def unrolled(mass):
    p, v = position, velocity
    for _ in range(3):
        p, v = leapfrog(p, v, mass)
    return (p - 1).square().sum()


value, slope = mx.value_and_grad(unrolled)(mass)
_, sensitivity = mx.jvp(unrolled, [mass], [mx.ones_like(mass)])
assert mx.allclose(slope.sum(), sensitivity[0], rtol=1e-4)
print(json.dumps({"energies": energies, "position": position.tolist(), "value": value.item(), "slope": slope.tolist(),
                  "drift": mx.abs(momentum).max().item() < 1e-4}))  # fmt: skip
