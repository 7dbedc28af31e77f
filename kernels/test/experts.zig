//! Experts of a token's choice against products in double precision.
const std = @import("std");
const support = @import("support.zig");
const formats = @import("formats.zig");
const c = support.c;
const gpa = support.gpa;

const hidden = 256;
const inter = 256;
const experts = 5;
const chosen = 2;

test "fused experts of every quantised type" {
    var random = support.Random.init(40);
    for (formats.quantised) |f| {
        for ([_]usize{ 1, 3, 20 }) |tokens| {
            errdefer std.debug.print("{s}, {d} tokens\n", .{ f.name, tokens });
            try check(&random, f, tokens);
        }
    }
}

fn check(random: *support.Random, f: formats.Format, tokens: usize) !void {
    const x = try random.normals(tokens * hidden, 1);
    defer gpa.free(x);
    const ids = try gpa.alloc(i32, tokens * chosen);
    defer gpa.free(ids);
    const weights = try random.normals(tokens * chosen, 1);
    defer gpa.free(weights);
    for (0..tokens) |t| {
        ids[2 * t] = @intCast(random.below(experts));
        ids[2 * t + 1] = @mod(ids[2 * t] + 1 + @as(i32, @intCast(random.below(experts - 1))), experts);
    }
    const count = experts * inter * hidden;
    var data: [3][]u8 = undefined;
    var w: [3][]f64 = undefined;
    var tensors: [3]c.kt_tensor_t = undefined;
    for (0..3) |i| {
        data[i] = try formats.randomBlocks(random, f, count / f.values);
        w[i] = try formats.values(f, data[i], count);
        const rows: usize = if (i == 2) hidden else inter;
        tensors[i] = support.blocks(data[i], f.dtype, &.{ experts, rows, count / experts / rows }, f.values, f.bytes);
    }
    defer for (data, w) |d, v| {
        gpa.free(d);
        gpa.free(v);
    };
    const out = try gpa.alloc(f32, tokens * hidden);
    defer gpa.free(out);
    const x_tensor = support.floats(x, &.{ tokens, hidden });
    const ids_tensor = support.ints(ids, &.{ tokens, chosen });
    const weights_tensor = support.floats(weights, &.{ tokens, chosen });
    const out_tensor = support.floats(out, &.{ tokens, hidden });
    var args = std.mem.zeroes(c.kt_experts_args_t);
    args.struct_size = @sizeOf(c.kt_experts_args_t);
    args.abi_version = c.kt_abi_version();
    args.x = &x_tensor;
    args.ids = &ids_tensor;
    args.weights = &weights_tensor;
    args.gate = &tensors[0];
    args.up = &tensors[1];
    args.down = &tensors[2];
    args.out = &out_tensor;
    args.act = c.KT_ACT_SILU;
    support.ok(c.kt_fused_experts(support.context(), &args));

    const want = try gpa.alloc(f64, out.len);
    defer gpa.free(want);
    @memset(want, 0);
    for (0..tokens * chosen) |j| {
        const t = j / chosen;
        const expert: usize = @intCast(ids[j]);
        var middle: [inter]f64 = undefined;
        for (&middle, 0..) |*m, r| {
            var gate: f64 = 0;
            var up: f64 = 0;
            const row = (expert * inter + r) * hidden;
            for (x[t * hidden ..][0..hidden], w[0][row..][0..hidden], w[1][row..][0..hidden]) |v, g, u| {
                gate += v * g;
                up += v * u;
            }
            m.* = gate / (1 + @exp(-gate)) * up;
        }
        for (want[t * hidden ..][0..hidden], 0..) |*o, r| {
            var sum: f64 = 0;
            for (middle, w[2][(expert * hidden + r) * inter ..][0..inter]) |m, d| sum += m * d;
            o.* += weights[j] * sum;
        }
    }
    try support.expectClose(out, want, 3e-2);
}
