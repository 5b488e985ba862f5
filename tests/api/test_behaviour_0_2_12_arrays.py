"""BEHAVIOUR sections 0, 2, 6, 8.6 and 12: evaluation in and outside of transforms, stop_gradient, arrays and writes."""

import numpy as np
import pytest
import snippets

import mlxir as mx

EVALUATION = snippets.table(r"""
m.grad(lambda x: m.sum(x[m.stop_gradient(m.argmax(x))]))(a(V))
---
m.vjp(lambda x: (m.stop_gradient(x),x*3), [a(V)], [a(V)])
---
m.vjp(lambda x: (m.stop_gradient(x)*2,x*3), [a(V)], [a(V),a(V)])
---
m.vjp(lambda x: m.stop_gradient(x), [a(V)], [])
---
m.jvp(lambda x: m.stop_gradient(x), [a(V)],[a(V)])
---
m.vmap(lambda x: (m.eval(x),x)[1])(a(V))
---
m.vmap(lambda x: (m.async_eval(x),x)[1])(a(V))
---
m.vmap(lambda x: m.stop_gradient(x))(a(M))
---
box=[]
m.grad(lambda x: (box.append(x*x),m.sum(x))[1])(a(V))
box[0]
---
box=[]
m.grad(lambda x: (box.append(x),m.sum(x))[1])(a(V))
box[0]+1
---
box=[]
m.jvp(lambda x: (box.append(x*x),m.sum(x))[1],[a(V)],[a(V)])
box[0]
---
box=[]
m.vmap(lambda x: (box.append(x*2),x)[1])(a(V))
box[0].item()
---
box=[]
m.vmap(lambda x: (box.append(x*2),x)[1])(a(V))
(box[0]+1).shape
---
def f(x):
    m.eval(x); y=x*x; m.eval(y); y.item(); str(y); np.array(y)
    return y*x
m.grad(m.grad(f))(a(3.0))
---
def f(x):
    y=x*x; m.async_eval(y)
    return y
m.grad(f)(a(3.0))
---
def f(x):
    y=x*x; m.async_eval(y)
    return y
m.jvp(f,[a(3.0)],[a(3.0)])
---
def f(x):
    y=x*x; m.async_eval(y)
    return y
m.vjp(f,[a(3.0)],[a(3.0)])
---
def f(x):
    m.async_eval(x)
    return x*x
m.grad(f)(a(3.0))
---
c=a(V)
def f(x):
    m.async_eval(c*2); m.async_eval(c)
    return x*x
m.grad(f)(a(3.0))
---
c=a(V)
def f(x):
    m.async_eval(1,"a",None,[c])
    return x*x
m.vmap(f)(a(V))
---
m.async_eval(1,"a",None,object())
---
m.async_eval()
---
m.eval()
---
m.eval(1,"a",None,object())
---
m.eval(x=a(V))
---
m.async_eval(x=a(V))
---
x=a(V)*2; m.async_eval(x); y=x+1; m.async_eval(x,y); m.eval(y); z=y*x; m.synchronize()
z
---
def f(x):
    m.eval(x)
    return m.sum(x*x)
m.vmap(m.grad(f))(a(V))
---
def f(x):
    m.eval(x)
    return x*x
m.grad(lambda x: m.vmap(f)(x).sum())(a(V))
---
m.stop_gradient(1.0)
---
m.stop_gradient(a(V))
---
m.stop_gradient([a(V)])
---
m.grad(lambda x: m.sum(x*m.stop_gradient(x)))(a(V))
---
m.jvp(lambda x: x*m.stop_gradient(x),[a(V)],[a(W)])
---
m.grad(m.grad(lambda x: m.stop_gradient(x)*x*x))(a(3.0))
---
m.grad(lambda x,y: (m.async_eval(y*2), x*y)[1])(a(2.0),a(3.0))
---
m.grad(lambda x,y: (m.async_eval(y["a"]*2), x*y["a"])[1])(a(2.0),{"a":a(3.0)})
---
m.grad(lambda x,y: (m.async_eval(y), x*y)[1])(a(2.0),a(3.0))
---
m.vmap(lambda x,y: (m.async_eval(y), x*y)[1],in_axes=(0,None))(a(V),a(3.0))
---
m.vmap(lambda x,y: (m.async_eval(y*2), x*y)[1],in_axes=(0,None))(a(V),a(3.0))
""")

