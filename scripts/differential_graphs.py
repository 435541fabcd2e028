"""Random small graphs for differential.py: a pool of typed values, and one function per family of operators.

A graph grows by fragments (mostly one node), each computed as soon as it is made, so that the next one knows the shapes and
values it builds on. A value is `exact` if every right implementation has the same bits for it; operators that jump (Floor,
ArgMax, a comparison) take only exact ones, or a difference in the last bit would decide. An integer that is not exact (Resize
interpolates and rounds, so that a half may go either way) is an output, and nothing is built on it.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

F32, F64, F16 = np.float32, np.float64, np.float16
FLOATS = [F32, F64, F16]
SIGNED = [np.int8, np.int16, np.int32, np.int64]
UNSIGNED = [np.uint8, np.uint16, np.uint32, np.uint64]
INTS = SIGNED + UNSIGNED
NUMBERS = FLOATS + INTS
ALL = NUMBERS + [np.bool_, np.str_]
ML = "ai.onnx.ml"
MS = "com.microsoft"
FAMILIES = {}


class Rejected(Exception):
    """The oracles do not run the fragment: the graph goes on without it."""


class Value:
    """`digits` names the type whose tolerance holds, if it is not that of the array."""

    def __init__(self, name, array, exact=True, digits=None):
        self.name, self.array, self.exact, self.digits = name, array, exact, digits

    dtype = property(lambda self: self.array.dtype)
    shape = property(lambda self: self.array.shape)
    rank = property(lambda self: self.array.ndim)


class Fragment:
    """Nodes that are computed together: inputs and outputs are values of the graph."""

    def __init__(self, nodes, inputs, outputs, exact):
        self.nodes, self.inputs, self.outputs, self.exact = nodes, inputs, outputs, exact
        self.digits = None

    ops = property(lambda self: "+".join(dict.fromkeys(node.op_type for node in self.nodes)))


class Graph:
    """`evaluate(graph, fragment, arrays)` is the oracle: it returns the arrays of the outputs or raises Rejected."""

    def __init__(self, prefix, rng, opset, ml_opset, evaluate):
        self.prefix, self.rng, self.opset, self.ml_opset, self.evaluate = prefix, rng, opset, ml_opset, evaluate
        self.inputs, self.constants, self.computed, self.fragments, self.count = [], [], [], [], 0

    # ---- chance
    def chance(self, p):
        return self.rng.random() < p

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def int(self, low, high):
        """Between both, inclusive."""
        return int(self.rng.integers(low, high + 1))

    def dims(self, rank=None, zero=0.04):
        rank = self.pick([0, 1, 1, 2, 2, 3, 3, 4]) if rank is None else rank
        return tuple(0 if self.chance(zero) else self.pick([1, 2, 3, 4, 5]) for _ in range(rank))

    def axis(self, rank):
        return self.int(-rank, rank - 1)

    # ---- values
    def name(self, hint="v"):
        self.count += 1
        return f"{self.prefix}{hint}{self.count}"

    def fresh(self, dtype, shape=None, low=None, high=None, special=None, constant=0.4):
        """A new input or constant; `special` is the chance of NaN, infinities, −0 and extreme numbers."""
        shape = self.dims() if shape is None else tuple(shape)
        array = self.data(np.dtype(dtype), shape, low, high, 0.12 if special is None and low is None else special or 0)
        return self.given(array, constant)

    def given(self, array, constant=0.8):
        value = Value(self.name("x"), np.asarray(array))
        (self.constants if self.chance(constant) else self.inputs).append(value)
        return value

    def data(self, dtype, shape, low, high, special):
        rng = self.rng
        if dtype.kind == "U":
            return rng.choice(np.array(["", "a", "b", "cc", "Ünï", "12", "-3.5"], dtype=object), shape).astype(object)
        if dtype.kind == "b":
            return rng.random(shape) < 0.5
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            low, high = (-9 if low is None else low), (9 if high is None else high)
            array = np.asarray(rng.integers(max(low, info.min), high + 1, shape)).astype(dtype)
            if array.size and rng.random() < special:
                array.flat[int(rng.integers(array.size))] = self.pick([info.min, info.max])
            return array
        low, high = (-3 if low is None else low), (3 if high is None else high)
        array = np.asarray(rng.uniform(low, high, shape)).astype(dtype)
        if self.chance(0.2):
            array = np.round(array).clip(low, high).astype(dtype)
        if array.size and rng.random() < special:
            for _ in range(self.int(1, 3)):
                array.flat[int(rng.integers(array.size))] = self.pick([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e4, -1e4])
        return array

    def any(self, dtypes, rank=None, exact=False, finite=False, where=None, shape=None):
        """A value of the pool, or a new one."""
        ranks = None if rank is None else ([rank] if isinstance(rank, int) else rank)
        found = [
            v
            for v in self.computed + self.inputs + self.constants
            if any(kind_of(v.dtype) == np.dtype(d) for d in dtypes)
            and (ranks is None or v.rank in ranks)
            and (shape is None or v.shape == tuple(shape))
            and (v.exact or not (exact or v.dtype.kind in "iu"))
            and (not finite or v.dtype.kind != "f" or np.isfinite(v.array).all())
            and (where is None or where(v))
        ]
        if found and self.chance(0.75):
            return found[-self.int(1, min(4, len(found)))]
        for _ in range(50):
            dtype = F32 if F32 in dtypes and self.chance(0.4) else self.pick(dtypes)
            dims = shape if shape is not None else self.dims(self.pick(ranks) if ranks else None)
            value = self.fresh(dtype, dims, special=0 if finite else None)
            if where is None or where(value):
                return value
        raise Rejected("no such value")

    def like(self, value, shape=None, **how):
        """One of the same type: of the given shape, or of one that broadcasts with it."""
        if shape is None:
            shape = [d if d != 1 and self.chance(0.7) else self.pick([1, 2, 3]) if d == 1 else 1 for d in value.shape]
            shape = shape[self.int(0, len(shape)) if self.chance(0.3) else 0 :]
            shape = [1] * self.int(0, 1) + shape if self.chance(0.1) and len(shape) < 4 else shape
        return self.fresh(kind_of(value.dtype), shape, **how)

    def ints(self, numbers, constant=0.8, dtype=np.int64):
        return self.given(np.array(numbers, dtype=dtype), constant)

    # ---- nodes
    def node(self, op, inputs, outputs=1, domain="", exact=False, **attributes):
        return self.fragment([self.make(op, [v and v.name for v in inputs], outputs, domain, **attributes)], inputs, exact)

    def make(self, op, names, outputs=1, domain="", **attributes):
        names = [n or "" for n in names]
        while names and not names[-1]:
            names.pop()
        outputs = outputs if isinstance(outputs, list) else [self.name() for _ in range(outputs)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        return helper.make_node(op, names, outputs, domain=domain, **attributes)

    def fragment(self, nodes, inputs, exact=False, outputs=None, digits=None):
        inputs = list({v.name: v for v in inputs if v is not None}.values())
        outputs = outputs or [name for name in nodes[-1].output if name]
        fragment = Fragment(nodes, inputs, outputs, exact)
        fragment.digits = digits
        arrays = self.evaluate(self, fragment, [v.array for v in inputs])
        if sum(a.size for a in arrays) > 4096:
            raise Rejected("too large")
        exact = exact and all(v.exact for v in inputs)
        whole = "iubOU" if nodes[0].op_type != "Resize" else ""
        shorter = lambda a: fragment.digits if a.dtype == F64 or fragment.digits == "bfloat16" else None
        values = [Value(name, a, exact or a.dtype.kind in whole, shorter(a)) for name, a in zip(outputs, arrays)]
        self.fragments.append(fragment)
        self.computed += values
        return values


def kind_of(dtype):
    return np.dtype(np.str_) if dtype.kind in "OU" else dtype


def proto(dtype):
    return TensorProto.STRING if np.dtype(dtype).kind in "OU" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def family(weight=1):
    def register(function):
        FAMILIES[function.__name__] = (function, weight)
        return function

    return register


# ---------------------------------------------------------------------------------------------------------- elementwise

# operator: element types, first opset, attributes, whether its result is the same everywhere (for the given operand)
UNARY = {
    "Abs": (NUMBERS, 9, (), True), "Neg": (FLOATS + SIGNED, 9, (), True), "Floor": (FLOATS, 9, (), True),
    "Ceil": (FLOATS, 9, (), True), "Round": (FLOATS, 11, (), True), "Sign": (NUMBERS, 9, (), True),
    "Identity": (ALL, 9, (), True), "Not": ([np.bool_], 9, (), True), "IsNaN": (FLOATS, 9, (), True),
    "IsInf": ([F32, F64], 10, ("detect_positive", "detect_negative"), True), "BitwiseNot": (INTS, 18, (), True),
    "Sqrt": (FLOATS, 9, (), False), "Exp": (FLOATS, 9, (), False), "Log": (FLOATS, 9, (), False),
    "Reciprocal": (FLOATS, 9, (), False), "Sin": (FLOATS, 9, (), False), "Cos": (FLOATS, 9, (), False),
    "Tan": (FLOATS, 9, (), False), "Asin": (FLOATS, 9, (), False), "Acos": (FLOATS, 9, (), False),
    "Atan": (FLOATS, 9, (), False), "Sinh": (FLOATS, 9, (), False), "Cosh": (FLOATS, 9, (), False),
    "Tanh": (FLOATS, 9, (), False), "Asinh": (FLOATS, 9, (), False), "Acosh": (FLOATS, 9, (), False),
    "Atanh": (FLOATS, 9, (), False), "Erf": (FLOATS, 9, (), False), "Sigmoid": (FLOATS, 9, (), False),
    "Softplus": (FLOATS, 9, (), False), "Softsign": (FLOATS, 9, (), False),
    "Relu": (FLOATS + SIGNED, 9, (), True), "HardSwish": (FLOATS, 14, (), False), "Mish": (FLOATS, 18, (), False),
    "Gelu": (FLOATS, 20, ("approximate",), False), "Swish": (FLOATS, 24, ("alpha",), False),
    "Elu": (FLOATS, 9, ("alpha",), False), "LeakyRelu": (FLOATS, 9, ("alpha",), False),
    "Selu": (FLOATS, 9, ("alpha", "gamma"), False), "Celu": ([F32], 12, ("alpha",), False),
    "HardSigmoid": (FLOATS, 9, ("alpha", "beta"), False), "ThresholdedRelu": (FLOATS, 10, ("alpha",), True),
    "Shrink": (NUMBERS, 9, ("lambd", "bias"), True),
}
JUMPS = {"Floor", "Ceil", "Round", "Sign", "ThresholdedRelu", "Shrink"}


@family(3)
def unary(g):
    op = g.pick([op for op, row in UNARY.items() if row[1] <= g.opset])
    types, _, names, exact = UNARY[op]
    if op == "Relu" and g.opset < 14:
        types = FLOATS
    attributes = {}
    for name in names:
        if g.chance(0.6):
            if name.startswith("detect"):
                attributes[name] = g.int(0, 1)
            elif name == "approximate":
                attributes[name] = g.pick(["none", "tanh"])
            else:
                attributes[name] = round(float(g.rng.uniform(0.1, 2)), 2)
    g.node(op, [g.any(types, exact=op in JUMPS)], exact=exact, **attributes)


@family(4)
def binary(g):
    op = g.pick(["Add", "Sub", "Mul", "Div", "Add", "Mul", "Pow", "Mod", "PRelu", "BitShift"] + ["Max", "Min", "Sum", "Mean"] * 1)
    types = FLOATS + [np.int32, np.int64] if g.opset < 14 and op in ("Add", "Sub", "Mul", "Div") else NUMBERS
    if op == "BitShift":
        if g.opset < 11:
            return
        a = g.any(UNSIGNED)
        g.node(op, [a, g.like(a, low=0, high=7)], direction=g.pick(["LEFT", "RIGHT"]), exact=True)
    elif op == "Pow":
        a = g.any(FLOATS if g.opset < 12 else FLOATS + [np.int32, np.int64], finite=True)
        if a.dtype.kind == "i":
            a = g.fresh(a.dtype, a.shape, low=-4, high=4)
        b = g.like(a, low=0, high=3) if g.chance(0.5) or a.dtype.kind == "i" else g.like(a)
        if g.opset >= 12 and g.chance(0.3):
            b = g.fresh(g.pick([F32, np.int32, np.int64]), b.shape, low=0, high=3)
        if a.dtype.kind == "i" and b.dtype.kind == "f":
            # No integer is the root of a negative one.
            b = g.given(np.round(b.array))
        g.node(op, [a, b])
    elif op == "Mod":
        if g.opset < 10:
            return
        a = g.any(NUMBERS, exact=True, finite=True)
        b = g.like(a, low=1, high=7)
        if a.dtype.kind == "i" and g.chance(0.5):
            b = g.given(-b.array)
        g.node(op, [a, b], fmod=1 if a.dtype.kind == "f" else g.pick([None, 0, 1]), exact=True)
    elif op == "PRelu":
        a = g.any(FLOATS)
        g.node(op, [a, g.like(a, [d if g.chance(0.6) else 1 for d in a.shape])])
    elif op in ("Max", "Min", "Sum", "Mean"):
        a = g.any(FLOATS if g.opset < 12 or op in ("Sum", "Mean") else NUMBERS)
        more = [g.like(a, [d if g.chance(0.7) else 1 for d in a.shape]) for _ in range(g.int(0, 2))]
        g.node(op, [a] + more, exact=op in ("Max", "Min"))
    else:
        a = g.any(types)
        b = g.like(a, low=1, high=7) if op == "Div" and a.dtype.kind in "iu" else g.like(a)
        pair = [a, b] if g.chance(0.6) or op == "Div" else [b, a]
        g.node(op, pair, exact=True)


@family(2)
def logic(g):
    op = g.pick(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor"])
    if (op.startswith("Bitwise") and g.opset < 18) or (op.endswith("OrEqual") and g.opset < 12):
        return
    types = [np.bool_] if op in ("And", "Or", "Xor") else INTS if op.startswith("Bitwise") else NUMBERS
    if op == "Equal":
        types = [np.bool_, np.int32, np.int64] if g.opset < 11 else ALL if g.opset >= 19 else NUMBERS + [np.bool_]
    a = g.any(types, exact=True)
    b = g.pick([g.like(a), a]) if g.chance(0.3) else g.like(a)
    g.node(op, [a, b], exact=True)


@family(2)
def where(g):
    a = g.any(ALL)
    condition = g.any([np.bool_], shape=a.shape) if g.chance(0.5) else g.fresh(np.bool_, a.shape[g.int(0, a.rank) :])
    g.node("Where", [condition, *g.pick([[a, g.like(a)], [g.like(a), a]])], exact=True)


@family()
def clip(g):
    if g.opset < 11:
        low = float(g.int(-2, 1))
        return g.node("Clip", [g.any(FLOATS)], min=g.pick([None, low]), max=g.pick([None, low + 2]), exact=True)
    a = g.any(FLOATS if g.opset < 12 else NUMBERS)
    low = g.int(1, 2)
    bounds = [g.given(np.array(low + d, a.dtype)) if g.chance(0.7) else None for d in (0, g.int(-1, 3))]
    g.node("Clip", [a, *bounds], exact=True)


@family(2)
def cast(g):
    a = g.any(ALL, exact=True)
    target = g.pick(ALL)
    if target == np.str_ or kind_of(a.dtype).kind == "U":
        if g.opset < 9 or a.dtype.kind in "f":
            return
        if kind_of(a.dtype).kind == "U":
            a = g.given(g.rng.choice(np.array(["1", "-3", "20", "0"], dtype=object), a.shape).astype(object))
            target = g.pick([F32, F64, np.int32, np.int64, np.str_])
    elif a.dtype.kind == "f" and np.dtype(target).kind in "iu":
        a = g.fresh(kind_of(a.dtype), a.shape, low=0 if np.dtype(target).kind == "u" else -100, high=100)
    if g.opset >= 15 and g.chance(0.2):
        return g.node("CastLike", [a, g.fresh(target, (1,))], exact=True)
    g.node("Cast", [a], to=proto(target), exact=True)


# Types that no array of the pool has: a fragment casts its operands to them, and its result back.

BETWEEN = {
    TensorProto.BFLOAT16: (13, -3, 3),
    TensorProto.FLOAT8E4M3FN: (19, -3, 3),
    TensorProto.FLOAT8E4M3FNUZ: (19, -3, 3),
    TensorProto.FLOAT8E5M2: (19, -3, 3),
    TensorProto.FLOAT8E5M2FNUZ: (19, -3, 3),
    TensorProto.INT4: (21, -8, 7),
    TensorProto.UINT4: (21, 0, 15),
}


def between(g, element, operands, middle, exact, digits=None, **attributes):
    """Operands, cast to `element`, through the operator `middle`, whose result is cast back."""
    nodes, names = [], []
    for value in operands:
        names.append(g.name("c"))
        nodes.append(g.make("Cast", [value.name], [names[-1]], to=element))
    others = attributes.pop("others", [])
    nodes.append(g.make(middle, names + [v.name for v in others], **attributes))
    nodes.append(g.make("Cast", [nodes[-1].output[0]], to=TensorProto.FLOAT))
    g.fragment(nodes, [*operands, *others], exact=exact, digits=digits)


@family()
def narrow(g):
    """Elements of small types, moved or only cast."""
    element = g.pick([e for e, (since, _, _) in BETWEEN.items() if g.opset >= since] or [None])
    if element is None:
        return
    _, low, high = BETWEEN[element]
    whole = element in (TensorProto.INT4, TensorProto.UINT4)
    array = g.data(np.dtype(F32), g.dims(g.int(1, 4), zero=0.02), low, high, 0)
    a = g.given(np.round(array) if whole else array, 0.3)
    op = g.pick(["Identity", "Reshape", "Transpose", "Flatten", "Unsqueeze"])
    if op == "Reshape":
        return between(g, element, [a], op, True, others=[g.ints([-1] if a.array.size else [0] * a.rank)])
    if op == "Transpose":
        return between(g, element, [a], op, True, perm=[int(d) for d in g.rng.permutation(a.rank)])
    if op == "Unsqueeze":
        return between(g, element, [a], op, True, others=[g.ints([g.int(0, a.rank)])])
    between(g, element, [a], op, True)


@family(2)
def brain(g):
    """bfloat16 computes in float32 and rounds each result."""
    if g.opset < 14:
        return
    a = g.fresh(F32, low=-3, high=3)
    op = g.pick(["Add", "Sub", "Mul", "Relu", "Abs", "Neg", "MatMul", "Max", "Sqrt", "Exp", "Tanh", "Sigmoid"])
    digits = "bfloat16"
    if op in ("Add", "Sub", "Mul", "Max"):
        return between(g, TensorProto.BFLOAT16, [a, g.like(a, low=-3, high=3)], op, False, digits)
    if op == "MatMul":
        a = g.fresh(F32, g.dims(2, zero=0), low=-3, high=3)
        return between(g, TensorProto.BFLOAT16, [a, g.fresh(F32, (a.shape[1], g.int(1, 4)), low=-3, high=3)], op, False, digits)
    if op == "Sqrt":
        a = g.fresh(F32, low=0, high=3)
    between(g, TensorProto.BFLOAT16, [a], op, False, digits)


# ------------------------------------------------------------------------------------------------- reductions and softmax

@family(3)
def reduction(g):
    op = "Reduce" + g.pick(["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"])
    types = FLOATS + [np.int32, np.int64]
    if op in ("ReduceMax", "ReduceMin"):
        types = types + ([np.int8, np.uint8] if g.opset >= 12 else []) + ([np.bool_] if g.opset >= 20 else [])
    a = g.any(types)
    axes = None
    if a.rank and g.chance(0.8):
        axes = [int(x) - (a.rank if g.chance(0.3) else 0) for x in g.rng.permutation(a.rank)[: g.int(1, a.rank)]]
    keep = g.pick([None, 0, 1])
    exact = op in ("ReduceMax", "ReduceMin") or a.dtype.kind in "iu"
    if g.opset >= 18 or (op == "ReduceSum" and g.opset >= 13):
        given = g.ints(axes) if axes is not None else g.pick([None, g.ints([])])
        g.node(op, [a, given], keepdims=keep, noop_with_empty_axes=g.pick([None, 0, 1]), exact=exact)
    else:
        g.node(op, [a], axes=axes, keepdims=keep, exact=exact)


@family(2)
def softmax(g):
    op = g.pick(["Softmax", "LogSoftmax", "Hardmax"])
    a = g.any(FLOATS, rank=[1, 2, 3, 4], exact=op == "Hardmax", finite=op == "Hardmax")
    g.node(op, [a], axis=g.pick([None, g.axis(a.rank)]) if g.opset >= 11 else g.int(0, a.rank - 1))


@family(2)
def search(g):
    op = g.pick(["ArgMax", "ArgMin", "TopK", "NonZero", "CumSum", "Unique"])
    if op == "NonZero":
        return g.node(op, [g.any([F32, np.int32, np.int64, np.uint8, np.bool_], rank=[1, 2, 3], exact=True)], exact=True)
    if op == "CumSum":
        if g.opset < 11:
            return
        a = g.any([F32, F64, np.int32, np.int64], rank=[1, 2, 3])
        axis = g.given(np.array(g.axis(a.rank), g.pick([np.int32, np.int64])))
        return g.node(op, [a, axis], exclusive=g.pick([None, 1]), reverse=g.pick([None, 1]))
    a = g.any([F32, F64, np.int32, np.int64], rank=[1, 2, 3], exact=True, finite=True)
    if op == "Unique":
        if g.opset >= 11:
            g.node(op, [a], outputs=4, sorted=g.pick([0, 1]), axis=g.pick([None, g.axis(a.rank)]), exact=True)
    elif op == "TopK":
        axis = g.axis(a.rank) if g.opset >= 11 else g.int(0, a.rank - 1)
        k = g.ints([g.int(0, a.shape[axis])])
        how = {"largest": g.pick([None, 0]), "sorted": 1} if g.opset >= 11 else {}
        if g.opset >= 10:
            g.node(op, [a if g.opset >= 11 else g.fresh(F32, a.shape, special=0), k], outputs=2, axis=axis, exact=True, **how)
    else:
        last = {"select_last_index": g.pick([None, 1])} if g.opset >= 12 else {}
        axis = g.axis(a.rank) if g.opset >= 11 else g.int(0, a.rank - 1)
        g.node(op, [a], axis=g.pick([None, axis]), keepdims=g.pick([None, 0]), exact=True, **last)


# ----------------------------------------------------------------------------------------------------------- products

@family(3)
def product(g):
    op = g.pick(["MatMul", "MatMul", "Gemm", "Gemm", "Einsum", "MatMulInteger", "Det"])
    if op == "MatMul":
        a = g.any(FLOATS + [np.int32, np.int64], rank=[1, 2, 3, 4], finite=g.chance(0.7))
        k, batch = a.shape[-1], a.shape[:-2]
        batch = tuple(d if g.chance(0.7) else 1 for d in batch)[g.int(0, len(batch)) :]
        shape = g.pick([(k,), (*batch, k, g.int(1, 5)), (*batch, k, g.int(1, 5))])
        g.node(op, [a, g.fresh(kind_of(a.dtype), shape, special=0.02)])
    elif op == "Gemm":
        a = g.any(FLOATS, rank=2, finite=True)
        trans_a, trans_b = g.int(0, 1), g.int(0, 1)
        m, k = a.shape[::-1] if trans_a else a.shape
        n = g.int(1, 5)
        b = g.fresh(kind_of(a.dtype), (n, k) if trans_b else (k, n), special=0)
        c = g.fresh(kind_of(a.dtype), g.pick([(), (1,), (n,), (1, n), (m, 1), (m, n)]), special=0)
        optional = [c] if g.opset < 11 or g.chance(0.7) else []
        scale = {"alpha": 0.5} if g.chance(0.3) else {}
        if g.chance(0.3):
            scale["beta"] = g.pick([0.0, 0.25, 2.0])
        g.node(op, [a, b, *optional], transA=trans_a, transB=trans_b, **scale)
    elif op == "Einsum":
        if g.opset >= 12:
            einsum(g)
    elif op == "Det":
        if g.opset >= 11:
            n = g.int(1, 4)
            g.node(op, [g.fresh(g.pick([F32, F64]), (*g.dims(g.int(0, 2)), n, n), special=0)])
    elif g.opset >= 10:
        m, k, n = g.int(1, 4), g.int(1, 5), g.int(1, 4)
        types = g.pick([np.uint8, np.int8]), g.pick([np.uint8, np.int8])
        a = g.fresh(types[0], (*g.dims(g.int(0, 1)), m, k), low=-128, high=127)
        b = g.fresh(types[1], (k, n), low=-128, high=127)
        zeros = [g.fresh(types[0], (), low=-4, high=9), g.fresh(types[1], g.pick([(), (n,)]), low=-4, high=9)]
        g.node(op, [a, b, *zeros[: g.int(0, 2)]], exact=True)


def einsum(g):
    equation = g.pick(["ij,jk->ik", "ij,jk", "bij,bjk->bik", "i,i->", "ij->ji", "ii->i", "ij->", "ij,ij->ij", "bhqd,bhkd->bhqk", "i,j->ij",
                       "...ij,...jk->...ik", "ij,jk,kl->il", "abc->ca", "...i->...", "bii->b", "a b , b -> a"])
    sizes = {letter: g.int(1, 4) for letter in "abcdefghijklmnopqrstuvwxyz"}
    batch = g.dims(g.int(0, 2), zero=0)
    dtype = g.pick([F32, F32, F64, np.int32, np.int64])
    operands = []
    for term in equation.split("->")[0].replace(" ", "").split(","):
        shape = batch if term.startswith("...") else ()
        operands.append(g.fresh(dtype, (*shape, *(sizes[c] for c in term if c != ".")), special=0))
    g.node("Einsum", operands, equation=equation)


def window(g, rank, size_max=7, kernel_max=3):
    """Sizes of an image and attributes of a window that fits it."""
    kernel = [g.int(1, kernel_max) for _ in range(rank)]
    strides = [g.int(1, 3) for _ in range(rank)] if g.chance(0.6) else None
    dilations = [g.int(1, 2) for _ in range(rank)] if g.chance(0.4) else None
    attributes = {"strides": strides, "dilations": dilations}
    if g.chance(0.3):
        attributes["auto_pad"] = g.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
        if attributes["auto_pad"] != "VALID":
            attributes["dilations"] = None
    elif g.chance(0.6):
        attributes["pads"] = [g.int(0, k - 1) for k in kernel * 2]
    reach = [(k - 1) * (attributes["dilations"] or [1] * rank)[i] + 1 for i, k in enumerate(kernel)]
    return kernel, [g.int(r, max(r, size_max)) for r in reach], attributes


@family(4)
def convolution(g):
    rank = g.int(1, 3)
    kernel, sizes, attributes = window(g, rank, 7 if rank < 3 else 5)
    group = g.pick([1, 1, 1, 2, 3])
    inputs, outputs = group * g.int(1, 3), group * g.int(1, 3)
    if g.chance(0.25):
        group = outputs = inputs
    dtype = g.pick([F32, F32, F32, F64, F16])
    if g.chance(0.15):
        return quantised_convolution(g, rank, kernel, sizes, attributes)
    transposed = g.chance(0.3)
    found = [v for v in g.computed if v.rank == rank + 2 and v.dtype == dtype and v.shape[1] == inputs and np.isfinite(v.array).all()]
    x = g.pick(found) if found and not transposed else g.fresh(dtype, (g.pick([1, 2, 1, 0 if g.chance(0.1) else 3]), inputs, *sizes), special=0.02)
    weights = (inputs, outputs // group, *kernel) if transposed else (outputs, inputs // group, *kernel)
    w = g.fresh(dtype, weights, special=0, constant=0.7)
    bias = [g.fresh(dtype, (outputs,), special=0, constant=0.7)] if g.chance(0.5) else []
    attributes["kernel_shape"] = g.pick([None, kernel])
    if transposed:
        strides = attributes["strides"] or [1] * rank
        extra = [g.int(0, s - 1) for s in strides]
        if g.chance(0.3):
            attributes["output_padding"] = extra
        g.node("ConvTranspose", [x, w, *bias], group=group, **attributes)
        return
    values = g.node("Conv", [x, w, *bias], group=group, **attributes)
    after = g.int(0, 9)
    if after < 3:
        op = g.pick(["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu"])
        g.node(op, values)
    elif after < 5 and dtype == F32:
        scale = [g.fresh(F32, (outputs,), low=0.1, high=2, constant=0.9) for _ in range(4)]
        g.node("BatchNormalization", [values[0], *scale])
        if g.chance(0.5):
            g.node("Relu", [g.computed[-1]])


def quantised_convolution(g, rank, kernel, sizes, attributes):
    if g.opset < 10:
        return
    types = g.pick([(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)])
    c, m = g.int(1, 3), g.int(1, 3)
    x, w = g.fresh(types[0], (1, c, *sizes), low=-128, high=127), g.fresh(types[1], (m, c, *kernel), low=-20, high=20, constant=0.8)
    zero = lambda dtype: g.fresh(dtype, (), low=0, high=9, constant=1)
    scale = lambda shape=(): g.fresh(F32, shape, low=0.02, high=0.2, constant=1)
    if g.chance(0.5):
        zeros = [zero(types[0]), zero(types[1])][: g.int(0, 2)]
        return g.node("ConvInteger", [x, w, *zeros], exact=True, **attributes)
    shape = g.pick([(), (m,)])
    bias = [g.fresh(np.int32, (m,), low=-99, high=99, constant=1)] if g.chance(0.5) else []
    zero_w = g.given(np.zeros(shape, types[1]), 1)
    g.node("QLinearConv", [x, scale(), zero(types[0]), w, scale(shape), zero_w, scale(), zero(types[0]), *bias], **attributes)


@family(3)
def pool(g):
    op = g.pick(["MaxPool", "MaxPool", "AveragePool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
    rank = g.int(1, 3)
    kernel, sizes, attributes = window(g, rank)
    dtype = g.pick([F32, F32, F64, F16] + ([np.int8, np.uint8] if op == "MaxPool" and g.opset >= 12 else []))
    x = g.fresh(dtype, (g.int(1, 2), g.int(1, 3), *sizes), special=0)
    if op.startswith("Global"):
        return g.node(op, [x], **({"p": g.pick([None, 1, 2, 3])} if op == "GlobalLpPool" else {}))
    if (op == "MaxPool" and g.opset < 10) or (op == "AveragePool" and g.opset < 19) or (op == "LpPool" and g.opset < 18):
        attributes["dilations"] = None
    if (op != "LpPool" and g.opset >= 10) or (op == "LpPool" and g.opset >= 18):
        attributes["ceil_mode"] = g.pick([None, None, 1]) if "auto_pad" not in attributes else None
    if op == "AveragePool":
        attributes["count_include_pad"] = g.pick([None, 1])
    if op == "LpPool":
        attributes["p"] = g.pick([None, 1, 2, 3])
    outputs = 1
    if op == "MaxPool" and g.chance(0.3):
        outputs, attributes["storage_order"] = 2, g.pick([None, 1])
    g.node(op, [x], outputs=outputs, kernel_shape=kernel, exact=op == "MaxPool", **attributes)


@family(2)
def normalisation(g):
    op = g.pick(["BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "LRN", "LpNormalization",
                 "MeanVarianceNormalization", "RMSNormalization"])
    dtype = g.pick([F32, F32, F32, F64, F16])
    epsilon = g.pick([None, 1e-3])
    if op in ("LayerNormalization", "RMSNormalization"):
        if g.opset < (17 if op[0] == "L" else 23):
            return
        x = g.any([F32, F64, F16], rank=[1, 2, 3], finite=True, where=lambda v: v.array.size)
        axis = g.axis(x.rank)
        shape = x.shape[axis:]
        scale = g.fresh(kind_of(x.dtype), shape, special=0)
        bias = [g.fresh(kind_of(x.dtype), shape, special=0)] if op[0] == "L" and g.chance(0.6) else []
        outputs = 3 if op[0] == "L" and g.chance(0.2) else 1
        return g.node(op, [x, scale, *bias], axis=axis, epsilon=g.pick([None, 1e-3]), outputs=outputs)
    channels = g.int(1, 4) * (2 if op[0] == "G" else 1)
    x = g.fresh(dtype, (g.int(1, 3), channels, *g.dims(2 if op[:2] in ("Me", "LR") else g.int(1, 3), zero=0)), special=0)
    vector = lambda n=channels: g.fresh(dtype, (n,), low=0.1, high=2)
    if op == "BatchNormalization":
        g.node(op, [x, vector(), vector(), vector(), vector()], epsilon=epsilon)
    elif op == "InstanceNormalization":
        g.node(op, [x, vector(), vector()], epsilon=epsilon)
    elif op == "GroupNormalization":
        if g.opset >= 18:
            groups = g.pick([1, 2, channels])
            n = channels if g.opset >= 21 else groups
            g.node(op, [x, vector(n), vector(n)], num_groups=groups, epsilon=epsilon)
    elif op == "LRN":
        g.node(op, [x], size=g.pick([1, 3, 5]), alpha=g.pick([None, 0.1]), beta=g.pick([None, 0.5]), bias=g.pick([None, 2.0]))
    elif op == "LpNormalization":
        g.node(op, [x], axis=g.axis(x.rank), p=g.pick([1, 2]))
    else:
        g.node(op, [x], axes=g.pick([None, [0, 2, 3], [2, 3], [1]]))


# ------------------------------------------------------------------------------------------------------------- shapes

@family(4)
def layout(g):
    op = g.pick(["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile", "Concat", "Split", "Shape", "Size",
                 "SpaceToDepth", "DepthToSpace", "ReverseSequence", "Compress"])
    a = g.any(ALL)
    rank = a.rank
    if op == "Reshape":
        shape = list(a.shape)
        if a.array.size and g.chance(0.6):
            shape = [int(x) for x in g.pick([[-1], [1, -1], [-1, a.shape[-1] if rank else 1], [a.array.size], list(a.shape[::-1])])]
        elif g.chance(0.5):
            shape = [0] * rank
        allow = {"allowzero": g.int(0, 1)} if g.opset >= 14 and g.chance(0.3) else {}
        g.node(op, [a, g.ints(shape)], exact=True, **allow)
    elif op == "Transpose":
        g.node(op, [a], perm=g.pick([None, [int(x) for x in g.rng.permutation(rank)]]) if rank else None, exact=True)
    elif op in ("Squeeze", "Unsqueeze"):
        ones = [i for i, d in enumerate(a.shape) if d == 1]
        axes = ones[: g.int(0, len(ones))] if op == "Squeeze" else sorted({g.int(0, rank) for _ in range(g.int(1, 2))})
        if g.opset >= 11 and axes and g.chance(0.3):
            axes[-1] -= rank + (len(axes) if op == "Unsqueeze" else 0)
        if g.opset >= 13:
            g.node(op, [a, g.ints(axes) if axes else None], exact=True) if axes or op == "Squeeze" else None
        else:
            g.node(op, [a], axes=axes or None, exact=True)
    elif op == "Flatten":
        g.node(op, [a], axis=g.pick([None, g.int(-rank if g.opset >= 11 else 0, rank)]) if rank else None, exact=True)
    elif op == "Expand":
        shape = [d if d != 1 else g.int(0 if g.chance(0.05) else 1, 3) for d in a.shape]
        shape = [g.int(1, 2)] * g.int(0, 1) + [1 if g.chance(0.3) else d for d in shape]
        g.node(op, [a, g.ints(shape)], exact=True)
    elif op == "Tile":
        g.node(op, [a, g.ints([g.pick([0, 1, 1, 2, 3] if g.chance(0.1) else [1, 2, 3]) for _ in range(rank)])], exact=True)
    elif op in ("Concat", "Split", "Compress") and rank:
        axis = g.axis(rank) if g.opset >= 11 else g.int(0, rank - 1)
        if op == "Concat":
            def other():
                shape = list(a.shape)
                shape[axis] = g.int(0 if g.chance(0.1) else 1, 3)
                return g.fresh(kind_of(a.dtype), shape)
            g.node(op, [other() if g.chance(0.5) else a, a, *[other() for _ in range(g.int(0, 2))]], axis=axis, exact=True)
        elif op == "Compress":
            axis = g.pick([None, axis])
            n = a.array.size if axis is None else a.shape[axis]
            g.node(op, [a, g.fresh(np.bool_, (max(n - g.int(0, 1), 0),))], axis=axis, exact=True)
        else:
            split(g, a, axis)
    elif op in ("Shape", "Size"):
        ends = {"start": g.pick([None, g.int(-4, 4)]), "end": g.pick([None, g.int(-4, 4)])} if op == "Shape" and g.opset >= 15 else {}
        g.node(op, [a], exact=True, **ends)
    elif op in ("SpaceToDepth", "DepthToSpace"):
        b = g.int(1, 3)
        n, c, h, w = g.int(1, 2), g.int(1, 2), g.int(1, 3), g.int(1, 3)
        dtype = g.pick([F32, F32, F64, F16, np.int32])
        shape = (n, c, h * b, w * b) if op[0] == "S" else (n, c * b * b, h, w)
        mode = {"mode": g.pick(["DCR", "CRD"])} if op[0] == "D" and g.opset >= 11 else {}
        g.node(op, [g.fresh(dtype, shape)], blocksize=b, exact=True, **mode)
    elif op == "ReverseSequence" and g.opset >= 10:
        batch = g.int(0, 1)
        x = g.any([F32, F64, np.int32, np.int64, np.bool_], rank=[2, 3], where=lambda v: v.array.size)
        lengths = [g.int(1, x.shape[1 - batch]) for _ in range(x.shape[batch])]
        g.node(op, [x, g.ints(lengths)], batch_axis=batch, time_axis=1 - batch, exact=True)


def split(g, a, axis):
    n = a.shape[axis]
    parts = g.int(1, max(1, min(3, n)))
    sizes = [n // parts] * parts
    sizes[0] += n - sum(sizes)
    if g.opset >= 18 and g.chance(0.4):
        g.node("Split", [a], outputs=parts, axis=axis, num_outputs=parts, exact=True)
    elif g.opset >= 13:
        given = g.ints(sizes) if g.chance(0.8) or n % parts or g.opset >= 18 else None
        g.node("Split", [a, given], outputs=parts, axis=axis, exact=True)
    else:
        g.node("Split", [a], outputs=parts, axis=axis, split=sizes if g.chance(0.8) or n % parts else None, exact=True)


@family(3)
def slicing(g):
    op = g.pick(["Slice", "Slice", "Slice", "Pad", "Pad", "Trilu", "Range", "ConstantOfShape", "EyeLike", "OneHot"])
    if op == "Slice":
        a = g.any(ALL, rank=[1, 2, 3, 4])
        axes = [int(x) for x in g.rng.permutation(a.rank)[: g.int(1, a.rank)]]
        starts, ends = [g.int(-6, 6) for _ in axes], [g.pick([g.int(-6, 6), 2**31 - 1, 2**63 - 1, -(2**63)]) for _ in axes]
        if g.opset < 10:
            return g.node(op, [a], starts=starts, ends=[max(-(2**31), min(e, 2**31 - 1)) for e in ends], axes=axes, exact=True)
        steps = [g.pick([1, 1, 2, 3, -1, -1, -2]) for _ in axes]
        axes = [x - a.rank if g.chance(0.2) else x for x in axes]
        optional = [g.ints(axes), g.ints(steps)]
        if len(axes) == a.rank and sorted(axes) == axes and axes[0] == 0 and g.chance(0.3):
            optional[0] = None
        return g.node(op, [a, g.ints(starts), g.ints(ends), *optional[: 1 if g.chance(0.3) and optional[0] else 2]], exact=True)
    if op == "Pad":
        mode = g.pick(["constant", "constant", "reflect", "edge"] + (["wrap"] if g.opset >= 19 else []))
        a = g.any(FLOATS if g.opset < 11 else NUMBERS if g.opset < 13 else NUMBERS + [np.bool_], rank=[1, 2, 3, 4],
                  where=lambda v: v.array.size or mode == "constant")
        most = [2 if mode in ("constant", "edge") else d - 1 if mode == "reflect" else d for d in a.shape]
        pads = [g.int(0, min(2, m)) for m in most * 2]
        if mode == "constant" and g.chance(0.3):
            pads = [p if g.chance(0.7) or not p else -min(1, a.shape[i % a.rank] // 2) for i, p in enumerate(pads)]
        if g.opset < 11:
            return g.node(op, [a], mode=mode, pads=pads, value=g.pick([None, 1.5]), exact=True)
        value = g.fresh(kind_of(a.dtype), (), special=0) if mode == "constant" and g.chance(0.5) else None
        axes = None
        if g.opset >= 18 and g.chance(0.4):
            chosen = sorted(int(x) for x in g.rng.permutation(a.rank)[: g.int(1, a.rank)])
            pads = [pads[x] for x in chosen] + [pads[x + a.rank] for x in chosen]
            axes = g.ints([x - a.rank if g.chance(0.3) else x for x in chosen])
        return g.node(op, [a, g.ints(pads), value, axes], mode=mode, exact=True)
    if op == "Trilu" and g.opset >= 14:
        a = g.any(NUMBERS + [np.bool_], rank=[2, 3, 4])
        return g.node(op, [a, *([g.given(np.array(g.int(-3, 3)))] if g.chance(0.6) else [])], upper=g.pick([None, 0, 1]), exact=True)
    if op == "Range" and g.opset >= 11:
        dtype = g.pick([F32, F64, np.int16, np.int32, np.int64])
        numbers = [g.int(-5, 5), g.int(-5, 9), g.pick([1, 2, 3, -1, -2])]
        return g.node(op, [g.given(np.array(x, dtype)) for x in numbers], exact=True)
    if op == "ConstantOfShape":
        dtype = g.pick(NUMBERS + [np.bool_])
        value = numpy_helper.from_array(np.array([g.int(0, 5)]).astype(dtype))
        return g.node(op, [g.ints(g.dims())], value=g.pick([None, value]), exact=True)
    if op == "EyeLike":
        a = g.any([F32, F64, np.int32, np.int64], rank=2)
        return g.node(op, [a], k=g.pick([None, g.int(-3, 3)]), dtype=g.pick([None, proto(g.pick([F32, F64, np.int32, np.int64]))]), exact=True)
    if op == "OneHot":
        depth = g.int(1, 5)
        indices = g.fresh(g.pick([np.int64, np.int32, F32]), g.dims(g.int(1, 3)), low=0 if g.opset < 11 else -depth, high=depth - 1)
        indices = g.given(np.round(indices.array).astype(indices.dtype), 0.5)
        values = g.fresh(g.pick([F32, np.int64, np.int32]), (2,), special=0)
        axis = g.pick([None, 0, -1, indices.rank])
        kind = g.pick([np.int64, F32]) if indices.dtype != np.int32 else np.int32
        return g.node(op, [indices, g.given(np.array(depth, kind)), values], axis=axis, exact=True)


@family(3)
def indexing(g):
    op = g.pick(["Gather", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Scatter"])
    a = g.any(ALL, rank=[1, 2, 3, 4], where=lambda v: v.array.size)
    negative = g.opset >= 11 or op in ("GatherND", "ScatterND")
    axis = g.axis(a.rank) if g.opset >= 11 else g.int(0, a.rank - 1)
    n = a.shape[axis]
    kind = g.pick([np.int64, np.int32])
    if op == "Gather":
        return g.node(op, [a, g.fresh(kind, g.dims(g.int(0, 2)), low=-n if negative else 0, high=n - 1)], axis=axis, exact=True)
    if op in ("GatherElements", "ScatterElements", "Scatter"):
        if (g.opset < 11) != (op == "Scatter") or (op == "Scatter" and g.opset < 9):
            return
        shape = [g.int(1, d) for d in a.shape]
        if op == "GatherElements":
            shape[axis] = g.int(1, 5)
            return g.node(op, [a, g.fresh(kind, shape, low=-n, high=n - 1)], axis=axis, exact=True)
        indices = np.argsort(g.rng.random((*shape[: axis % a.rank], n, *shape[axis % a.rank + 1 :])), axis=axis)
        indices = np.take(indices, range(shape[axis]), axis).astype(kind)
        updates = g.fresh(kind_of(a.dtype), shape)
        reduction = scatter_reduction(g, a, 16) if op != "Scatter" else None
        return g.node(op, [a, g.given(indices, 0.5), updates], axis=axis, reduction=reduction, exact=True)
    if g.opset < (11 if op == "ScatterND" else 12 if op == "GatherND" else 99):
        return
    depth = g.int(1, a.rank)
    batch = 0 if op == "ScatterND" or depth == a.rank else g.pick([0, 0, 1])
    depth = min(depth, a.rank - batch)
    lead = a.shape[:batch] + g.dims(g.int(0 if batch == 0 and op == "GatherND" else 1, 2), zero=0.02)
    limits = np.array(a.shape[batch : batch + depth])
    if op == "ScatterND":
        total = int(np.prod(limits))
        count = g.int(1, total)
        flat = g.rng.permutation(total)[:count]
        indices = np.stack(np.unravel_index(flat, limits), -1).astype(np.int64)
        updates = g.fresh(kind_of(a.dtype), (count, *a.shape[depth:]))
        return g.node(op, [a, g.given(indices, 0.5), updates], reduction=scatter_reduction(g, a, 16), exact=True)
    indices = (g.rng.random((*lead, depth)) * limits).astype(np.int64)
    if g.chance(0.3):
        indices = indices - limits * (g.rng.random(indices.shape) < 0.3)
    g.node(op, [a, g.given(indices, 0.5)], exact=True, **({"batch_dims": batch} if batch else {}))


def scatter_reduction(g, a, since):
    if g.opset < since or a.dtype.kind not in "fiu":
        return None
    return g.pick([None, "add", "mul"] + (["max", "min"] if g.opset >= 18 else []))


@family(2)
def image(g):
    if g.chance(0.3) and g.opset >= 16:
        rank = 2 if g.opset < 20 else g.pick([2, 2, 3])
        x = g.fresh(g.pick([F32, F32, F64]), (g.int(1, 2), g.int(1, 2), *g.dims(rank, zero=0)), special=0)
        grid = g.fresh(x.dtype if x.dtype == F32 else F64, (x.shape[0], *g.dims(rank, zero=0), rank), low=-1.3, high=1.3)
        modes = ["bilinear", "nearest", "bicubic"] if g.opset < 20 else ["linear", "nearest"] + (["cubic"] if rank == 2 else [])
        return g.node("GridSample", [x, grid], mode=g.pick([None, *modes]), padding_mode=g.pick([None, "zeros", "border", "reflection"]),
                      align_corners=g.pick([None, 0, 1]))
    rank = g.pick([1, 2, 2, 2, 3])
    x = g.fresh(g.pick([F32, F32, F32, F16, np.uint8, np.int32]), (1, g.int(1, 2), *g.dims(rank, zero=0)), special=0)
    factors = [g.pick([0.5, 1.0, 2.0, 3.0, 1.5, 0.625]) for _ in range(rank)]
    scales = g.given(np.array([1, 1, *factors], F32), 0.9)
    if g.opset < 10:
        if x.dtype == F32:
            scales = g.given(np.array([1, 1, *[g.pick([1, 2, 3]) for _ in range(rank)]], F32), 0.9)
            g.node("Upsample", [x, scales], mode=g.pick(["nearest", "linear"]) if rank == 2 else "nearest")
        return
    mode = g.pick(["nearest", "linear"])
    if g.opset == 10:
        return g.node("Resize", [x, scales], mode=mode if rank == 2 else "nearest")
    mode = g.pick(["nearest", "linear", "cubic"]) if rank == 2 else mode
    transform = g.pick(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
    attributes = {"mode": mode, "coordinate_transformation_mode": transform}
    if mode == "nearest":
        attributes["nearest_mode"] = g.pick([None, "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
    if mode == "cubic":
        attributes["cubic_coeff_a"], attributes["exclude_outside"] = g.pick([None, -0.5]), g.pick([None, 1])
    if g.opset >= 18 and mode != "nearest" and g.chance(0.3):
        attributes["antialias"] = 1
    roi = g.given(np.array([], F32), 1) if g.opset < 13 or g.chance(0.3) else None
    if g.chance(0.5):
        return g.node("Resize", [x, roi, scales], **attributes)
    sizes = [*x.shape[:2], *[g.int(1, 8) for _ in range(rank)]]
    if g.opset < 13:
        g.node("Resize", [x, roi, g.given(np.array([], F32), 1), g.ints(sizes)], **attributes)
    else:
        g.node("Resize", [x, roi, None, g.ints(sizes)], **attributes)


# ------------------------------------------------------------------------------------------------------------ quantised

@family(3)
def quantised(g):
    if g.opset < 10:
        return
    op = g.pick(["QuantizeLinear", "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul"])
    dtype = g.pick([np.int8, np.uint8] + ([np.int16, np.uint16] if g.opset >= 21 else []))
    if op == "DynamicQuantizeLinear":
        if g.opset >= 11:
            g.node(op, [g.fresh(F32, g.dims(zero=0), special=0)], outputs=3)
        return
    if op == "QLinearMatMul":
        m, k, n = g.int(1, 4), g.int(1, 5), g.int(1, 4)
        a, b = g.fresh(np.uint8, (m, k), low=0, high=255), g.fresh(g.pick([np.uint8, np.int8]), (k, n), low=-128, high=127)
        scale = lambda: g.fresh(F32, (), low=0.01, high=0.2, constant=0.9)
        zero = lambda kind: g.fresh(kind, (), low=0, high=20, constant=0.9)
        return g.node(op, [a, scale(), zero(np.uint8), b, scale(), zero(b.dtype), scale(), zero(np.uint8)])
    forward = op[0] == "Q"
    x = g.any([F32], exact=True, finite=True) if forward else g.any([dtype])
    axis, block, shape = None, None, ()
    if g.opset >= 13 and x.rank >= 1 and g.chance(0.4):
        axis = g.axis(x.rank)
        shape = (x.shape[axis],)
        if g.opset >= 21 and g.chance(0.4) and x.array.size:
            block = g.int(1, x.shape[axis])
            shape = list(x.shape)
            shape[axis] = -(-x.shape[axis] // block)
    scale = g.fresh(F32, shape, low=0.02, high=0.5)
    if g.chance(0.5):
        scale = g.given(np.full(shape, 0.25, F32))
    zero = g.fresh(dtype, shape, low=0, high=20) if g.chance(0.7) or (not forward and g.chance(0.5)) else None
    if forward and zero is None:
        dtype = np.uint8
    attributes = {} if axis is None else {"axis": axis}
    if block:
        attributes["block_size"] = block
    g.node(op, [x, scale, zero], exact=True, **attributes)


# ----------------------------------------------------------------------------------------------------- recurrent, attention

@family(2)
def recurrent(g):
    op = g.pick(["RNN", "GRU", "LSTM"])
    direction = g.pick(["forward", "reverse", "bidirectional"])
    d, gates = (2 if direction[0] == "b" else 1), {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    steps, batch, width, hidden = g.int(1, 4), g.int(1, 3), g.int(1, 4), g.int(1, 4)
    tensor = lambda *shape, constant=0.7: g.fresh(F32, shape, low=-1, high=1, constant=constant)
    x, w, r = tensor(steps, batch, width, constant=0.2), tensor(d, gates * hidden, width), tensor(d, gates * hidden, hidden)
    bias = tensor(d, 2 * gates * hidden) if g.chance(0.6) else None
    lengths = g.ints([g.int(1, steps) for _ in range(batch)], 0.3, np.int32) if g.chance(0.3) else None
    state = lambda: tensor(d, batch, hidden, constant=0.3) if g.chance(0.5) else None
    inputs = [x, w, r, bias, lengths, state()]
    attributes = {"hidden_size": hidden, "direction": direction}
    if op == "LSTM":
        inputs += [state(), tensor(d, 3 * hidden) if g.chance(0.3) else None]
        attributes["input_forget"] = g.pick([None, None, 1])
    if op == "GRU":
        attributes["linear_before_reset"] = g.pick([None, 0, 1])
    if g.chance(0.3):
        attributes["activations"] = [g.pick(["Tanh", "Sigmoid", "Relu"]) for _ in range(d * {"RNN": 1, "GRU": 2, "LSTM": 3}[op])]
    if g.chance(0.2):
        attributes["clip"] = 0.5
    g.node(op, inputs, outputs=3 if op == "LSTM" else 2, **attributes)


@family()
def attention(g):
    if g.opset < 23:
        return
    dtype = g.pick([F32, F32, F16])
    op = g.pick(["Attention", "Attention", "RotaryEmbedding"])
    batch, heads, queries, keys, size = g.int(1, 2), g.int(1, 3), g.int(1, 4), g.int(1, 5), g.int(1, 4)
    if op == "RotaryEmbedding":
        half = g.int(1, 3)
        x = g.fresh(dtype, (batch, heads, queries, 2 * half), special=0)
        tables = [g.fresh(dtype, (8, half), low=-1, high=1) for _ in range(2)]
        positions = g.fresh(np.int64, (batch, queries), low=0, high=7)
        return g.node(op, [x, *tables, positions], interleaved=g.pick([None, 1]))
    kv_heads = g.pick([1, heads])
    value_size = g.pick([size, g.int(1, 4)])
    mask = None
    if g.chance(0.5):
        total = (queries, keys)
        shape = g.pick([total, (batch, 1, *total), (batch, heads, *total)])
        mask = g.fresh(g.pick([dtype, np.bool_]), shape, low=-2, high=2)
        if mask.dtype.kind == "b":
            mask.array[..., 0] = True
    attributes = {"is_causal": g.pick([None, 1]), "scale": g.pick([None, 0.3]), "softcap": g.pick([None, None, 2.0])}
    if g.chance(0.3):
        shapes = [(batch, queries, heads * size), (batch, keys, kv_heads * size), (batch, keys, kv_heads * value_size)]
        attributes |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    else:
        shapes = [(batch, heads, queries, size), (batch, kv_heads, keys, size), (batch, kv_heads, keys, value_size)]
    g.node(op, [*[g.fresh(dtype, shape, special=0, constant=0.2) for shape in shapes], mask], **attributes)


# -------------------------------------------------------------------------------------------------------- ai.onnx.ml

@family(2)
def classical(g):
    op = g.pick(["TreeEnsembleRegressor", "TreeEnsembleClassifier", "LinearRegressor", "LinearClassifier", "Scaler", "Normalizer", "Binarizer",
                 "LabelEncoder", "OneHotEncoder", "Imputer", "ArrayFeatureExtractor", "FeatureVectorizer"])
    rows, width = g.int(1, 4), g.int(1, 4)
    x = g.fresh(g.pick([F32, F32, F32, F64, np.int64]), (rows, width), special=0, constant=0)
    numbers = lambda n, low=-2, high=2: [float(v) for v in g.rng.uniform(low, high, n).astype(F32)]
    if op.startswith("Tree"):
        return trees(g, op, x, width)
    if op == "LinearRegressor":
        n = g.int(1, 3)
        g.node(op, [g.fresh(F32, (rows, width), special=0)], domain=ML, coefficients=numbers(n * width), intercepts=g.pick([None, numbers(n)]),
               targets=n, post_transform=g.pick([None, "NONE", "SOFTMAX", "LOGISTIC"]))
    elif op == "LinearClassifier":
        n = g.int(1, 4)
        x = g.fresh(F32, (rows, width), special=0, constant=0)
        labels = {"classlabels_ints": list(range(max(n, 2)))} if g.chance(0.5) else {"classlabels_strings": [f"k{i}" for i in range(max(n, 2))]}
        n = max(n, 2)
        g.node(op, [x], outputs=2, domain=ML, coefficients=numbers(n * width), intercepts=numbers(n),
               post_transform=g.pick(["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"]), **labels)
    elif op == "Scaler":
        n = g.pick([1, width])
        g.node(op, [x], domain=ML, offset=numbers(n), scale=numbers(n))
    elif op == "Normalizer":
        g.node(op, [x], domain=ML, norm=g.pick(["MAX", "L1", "L2"]))
    elif op == "Binarizer":
        g.node(op, [g.any([F32], exact=True)], domain=ML, threshold=0.5, exact=True)
    elif op == "LabelEncoder":
        if g.chance(0.5):
            g.node(op, [g.fresh(np.str_, (rows,))], domain=ML, keys_strings=["a", "b", ""], values_int64s=[4, 5, 6], default_int64=g.pick([None, -7]))
        else:
            g.node(op, [g.any([np.int64])], domain=ML, keys_int64s=[1, 2, 3], values_floats=numbers(3), default_float=g.pick([None, 9.5]))
    elif op == "OneHotEncoder":
        g.node(op, [g.fresh(np.int64, (rows,), low=0, high=4)], domain=ML, cats_int64s=[0, 2, 3], zeros=1, exact=True)
    elif op == "Imputer":
        x = g.fresh(F32, (rows, width), special=1)
        g.node(op, [x], domain=ML, imputed_value_floats=numbers(g.pick([1, width])), replaced_value_float=float("nan"), exact=True)
    elif op == "ArrayFeatureExtractor":
        g.node(op, [x, g.fresh(np.int64, (1, g.int(1, 3)), low=0, high=width - 1)], domain=ML, exact=True)
    else:
        other = g.fresh(x.dtype, (rows, 2), special=0)
        g.node(op, [x, other], domain=ML, inputdimensions=[width, 2])


def trees(g, op, x, width):
    count, outputs = g.int(1, 3), g.int(1, 3)
    nodes = {key: [] for key in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids", "missing_value_tracks_true")}
    leaves = []
    for tree in range(count):
        pending, used = [(0, 0)], 1
        while pending:
            node, depth = pending.pop()
            leaf = depth == 3 or (depth and g.chance(0.4))
            children = (0, 0) if leaf else (used, used + 1)
            mode = "LEAF" if leaf else g.pick(["BRANCH_LEQ", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE", "BRANCH_EQ", "BRANCH_NEQ"])
            row = (tree, node, g.int(0, width - 1), round(float(g.rng.uniform(-2, 2)), 1), mode, *children, g.int(0, 1))
            for key, item in zip(nodes, row):
                nodes[key].append(item)
            if leaf:
                leaves.append((tree, node, g.int(0, outputs - 1), round(float(g.rng.uniform(-2, 2)), 2)))
            else:
                pending += [(used, depth + 1), (used + 1, depth + 1)]
                used += 2
    attributes = {f"nodes_{key}": value for key, value in nodes.items()}
    if not g.chance(0.3):
        del attributes["nodes_missing_value_tracks_true"]
    kind = "class" if op.endswith("Classifier") else "target"
    for key, column in zip(("treeids", "nodeids", "ids", "weights"), zip(*leaves)):
        attributes[f"{kind}_{key}"] = list(column)
    if kind == "target":
        if g.chance(0.5):
            attributes["base_values"] = [float(v) for v in g.rng.uniform(-1, 1, outputs).astype(F32)]
        return g.node(op, [x], domain=ML, n_targets=outputs, aggregate_function=g.pick(["SUM", "AVERAGE", "MIN", "MAX"]),
                      post_transform=g.pick([None, "NONE", "SOFTMAX", "LOGISTIC"]), **attributes)
    labels = list(range(first := g.pick([0, 10]), first + max(outputs, 2)))
    label = {"classlabels_int64s": labels} if g.chance(0.5) else {"classlabels_strings": [f"k{i}" for i in labels]}
    g.node(op, [x], outputs=2, domain=ML, post_transform=g.pick([None, "NONE", "SOFTMAX", "LOGISTIC"]), **label, **attributes)


# -------------------------------------------------------------------------------------------------------- com.microsoft

@family()
def contributed(g):
    op = g.pick(["Gelu", "FastGelu", "QuickGelu", "BiasGelu", "FusedMatMul", "SkipLayerNormalization", "QLinearAdd", "QLinearMul"])
    n = g.int(1, 5)
    x = g.fresh(F32, (g.int(1, 2), g.int(1, 4), n), special=0)
    if op in ("Gelu", "FastGelu", "QuickGelu"):
        g.node(op, [x], domain=MS)
    elif op == "BiasGelu":
        g.node(op, [x, g.fresh(F32, (n,), special=0)], domain=MS)
    elif op == "FusedMatMul":
        m = g.int(1, 4)
        ta, tb = g.int(0, 1), g.int(0, 1)
        k = x.shape[1] if ta else n
        b = g.fresh(F32, (x.shape[0], *((m, k) if tb else (k, m))), special=0)
        g.node(op, [x, b], domain=MS, transA=ta, transB=tb, alpha=g.pick([None, 0.5]))
    elif op == "SkipLayerNormalization":
        vector = lambda: g.fresh(F32, (n,), special=0)
        g.node(op, [x, g.fresh(F32, x.shape, special=0), vector(), *[vector() for _ in range(g.int(0, 2))]], domain=MS, epsilon=1e-3)
    else:
        dtype = g.pick([np.uint8, np.int8])
        a = g.fresh(dtype, x.shape, low=-128, high=255 if dtype == np.uint8 else 127)
        b = g.fresh(dtype, x.shape[g.int(0, 2) :], low=-128, high=127)
        scale = lambda: g.fresh(F32, (), low=0.02, high=0.3, constant=0.9)
        zero = lambda: g.fresh(dtype, (), low=0, high=20, constant=0.9)
        g.node(op, [a, scale(), zero(), b, scale(), zero(), scale(), zero()], domain=MS)


# ------------------------------------------------------------------------------------------------ control flow, sequences

@family(2)
def control(g):
    op = g.pick(["If", "Loop", "Scan"])
    dtype = g.pick([F32, F32, np.int64])
    info = lambda name, kind=dtype, shape=None: helper.make_tensor_value_info(name, proto(kind), shape)
    if op == "If":
        a = g.any([dtype])
        b = g.like(a, a.shape)
        branches = {}
        for branch in ("then_branch", "else_branch"):
            out = g.name("b")
            node = helper.make_node(g.pick(["Add", "Mul", "Sub"]), [a.name, b.name], [out])
            branches[branch] = helper.make_graph([node], g.name(branch), [], [info(out)])
        condition = g.fresh(np.bool_, g.pick([(), (1,)]), constant=0.3)
        node = g.make(op, [condition.name], **branches)
        return g.fragment([node], [condition, a, b], exact=True)
    shape = g.dims(g.int(1, 2), zero=0)
    if op == "Loop":
        state, outer = g.fresh(dtype, shape, special=0), g.fresh(dtype, shape, special=0)
        trips = g.given(np.array(g.int(0, 4)), 0.5)
        i, c, s, c2, s2, o, one = (g.name("l") for _ in range(7))
        body = [helper.make_node("Identity", [c], [c2]), helper.make_node(g.pick(["Add", "Sub"]), [s, outer.name], [s2]),
                helper.make_node(g.pick(["Neg", "Abs"]), [s2], [o])]
        if g.chance(0.3):
            body[0] = helper.make_node("Less", [i, one], [c2])
            body.insert(0, helper.make_node("Constant", [], [one], value=numpy_helper.from_array(np.array(g.int(0, 3)))))
        graph = helper.make_graph(body, g.name("body"), [info(i, np.int64, []), info(c, np.bool_, []), info(s, dtype, shape)],
                                  [info(c2, np.bool_, []), info(s2, dtype, shape), info(o, dtype, shape)])
        condition = g.given(np.array(g.chance(0.9)), 0.5) if g.chance(0.7) else None
        node = g.make(op, [trips.name, condition and condition.name, state.name], outputs=2, body=graph)
        return g.fragment([node], [trips, condition, state, outer], exact=True)
    length = g.int(1, 4)
    axis = g.int(0, 1)
    state = g.fresh(dtype, (shape[0],), special=0)
    items = g.fresh(dtype, (shape[0], length) if axis else (length, shape[0]), special=0)
    s, x, s2, o = (g.name("s") for _ in range(4))
    body = [helper.make_node(g.pick(["Add", "Mul"]), [s, x], [s2]), helper.make_node("Sub", [s2, x], [o])]
    row = [shape[0]]
    graph = helper.make_graph(body, g.name("body"), [info(s, dtype, row), info(x, dtype, row)], [info(s2, dtype, row), info(o, dtype, row)])
    attributes = {"scan_input_axes": [axis], "scan_input_directions": [g.int(0, 1)], "scan_output_directions": [g.int(0, 1)]}
    g.node(op, [state, items], outputs=2, num_scan_inputs=1, body=graph, exact=True, **attributes)


@family()
def sequences(g):
    if g.opset < 11:
        return
    a = g.any([F32, np.int64, np.str_], rank=[1, 2, 3], where=lambda v: v.array.size)
    sequence = g.name("q")
    parts = [a, *[g.like(a, a.shape) for _ in range(g.int(0, 2))]]
    nodes = [g.make("SequenceConstruct", [v.name for v in parts], [sequence])]
    inputs = list(parts)
    if g.chance(0.3):
        item, at, longer = g.like(a, a.shape), g.ints(g.int(-len(parts), len(parts)), 0.8), g.name("q")
        nodes.append(g.make("SequenceInsert", [sequence, item.name, at.name], [longer]))
        inputs += [item, at]
        sequence = longer
        parts.append(item)
    if len(parts) > 1 and g.chance(0.3):
        at, shorter = g.ints(g.int(-len(parts), len(parts) - 1)), g.name("q")
        nodes.append(g.make("SequenceErase", [sequence, at.name], [shorter]))
        inputs.append(at)
        sequence = shorter
        parts.pop()
    op = g.pick(["SequenceAt", "SequenceLength", "ConcatFromSequence"])
    if op == "SequenceAt":
        at = g.ints(g.int(-len(parts), len(parts) - 1))
        nodes.append(g.make(op, [sequence, at.name]))
        inputs.append(at)
    elif op == "SequenceLength":
        nodes.append(g.make(op, [sequence]))
    else:
        new = g.int(0, 1)
        nodes.append(g.make(op, [sequence], axis=g.int(0, a.rank - 1), new_axis=new))
    g.fragment(nodes, inputs, exact=True)


@family()
def mapped(g):
    """A body for each element of a sequence, which captures a value from around it."""
    if g.opset < 17:
        return
    dtype = g.pick([F32, np.int64])
    a = g.any([dtype], rank=[1, 2, 3], where=lambda v: v.array.size)
    outer = g.fresh(kind_of(a.dtype), (1,), special=0)
    axis, pieces, done = g.int(0, a.rank - 1), g.name("q"), g.name("q")
    x, y = g.name("m"), g.name("m")
    keep = g.int(0, 1)
    info = lambda name: helper.make_tensor_value_info(name, proto(dtype), None)
    body = helper.make_graph([helper.make_node(g.pick(["Add", "Sub", "Mul"]), [x, outer.name], [y])], g.name("body"), [info(x)], [info(y)])
    nodes = [
        g.make("SplitToSequence", [a.name], [pieces], axis=axis, keepdims=keep),
        g.make("SequenceMap", [pieces], [done], body=body),
    ]
    if g.chance(0.5):
        at = g.ints(g.int(-a.shape[axis], a.shape[axis] - 1))
        nodes.append(g.make("SequenceAt", [done, at.name]))
        return g.fragment(nodes, [a, outer, at], exact=True)
    nodes.append(g.make("ConcatFromSequence", [done], axis=axis if keep else 0, new_axis=1 - keep))
    g.fragment(nodes, [a, outer], exact=True)


@family()
def optionals(g):
    if g.opset < 15:
        return
    a = g.any([F32, np.int64, np.bool_, F64])
    wrapped = g.name("o")
    nodes = [g.make("Optional", [a.name], [wrapped])]
    if g.chance(0.4):
        nodes.append(g.make("OptionalHasElement", [wrapped]))
        return g.fragment(nodes, [a], exact=True)
    nodes.append(g.make("OptionalGetElement", [wrapped]))
    if g.chance(0.4):
        nodes.append(g.make("Identity", [nodes[-1].output[0]]))
    g.fragment(nodes, [a], exact=True)


def grow(g, families):
    """Adds fragments until the graph has one to eight, taking the families by weight."""
    names = [name for name in families for _ in range(FAMILIES[name][1])]
    wanted = g.int(1, 8)
    for _ in range(4 * wanted):
        if len(g.fragments) >= wanted:
            break
        try:
            FAMILIES[g.pick(names)][0](g)
        except Rejected:
            continue
    used = {v.name for fragment in g.fragments for v in fragment.inputs}
    g.inputs = [v for v in g.inputs if v.name in used]
    g.constants = [v for v in g.constants if v.name in used]
    g.outputs = [v for v in g.computed if v.name not in used or g.chance(0.15)]
    return bool(g.outputs)
