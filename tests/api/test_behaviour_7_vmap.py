"""BEHAVIOUR section 7: vmap."""

import numpy as np
import pytest
import snippets

import mlxir as mx

VMAP = snippets.table(r"""
m.vmap(lambda x: [])(a(V))
---
m.vmap(lambda x: {})(a(V))
---
m.vmap(lambda x: (x,[]))(a(V))
---
m.vmap(lambda x,y: x, in_axes=(0,None))(a(V),[])
---
m.vmap(lambda x,y: x)(a(V),[])
---
m.vmap(lambda x,y: x, in_axes=(0,0))(a(V),{})
---
m.vmap(lambda x: x)([])
---
m.vmap(lambda x: None)(a(V))
---
m.vmap(lambda x: (x,None))(a(V))
---
m.vmap(lambda x: (x,1))(a(V))
---
m.vmap(lambda x: np.zeros(3))(a(V))
---
m.vmap(lambda x: x)(np.zeros(3))
---
m.vmap(lambda x,y: x)(a(V),None)
---
m.vmap(lambda x,y: x)(a(V),"s")
---
m.vmap(3)
---
m.vmap(lambda x: x*2)(a(M))
---
m.vmap(lambda x,y: x*y,in_axes=(0,1))(a(M),a(M.T))
---
m.vmap(lambda x,y: x*y,in_axes=(0,-1))(a(M),a(M.T))
---
m.vmap(lambda x,y: x*y,in_axes=(True,None))(a(M),a(V)[:3])
---
m.vmap(lambda x: x, in_axes=(1,))(a(M))
---
m.vmap(lambda x: x[0], in_axes=[1])([a(M)])
---
m.vmap(lambda x: x[0], in_axes=([1],))([a(M)])
---
m.vmap(lambda x: x["a"], in_axes={"a":1})({"a":a(M)})
---
m.vmap(lambda x: x["a"], in_axes=({"a":1},))({"a":a(M)})
---
m.vmap(lambda x,y: x["a"]*y, in_axes=({"a":1},0))({"a":a(M)},a(M.T))
---
m.vmap(lambda x,y: x["a"]*y, in_axes=[{"a":1},0])({"a":a(M)},a(M.T))
---
m.vmap(lambda x,y: x, in_axes=(0,))(a(M),a(M))
---
m.vmap(lambda x,y: x, in_axes=(0,0,0))(a(M),a(M))
---
m.vmap(lambda x: x["a"], in_axes={"a":1,"b":0})({"a":a(M)})
---
m.vmap(lambda x: x["a"], in_axes={"a":1})({"a":a(M),"b":a(M)})
---
m.vmap(lambda x: x[0], in_axes=((0,1),))((a(M),a(M)))
---
m.vmap(lambda x: x[0], in_axes=(0,1))((a(M),a(M.T)))
---
m.vmap(lambda x: x[0], in_axes=[0,1])((a(M),a(M.T)))
---
m.vmap(lambda x: x[0]*x[1], in_axes=[0,1])([a(M),a(M.T)])
---
m.vmap(lambda x,y: x[0]*x[1]*y, in_axes=([0,1],0))([a(M),a(M.T)],a(M))
---
m.vmap(lambda x,y: x[0]*y, in_axes=((0,1),0))([a(M),a(M.T)],a(M))
---
m.vmap(lambda x: x, in_axes="a")(a(M))
---
m.vmap(lambda x: x, in_axes=1.0)(a(M))
---
m.vmap(lambda x: x, in_axes=(1.0,))(a(M))
---
m.vmap(lambda x: x, in_axes=np.int32(1))(a(M))
---
m.vmap(lambda x: x, in_axes=(np.int32(1),))(a(M))
---
m.vmap(lambda x: x, out_axes="a")(a(M))
---
m.vmap(lambda x: x, out_axes=1.0)(a(M))
---
m.vmap(lambda x: (x,x), out_axes=(1.0,0))(a(M))
---
m.vmap(lambda x: x, in_axes=None)
---
m.vmap(lambda x: x, out_axes=None)
---
m.vmap(lambda x: x, in_axes=2)(a(M))
---
m.vmap(lambda x: x, in_axes=-3)(a(M))
---
m.vmap(lambda x: x)(a(1.0))
---
m.vmap(lambda x,y: x)(a(V),a(1.0))
---
m.vmap(lambda x,y: x*y, in_axes=(0,None))(a(V),a(2.0))
---
m.vmap(lambda x,y: x)(a(V),a(M))
---
m.vmap(lambda x: x, in_axes=(None,))(a(V))
---
m.vmap(lambda x,y: x, in_axes=(None,None))(a(V),a(V))
---
m.vmap(lambda: a(1.0))()
---
m.vmap(lambda x: x)(x=a(V))
---
m.vmap(lambda x,y: x)(a(V),y=a(V))
---
m.vmap(lambda x: x, out_axes=1)(a(M))
---
m.vmap(lambda x: x, out_axes=-1)(a(M))
---
m.vmap(lambda x: x, out_axes=-2)(a(M))
---
m.vmap(lambda x: x, out_axes=-3)(a(M))
---
m.vmap(lambda x: x, out_axes=2)(a(M))
---
m.vmap(lambda x: (x,x*2), out_axes=(0,1))(a(M))
---
m.vmap(lambda x: [x,x*2], out_axes=[0,1])(a(M))
---
m.vmap(lambda x: [x,x*2], out_axes=(0,1))(a(M))
---
m.vmap(lambda x: (x,x*2), out_axes=[0,1])(a(M))
---
m.vmap(lambda x: (x,x*2), out_axes=(0,))(a(M))
---
m.vmap(lambda x: {"a":x,"b":(x,x)}, out_axes={"a":1})(a(M))
---
m.vmap(lambda x: {"a":x}, out_axes={"a":1,"b":0})(a(M))
---
m.vmap(lambda x: x, out_axes=(0,))(a(M))
---
m.vmap(lambda x: (x,), out_axes=(1,))(a(M))
---
m.vmap(lambda x: a(W), out_axes=1)(a(M))
---
m.vmap(lambda x: (x,a(2.0)))(a(M))
---
m.vmap(lambda x: x*2)(a(np.zeros((0,3),np.float32)))
---
m.vmap(lambda x: m.sum(x), in_axes=1)(a(np.zeros((3,0),np.float32)))
---
m.vmap(lambda x: sum(x))(a(M))
---
m.vmap(lambda x: m.stack([y*2 for y in x]))(a(M))
---
m.vmap(lambda x: x if x.sum()>0 else -x)(a(M))
---
m.vmap(lambda x: a(x.item()))(a(V))
---
m.vmap(lambda x: a(np.array(x)))(a(V))
---
m.vmap(lambda x: (str(x),x)[1])(a(V))
---
m.vmap(lambda x: (x.tolist(),x)[1])(a(V))
---
m.vmap(lambda x: x[int(x[0])])(a(M))
---
m.vmap(lambda x,y: x*y.item(), in_axes=(0,None))(a(M),a(2.0))
---
c=a(3.0)
m.vmap(lambda x: x*c.item())(a(V))
---
m.vmap(m.vmap(lambda x,y: x*y, in_axes=(None,0)), in_axes=(0,None))(a(V),a(W))
---
m.vmap(lambda x: m.vmap(lambda y: x*y)(a(W)), out_axes=1)(a(V))
---
m.vmap(m.grad(lambda x: m.sum(m.sin(x)*x)))(a(M))
---
m.vmap(m.grad(lambda x,y: m.sum(m.sin(x)*y),argnums=(0,1)),in_axes=(0,None))(a(M),a(V))
---
m.vmap(m.value_and_grad(lambda x: (m.sum(x*x),x*2)))(a(M))
---
m.grad(lambda x: m.vmap(lambda r: m.max(r)*r.sum())(x).sum())(a(M))
---
m.vmap(lambda x: m.vjp(m.sin,[x],[x]))(a(M))
---
m.vmap(lambda x: m.jvp(m.sin,[x],[x]))(a(M))
---
m.random.seed(1)
r=m.vmap(lambda x: x+m.random.uniform(shape=(2,)))(m.zeros((3,2)))
(r, m.random.uniform(shape=(2,)))
---
m.vmap(lambda k: m.random.uniform(shape=(2,),key=k))(m.random.split(m.random.key(0),3))
---
m.vmap(lambda k: m.random.split(k))(m.random.split(m.random.key(0),3))
---
m.vmap(lambda k: m.random.randint(0,10,(4,),key=k))(m.random.split(m.random.key(0),3))
---
m.vmap(lambda k,x: m.random.bernoulli(x,key=k),in_axes=(0,0))(m.random.split(m.random.key(0),3),a([0.1,0.5,0.9]))
---
m.vmap(lambda k: m.random.categorical(a(V),key=k))(m.random.split(m.random.key(0),3))
---
m.vmap(lambda k: m.random.permutation(5,key=k))(m.random.split(m.random.key(0),3))
---
def f(x):
    x[0]=x[1]*2
    return x
m.vmap(f)(a(M))
---
def f(x,i):
    x[i]=7.0
    return x
m.vmap(f)(a(M),a(np.array([0,1,3],np.int32)))
---
def f(x,i):
    y=m.zeros(4)
    y[i]=x[0]
    return y
m.vmap(f)(a(M),a(np.array([0,1,3],np.int32)))
---
def f(x,y):
    y[1:3]=x[1:3]
    return y
m.vmap(f,in_axes=(0,None))(a(M),a(V))
---
def f(x):
    x+=1
    x[1:]*=2
    return x
y=a(M)
(m.vmap(f)(y),y)
---
m.vmap(lambda x,i: x[i])(a(M),a(np.array([0,1,3],np.int32)))
---
m.vmap(lambda x,i: x[i],in_axes=(None,0))(a(M),a(np.array([0,1,2],np.int32)))
---
m.vmap(lambda x,i: x[i],in_axes=(0,None))(a(M),a(np.array([0,1,2],np.int32)))
---
m.vmap(lambda x,i: m.take(x,i,axis=-1),in_axes=(0,None))(a(M),a(np.array([0,1,2],np.int32)))
---
m.vmap(lambda x,i: m.take_along_axis(x,i,axis=0))(a(M),a(np.array([[0,1,2,0]]*3,np.int32)))
---
m.vmap(lambda x,i,u: x.at[i].add(u))(a(M),a(np.array([[0,0],[1,2],[3,3]],np.int32)),a(np.ones((3,2),np.float32)))
---
m.vmap(lambda x,i: x.at[i].add(1.0),in_axes=(None,0))(a(V),a(np.array([[0,0],[1,2],[3,3]],np.int32)))
---
m.vmap(lambda x: m.cumsum(x))(a(M))
---
m.vmap(lambda x: m.sort(x,axis=-1))(a(-M))
---
m.vmap(lambda x: m.argsort(x))(a(-M))
---
m.vmap(lambda x: m.argmax(x))(a(M))
---
m.vmap(lambda x: m.sum(x))(a(M))
---
m.vmap(lambda x: m.softmax(x))(a(M))
---
m.vmap(lambda x: m.logsumexp(x))(a(M))
---
m.vmap(lambda x,y: x@y,in_axes=(0,None))(a(M),a(M.T))
---
m.vmap(lambda x,y: x@y,in_axes=(0,0))(a(M),a(M))
---
m.vmap(lambda x,y: m.matmul(x,y),in_axes=(None,0))(a(M),a(M[:,:,None].repeat(2,2).transpose(0,1,2)[:, :4]))
---
m.vmap(lambda x: m.concatenate([x,a(V)]))(a(M))
---
m.vmap(lambda x: m.reshape(x,(2,2)))(a(M))
---
m.vmap(lambda x: x.T)(a(M.reshape(3,2,2)))
---
m.vmap(lambda x: m.split(x,2))(a(M))
---
m.vmap(lambda x: m.pad(x,1))(a(M))
---
m.vmap(lambda x: m.where(x>0,x,a(0.0)))(a(M))
---
m.vmap(lambda x: m.roll(x,1))(a(M))
---
m.vmap(lambda x: m.topk(x,2))(a(M))
---
m.vmap(lambda x: m.partition(x,2).sum())(a(M))
---
m.vmap(lambda x: m.var(x))(a(M))
---
m.vmap(lambda x: m.outer(x,x))(a(M))
---
m.vmap(lambda x: m.tri(3)+x[0])(a(M))
---
m.vmap(lambda x: m.meshgrid(x,x))(a(M))
---
m.vmap(lambda x: m.einsum("i,i->",x,x))(a(M))
---
m.vmap(lambda x: m.tensordot(x,x,1))(a(M))
---
m.vmap(lambda x: m.repeat(x,2))(a(M))
---
m.vmap(lambda x: m.tile(x,2))(a(M))
---
m.vmap(lambda x: m.diag(x))(a(M))
---
m.vmap(lambda x: m.flatten(x))(a(M.reshape(3,2,2)))
---
m.vmap(lambda x: m.squeeze(x))(a(M.reshape(3,1,4)))
---
m.vmap(lambda x: m.linalg.norm(x))(a(M))
---
m.vmap(lambda x: x.astype(m.int32))(a(M))
---
m.vmap(lambda x: x.shape[0]*x)(a(M))
---
m.vmap(lambda x: m.array([1.0,2.0])*x[0])(a(M))
---
m.vmap(lambda x: m.grad(lambda y: x*y*y)(x))(a(V))
---
def f(x):
    x[x>0]=0
    return x
m.vmap(f)(a(M))
---
m.vmap(lambda x: x["a"], out_axes=(0,))({"a":a(M)})
""")


