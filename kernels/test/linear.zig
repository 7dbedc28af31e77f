//! Matrix products of quantised and float weights, from blocks and packed, against sums in double precision.
const std = @import("std");
const support = @import("support.zig");
const formats = @import("formats.zig");
const c = support.c;
const gpa = support.gpa;

const row_counts = [_]usize{ 1, 3, 7, 8, 9, 15, 16, 17, 33 };
const token_counts = [_]usize{ 1, 3, 8, 33 };

/// Activations that int8 holds exactly: whole multiples of a power of two per 32 columns, one of them 127 of it.
fn exactActivations(random: *support.Random, n: usize) ![]f32 {
    const x = try gpa.alloc(f32, n);
    for (x) |*v| v.* = @as(f32, @floatFromInt(random.below(255))) - 127;
    var i: usize = 0;
    while (i < n) : (i += 32) {
        const unit = std.math.pow(f32, 2, -@as(f32, @floatFromInt(5 + random.below(4))));
        x[i + random.below(32)] = if (random.below(2) == 0) 127 else -127;
        for (x[i..][0..32]) |*v| v.* *= unit;
    }
    return x;
}

fn expectProducts(x: []const f32, w: []const f64, bias: ?[]const f32, got: []const f32, tokens: usize, rows: usize, n: usize) !void {
    const want = try gpa.alloc(support.Sum, tokens * rows);
    defer gpa.free(want);
    for (want, 0..) |*sum, i| {
        const t = i / rows;
        const r = i % rows;
        sum.* = .{};
        for (x[t * n ..][0..n], w[r * n ..][0..n]) |a, b| sum.add(a * b);
        if (bias) |values| sum.add(values[r]);
    }
    try support.expectSums(got, want, 2e-6);
}

fn checkFormat(random: *support.Random, f: formats.Format, rows: usize, n: usize) !void {
    const ctx = support.context();
    const data = try formats.randomBlocks(random, f, rows * n / f.values);
    defer gpa.free(data);
    const w = try formats.values(f, data, rows * n);
    defer gpa.free(w);
    const bias = try random.normals(rows, 1);
    defer gpa.free(bias);
    const blocks = support.blocks(data, f.dtype, &.{ rows, n }, f.values, f.bytes);
    const bias_tensor = support.floats(bias, &.{rows});
    var packed_bytes: i64 = 0;
    if (f.packs) support.ok(c.kt_packed_bytes(ctx, &blocks, &packed_bytes));
    const memory = try gpa.alignedAlloc(u8, .@"64", @intCast(packed_bytes));
    defer gpa.free(memory);
    var rearranged = blocks;
    if (f.packs) {
        rearranged.data = memory.ptr;
        rearranged.flags = c.KT_TENSOR_PACKED;
        support.ok(c.kt_pack_weight(ctx, &blocks, &rearranged));
    }
    for (token_counts) |tokens| {
        const x = try exactActivations(random, tokens * n);
        defer gpa.free(x);
        const out = try gpa.alloc(f32, tokens * rows);
        defer gpa.free(out);
        const x_tensor = support.floats(x, &.{ tokens, n });
        const out_tensor = support.floats(out, &.{ tokens, rows });
        errdefer std.debug.print("{s} [{d}, {d}], {d} tokens\n", .{ f.name, rows, n, tokens });
        @memset(out, std.math.nan(f32));
        support.ok(c.kt_linear(ctx, &x_tensor, &blocks, &bias_tensor, &out_tensor));
        try expectProducts(x, w, bias, out, tokens, rows, n);
        if (!f.packs) continue;
        errdefer std.debug.print("packed ", .{});
        @memset(out, std.math.nan(f32));
        support.ok(c.kt_linear(ctx, &x_tensor, &rearranged, null, &out_tensor));
        try expectProducts(x, w, null, out, tokens, rows, n);
    }
}

test "products of quantised weights are exact for activations that int8 holds" {
    var random = support.Random.init(1);
    for (formats.quantised) |f| {
        for (row_counts) |rows| try checkFormat(&random, f, rows, f.values);
        try checkFormat(&random, f, 17, if (f.values == 32) 96 else 512);
        try checkFormat(&random, f, 64, 768);
    }
}

// Every product at its greatest: sums of bytes must not saturate.
test "the largest codes and activations" {
    const ctx = support.context();
    const n = 512;
    const rows = 16;
    inline for (.{ 0x00, 0xff, 0x80, 0x7f }) |fill| {
        for (formats.quantised) |f| {
            const data = try gpa.alloc(u8, rows * n / f.values * f.bytes);
            defer gpa.free(data);
            @memset(data, fill);
            const one: u16 = @bitCast(@as(f16, 1));
            for (0..rows * n / f.values) |i| {
                const block = data[i * f.bytes ..];
                for ([_]usize{ 0, 2, 108, 208 }) |at| {
                    const is_scale = switch (f.dtype) {
                        c.KT_Q4_1, c.KT_Q4_K => at == 0 or at == 2,
                        c.KT_Q3_K => at == 108,
                        c.KT_Q6_K => at == 208,
                        else => at == 0,
                    };
                    if (is_scale) std.mem.writeInt(u16, block[at..][0..2], one, .little);
                }
            }
            const w = try formats.values(f, data, rows * n);
            defer gpa.free(w);
            const blocks = support.blocks(data, f.dtype, &.{ rows, n }, f.values, f.bytes);
            for ([_]usize{ 1, 2, 9 }) |tokens| {
                for ([_]f32{ 127, -127 }) |size| {
                    const x = try gpa.alloc(f32, tokens * n);
                    defer gpa.free(x);
                    @memset(x, size);
                    const out = try gpa.alloc(f32, tokens * rows);
                    defer gpa.free(out);
                    const x_tensor = support.floats(x, &.{ tokens, n });
                    const out_tensor = support.floats(out, &.{ tokens, rows });
                    errdefer std.debug.print("{s} of bytes {d}, {d} tokens of {d}\n", .{ f.name, fill, tokens, size });
                    support.ok(c.kt_linear(ctx, &x_tensor, &blocks, null, &out_tensor));
                    try expectProducts(x, w, null, out, tokens, rows, n);
                }
            }
        }
    }
}

