"""Draft."""
import math

F32, F64, I32, I64, U32, U64 = "float32", "float64", "int32", "int64", "uint32", "uint64"


def _c(k, v):
    return k.const(v, F32)


def _horner(k, x, coefs, dtype=F32):
    p = k.const(coefs[0], dtype)
    for c in coefs[1:]:
        p = k.fma(p, x, k.const(c, dtype))
    return p


def _clamp(k, x, lo, hi):
    return k.max(_c(k, lo), k.min(_c(k, hi), x))

_EXP = (0.000196391018, 0.00141058629, 0.00833592098, 0.0416611768, 0.166666165, 0.500000358, 1.0, 1.0)
_EVEN = 25165824.0 + 254.0
_INT = 12582912.0

def _two_scales(k, p, t):
    s = k.bitcast(k.bitcast(t, I32) << 23, F32)
    return p * s * s

def _exp_core(k, x):
    t = k.fma(x, _c(k, 1.44269502), _c(k, _EVEN))
    n = t - _EVEN
    r = k.fma(n, _c(k, -0.693147182), x)
    r = k.fma(n, _c(k, 1.90465421e-9), r)
    return _two_scales(k, _horner(k, r, _EXP), t)

def exp(k, x):
    return _exp_core(k, _clamp(k, x, -104.0, 89.0))

_EXP2 = (1.49169637e-05, 0.000156452923, 0.00133417198, 0.00961684436, 0.055503659, 0.240226686, 0.693147242, 1.0)
def exp2(k, x):
    x = _clamp(k, x, -151.0, 129.0)
    t = x + _EVEN
    return _two_scales(k, _horner(k, x - (t - _EVEN), _EXP2), t)

_EXPM1 = (0.00138706923, 0.00836627185, 0.0416674353, 0.166665465, 0.49999997, 1.0)
_EXPM1 = (0.000197634377,0.00139323401,0.00833354425, 0.0416664928,0.166666657,0.5,1.0)

def expm1(k, x):
    x = _clamp(k, x, -20.0, 89.0)
    t = k.fma(x, _c(k, 1.44269502), _c(k, _INT + 126.0))
    n = t - (_INT + 126.0)
    r = k.fma(n, _c(k, -0.693147182), x)
    r = k.fma(n, _c(k, 1.90465421e-9), r)
    p = _horner(k, r, _EXPM1) * r
    s = k.bitcast(k.bitcast(t, I32) << 23, F32)
    v = k.fma(p, s, -(0.5 - s))
    return v + v

_LOG1P = (-0.0451337248, 0.104710422, -0.131640822, 0.144779921, -0.166469321, 0.199908331, -0.250001073, 0.333334506, -0.5)
_LOG = (-0.128800809, 0.139845803, -0.12187475, 0.140057355, -0.166801959, 0.200104266, -0.249998063, 0.333332151, -0.5)
_LOG2=(-0.185477242,0.201588139,-0.175932944,0.202099636,-0.240632728,0.288686454,-0.36067152,0.480896711,-0.721347511)
_LOG10=(-0.0562231056,0.060810525,-0.0528451242,0.0608089417,-0.0724499524,0.0869053751,-0.108572409,0.144764289,-0.217147246)
_TWO_THIRDS = 0x3F2AAAAB

def _split(k, x):
    e = (k.bitcast(x, I32) - _TWO_THIRDS) & -0x800000
    f = k.bitcast(k.bitcast(x, I32) - e, F32) - 1.0
    return k.cast(e, F32) * 2.0**-23, f

def _split_any(k, x):
    sub = x < 2.0**-126
    xs = k.select(sub, x * 2.0**23, x)
    i = k.select(sub, _c(k, -23.0), _c(k, 0.0))
    e = (k.bitcast(xs, I32) - _TWO_THIRDS) & -0x800000
    f = k.bitcast(k.bitcast(xs, I32) - e, F32) - 1.0
    return k.fma(k.cast(e, F32), _c(k, 2.0**-23), i), f

def _log_edges(k, x, r):
    r = k.select(x < math.inf, r, x)
    return k.select(x > 0.0, r, k.select(x == 0.0, _c(k, -math.inf), _c(k, math.nan)))

def log(k, x):
    e, f = _split_any(k, x)
    r = k.fma(_horner(k, f, _LOG), f * f, f)
    return _log_edges(k, x, k.fma(e, _c(k, 0.693147182), r))