@pytest.mark.parametrize("snippet", [*VMAP])
def test_as_real_mlx(snippet):
    snippets.assert_agree(snippet)


# -- what mlxir does otherwise ----------------------------------------------------------------------------------------
M = np.arange(12, dtype=np.float32).reshape(3, 4) / 5 - 1


def per_row(fun, *arrays):
    """Loop and stack."""
    return np.stack([np.array(fun(*[mx.array(a[i]) for a in arrays])) for i in range(len(arrays[0]))])


def _static_writes(x):
    z = mx.zeros(4)
    z[0] = 1.0
    z[1:3] = x[:2]
    return z.at[0:2].add(2.0)


def _slices_of_an_unmapped_array(x):
    z = mx.ones(4).at[0:2].multiply(3.0).at[2:].maximum(5.0)
    z[3] = x[0]
    return z


# Silently wrong in MLX 0.32.
LANES = {
    "static writes": _static_writes,
    "static slices": _slices_of_an_unmapped_array,
    "divmod": lambda x: mx.stack(mx.divmod(x, mx.array(0.3))),
    "slice_update": lambda x: mx.slice_update(mx.zeros(4), mx.ones(2), mx.array([1]), axes=(0,)) * x,
    "computed start": lambda x: mx.slice(x, mx.argmax(x).reshape(1).astype(mx.int32) - 1, axes=(0,), slice_size=(2,)),
    "as_strided": lambda x: mx.as_strided(x, (2, 2), (1, 1)),
    "mask": lambda x: mx.where(x > 0, x.at[x > 0].add(1.0), 0),
}


