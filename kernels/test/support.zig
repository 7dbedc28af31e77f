//! What the op tests share: the context of the level under test, tensors, random numbers and how results are compared.
const std = @import("std");
pub const c = @cImport(@cInclude("kt.h"));

pub const gpa = std.testing.allocator;

/// Levels by KT_ISA_* number.
pub const level_names = [_][]const u8{ "auto", "scalar", "avx2", "avx512", "avx512bf16", "amx", "neon", "dotprod", "i8mm" };

var shared: ?*c.kt_ctx_t = null;

/// The context of all tests: the best level of this CPU, or the one that KT_CPU_ISA names.
pub fn context() *c.kt_ctx_t {
    if (shared) |ctx| return ctx;
    shared = makeContext(c.KT_PRECISION_FAST);
    return shared.?;
}

pub fn makeContext(precision: u32) *c.kt_ctx_t {
    var options = std.mem.zeroes(c.kt_ctx_options_t);
    options.struct_size = @sizeOf(c.kt_ctx_options_t);
    options.abi_version = c.kt_abi_version();
    options.num_threads = 2;
    options.spin_us = 1;
    options.precision = precision;
    var ctx: ?*c.kt_ctx_t = null;
    ok(c.kt_ctx_create(&options, &ctx));
    return ctx.?;
}

pub fn levelName(ctx: *c.kt_ctx_t) []const u8 {
    var info = std.mem.zeroes(c.kt_ctx_info_t);
    info.struct_size = @sizeOf(c.kt_ctx_info_t);
    ok(c.kt_ctx_query(ctx, &info));
    return level_names[info.isa];
}

pub fn ok(code: c.kt_status_t) void {
    if (code != c.KT_OK) std.debug.panic("status {d}: {s}", .{ code, std.mem.span(c.kt_last_error()) });
}

// ---- tensors ----

/// A tensor over `data`; the innermost stride is `unit` bytes, a row of the last dimension `row_bytes`.
fn describe(data: ?*anyopaque, dtype: u32, shape: []const usize, unit: usize, row_bytes: usize) c.kt_tensor_t {
    var t = std.mem.zeroes(c.kt_tensor_t);
    t.data = data;
    t.dtype = dtype;
    t.ndim = @intCast(shape.len);
    t.shape = .{ 1, 1, 1, 1 };
    var stride: i64 = @intCast(unit);
    var i = shape.len;
    while (i > 0) {
        i -= 1;
        t.shape[i] = @intCast(shape[i]);
        t.stride[i] = stride;
        stride = if (i + 1 == shape.len) @intCast(row_bytes) else stride * @as(i64, @intCast(shape[i]));
    }
    return t;
}

pub fn floats(data: []f32, shape: []const usize) c.kt_tensor_t {
    return describe(data.ptr, c.KT_F32, shape, 4, 4 * shape[shape.len - 1]);
}

pub fn ints(data: []i32, shape: []const usize) c.kt_tensor_t {
    return describe(data.ptr, c.KT_I32, shape, 4, 4 * shape[shape.len - 1]);
}

pub fn halves(data: []u16, dtype: u32, shape: []const usize) c.kt_tensor_t {
    return describe(data.ptr, dtype, shape, 2, 2 * shape[shape.len - 1]);
}

pub fn blocks(data: []u8, dtype: u32, shape: []const usize, values: usize, bytes: usize) c.kt_tensor_t {
    return describe(data.ptr, dtype, shape, bytes, shape[shape.len - 1] / values * bytes);
}

// ---- numbers ----

pub const Random = struct {
    state: std.Random.DefaultPrng,

    pub fn init(seed: u64) Random {
        return .{ .state = .init(seed) };
    }

    pub fn normal(self: *Random) f32 {
        return self.state.random().floatNorm(f32);
    }

    pub fn below(self: *Random, n: u32) u32 {
        return self.state.random().uintLessThan(u32, n);
    }

    pub fn byte(self: *Random) u8 {
        return self.state.random().int(u8);
    }

    pub fn fill(self: *Random, out: []f32, scale: f32) void {
        for (out) |*v| v.* = scale * self.normal();
    }

    pub fn normals(self: *Random, n: usize, scale: f32) ![]f32 {
        const out = try gpa.alloc(f32, n);
        self.fill(out, scale);
        return out;
    }
};

/// A value and the sum of the sizes of its terms, which bounds what rounding may do.
pub const Sum = struct {
    value: f64 = 0,
    size: f64 = 0,

    pub fn add(self: *Sum, term: f64) void {
        self.value += term;
        self.size += @abs(term);
    }
};

/// Fails unless |got - want| <= tolerance * size + 1e-30 for every value.
pub fn expectSums(got: []const f32, want: []const Sum, tolerance: f64) !void {
    try std.testing.expectEqual(want.len, got.len);
    for (got, want, 0..) |g, w, i| {
        if (@abs(g - w.value) <= tolerance * w.size + 1e-30) continue;
        std.debug.print("value {d} of {d}: got {d}, want {d} (terms of {d})\n", .{ i, got.len, g, w.value, w.size });
        return error.TestUnexpectedResult;
    }
}

/// Fails unless the relative RMS error is within the tolerance.
pub fn expectClose(got: []const f32, want: []const f64, tolerance: f64) !void {
    try std.testing.expectEqual(want.len, got.len);
    var err: f64 = 0;
    var norm: f64 = 0;
    for (got, want) |g, w| {
        err += (g - w) * (g - w);
        norm += w * w;
    }
    const relative = if (norm == 0) @sqrt(err) else @sqrt(err / norm);
    if (relative <= tolerance) return;
    std.debug.print("relative error {e} exceeds {e}\n", .{ relative, tolerance });
    return error.TestUnexpectedResult;
}
