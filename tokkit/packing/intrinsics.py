"""Machine instructions that Numba does not offer by name: counts of bits, memcpy, widening and streaming copies, and prefetch.

All are LLVM intrinsics, so kernels that use them can be cached on disk (a call through ctypes cannot).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Untyped for mypy, which would take the typing context for an argument of the call.
_intrinsic: Any = intrinsic

_I1, _I8, _I64 = ir.IntType(1), ir.IntType(8), ir.IntType(64)

LANES = 32
LINE = 64


@_intrinsic
def trailing_zeros(typingctx: Any, value: Any) -> Any:
    """Number of zero bits (int64) below the lowest set bit of a uint64; 64 for 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], _I1(0))

    return types.int64(types.uint64), generate


@_intrinsic
def ones(typingctx: Any, value: Any) -> Any:
    """Number of bits (int64) that are set in a uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), generate


@_intrinsic
def copy_bytes(typingctx: Any, target: Any, source: Any, size: Any) -> Any:
    """memcpy between two addresses (uint64), ``size`` bytes (int64); the ranges must be valid and not overlap."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, _I64, _I1])
        module = builder.module
        memcpy = module.globals.get("llvm.memcpy.p0i8.p0i8.i64") or module.declare_intrinsic(
            "llvm.memcpy", [pointer, pointer, _I64], kind
        )
        builder.call(memcpy, [builder.inttoptr(args[0], pointer), builder.inttoptr(args[1], pointer), args[2], _I1(0)])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.int64), generate


@_intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the memory at an address (uint64), which may be any, to be read soon."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, number = _I8.as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        module = builder.module
        ask = module.globals.get("llvm.prefetch.p0i8") or module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(ask, [builder.inttoptr(args[0], pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@_intrinsic
def widen(typingctx: Any, target: Any, source: Any) -> Any:
    """Copy ``LANES`` uint16 at an address (uint64) to as many int32 at another; any addresses of their types will do."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        narrow, wide = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(ir.IntType(32), LANES)
        values = builder.load(builder.inttoptr(args[1], narrow.as_pointer()), align=2)
        builder.store(builder.zext(values, wide), builder.inttoptr(args[0], wide.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@_intrinsic
def widen_one(typingctx: Any, target: Any, source: Any) -> Any:
    """As :func:`widen`, a single number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        narrow, wide = ir.IntType(16), ir.IntType(32)
        value = builder.load(builder.inttoptr(args[1], narrow.as_pointer()), align=2)
        builder.store(builder.zext(value, wide), builder.inttoptr(args[0], wide.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@_intrinsic
def stream_line(typingctx: Any, target: Any, source: Any) -> Any:
    """Copy ``LINE`` bytes to an address (uint64) that is a multiple of it, past the caches: what was there is not read."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(_I8, LINE)
        value = builder.load(builder.inttoptr(args[1], line.as_pointer()), align=1)
        store = builder.store(value, builder.inttoptr(args[0], line.as_pointer()), align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate
