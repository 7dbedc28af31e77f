//! kt_rope_table, kt_rope: tokens over the pool.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const status = core.status;
const invalid = c.KT_ERR_INVALID_ARG;

/// Fewer values than this are not worth waking the pool.
const serial_values = 2048;
const tokens_per_chunk = 8;

const Table = struct {
    positions: [*]const i32,
    inv_freq: check.Rows,
    out: check.Rows,
    scale: f32,

    fn token(self: *const Table, index: usize) void {
        const n: usize = @intCast(self.inv_freq.n);
        const frequencies = self.inv_freq.f32Row(if (self.inv_freq.count == 1) 0 else index);
        const out = self.out.f32Row(index);
        const position: f32 = @floatFromInt(self.positions[index]);
        for (0..n) |i| {
            // the product rounds to f32, as in the models that the checkpoints come from; the functions of it do not
            const angle: f64 = position * frequencies[i];
            out[i] = @floatCast(@cos(angle) * self.scale);
            out[n + i] = @floatCast(@sin(angle) * self.scale);
        }
    }

    fn body(self: *const Table, member: *Member) void {
        overTokens(self, member, self.out.count);
    }
};

const Rotate = struct {
    ctx: *ctx_mod.Ctx,
    x: [*]u8,
    x_token: i64,
    x_head: i64,
    heads: usize,
    table: check.Rows,
    interleaved: u32,

    fn token(self: *const Rotate, index: usize) void {
        const table = self.table.f32Row(index);
        for (0..self.heads) |head| {
            const offset = @as(i64, @intCast(index)) * self.x_token + @as(i64, @intCast(head)) * self.x_head;
            const x: [*]f32 = @ptrCast(@alignCast(self.x + @as(usize, @bitCast(offset))));
            self.ctx.isa.rope_row.?(x, table, @divExact(self.table.n, 2), self.interleaved);
        }
    }

    fn body(self: *const Rotate, member: *Member) void {
        overTokens(self, member, self.table.count);
    }
};

fn overTokens(job: anytype, member: *Member, tokens: usize) void {
    const chunks = std.math.divCeil(usize, tokens, tokens_per_chunk) catch unreachable;
    while (member.claim(0, chunks)) |chunk| {
        for (chunk * tokens_per_chunk..@min(tokens, (chunk + 1) * tokens_per_chunk)) |index| job.token(index);
    }
}

pub fn kt_rope_table(handle: ?*c.kt_ctx_t, positions: ?*const c.kt_tensor_t, inv_freq: ?*const c.kt_tensor_t, scale: f32, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tp = check.i32s("positions", positions, 1) orelse return invalid;
    const tf = check.f32s("inv_freq", inv_freq, 2) orelse return invalid;
    const to = check.f32s("out", out, 2) orelse return invalid;
    const tokens = tp.shape[0];
    if (tf.shape[0] != 1 and !check.size("inv_freq", tf, 0, tokens)) return invalid;
    if (!check.size("out", to, 0, tokens) or !check.size("out", to, 1, 2 * tf.shape[1])) return invalid;
    const job: Table = .{
        .positions = @ptrCast(@alignCast(tp.data.?)),
        .inv_freq = check.rows("inv_freq", tf) orelse return invalid,
        .out = check.rows("out", to) orelse return invalid,
        .scale = scale,
    };
    if (tokens * tf.shape[1] < serial_values / 8) {
        for (0..job.out.count) |index| job.token(index);
    } else ctx.pool.run(&job, Table.body);
    return c.KT_OK;
}

pub fn kt_rope(handle: ?*c.kt_ctx_t, x: ?*const c.kt_tensor_t, table: ?*const c.kt_tensor_t, interleaved: u32) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tx = check.f32s("x", x, 3) orelse return invalid;
    const tt = check.f32s("table", table, 2) orelse return invalid;
    if (!check.size("table", tt, 0, tx.shape[0])) return invalid;
    if (@rem(tt.shape[1], 2) != 0 or tt.shape[1] > tx.shape[2])
        return status.invalid("table has rows of {d} values for heads of {d}: expected an even number, at most the head's", .{ tt.shape[1], tx.shape[2] });
    if (interleaved > 1) return status.invalid("interleaved is {d}", .{interleaved});
    const job: Rotate = .{
        .ctx = ctx,
        .x = @ptrCast(tx.data.?),
        .x_token = tx.stride[0],
        .x_head = tx.stride[1],
        .heads = @intCast(tx.shape[1]),
        .table = check.rows("table", tt) orelse return invalid,
        .interleaved = interleaved,
    };
    if (tx.shape[0] * tx.shape[1] * tt.shape[1] < serial_values) {
        for (0..job.table.count) |index| job.token(index);
    } else ctx.pool.run(&job, Rotate.body);
    return c.KT_OK;
}
