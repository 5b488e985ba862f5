"""BEHAVIOUR sections 1 and 3: containers, and what grad and value_and_grad accept and return."""

import numpy as np
import pytest
import snippets

import mlxir as mx
from mlxir.testing import check_grads

CONTAINERS = snippets.table(r"""
g=m.grad(lambda p: m.sum(p.x)*p.y)
g(Point(a(V),a(2.0)))
---
m.grad(lambda p: m.sum(p[0]))(Pair([a(V)]))
---
m.grad(lambda p: m.sum(p[0]))(Items([a(V)]))
---
m.grad(lambda p: m.sum(p["a"]))(OrderedDict(a=a(V)))
---
m.grad(lambda p: m.sum(p["a"]))(defaultdict(list,a=a(V)))
---
m.grad(lambda p: m.sum(p["a"]))(Table(a=a(V)))
---
seen=[]
m.grad(lambda p: (seen.append(type(p)),m.sum(p["a"]))[1])(OrderedDict(a=a(V)))
seen
---
seen=[]
m.grad(lambda p: (seen.append(type(p)),m.sum(p[0]))[1])(Pair([a(V)]))
seen
---
seen=[]
m.grad(lambda p: (seen.append(type(p)),m.sum(p[0]))[1])(Items([a(V)]))
seen
---
seen=[]
d=OrderedDict(a=a(V))
m.vmap(lambda p: (seen.append(type(p)),p["a"])[1])(d)
seen
---
seen=[]
m.vmap(lambda p: (seen.append(type(p)),p[0])[1])(Pair([a(V)]))
seen
---
seen=[]
m.vmap(lambda p: (seen.append(type(p)),p[0])[1])(Point(a(V),a(V)))
seen
---
m.vmap(lambda x: Point(x,x))(a(V))
---
m.vmap(lambda x: Pair([x,x]))(a(V))
---
m.vmap(lambda x: Items([x,x]))(a(V))
---
m.vmap(lambda x: OrderedDict(a=x))(a(V))
---
m.value_and_grad(lambda x: Point(m.sum(x),x))(a(V))
---
m.value_and_grad(lambda x: Pair([m.sum(x),x]))(a(V))
---
m.vjp(lambda x: Point(x,x*2), [a(V)], [a(V),a(W)])
""")

