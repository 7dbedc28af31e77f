//! Ops on rows: norms, rotary embedding, activations, conversions, quantising of weights, argmax.
const std = @import("std");
const support = @import("support.zig");
const formats = @import("formats.zig");
const c = support.c;
const gpa = support.gpa;

/// Around the widths of vectors and of unrolled loops.
const lengths = [_]usize{ 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 576 };

test "rms norm, with an offset and with a residual" {
    var random = support.Random.init(10);
    const ctx = support.context();
    const rows = 3;
    for (lengths) |n| {
        const x = try random.normals(rows * n, 2);
        defer gpa.free(x);
        const residual = try random.normals(rows * n, 2);
        defer gpa.free(residual);
        const weight = try random.normals(n, 1);
        defer gpa.free(weight);
        const out = try gpa.alloc(f32, rows * n);
        defer gpa.free(out);
        const want = try gpa.alloc(f64, rows * n);
        defer gpa.free(want);
        const x_tensor = support.floats(x, &.{ rows, n });
        const residual_tensor = support.floats(residual, &.{ rows, n });
        const weight_tensor = support.floats(weight, &.{n});
        const out_tensor = support.floats(out, &.{ rows, n });
        norms(x, weight, 1, want, n);
        support.ok(c.kt_rms_norm(ctx, &x_tensor, &weight_tensor, 1e-5, 1, &out_tensor));
        try support.expectClose(out, want, 1e-6);
        for (x, residual) |*v, r| v.* += r;
        norms(x, weight, 0, want, n);
        for (x, residual) |*v, r| v.* -= r;
        support.ok(c.kt_add_rms_norm(ctx, &residual_tensor, &x_tensor, &weight_tensor, 1e-5, 0, &out_tensor));
        try support.expectClose(out, want, 1e-5);
    }
}

fn norms(x: []const f32, weight: []const f32, offset: f64, want: []f64, n: usize) void {
    for (0..x.len / n) |row| {
        var sum: f64 = 0;
        for (x[row * n ..][0..n]) |v| sum += @as(f64, v) * v;
        const scale = 1 / @sqrt(sum / @as(f64, @floatFromInt(n)) + 1e-5);
        for (want[row * n ..][0..n], x[row * n ..][0..n], weight) |*w, v, g| w.* = v * scale * (g + offset);
    }
}

test "rotary embedding of both kinds" {
    var random = support.Random.init(11);
    const ctx = support.context();
    const tokens = 5;
    const heads = 3;
    for ([_]usize{ 1, 2, 3, 4, 5, 8, 9, 16, 32, 64 }) |n| {
        const dim = 2 * n + 3;
        var positions = [tokens]i32{ 0, 1, 77, 4095, 100000 };
        const frequencies = try gpa.alloc(f32, n);
        defer gpa.free(frequencies);
        for (frequencies, 0..) |*f, i| f.* = std.math.pow(f32, 10000, -@as(f32, @floatFromInt(i)) / @as(f32, @floatFromInt(n)));
        const table = try gpa.alloc(f32, tokens * 2 * n);
        defer gpa.free(table);
        const positions_tensor = support.ints(&positions, &.{tokens});
        const frequencies_tensor = support.floats(frequencies, &.{ 1, n });
        const table_tensor = support.floats(table, &.{ tokens, 2 * n });
        support.ok(c.kt_rope_table(ctx, &positions_tensor, &frequencies_tensor, 1, &table_tensor));
        for ([_]u32{ 0, 1 }) |interleaved| {
            const x = try random.normals(tokens * heads * dim, 1);
            defer gpa.free(x);
            const want = try gpa.alloc(f64, x.len);
            defer gpa.free(want);
            for (want, x) |*w, v| w.* = v;
            for (0..tokens * heads) |row| for (0..n) |i| {
                const angle: f64 = @as(f32, @floatFromInt(positions[row / heads])) * frequencies[i];
                const first = row * dim + if (interleaved == 1) 2 * i else i;
                const second = row * dim + if (interleaved == 1) 2 * i + 1 else i + n;
                const a: f64 = x[first];
                const b: f64 = x[second];
                want[first] = a * @cos(angle) - b * @sin(angle);
                want[second] = b * @cos(angle) + a * @sin(angle);
            };
            const x_tensor = support.floats(x, &.{ tokens, heads, dim });
            support.ok(c.kt_rope(ctx, &x_tensor, &table_tensor, interleaved));
            try support.expectClose(x, want, 1e-6);
        }
    }
}

/// The series whose terms are all of one sign.
fn erf(x: f64) f64 {
    if (@abs(x) > 6) return std.math.sign(x);
    var term = x;
    var sum = x;
    var k: f64 = 1;
    while (k < 200) : (k += 1) {
        term *= 2 * x * x / (2 * k + 1);
        sum += term;
    }
    return 2.0 / @sqrt(std.math.pi) * @exp(-x * x) * sum;
}

fn gated(act: u32, gate: f64, up: f64) f64 {
    return switch (act) {
        c.KT_ACT_SILU => gate / (1 + @exp(-gate)) * up,
        c.KT_ACT_GELU_TANH => 0.5 * gate * (1 + std.math.tanh(@sqrt(2.0 / std.math.pi) * (gate + 0.044715 * gate * gate * gate))) * up,
        c.KT_ACT_GELU_ERF => 0.5 * gate * (1 + erf(gate / @sqrt(2.0))) * up,
        c.KT_ACT_RELU => @max(gate, 0) * up,
        else => blk: {
            const g = @min(gate, 7);
            const u = std.math.clamp(up, -7, 7);
            break :blk g / (1 + @exp(-1.702 * g)) * (u + 1);
        },
    };
}