@pytest.mark.parametrize("name", LANES)
def test_every_lane_as_alone(name):
    fun = LANES[name]
    np.testing.assert_array_equal(np.array(mx.vmap(fun)(mx.array(M))), per_row(fun, M))
    last = np.array(mx.vmap(fun, in_axes=1, out_axes=-1)(mx.array(M.T)))
    np.testing.assert_array_equal(np.moveaxis(last, -1, 0), per_row(fun, M))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scatter_on_any_axis(axis):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    lanes, index = x.shape[axis], np.arange(x.shape[axis], dtype=np.int32) % 2
    mine = mx.vmap(lambda x, i: x.at[i].add(10.0), in_axes=(axis, 0))(mx.array(x), mx.array(index))
    for lane in range(lanes):
        expected = np.take(x, lane, axis).copy()
        expected[index[lane]] += 10
        np.testing.assert_array_equal(np.array(mine[lane]), expected)


def test_empty_examples():
    """(Real MLX sometimes takes minutes for this, so it is not asked.)"""
    assert mx.vmap(lambda x: mx.sum(x))(mx.zeros((3, 0))).tolist() == [0, 0, 0]


def test_dicts_of_axes_go_by_their_keys():
    """MLX mixes the places of a dict of results up."""
    out = mx.vmap(lambda x: {"b": x, "a": (x * 2, x * 3)}, out_axes={"a": (0, 1), "b": 1})(mx.array(M))
    np.testing.assert_allclose(np.array(out["b"]), M.T)
    np.testing.assert_allclose(np.array(out["a"][0]), M * 2)
    np.testing.assert_allclose(np.array(out["a"][1]), M.T * 3)


def test_a_mapped_value_written_to_a_captured_array_is_explained():
    captured = mx.zeros(3)

    def leaky(x):
        captured[0] = x
        return x

    mx.vmap(leaky)(mx.array(M[0]))
    with pytest.raises(RuntimeError, match=r"vmap traced leaky \(test_behaviour_7_vmap.py:\d+\)"):
        captured.tolist()


def test_errors_of_axes_are_of_both_kinds():
    for kind in (IndexError, ValueError):
        for call in (lambda: mx.vmap(lambda x: x, in_axes=4)(mx.array(M)), lambda: mx.vmap(lambda x: x)(mx.array(1.0)),
                     lambda: mx.vmap(lambda x: x, out_axes=-4)(mx.array(M))):  # fmt: skip
            with pytest.raises(kind, match=r"^\[vmap\] Invalid"):
                call()