GRADIENTS = snippets.table(r"""
m.grad(lambda x: m.sum(x*x))(a(V))
---
g=m.grad(lambda p: m.sum(p[0])*p[1]["k"])
g([a(V),{"k":a(2.0)}])
---
m.grad(lambda x: m.sum(x))(None)
---
m.grad(lambda x: m.sum(x))("s")
---
m.grad(lambda x: m.sum(x[0]))([a(V),None])
---
m.grad(lambda x: m.sum(x[0]))([a(V),1.0])
---
m.grad(lambda x: m.sum(x[0]))([a(V),{1,2}])
---
m.grad(lambda x: m.sum(x[0]))([a(V),[]])
---
m.grad(lambda x: m.sum(x["a"]))({"a":a(V),"b":{}, "c":()})
---
m.grad(lambda x: a(1.0))([])
---
m.grad(lambda x: a(1.0))({})
---
m.grad(lambda x,y: m.sum(x), argnums=(0,1))(a(V),[])
---
m.grad(lambda x,y: m.sum(x), argnums=1)(a(V),())
---
m.value_and_grad(lambda x: (m.sum(x),))(a(V))
---
m.value_and_grad(lambda x: (m.sum(x),x,None,"s",{"a":x},[x,(x,)],3))(a(V))
---
m.value_and_grad(lambda x: [m.sum(x),x])(a(V))
---
m.value_and_grad(lambda x: ())(a(V))
---
m.value_and_grad(lambda x: (1.0,x))(a(V))
---
m.value_and_grad(lambda x: (x,x))(a(V))
---
m.value_and_grad(lambda x: {"a":x})(a(V))
---
m.value_and_grad(lambda x: None)(a(V))
---
m.value_and_grad(lambda x: 1.0)(a(V))
---
m.grad(lambda x: None)(a(V))
---
m.grad(lambda x: 1.0)(a(V))
---
m.grad(lambda x: [m.sum(x)])(a(V))
---
m.grad(lambda x: (m.sum(x),))(a(V))
---
m.grad(lambda x: "s")(a(V))
---
m.grad(lambda x: x)(a(V))
---
m.grad(lambda x: x[:1])(a(V))
---
m.grad(lambda x: x[:0])(a(V))
---
m.value_and_grad(lambda x: x[:1])(a(V))
---
m.grad(m.sum)(1.0)
---
m.grad(m.sum)(V)
---
m.grad(lambda x,y: m.sum(x*y))(a(V),2.0)
---
m.grad(lambda x,y: m.sum(x*y.sum()))(a(V),np.ones(3,np.float32))
---
m.grad(lambda x,y: m.sum(x*y["a"])*y["s"])(a(V),{"a":a(W),"s":3,"f":None})
---
m.grad(m.sum, argnums=[])
---
m.grad(m.sum, argnums=())
---
m.grad(m.sum, argnums=-1)
---
m.grad(m.sum, argnums=(0,0))
---
m.grad(m.sum, argnums=(None,None))
---
m.grad(m.sum, argnums=1.0)
---
m.grad(m.sum, argnums="a")
---
m.grad(m.sum, argnums=[0.5])
---
m.grad(m.sum, argnums=[1,-1])
---
m.grad(m.sum, argnames=3)
---
m.grad(m.sum, argnames=[3])
---
m.grad(m.sum, argnames=None)
---
m.grad(lambda x: m.sum(x), argnames=())(a(V))
---
m.grad(3)
---
m.grad(None)
---
m.value_and_grad(3)
---
m.checkpoint(3)
---
m.grad(lambda x,y: m.sum(x*y), argnums=range(2))(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=(1,0))(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=np.int32(1))(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=True)(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=(1,))(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=[0])(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=None)(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums={0})(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=[True])(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=[np.int64(0),np.int64(1)])(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=np.array([0,1]))(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=(i for i in (0,1)))(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnames="y")(a(V),y=a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnames=["y"])(a(V),y=a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=0, argnames=["y"])(a(V),y=a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=(0,), argnames=("y",))(a(V),y=a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=[], argnames=("y",))(a(V),y=a(W))
---
m.grad(lambda x,y,z: m.sum(x*y*z), argnums=(0,1), argnames=("z",))(a(V),a(W),z=a(W))
---
m.grad(lambda x,y,z: m.sum(x*y*z), argnames={"z","y","x"})(z=a(W),x=a(V),y=a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnames="y")(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnames="z")(a(V),y=a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=2)(a(V),a(W))
---
m.grad(lambda x,y: m.sum(x*y), argnums=1)(a(V),y=a(W))
---
m.grad(lambda x: m.sum(x))(x=a(V))
---
m.grad(lambda x: m.sum(x))()
---
m.value_and_grad(lambda x,y: m.sum(x*y), argnames="y")(a(V),y=a(W))
---
m.value_and_grad(lambda x,y: (m.sum(x*y),x), argnums=(0,), argnames=("y",))(a(V),y={"q":a(W)} and a(W))
---
m.grad(lambda x, **kw: m.sum(x*kw["k"]["a"]), argnames="k")(a(V),k={"a":a(W)})
---
m.grad(lambda x, k: m.sum(x), argnames="k")(a(V),k=3.0)
---
m.grad(lambda x, k: m.sum(x), argnames="k")(a(V),k=[])
---
m.grad(lambda x, k: m.sum(x)*k)(a(V),k=3.0)
---
f=m.grad(lambda x: m.sum(x*2.5))
f(a(np.array([1,2],np.int32)))
---
m.grad(lambda x: m.sum(m.sin(x)))(a(np.array([1,2],np.int32)))
---
m.value_and_grad(lambda x: m.sum(x))(a(np.array([1,2],np.int32)))
---
m.value_and_grad(lambda x: m.sum(x>0))(a(V))
---
m.value_and_grad(lambda x: m.any(x>0))(a(V))
---
m.value_and_grad(lambda x: m.all(x))(a(V))
---
m.grad(lambda x: m.sum((x>0)*x))(a(V))
---
x=a(V); 
p={"w":x,"b":[x]}
m.grad(lambda p: m.sum(p["w"])+m.sum(p["b"][0]))(p)
(p["w"] is x, p["b"][0] is x)
---
x=a(V); p={"w":x}
def f(p):
    p["w"]=p["w"]*2
    return m.sum(p["w"]**2)
g=m.grad(f)(p)
(g,p["w"],p["w"] is x)
---
x=a(V); p={"w":x}
def f(p):
    p["w"][0]=7.0
    return m.sum(p["w"]**2)
g=m.grad(f)(p)
(g,p["w"],x,p["w"] is x)
---
x=a(V); p=[x]
def f(p):
    p[0]+=1
    return m.sum(p[0]**2)
g=m.grad(f)(p)
(g,p[0],x)
---
x=a(V)
def f(x):
    x[0]=7.0
    return m.sum(x**2)
g=m.grad(f)(x)
(g,x)
---
x=a(V)
def f(x):
    x+=1
    x*=x
    return m.sum(x)
g=m.grad(f)(x)
(g,x)
---
p={"a":a(V),"b":a(1.0)}
def f(p):
    y=m.sum(p["a"]); p["c"]=3
    return y
(m.grad(f)(p),sorted(p))
---
p={"a":a(V)}; q=[a(W)]
def f(p,q):
    q[0]=q[0]*2+m.sum(p["a"])
    q.append(3)
    return m.sum(p["a"]*q[0])
(m.grad(f)(p,q),q)
---
x=a(V)
m.grad(lambda x,y: m.sum(x*x*y),argnums=(0,1))(x,x)
---
x=a(V)
m.grad(lambda p: m.sum(p[0]*p[0]*p[1]))([x,x])
---
m.grad(lambda x: x*x if x>0 else -x)(a(-3.0))
---
m.grad(lambda x: x*x if x>0 else -x)(a(3.0))
---
m.grad(lambda x: x*m.grad(lambda y: x+y)(a(1.0)))(a(1.0))
---
def f(x,v):
    x[1]=v
    return m.sum(x*x)
m.grad(f,(0,1))(a(V),a(3.0))
---
def f(x,v):
    y=x; y[1:3]=v
    return m.sum(x*x)
m.grad(f,(0,1))(a(V),a([3.0,4.0]))
---
def f(x):
    x[0]+=x[1]*x[2]
    return m.sum(x*x)
m.grad(f)(a(V))
---
m.grad(lambda x: m.random.uniform(key=x))(m.random.key(0))
---
x=a(V); 
def f(x):
    y=m.zeros(4); y[0]=x[0]; y[1:3]=x[1:3]*2
    return m.sum(y*y)
m.grad(f)(x)
---
def f(x,mask):
    x[mask]=x[mask.astype(m.int32)] if False else 2.0
    return m.sum(x*x)
m.grad(f)(a(V),a(V)>0)
---
def f(x,v):
    x[a(V)>0]=v
    return m.sum(x*x)
m.grad(f,(0,1))(a(V),a([3.0,4.0,5.0]))
""")