test "gated activations" {
    var random = support.Random.init(12);
    const ctx = support.context();
    for (0..5) |act| {
        for (lengths) |n| {
            const gate = try random.normals(2 * n, 3);
            defer gpa.free(gate);
            const up = try random.normals(2 * n, 4);
            defer gpa.free(up);
            gate[n - 1] = -120;
            const out = try gpa.alloc(f32, 2 * n);
            defer gpa.free(out);
            const want = try gpa.alloc(f64, 2 * n);
            defer gpa.free(want);
            for (want, gate, up) |*w, g, u| w.* = gated(@intCast(act), g, u);
            const gate_tensor = support.floats(gate, &.{ 2, n });
            const up_tensor = support.floats(up, &.{ 2, n });
            const out_tensor = support.floats(out, &.{ 2, n });
            support.ok(c.kt_act_mul(ctx, &gate_tensor, &up_tensor, @intCast(act), &out_tensor));
            errdefer std.debug.print("activation {d} of {d}\n", .{ act, n });
            try support.expectClose(out, want, 1e-6);
        }
    }
}

test "conversions round to the nearest, ties to even, and keep what is not finite" {
    var random = support.Random.init(13);
    const ctx = support.context();
    const inf = std.math.inf(f32);
    for (lengths) |n| {
        const x = try random.normals(n, 100);
        defer gpa.free(x);
        const special = [_]f32{ 65519.996, 65520, -1e-8, 5.9604645e-8, 8.9406967e-8, inf, -inf, 1.0004883, 1.0014648, 1.00390625, 1.01171875, 0, -0.0, 3e-5 };
        for (x, 0..) |*v, i| {
            if (i % 3 == 0) v.* = special[i / 3 % special.len];
        }
        const short = try gpa.alloc(u16, n);
        defer gpa.free(short);
        const back = try gpa.alloc(f32, n);
        defer gpa.free(back);
        const x_tensor = support.floats(x, &.{n});
        const back_tensor = support.floats(back, &.{n});
        for ([_]u32{ c.KT_F16, c.KT_BF16 }) |dtype| {
            const short_tensor = support.halves(short, dtype, &.{n});
            support.ok(c.kt_copy(ctx, &x_tensor, &short_tensor));
            support.ok(c.kt_copy(ctx, &short_tensor, &back_tensor));
            for (x, short, back) |v, s, b| {
                if (dtype == c.KT_F16) {
                    const want: f16 = @floatCast(v);
                    try std.testing.expectEqual(@as(u16, @bitCast(want)), s);
                    try std.testing.expectEqual(@as(f32, want), b);
                } else {
                    const bits: u32 = @bitCast(v);
                    const want: u16 = @intCast((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
                    try std.testing.expectEqual(want, s);
                    try std.testing.expectEqual(@as(u32, want) << 16, @as(u32, @bitCast(b)));
                }
            }
        }
    }
}

test "rows of a quantised table, and weights that are quantised" {
    var random = support.Random.init(14);
    const ctx = support.context();
    const n = 512;
    const vocab = 6;
    for (formats.quantised) |f| {
        const data = try formats.randomBlocks(&random, f, vocab * n / f.values);
        defer gpa.free(data);
        const w = try formats.values(f, data, vocab * n);
        defer gpa.free(w);
        var ids = [_]i32{ 5, 0, 3 };
        const out = try gpa.alloc(f32, ids.len * n);
        defer gpa.free(out);
        const table = support.blocks(data, f.dtype, &.{ vocab, n }, f.values, f.bytes);
        const ids_tensor = support.ints(&ids, &.{ids.len});
        const out_tensor = support.floats(out, &.{ ids.len, n });
        support.ok(c.kt_embedding(ctx, &table, &ids_tensor, 2, &out_tensor));
        const want = try gpa.alloc(f64, out.len);
        defer gpa.free(want);
        for (want, 0..) |*v, i| v.* = 2 * w[@as(usize, @intCast(ids[i / n])) * n + i % n];
        errdefer std.debug.print("{s}\n", .{f.name});
        try support.expectClose(out, want, 1e-6);

        const x = try random.normals(vocab * n, 1);
        defer gpa.free(x);
        const x_tensor = support.floats(x, &.{ vocab, n });
        support.ok(c.kt_quantize(ctx, &x_tensor, null, &table));
        const decoded = try formats.values(f, data, vocab * n);
        defer gpa.free(decoded);
        const bits = f.bytes * 8 / f.values;
        try support.expectClose(x, decoded, if (bits >= 8) 0.006 else if (bits >= 6) 0.025 else if (bits >= 4) 0.1 else 0.2);
    }
}

test "the greatest logit, the first of equals" {
    var random = support.Random.init(15);
    const ctx = support.context();
    for ([_]usize{ 1, 3, 4, 5, 17, 1000, 32003 }) |n| {
        const x = try random.normals(n, 1);
        defer gpa.free(x);
        const best = random.below(@intCast(n));
        x[best] = 50;
        if (best + 1 < n) x[n - 1] = 50;
        var out = [_]i32{-1};
        const x_tensor = support.floats(x, &.{ 1, n });
        const out_tensor = support.ints(&out, &.{1});
        support.ok(c.kt_argmax(ctx, &x_tensor, &out_tensor));
        try std.testing.expectEqual(@as(i32, @intCast(best)), out[0]);
    }
}