def log2(k, x):
    e, f = _split_any(k, x)
    r = _horner(k, f, _LOG2) * (f * f)
    r = k.fma(f, _c(k, 1.92596303e-08), r)
    r = k.fma(f, _c(k, 1.44269502), r)
    return _log_edges(k, x, r + e)

def log10(k, x):
    e, f = _split_any(k, x)
    r = _horner(k, f, _LOG10) * (f * f)
    r = k.fma(f, _c(k, -1.010305e-08), r)
    r = k.fma(e, _c(k, -1.4320989e-08), r)
    r = k.fma(f, _c(k, 0.434294492), r)
    return _log_edges(k, x, k.fma(e, _c(k, 0.301030010), r))

def _log1p_core(k, x):
    ne = (0x3F400000 + 0x7FFFFF - k.bitcast(x + 1.0, I32)) & -0x800000
    w = k.fma(k.bitcast(ne + 0x40800000, F32), _c(k, -0.25), _c(k, 1.0))
    f = k.bitcast(k.bitcast(x, I32) + ne, F32) - w
    r = k.fma(_horner(k, f, _LOG1P), f * f, f)
    return r, k.cast(ne, F32)

def log1p(k, x):
    r, ne = _log1p_core(k, x)
    r = k.fma(ne, _c(k, -0.693147182 * 2.0**-23), r)
    r = k.select(x < math.inf, r, x)
    return k.select(x > -1.0, r, k.select(x == -1.0, _c(k, -math.inf), _c(k, math.nan)))

def arcsinh(k, x):
    a = k.abs(x)
    big = a > 2.0**28
    w = a + a * a / (k.sqrt(k.fma(a, a, _c(k, 1.0))) + 1.0)
    r, ne = _log1p_core(k, k.select(big, a, w))
    r = k.fma(ne, _c(k, -0.693147182 * 2.0**-23), r)
    r = r + k.select(big, _c(k, math.log(2)), _c(k, 0.0))
    return k.copysign(k.select(a < math.inf, r, a), x)

def arccosh(k, x):
    big = x > 2.0**28
    t = x - 1.0
    w = t + k.sqrt(k.fma(t, t, t + t))
    r, ne = _log1p_core(k, k.select(big, x, w))
    r = k.fma(ne, _c(k, -0.693147182 * 2.0**-23), r)
    r = r + k.select(big, _c(k, math.log(2)), _c(k, 0.0))
    r = k.select(x < math.inf, r, x)
    return k.select(x >= 1.0, r, _c(k, math.nan))

def arctanh(k, x):
    a = k.abs(x)
    r, ne = _log1p_core(k, (a + a) / (1.0 - a))
    r = k.fma(ne, _c(k, -0.693147182 * 2.0**-23), r) * 0.5
    edge = k.select(a == 1.0, _c(k, math.inf), _c(k, math.nan))
    return k.copysign(k.select(a < 1.0, r, edge), x)

_EXP2M1 = (0.000153852408, 0.00133876828, 0.00961830467, 0.0555036701, 0.240226492, 0.693147182)

def tanh(k, x):
    a = k.min(_c(k, 9.02), k.abs(x))
    t = k.fma(a, _c(k, 2.88539004), _c(k, _INT + 126.0))
    r = k.fma(a, _c(k, 2.88539004), -(t - (_INT + 126.0)))
    p = _horner(k, r, _EXP2M1) * r
    s = k.bitcast(k.bitcast(t, I32) << 23, F32)
    v = k.fma(p, s, s - 0.5)
    return k.copysign(v / (v + 1.0), x)

def tanh2(k, x):
    a = _clamp(k, x, -9.02, 9.02)
    t = k.fma(a, _c(k, 2.88539004), _c(k, _INT + 126.0))
    r = k.fma(a, _c(k, 2.88539004), -(t - (_INT + 126.0)))
    p = _horner(k, r, _EXP2M1) * r
    s = k.bitcast(k.bitcast(t, I32) << 23, F32)
    v = k.fma(p, s, -(0.5 - s))
    return v / (v + 1.0)

_ERF = (-5.97233666e-05, 0.000557172461, -0.00182776712, -0.000265515468, 0.0278523937, -0.148321599, -0.918444693, -1.62790704)
_ERF9 = (1.22277725e-05,-0.000160771786,0.000884979207,-0.00236084289,0.000194184337,0.0276483949,-0.148280442,-0.918447375,-1.62790704)
def erf(k, x, T=_ERF):
    a = k.min(_c(k, 3.95), k.abs(x))
    g = _horner(k, a, T) * a
    t = g + (_INT + 127.0)
    r = g - (t - (_INT + 127.0))
    p = _horner(k, r, _EXP2M1) * r
    s = k.bitcast(k.bitcast(t, I32) << 23, F32)
    return k.copysign(k.fma(-p, s, 1.0 - s), x)