test "activations of any size lose what rounding to int8 loses" {
    var random = support.Random.init(2);
    const ctx = support.context();
    const n = 512;
    const rows = 40;
    const tokens = 9;
    for (formats.quantised) |f| {
        const data = try formats.randomBlocks(&random, f, rows * n / f.values);
        defer gpa.free(data);
        const w = try formats.values(f, data, rows * n);
        defer gpa.free(w);
        const x = try random.normals(tokens * n, 1);
        defer gpa.free(x);
        @memset(x[32..64], 0);
        x[70] = 1e-38;
        const out = try gpa.alloc(f32, tokens * rows);
        defer gpa.free(out);
        const x_tensor = support.floats(x, &.{ tokens, n });
        const w_tensor = support.blocks(data, f.dtype, &.{ rows, n }, f.values, f.bytes);
        const out_tensor = support.floats(out, &.{ tokens, rows });
        support.ok(c.kt_linear(ctx, &x_tensor, &w_tensor, null, &out_tensor));
        const want = try gpa.alloc(f64, tokens * rows);
        defer gpa.free(want);
        for (want, 0..) |*v, i| {
            v.* = 0;
            for (x[i / rows * n ..][0..n], w[i % rows * n ..][0..n]) |a, b| v.* += a * b;
        }
        errdefer std.debug.print("{s}\n", .{f.name});
        try support.expectClose(out, want, 1.2e-2);
    }
}

test "float weights, and quantised ones with float activations" {
    var random = support.Random.init(3);
    const ctx = support.makeContext(c.KT_PRECISION_F32);
    defer c.kt_ctx_destroy(ctx);
    for ([_]usize{ 1, 3, 4, 5, 9 }) |rows| {
        for ([_]usize{ 1, 4, 7, 8, 9, 33, 256 }) |n| {
            for ([_]u32{ c.KT_F32, c.KT_F16, c.KT_BF16, c.KT_Q4_0, c.KT_Q6_K }) |dtype| {
                const values: usize = if (dtype == c.KT_Q4_0) 32 else if (dtype == c.KT_Q6_K) 256 else 1;
                if (n % values != 0) continue;
                try checkFloat(ctx, &random, dtype, rows, n);
            }
        }
    }
}

fn checkFloat(ctx: *c.kt_ctx_t, random: *support.Random, dtype: u32, rows: usize, n: usize) !void {
    const w = try gpa.alloc(f64, rows * n);
    defer gpa.free(w);
    const raw = try random.normals(rows * n, 1);
    defer gpa.free(raw);
    const short = try gpa.alloc(u16, rows * n);
    defer gpa.free(short);
    var w_tensor: c.kt_tensor_t = undefined;
    var blocks: []u8 = &.{};
    defer gpa.free(blocks);
    switch (dtype) {
        c.KT_F32 => {
            for (w, raw) |*v, r| v.* = r;
            w_tensor = support.floats(raw, &.{ rows, n });
        },
        c.KT_F16, c.KT_BF16 => {
            for (w, raw, short) |*v, r, *s| {
                if (dtype == c.KT_F16) {
                    const h: f16 = @floatCast(r);
                    s.* = @bitCast(h);
                    v.* = h;
                } else {
                    s.* = @intCast(@as(u32, @bitCast(r)) >> 16);
                    v.* = @as(f32, @bitCast(@as(u32, s.*) << 16));
                }
            }
            w_tensor = support.halves(short, dtype, &.{ rows, n });
        },
        else => {
            const f = for (formats.quantised) |f| {
                if (f.dtype == dtype) break f;
            } else unreachable;
            blocks = try formats.randomBlocks(random, f, rows * n / f.values);
            const decoded = try formats.values(f, blocks, rows * n);
            defer gpa.free(decoded);
            @memcpy(w, decoded);
            w_tensor = support.blocks(blocks, dtype, &.{ rows, n }, f.values, f.bytes);
        },
    }
    for (token_counts) |tokens| {
        const x = try random.normals(tokens * n, 1);
        defer gpa.free(x);
        const out = try gpa.alloc(f32, tokens * rows);
        defer gpa.free(out);
        const x_tensor = support.floats(x, &.{ tokens, n });
        const out_tensor = support.floats(out, &.{ tokens, rows });
        errdefer std.debug.print("type {d} [{d}, {d}], {d} tokens\n", .{ dtype, rows, n, tokens });
        support.ok(c.kt_linear(ctx, &x_tensor, &w_tensor, null, &out_tensor));
        try expectProducts(x, w, null, out, tokens, rows, n);
    }
}
