//! kt_linear, kt_norm_linear, kt_linear_residual, kt_gate_up_act; kt_packed_bytes, kt_pack_weight.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const mm = @import("matmul.zig");
const topology = @import("topology.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const status = core.status;
const invalid = c.KT_ERR_INVALID_ARG;

const Handle = ?*c.kt_ctx_t;
const Arg = ?*const c.kt_tensor_t;

/// One product, with an optional norm before and an optional norm-and-add after.
const Product = struct {
    input: mm.Input,
    weight: mm.Weight,
    tasks: mm.Tasks,
    bias: ?[*]const f32,
    out: [*]f32,
    out_stride: usize, // floats
    accumulate: bool,
    post: ?mm.Norm = null,
    residual: ?check.Rows = null,
    scratch: [*]u8 = undefined,
    scratch_bytes: usize,

    fn body(self: *const Product, member: *Member) void {
        const ctx = self.input.ctx;
        self.input.prepare(member);
        var job = self.input.job(self.weight, member.index);
        job.bias = self.bias;
        job.out = self.out;
        job.out_stride = @intCast(self.out_stride);
        job.accumulate = @intFromBool(self.accumulate);
        const scratch = self.scratch + member.index * self.scratch_bytes;
        while (self.tasks.claim(member, 1)) |r| {
            ctx.isa.matmul.?(&job, @intCast(r.row0), @intCast(r.row1), @intCast(r.token0), @intCast(r.token1), scratch);
        }
        const post = self.post orelse return;
        member.barrier();
        const residual = self.residual.?;
        while (member.claim(2, self.input.tokens)) |token| {
            const row = self.out + token * self.out_stride;
            ctx.isa.rms_norm_row.?(row, post.weight, post.eps, post.offset, row, residual.n);
            ctx.isa.add_row.?(residual.f32Row(token), row, residual.f32Row(token), residual.n);
        }
    }
};

const Call = struct { x: Arg, norm: Arg, norm_eps: f32, norm_offset: f32, w: Arg, bias: Arg, out: Arg, residual: bool, post: Arg = null, post_eps: f32 = 0, post_offset: f32 = 0 };

fn product(handle: Handle, call: Call) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tx = check.f32s("x", call.x, 2) orelse return invalid;
    const weight = mm.Weight.from("w", ctx, call.w, tx.shape[1]) orelse return invalid;
    const to = check.f32s("out", call.out, 2) orelse return invalid;
    if (!check.size("out", to, 0, tx.shape[0]) or !check.size("out", to, 1, @intCast(weight.rows))) return invalid;
    const rows_out = check.rows("out", to) orelse return invalid;
    const norm = normOf("norm_weight", call.norm, call.norm_eps, call.norm_offset, tx.shape[1]) catch return invalid;
    const post = normOf("post_norm", call.post, call.post_eps, call.post_offset, to.shape[1]) catch return invalid;
    const input = mm.Input.init(ctx, check.rows("x", tx) orelse return invalid, norm, &.{weight});
    var layout: mm.Scratch = .{};
    const copies = layout.add(input.scratchBytes());
    const per_thread = mm.matmulScratch(ctx, weight.cols);
    const scratch = layout.add(per_thread * ctx.pool.num_threads);
    const temporary = layout.add(if (post != null) rows_out.count * weight.rows * 4 else 0);
    const memory = layout.reserve(ctx) orelse return c.KT_ERR_OUT_OF_MEMORY;
    var region: Product = .{
        .input = input,
        .weight = weight,
        .tasks = mm.Tasks.of(ctx, weight, input.tokens, input.tile_tokens),
        .bias = mm.vector("bias", call.bias, @intCast(weight.rows)) catch return invalid,
        .out = @ptrCast(@alignCast(rows_out.data)),
        .out_stride = rows_out.stride / 4,
        .accumulate = call.residual,
        .scratch = memory + scratch,
        .scratch_bytes = per_thread,
    };
    region.input.copies = memory + copies;
    if (post) |p| {
        region.post = p;
        region.residual = rows_out;
        region.accumulate = false;
        region.out = @ptrCast(@alignCast(memory + temporary));
        region.out_stride = weight.rows;
    }
    ctx.pool.run(&region, Product.body);
    return c.KT_OK;
}

pub fn normOf(comptime name: []const u8, given: Arg, eps: f32, offset: f32, n: i64) error{Invalid}!?mm.Norm {
    const weight = try mm.vector(name, given, n) orelse return null;
    return .{ .weight = weight, .eps = eps, .offset = offset };
}

pub fn kt_linear(handle: Handle, x: Arg, w: Arg, bias: Arg, out: Arg) c.kt_status_t {
    return product(handle, .{ .x = x, .norm = null, .norm_eps = 0, .norm_offset = 0, .w = w, .bias = bias, .out = out, .residual = false });
}

pub fn kt_norm_linear(handle: Handle, x: Arg, norm_weight: Arg, eps: f32, offset: f32, w: Arg, out: Arg) c.kt_status_t {
    return product(handle, .{ .x = x, .norm = norm_weight, .norm_eps = eps, .norm_offset = offset, .w = w, .bias = null, .out = out, .residual = false });
}

