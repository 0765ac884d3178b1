"""Sixty-four rows at a time: vector instructions that a compiled loop would not find by itself.

Written in LLVM's portable vector types, so they compile to AVX-512, AVX2, NEON or plain
instructions, whatever the machine has. All are exact integer arithmetic.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 64

_BYTE, _HALF, _WORD = ir.IntType(8), ir.IntType(16), ir.IntType(64)
_BYTES, _HALVES = ir.VectorType(_BYTE, LANES), ir.VectorType(_HALF, LANES // 2)


@intrinsic
def rows_near(typing, x, y, start, cx, cy, shift, radius):
    """Bit i says whether (|x[start+i] - cx| >> shift) + |y[start+i] - cy| ≤ radius.

    x, y: contiguous uint8 with at least 64 elements from start; the sum saturates at 255.
    """
    byte = types.uint8
    signature = types.uint64(x, y, types.int64, byte, byte, byte, byte)

    def generate(context, build, signature, arguments):
        ax, ay, at, px, py, by, most = arguments
        dx = _apart(build, _load(context, build, signature.args[0], ax, at), px)
        dy = _apart(build, _load(context, build, signature.args[1], ay, at), py)
        wide = build.lshr(
            build.bitcast(dx, _HALVES), _splat(build, build.zext(by, _HALF), _HALVES)
        )  # shifts pairs of bytes; what crosses from one into the other is masked away
        kept = build.lshr(ir.Constant(_BYTE, 255), by)
        dx = build.and_(build.bitcast(wide, _BYTES), _splat(build, kept, _BYTES))
        total = _call(build, "uadd.sat", dx, dy)
        return build.bitcast(build.icmp_unsigned("<=", total, _splat(build, most, _BYTES)), _WORD)

    return signature, generate


@intrinsic
def lowest_bit(typing, word):
    """Position of the lowest bit set; 64 where none is."""

    def generate(context, build, signature, arguments):
        return build.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
def bits_set(typing, word):
    """How many bits are set."""

    def generate(context, build, signature, arguments):
        return build.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def number(typing, array, at):
    """An element of a contiguous array of float32, or of the bits of float16, in float64: exact."""
    half = array.dtype == types.uint16

    def generate(context, build, signature, arguments):
        data = context.make_array(signature.args[0])(context, build, arguments[0]).data
        held = build.load(build.gep(data, [arguments[1]]))
        return build.fpext(_widened(build, held) if half else held, ir.DoubleType())

    return types.float64(array, types.int64), generate


@intrinsic
def fetch(typing, array, at):
    """Asks for an element of a contiguous array to be brought near; any place is allowed."""

    def generate(context, build, signature, arguments):
        data = context.make_array(signature.args[0])(context, build, arguments[0]).data
        place = build.bitcast(build.gep(data, [arguments[1]]), _BYTE.as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        ask = cgutils.get_or_insert_function(build.module, kind, "llvm.prefetch.p0")
        build.call(ask, [place, number(0), number(3), number(1)])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(array, types.uint64), generate


def _widened(build, half):
    """The bits of a float16 → a float32. Its exponent and mantissa, put where a float32 has them,
    are its value over 2¹¹²; the product is exact, denormal or not."""
    word = ir.IntType(32)
    bits = build.zext(half, word)
    apart = build.shl(build.and_(bits, ir.Constant(word, 0x7FFF)), ir.Constant(word, 13))
    size = build.fmul(build.bitcast(apart, ir.FloatType()), ir.Constant(ir.FloatType(), 2.0**112))
    sign = build.shl(build.and_(bits, ir.Constant(word, 0x8000)), ir.Constant(word, 16))
    return build.bitcast(build.or_(build.bitcast(size, word), sign), ir.FloatType())


def _load(context, build, array_type, array, at):
    data = context.make_array(array_type)(context, build, array).data
    place = build.bitcast(build.gep(data, [at]), _BYTES.as_pointer())
    loaded = build.load(place)
    loaded.align = 1
    return loaded


def _apart(build, values, centre):
    c = _splat(build, centre, _BYTES)
    return build.or_(_call(build, "usub.sat", values, c), _call(build, "usub.sat", c, values))


def _splat(build, scalar, vector):
    empty = ir.Constant(vector, ir.Undefined)
    first = build.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return build.shuffle_vector(first, empty, zeros)


def _call(build, name, left, right):
    kind = ir.FunctionType(_BYTES, [_BYTES, _BYTES])
    name = f"llvm.{name}.v{LANES}i8"
    return build.call(cgutils.get_or_insert_function(build.module, kind, name), [left, right])