@pytest.mark.parametrize("snippet", [*CONTAINERS, *GRADIENTS])
def test_as_real_mlx(snippet):
    snippets.assert_agree(snippet)


# -- what mlxir adds or does otherwise --------------------------------------------------------------------------------
def test_gradients_follow_their_leaf_when_another_is_taken_away():
    """MLX gives the leaves that are left the gradients of others."""

    def popped(p):
        return mx.sum(p.pop("a") * 3) + p["b"] * 2

    grads = mx.grad(popped)({"a": mx.array([1.0, 2.0]), "b": mx.array(1.0)})
    assert list(grads) == ["b"] and grads["b"].item() == 2.0

    def emptied(p):
        y = mx.sum(p["a"])
        p["a"] = None
        return y * p["b"]

    grads = mx.grad(emptied)({"a": mx.array([1.0, 2.0]), "b": mx.array(4.0)})
    assert grads["a"] is None and grads["b"].item() == 3.0


def test_arguments_that_are_not_differentiated_are_traced():
    x = mx.array(3.0)
    # The parameter and the captured array are different arrays, so this is no uncaptured input of compile.
    assert mx.grad(lambda u, v: mx.compile(lambda w: w * x)(v) * u)(mx.array(2.0), x).item() == 9.0
    box = []
    mx.grad(lambda u, v: (box.append(v), u * v)[1])(mx.array(2.0), x)
    assert box[0].item() == 3.0


def test_has_aux():
    x = mx.array([1.0, 2.0])
    loss = lambda x: (mx.sum(x * x), {"twice": x * 2, "n": 3})  # noqa: E731
    grads, aux = mx.grad(loss, has_aux=True)(x)
    assert grads.tolist() == [2, 4] and aux["twice"].tolist() == [2, 4] and aux["n"] == 3
    (value, aux), grads = mx.value_and_grad(loss, has_aux=True)(x)
    assert value.item() == 5 and aux["twice"].tolist() == [2, 4] and grads.tolist() == [2, 4]
    for bad in (lambda x: mx.sum(x), lambda x: (mx.sum(x),), lambda x: (mx.sum(x), 1, 2), lambda x: [mx.sum(x), 1]):
        for transform in (mx.grad, mx.value_and_grad):
            with pytest.raises(ValueError, match="a pair .scalar array, auxiliary data.; but"):
                transform(bad, has_aux=True)(x)


def test_check_grads_of_every_order_in_both_modes():
    x = mx.array(np.array([0.3, -0.7, 1.1]), mx.float64)
    for modes in ("fwd", "rev", ("fwd", "rev")):
        check_grads(lambda x: mx.sin(x) * mx.sum(x * x), (x,), order=3, modes=modes)