COMPILED = snippets.table(r"""
box=[]
m.compile(lambda x: (box.append(x*2),x)[1])(a(1.0))
box[0].item()
---
def f(x):
    y=x*x; m.async_eval(y)
    return y
m.compile(f)(a(3.0))
---
def f(x):
    m.eval(x*2)
    return x
m.compile(f)(a(V))
---
def f(x):
    if x.sum()>0: return x
    return -x
m.compile(f)(a(V))
---
def f(x):
    m.eval(x)
    return x*x
m.grad(m.compile(f))(a(3.0))
---
def f(x):
    m.eval(x)
    return x*x
m.compile(m.grad(f))(a(3.0))
---
m.compile(m.stop_gradient)(a(V))
---
def loss(w,x,*,scale=1.0):
    'Doc.'
ws=[m.grad(loss),m.value_and_grad(loss),m.vmap(loss),m.compile(loss)]
[(w.__name__,w.__qualname__.split(".")[-1],w.__doc__,str(inspect.signature(w))) for w in ws]
---
def f(x):
    x[x.astype(m.int32)%2==0]=9
    return x
m.compile(f)(a(M))
---
x=a(3.0); z=a(2.0)
m.grad(lambda u,v: m.compile(lambda w: w*x)(v)*u)(z,x)
---
x=a(3.0); z=a(2.0)
m.vmap(lambda u,v: m.compile(lambda w: w*x)(v)*u,in_axes=(0,None))(a(V),x)
---
x=a(3.0)
m.grad(lambda u: m.compile(lambda w: w*x)(u))(x)
---
x=a(3.0)
m.compile(lambda w: w*x)(x)
---
x=a(3.0); y=x.astype(m.float32)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=x.reshape(4)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=x[...]
m.compile(lambda w: w*y)(x)
---
x=a(V); y=x[:]
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.array(x)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.broadcast_to(x,(4,))
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.transpose(x)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.squeeze(x)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.contiguous(x)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.roll(x,0)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.flatten(x)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.sum(x,axis=())
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.concatenate([x])
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.pad(x,0)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.atleast_1d(x)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.real(x)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.swapaxes(x,0,0)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=x.T
m.compile(lambda w: w*y)(x)
---
import copy
x=a(V); y=copy.copy(x)
m.compile(lambda w: w*y)(x)
---
x=a(V); y=m.asarray(x) if hasattr(m,'asarray') else x
m.compile(lambda w: w*y)(x)
""")