def erf9(k, x): return erf(k, x, _ERF9)

def sigmoid(k, x):
    e = _exp_core(k, _clamp(k, x, -104.0, 64.0))
    return e / (e + 1.0)

_SIN = (2.60609568e-06, -0.000198097769, 0.00833306927, -0.166666597)
_PI = (-3.14159274, 8.74227766e-08, 3.43022574e-15)
def _sin_poly(k, r):
    z = r * r
    return k.fma(_horner(k, z, _SIN), z, _c(k, 1.0)) * r
def sin(k, x):
    t = k.fma(x, _c(k, 1 / math.pi), _c(k, _INT))
    n = t - _INT
    r = x
    for c in _PI:
        r = k.fma(n, _c(k, c), r)
    r = k.bitcast(k.bitcast(r, I32) ^ (k.bitcast(t, I32) << 31), F32)
    return _sin_poly(k, r)

def cos(k, x):
    t = k.fma(x, _c(k, 1 / math.pi), _c(k, -0.5)) + (_INT + 1.0)
    n = t - (_INT + 0.5) if False else (t - (_INT + 1.0)) + 0.5
    r = x
    for c in _PI:
        r = k.fma(n, _c(k, c), r)
    r = k.bitcast(k.bitcast(r, I32) ^ (k.bitcast(t, I32) << 31), F32)
    return _sin_poly(k, r)

_TAN=(0.00939650182,0.00310150627,0.0244413856,0.0534082018,0.133388355,0.333331555)
def tan(k, x):
    t = k.fma(x, _c(k, 2 / math.pi), _c(k, _INT))
    n = t - _INT
    r = x
    for c in _PI:
        r = k.fma(n, _c(k, c / 2), r)
    z = r * r
    v = k.fma(_horner(k, z, _TAN), z * r, r)
    return k.select((k.bitcast(t, I32) & 1) == 0, v, -1.0 / v)

_ASIN=(0.0421583131,0.0241847765,0.0454691499,0.0749530941,0.166667521)
_H1, _H2 = 0.93318945169, 1.68325555325
def _asin_core(k, a):
    big = a > 0.5
    z = k.select(big, k.fma(a, _c(k, -0.5), _c(k, 0.5)), a * a)
    s = k.select(big, k.sqrt(z), a)
    return big, k.fma(_horner(k, z, _ASIN), s * z, s)

def arcsin(k, x):
    big, r = _asin_core(k, k.abs(x))
    r = k.select(big, k.fma(_c(k, _H1), _c(k, _H2), r * -2.0), r)
    return k.copysign(r, x)

def arccos(k, x):
    big, r = _asin_core(k, k.abs(x))
    r = k.copysign(r, x)
    base = k.select(x < 0.0, _c(k, math.pi), _c(k, 0.0))
    return k.select(big, k.fma(r, _c(k, 2.0), base), k.fma(_c(k, _H1), _c(k, _H2), -r))

_ATAN=(0.00291987741,-0.0163645409,0.0432062298,-0.0755173713,0.10665787,-0.142110035,0.199937671,-0.333331525)
def _atan_unit(k, t):
    z = t * t
    return k.fma(_horner(k, z, _ATAN), t * z, t)
def arctan(k, x):
    a = k.abs(x)
    one = _c(k, 1.0)
    r = _atan_unit(k, k.min(one, a) / k.max(one, a))
    return k.copysign(k.select(a > 1.0, k.fma(_c(k, _H1), _c(k, _H2), -r), r), x)
def arctan2(k, y, x):
    ax, ay = k.abs(x), k.abs(y)
    lo, hi = k.min(ax, ay), k.max(_c(k, 2.0**-149), k.max(ay, ax))
    r = _atan_unit(k, k.select(lo == hi, _c(k, 1.0), lo / hi))
    r = k.select(ay > ax, k.fma(_c(k, _H1), _c(k, _H2), -r), r)
    r = k.select(k.bitcast(x, I32) < 0, k.fma(_c(k, _H1), _c(k, 2*_H2), -r), r)
    return k.copysign(r, y)

