//! Unit tests of vmath.inc through every level's table that this machine runs.
const std = @import("std");
const cpuid = @import("cpuid.zig");
const ctx_mod = @import("ctx.zig");

fn forEachLevel(comptime check: fn (table: *const ctx_mod.isa.kt_isa_table_t) anyerror!void) !void {
    const mask = cpuid.isaMask();
    for (1..cpuid.names.len) |level| {
        if ((mask >> @intCast(level)) & 1 == 0) continue;
        check(ctx_mod.tableOf(@intCast(level))) catch |err| {
            std.debug.print("level {s}\n", .{cpuid.names[level]});
            return err;
        };
    }
}

fn worstError(x: []const f32, got: []const f32, comptime f: fn (f64) f64) f64 {
    var worst: f64 = 0;
    for (x, got) |v, g| {
        const want = f(v);
        if (@abs(want) < 1.2e-38) { // subnormal: absolute
            if (@abs(g - want) > 2e-45) worst = @max(worst, 1);
        } else worst = @max(worst, @abs(g - want) / @abs(want));
    }
    return worst;
}

fn exp64(x: f64) f64 {
    return @exp(x);
}

fn tanh64(x: f64) f64 {
    return std.math.tanh(x);
}

fn checkFunctions(table: *const ctx_mod.isa.kt_isa_table_t) !void {
    const n = 4001;
    var x: [n]f32 = undefined;
    var y: [n]f32 = undefined;
    for (&x, 0..) |*v, i| v.* = -103.0 + 191.7 * @as(f32, @floatFromInt(i)) / (n - 1);
    table.exp_row.?(&x, &y, n);
    try std.testing.expect(worstError(&x, &y, exp64) < 2e-7);
    for (&x, 0..) |*v, i| v.* = (@as(f32, @floatFromInt(i)) - n / 2) * 0.005;
    table.tanh_row.?(&x, &y, n);
    try std.testing.expect(worstError(&x, &y, tanh64) < 3e-7);
    for ([_]usize{ 1, 3, 4, 5, 7, 8, 9, 15, 16, 17 }) |length| {
        @memset(&y, -1);
        table.exp_row.?(x[1000..].ptr, &y, @intCast(length));
        for (0..length) |i| try std.testing.expectApproxEqRel(@exp(x[1000 + i]), y[i], 1e-6);
        try std.testing.expectEqual(@as(f32, -1), y[length]);
    }
    const inf = std.math.inf(f32);
    const special = [_]f32{ -inf, inf, std.math.nan(f32), 0, -200, 200 };
    table.exp_row.?(&special, &y, special.len);
    try std.testing.expectEqual(@as(f32, 0), y[0]);
    try std.testing.expectEqual(inf, y[1]);
    try std.testing.expect(std.math.isNan(y[2]));
    try std.testing.expectEqual(@as(f32, 1), y[3]);
    try std.testing.expectEqual(@as(f32, 0), y[4]);
    try std.testing.expectEqual(inf, y[5]);
    table.tanh_row.?(&special, &y, special.len);
    try std.testing.expectEqual(@as(f32, -1), y[0]);
    try std.testing.expectEqual(@as(f32, 1), y[1]);
    try std.testing.expect(std.math.isNan(y[2]));
    try std.testing.expectEqual(@as(f32, 0), y[3]);
}

test "exp and tanh of arrays agree with double precision on every level" {
    try forEachLevel(checkFunctions);
}