ARRAYS = snippets.table(r"""
m.compile(3)
---
x=a([1.0,2.0]); y=x; y[0]=9.0
x
---
x=a([1.0,2.0]); y=x[:]; y[0]=9.0
x
---
x=a([1.0,2.0]); y=x.reshape(2,1); y[0]=9.0
x
---
x=a([1.0,2.0]); i=id(x); x+=1
(id(x)==i,x)
---
x=a([1,2]); y=x; x+=1.5
(x,y)
---
x=a([1.0,2.0]); x+=a(np.ones((3,2),np.float32))
x
---
x=a([1,2]); x/=2
None
---
x=a([1.0,2.0]); x/=2; x-=1; x*=3; x**=2; x//=2; x%=2
x
---
x=a([1,2]); x|=4; x&=6; x<<=1; x>>=1; x^=1
x
---
x=a([[1.0,2.0],[3.0,4.0]]); x@=x
x
---
x=a([1.0,2.0]); x[0]+=5
x
---
x=a(V)
y=[x.at[0].add(1),x.at[a([0,0])].add(1.0),x.at[1].subtract(1),x.at[1].multiply(3),x.at[1].divide(2)]
(y,x.at[1].maximum(10),x.at[1].minimum(-10),x)
---
a(V).at[0].set(1)
---
a(V).at.add(1)
---
a([1,2,3]).at[0].add(2.7)
---
x=a([1,2,3]); x[0]=2.7
x
---
x=a(V); x[0]=[1]
None
---
x=a(V); x[0]="s"
None
---
x=a(V); x[0]=None
None
---
x=a(V); x[0:2]=np.array([5,6])
x
---
x=a(V); x[0]=a([[[3.0]]])
x
---
x=a(M); x[:, 1]=a(V)[:3]
x
---
x=a(M); x[0]=a(V)[None,None]
x
---
x=a(M); x[...]=1
x
---
a(V)[np.int64(1)]
---
a(M)[None,...,1]
---
a(M)[[0,2]]
---
a(M)[[0,2],1]
---
a(M)[a([0,2]),a([1,1])]
---
a(M)[a([[0],[2]]),a([1,1])]
---
a(M)[::-1,::2]
---
a(M)[a(M)>0]
---
a(M)[M>0]
---
a(M)[np.array([0,1])]
---
a(M)[1.0]
---
a(M)["a"]
---
a(M)[True]
---
a(M)[a([0.5])]
---
a(M)[a(0):a(2)]
---
a(M)[0,0,0]
---
a(M)[...,...]
---
a(M)[[True,False,True]]
---
a(M)[()]
---
a(M)[None]
---
a(M)[0,None,1:]
---
a(M)[1:1]
---
a(M)[5:]
---
x=a(M); x[a(M)>0]=0
x
---
x=a(M); x[M>0]=a(np.arange(12,dtype=np.float32))
x
---
x=a(M); x[a([True,False,True])]=5
x
---
x=a(M); x[[True,False,True]]=5
x
---
x=a(M); x[True]=5
x
---
x=a(M); x[False]=5
x
---
x=a(M); x[a([True,False])]=5
x
---
bool(a(V))
---
int(a([3]))
---
float(a([[3.5]]))
---
a(V).item()
---
len(a(1.0))
---
iter(a(1.0))
---
list(a(V))
---
a([1,2])==[1,2]
---
a([1.0,2.0])+[1,2]
---
a([1.0,2.0])+np.array([1,2])
---
a([1.0,2.0])<2
---
complex(a(1+2j))
---
[1,2,3][a(1)]
---
a(M).tolist()
---
a(1.5).tolist()
---
"%s"%a(1.5)
---
f"{a(1.5):.2f}"
---
hash(a(1.0)) is not None
---
a([1,2])!=[1,2]
---
1 in a([1,2])
---
abs(a([-1.0]))
---
-a([1.0]), ~a([True])
---
divmod(a([5.0]),a([2.0]))
---
round(a([1.234]),1)
---
a([1.0]).__array__()
---
memoryview(a(V)).shape
---
np.array(a(V))
---
bytes(memoryview(a(np.array([1,2],np.uint8))))
---
m.array(a(V)) is not None
---
def f(x): return m.sum(x.at[a([0,0,1])].add(a([1.0,2.0,3.0]))**2)
m.grad(f)(a(V))
---
def f(x,u): return m.sum(x.at[a([0,0,1])].add(u)**2)
m.grad(f,(0,1))(a(V),a([1.0,2.0,3.0]))
---
def f(x,u): return m.sum(x.at[a([0,0,1])].maximum(u)**2)
m.grad(f,(0,1))(a(V),a([1.0,2.0,3.0]))
---
m.vmap(lambda x: x.at[0].add(x[1]))(a(M))
""")


@pytest.mark.parametrize("snippet", [*EVALUATION, *COMPILED, *ARRAYS])
def test_as_real_mlx(snippet):
    snippets.assert_agree(snippet)


# -- what mlxir does otherwise ----------------------------------------------------------------------------------------
def test_a_source_too_short_for_its_mask():
    x = mx.array(np.arange(6, dtype=np.float32))
    with pytest.raises(RuntimeError, match="Source does not have enough elements for mask"):
        x[x > 2] = mx.array([1.0, 2.0])
        mx.eval(x)
    x[x > 3] = mx.array([7.0, 8.0])
    assert x.tolist() == [0, 1, 2, 3, 7, 8]


def test_indices_out_of_range():
    x = mx.array([1.0, 2.0, 3.0])
    with pytest.raises(IndexError, match="out of bounds"):
        x[3]
    assert mx.take(x, mx.array([9, -9])).tolist() == [3, 1]
    nothing = None
    assert (x == nothing) is False and (x != nothing) is True
    assert x.at[x > 1].add(1.0).tolist() == [1, 3, 4]