def _sinh_cosh(k, x):
    a = k.min(_c(k, 89.5), k.abs(x))
    t = k.fma(a, _c(k, 1.44269502), _c(k, _INT + 125.0))
    n = t - (_INT + 125.0)
    r = k.fma(n, _c(k, -0.693147182), a)
    r = k.fma(n, _c(k, 1.90465421e-9), r)
    z = r * r
    sh = k.fma(k.fma(_c(k, 0.00836675335), z, _c(k, 0.16666542)), z * r, r)
    ch = _horner(k, z, (0.00139354914, 0.0416664593, 0.5)) * z
    bits = k.bitcast(t, I32) << 23
    s = k.bitcast(bits, F32)
    i = k.bitcast(((258 << 23)) - bits, F32)
    return sh, ch, s, i

def sinh(k, x):
    sh, ch, s, i = _sinh_cosh(k, x)
    cb = k.fma(i, _c(k, 2.0**-8), s)
    sb = k.fma(i, _c(k, -2.0**-8), s)
    v = k.fma(sh, cb, ch * sb) + sb
    return k.copysign(v + v, x)

def cosh(k, x):
    sh, ch, s, i = _sinh_cosh(k, x)
    cb = k.fma(i, _c(k, 2.0**-8), s)
    sb = k.fma(i, _c(k, -2.0**-8), s)
    v = k.fma(sh, sb, ch * cb) + cb
    return v + v

_EI=(5.47750867e-09,1.44362176e-07,1.24051007e-06,1.96030342e-07,-5.58326501e-05,-0.000146953826,0.00231570029,0.0115399938,-0.232015282,0.886226892)
_EIT=(2.61117072e-10,2.55891415e-08,1.08021391e-06,2.54020433e-05,0.000354113261,0.00270124688,0.00317675807,-0.269375741,0.834196866)
def erfinv(k, x):
    q = k.fma(-x, x, _c(k, 1.0))
    e, f = _split(k, q)
    w = k.fma(e, _c(k, 0.693147182), k.fma(_horner(k, f, _LOG), f * f, f))
    w = k.select(q > 0.0, w, k.select(q == 0.0, _c(k, -math.inf), _c(k, math.nan)))
    return k.select(w > -6.125, _horner(k, w, _EI), _horner(k, w, _EIT)) * x

_POW_HEAD=(0.28854042801049706,-0.36067365346316305,0.480898332641048,-0.721347520831586,1.442695040910647)
_POW_TAIL=(0.03798794,-0.102035761,0.138789192,-0.149207532,0.160503477,-0.180003762,0.206056848,-0.240458414)
_POW_HEAD=(0.2885460235013229,-0.3606743593517662,0.4808982822264261,-0.7213475168560286,1.4426950409945383)
_POW_TAIL=(-0.044958815,0.115508996,-0.152872056,0.164656714,-0.180314407,0.205820397,-0.240428224)
def pow(k, x, y):
    a = k.abs(x)
    sub = a < 2.0**-126
    xs = k.select(sub, a * 2.0**23, a)
    i = k.select(sub, _c(k, -23.0), _c(k, 0.0))
    e = (k.bitcast(xs, I32) - 0x3F400000) & -0x800000
    f = k.bitcast(k.bitcast(xs, I32) - e, F32) - 1.0
    e = k.fma(k.cast(e, F32), _c(k, 2.0**-23), i)
    e = k.select(a < math.inf, k.select(a == 0.0, _c(k, -math.inf), e), a)
    f64 = k.cast(f, F64)
    p = k.cast(_horner(k, f, _POW_TAIL), F64)
    for c in _POW_HEAD:
        p = k.fma(p, f64, k.const(c, F64))
    l = k.fma(p, f64, k.cast(e, F64))
    v = k.cast(_clamp(k, y, -3.4028234e38, 3.4028234e38), F64) * l
    v = k.max(k.const(-152.0, F64), k.min(k.const(130.0, F64), v))
    even = 1.5 * 2.0**53 + 254.0
    t = v + even
    r = k.cast(v - (t - even), F32)
    s = k.bitcast(k.cast(k.bitcast(t, I64), I32) << 23, F32)
    m = _horner(k, r, _EXP2) * s * s
    h = y * 0.5
    fy = k.floor(y)
    odd = (fy == y) & (k.floor(h) != h)
    m = k.select(odd, k.copysign(m, x), m)
    m = k.select((x < 0.0) & (fy != y) & (a < math.inf), _c(k, math.nan), m)
    return k.select((y == 0.0) | (x == 1.0), _c(k, 1.0), m)