pub fn kt_linear_residual(handle: Handle, x: Arg, w: Arg, bias: Arg, post_norm: Arg, eps: f32, offset: f32, residual: Arg) c.kt_status_t {
    return product(handle, .{ .x = x, .norm = null, .norm_eps = 0, .norm_offset = 0, .w = w, .bias = bias, .out = residual, .residual = true, .post = post_norm, .post_eps = eps, .post_offset = offset });
}

const Pack = struct {
    ctx: *ctx_mod.Ctx,
    source: [*]const u8,
    row_stride: usize,
    dtype: u32,
    rows: usize,
    cols: i64,
    matrices: usize,
    matrix_stride: usize,
    out: [*]u8,
    block_bytes: usize,
    /// Blocks of one matrix that a node has at most.
    most: usize = 0,

    fn body(self: *const Pack, member: *Member) void {
        const block: usize = @intCast(self.ctx.isa.row_block);
        while (member.claimPlaced(0, self.matrices * self.most)) |at| {
            const blocks = self.blocksOf(at.node);
            const index = blocks[0] + at.index % self.most;
            if (index >= blocks[1]) continue;
            const matrix = at.index / self.most;
            const row = index * block;
            const from = self.source + matrix * self.matrix_stride + row * self.row_stride;
            const to = self.out + (self.matrices * blocks[0] + matrix * (blocks[1] - blocks[0]) + at.index % self.most) * self.block_bytes;
            self.ctx.isa.pack_rows.?(self.dtype, from, @intCast(self.row_stride), @intCast(@min(block, self.rows - row)), self.cols, to);
        }
    }

    /// The blocks of rows that belong to a node: first and end.
    fn blocksOf(self: *const Pack, node: usize) [2]usize {
        const block: usize = @intCast(self.ctx.isa.row_block);
        const first = mm.nodeRow(self.ctx, self.rows, node);
        const end = mm.nodeRow(self.ctx, self.rows, node + 1);
        return .{ (first + block - 1) / block, (end + block - 1) / block };
    }

    /// Counts what the nodes get, and has the system put it there when it is written.
    fn place(self: *Pack) void {
        self.most = 1;
        for (0..self.ctx.pool.num_nodes) |node| {
            const blocks = self.blocksOf(node);
            self.most = @max(self.most, blocks[1] - blocks[0]);
            const system_node = self.ctx.system_nodes[node] orelse continue;
            const start = self.matrices * blocks[0] * self.block_bytes;
            const end = self.matrices * blocks[1] * self.block_bytes;
            // where this is forbidden, the node's own threads write most of it first
            if (self.ctx.pool.num_nodes > 1) _ = topology.preferNode(self.out[start..end], system_node);
        }
    }
};

const Source = struct { tensor: *const check.Tensor, matrices: i64, rows: i64, cols: i64 };

fn packSource(given: Arg) ?Source {
    const ndim = if (given) |t| t.ndim else 0;
    if (given != null and ndim != 2 and ndim != 3) {
        _ = status.invalid("w has {d} dimensions, expected 2 or 3", .{ndim});
        return null;
    }
    const t = check.tensor("w", given, ndim) orelse return null;
    if (t.flags & c.KT_TENSOR_PACKED != 0) {
        _ = status.invalid("w is packed already", .{});
        return null;
    }
    return .{ .tensor = t, .matrices = if (ndim == 3) t.shape[0] else 1, .rows = t.shape[ndim - 2], .cols = t.shape[ndim - 1] };
}

fn packedBytes(ctx: *const ctx_mod.Ctx, source: Source) i64 {
    return source.matrices * ctx.isa.packed_bytes.?(source.tensor.dtype, source.rows, source.cols);
}

export fn kt_packed_bytes(handle: Handle, w: Arg, out_bytes: ?*i64) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const out = out_bytes orelse return status.invalid("out_bytes is NULL", .{});
    const source = packSource(w) orelse return invalid;
    out.* = packedBytes(ctx, source);
    if (out.* == 0) return status.unsupported("type {d} has no packed layout", .{source.tensor.dtype});
    return c.KT_OK;
}

export fn kt_pack_weight(handle: Handle, w: Arg, out: Arg) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const source = packSource(w) orelse return invalid;
    const bytes = packedBytes(ctx, source);
    if (bytes == 0) return status.unsupported("type {d} has no packed layout", .{source.tensor.dtype});
    const target = check.typed("out", out, source.tensor.ndim, source.tensor.dtype) orelse return invalid;
    for (0..target.ndim) |i| if (!check.size("out", target, i, source.tensor.shape[i])) return invalid;
    const block: i64 = ctx.isa.row_block;
    const blocks = source.matrices * @divFloor(source.rows + block - 1, block);
    var job: Pack = .{
        .ctx = ctx,
        .source = @ptrCast(source.tensor.data.?),
        .row_stride = @intCast(source.tensor.stride[source.tensor.ndim - 2]),
        .dtype = source.tensor.dtype,
        .rows = @intCast(source.rows),
        .cols = source.cols,
        .matrices = @intCast(source.matrices),
        .matrix_stride = if (source.tensor.ndim == 3) @intCast(source.tensor.stride[0]) else 0,
        .out = @ptrCast(target.data.?),
        .block_bytes = @intCast(@divExact(bytes, blocks)),
    };
    job.place();
    ctx.pool.run(@as(*const Pack, &job), Pack.body);
    return c.KT_OK;
}
