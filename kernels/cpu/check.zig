//! Descriptor checks: TypeScript's are for good messages, these are for safety.
const std = @import("std");
const core = @import("core");
const c = core.c;
const status = core.status;

pub const Tensor = c.kt_tensor_t;

/// Bytes of one block and values in it, or null for a type the CPU does not know.
pub const Block = struct { values: i64, bytes: i64 };

pub fn blockOf(dtype: u32) ?Block {
    return switch (dtype) {
        c.KT_F32, c.KT_I32 => .{ .values = 1, .bytes = 4 },
        c.KT_F16, c.KT_BF16, c.KT_I16 => .{ .values = 1, .bytes = 2 },
        c.KT_I8 => .{ .values = 1, .bytes = 1 },
        c.KT_I64, c.KT_F64 => .{ .values = 1, .bytes = 8 },
        c.KT_Q4_0 => .{ .values = 32, .bytes = 18 },
        c.KT_Q4_1 => .{ .values = 32, .bytes = 20 },
        c.KT_Q5_0 => .{ .values = 32, .bytes = 22 },
        c.KT_Q5_1 => .{ .values = 32, .bytes = 24 },
        c.KT_Q8_0 => .{ .values = 32, .bytes = 34 },
        c.KT_Q2_K => .{ .values = 256, .bytes = 84 },
        c.KT_Q3_K => .{ .values = 256, .bytes = 110 },
        c.KT_Q4_K => .{ .values = 256, .bytes = 144 },
        c.KT_Q5_K => .{ .values = 256, .bytes = 176 },
        c.KT_Q6_K => .{ .values = 256, .bytes = 210 },
        c.KT_Q8_K => .{ .values = 256, .bytes = 292 },
        c.KT_IQ1_S => .{ .values = 256, .bytes = 50 },
        c.KT_IQ1_M => .{ .values = 256, .bytes = 56 },
        c.KT_IQ2_XXS => .{ .values = 256, .bytes = 66 },
        c.KT_IQ2_XS => .{ .values = 256, .bytes = 74 },
        c.KT_IQ2_S => .{ .values = 256, .bytes = 82 },
        c.KT_IQ3_XXS => .{ .values = 256, .bytes = 98 },
        c.KT_IQ3_S => .{ .values = 256, .bytes = 110 },
        c.KT_IQ4_NL => .{ .values = 32, .bytes = 18 },
        c.KT_IQ4_XS => .{ .values = 256, .bytes = 136 },
        c.KT_TQ1_0 => .{ .values = 256, .bytes = 54 },
        c.KT_TQ2_0 => .{ .values = 256, .bytes = 66 },
        c.KT_MXFP4 => .{ .values = 32, .bytes = 17 },
        c.KT_NVFP4 => .{ .values = 64, .bytes = 36 },
        c.KT_Q1_0 => .{ .values = 128, .bytes = 18 },
        c.KT_Q2_0 => .{ .values = 64, .bytes = 18 },
        c.KT_F8_E4M3 => .{ .values = 128, .bytes = 132 },
        c.KT_I4_BF16 => .{ .values = 32, .bytes = 18 },
        c.KT_I4_ZERO => .{ .values = 32, .bytes = 19 },
        else => null,
    };
}

pub fn isWeightType(dtype: u32) bool {
    return switch (dtype) {
        c.KT_I8, c.KT_I16, c.KT_I32, c.KT_I64, c.KT_F64 => false,
        else => blockOf(dtype) != null,
    };
}

/// A tensor argument: present, on the CPU, of `ndim` dimensions, with positive sizes and contiguous rows of whole blocks.
pub fn tensor(comptime name: []const u8, given: ?*const Tensor, ndim: u32) ?*const Tensor {
    const t = given orelse return fail("{s} is NULL", .{name});
    if (t.data == null) return fail("{s} has no data", .{name});
    if (t.device != 0) return fail("{s} is on device {d}, not on the CPU", .{ name, t.device });
    if (t.ndim != ndim) return fail("{s} has {d} dimensions, expected {d}", .{ name, t.ndim, ndim });
    const block = blockOf(t.dtype) orelse return fail("{s} has unknown type {d}", .{ name, t.dtype });
    for (t.shape[0..ndim]) |length| if (length <= 0) return fail("{s} has a dimension of {d}", .{ name, length });
    if (@rem(t.shape[ndim - 1], block.values) != 0)
        return fail("{s} has rows of {d} values, its type has blocks of {d}", .{ name, t.shape[ndim - 1], block.values });
    if (t.flags & c.KT_TENSOR_PACKED == 0 and t.stride[ndim - 1] != block.bytes)
        return fail("{s} has an inner stride of {d} bytes, expected {d}", .{ name, t.stride[ndim - 1], block.bytes });
    return t;
}

pub fn typed(comptime name: []const u8, given: ?*const Tensor, ndim: u32, dtype: u32) ?*const Tensor {
    const t = tensor(name, given, ndim) orelse return null;
    if (t.dtype != dtype) return fail("{s} has type {d}, expected {d}", .{ name, t.dtype, dtype });
    return t;
}

pub fn f32s(comptime name: []const u8, given: ?*const Tensor, ndim: u32) ?*const Tensor {
    return typed(name, given, ndim, c.KT_F32);
}

pub fn i32s(comptime name: []const u8, given: ?*const Tensor, ndim: u32) ?*const Tensor {
    return typed(name, given, ndim, c.KT_I32);
}

pub fn size(comptime name: []const u8, t: *const Tensor, dim: usize, expected: i64) bool {
    if (t.shape[dim] == expected) return true;
    _ = status.invalid("{s} dimension {d} is {d}, expected {d}", .{ name, dim, t.shape[dim], expected });
    return false;
}

/// All of a tensor as rows of its innermost dimension when the outer dimensions are contiguous over each other.
pub const Rows = struct {
    data: [*]u8,
    count: usize,
    stride: usize,
    n: i64,

    pub fn f32Row(self: Rows, row: usize) [*]f32 {
        return @ptrCast(@alignCast(self.data + row * self.stride));
    }
};

pub fn rows(comptime name: []const u8, t: *const Tensor) ?Rows {
    const ndim = t.ndim;
    var count: i64 = 1;
    var stride = if (ndim == 1) t.shape[0] * t.stride[0] else t.stride[ndim - 2];
    for (0..ndim - 1) |i| count *= t.shape[i];
    if (ndim > 2) for (0..ndim - 2) |i| {
        if (t.stride[i] != t.stride[i + 1] * t.shape[i + 1]) {
            _ = status.invalid("{s} has dimension {d} strided by {d} bytes: only rows may be apart", .{ name, i, t.stride[i] });
            return null;
        }
    };
    if (stride < 0) {
        _ = status.invalid("{s} has a negative stride", .{name});
        return null;
    }
    if (count == 1) stride = 0;
    return .{ .data = @ptrCast(t.data.?), .count = @intCast(count), .stride = @intCast(stride), .n = t.shape[ndim - 1] };
}

fn fail(comptime fmt: []const u8, args: anytype) ?*const Tensor {
    _ = status.invalid(fmt, args);
    return null;
}
