//! kt_head_linear: a matrix of its own for each head, as multi-head latent attention has them.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const mm = @import("matmul.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const isa = ctx_mod.isa;
const status = core.status;
const invalid = c.KT_ERR_INVALID_ARG;

/// Rows of the output that one task makes: a multiple of every block, so that transposed weights are cut at blocks.
const rows_per_task: usize = isa.KT_HEAD_COLUMNS;
const min_tokens_per_task: usize = 64;

const Job = struct {
    ctx: *ctx_mod.Ctx,
    x: *const check.Tensor,
    w: *const check.Tensor,
    out: *const check.Tensor,
    transposed: bool,
    block: check.Block,
    heads: usize,
    rows: usize,
    cols: usize,
    tokens: usize,
    rows_per_task: usize,
    row_tasks: usize,
    tokens_per_task: usize,
    total: usize,
    scratch: [*]u8,
    scratch_bytes: usize,

    fn body(self: *const Job, member: *Member) void {
        const scratch = self.scratch + member.index * self.scratch_bytes;
        while (member.claim(0, self.total)) |task| {
            const head = task / self.row_tasks % self.heads;
            const row0 = task % self.row_tasks * self.rows_per_task;
            const row1 = @min(self.rows, row0 + self.rows_per_task);
            const token0 = task / self.row_tasks / self.heads * self.tokens_per_task;
            const token1 = @min(self.tokens, token0 + self.tokens_per_task);
            self.run(head, row0, row1, token0, token1, scratch);
        }
    }

    fn run(self: *const Job, head: usize, row0: usize, row1: usize, token0: usize, token1: usize, scratch: [*]u8) void {
        var job = std.mem.zeroes(isa.kt_matmul_t);
        job.w = at(self.w, 0, head);
        job.row_stride = self.w.stride[1];
        job.rows = @intCast(self.rows);
        job.cols = @intCast(self.cols);
        job.dtype = self.w.dtype;
        job.x = @ptrCast(@alignCast(at(self.x, 1, head)));
        job.x_stride = @divExact(self.x.stride[0], 4);
        job.out = @ptrCast(@alignCast(at(self.out, 1, head)));
        job.out_stride = @divExact(self.out.stride[0], 4);
        const r0: i64 = @intCast(row0);
        const r1: i64 = @intCast(row1);
        const t0: i64 = @intCast(token0);
        const t1: i64 = @intCast(token1);
        if (self.transposed)
            self.ctx.isa.head_transposed.?(&job, r0, r1, t0, t1, self.block.values, self.block.bytes, @ptrCast(@alignCast(scratch)))
        else
            self.ctx.isa.matmul.?(&job, r0, r1, t0, t1, scratch);
    }
};

fn at(t: *const check.Tensor, dim: usize, index: usize) [*]u8 {
    return @as([*]u8, @ptrCast(t.data.?)) + index * @as(usize, @intCast(t.stride[dim]));
}

fn aligned(comptime name: []const u8, t: *const check.Tensor) bool {
    for (t.stride[0..2]) |stride| if (stride < 0 or @rem(stride, 4) != 0) {
        _ = status.invalid("{s} has a stride of {d} bytes, expected a multiple of 4", .{ name, stride });
        return false;
    };
    return true;
}

pub fn kt_head_linear(handle: ?*c.kt_ctx_t, x: ?*const c.kt_tensor_t, w: ?*const c.kt_tensor_t, transposed: u32, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    if (transposed > 1) return status.invalid("transposed is {d}, expected 0 or 1", .{transposed});
    const tx = check.f32s("x", x, 3) orelse return invalid;
    const tw = check.tensor("w", w, 3) orelse return invalid;
    const to = check.f32s("out", out, 3) orelse return invalid;
    if (!aligned("x", tx) or !aligned("out", to)) return invalid;
    if (!check.isWeightType(tw.dtype)) return status.invalid("w has type {d}, which is no weight type", .{tw.dtype});
    if (tw.flags & c.KT_TENSOR_PACKED != 0) return status.unsupported("w is packed", .{});
    if (tw.stride[0] < 0 or tw.stride[1] < 0) return status.invalid("w has a negative stride", .{});
    const is_transposed = transposed == 1;
    const rows = tw.shape[if (is_transposed) 2 else 1];
    const cols = tw.shape[if (is_transposed) 1 else 2];
    if (!check.size("w", tw, 0, tx.shape[1]) or !check.size("x", tx, 2, cols)) return invalid;
    if (!check.size("out", to, 0, tx.shape[0]) or !check.size("out", to, 1, tx.shape[1]) or !check.size("out", to, 2, rows)) return invalid;
    var job: Job = undefined;
    job.ctx = ctx;
    job.x = tx;
    job.w = tw;
    job.out = to;
    job.transposed = is_transposed;
    job.block = check.blockOf(tw.dtype).?;
    job.heads = @intCast(tx.shape[1]);
    job.rows = @intCast(rows);
    job.cols = @intCast(cols);
    job.tokens = @intCast(tx.shape[0]);
    const threads = ctx.pool.num_threads;
    // few heads: narrower tasks, still of whole blocks and vectors
    job.rows_per_task = if (job.heads >= 4 * threads) rows_per_task else @max(64, @as(usize, @intCast(job.block.values)));
    job.row_tasks = std.math.divCeil(usize, job.rows, job.rows_per_task) catch unreachable;
    const tasks = job.row_tasks * job.heads;
    const splits = std.math.divCeil(usize, 4 * threads, tasks) catch unreachable;
    job.tokens_per_task = @max(min_tokens_per_task, std.mem.alignForward(usize, std.math.divCeil(usize, job.tokens, splits) catch unreachable, isa.KT_HEAD_TOKENS));
    job.total = tasks * (std.math.divCeil(usize, job.tokens, job.tokens_per_task) catch unreachable);
    var layout: mm.Scratch = .{};
    job.scratch_bytes = if (is_transposed) job.cols * rows_per_task * 4 else mm.matmulScratch(ctx, job.cols);
    _ = layout.add(job.scratch_bytes * threads);
    job.scratch = layout.reserve(ctx) orelse return c.KT_ERR_OUT_OF_MEMORY;
    ctx.pool.run(@as(*const Job, &job), Job.body);
    return c.KT_OK;
}
