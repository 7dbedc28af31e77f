//! kt_copy: types converted, rows gathered from and scattered to strided views.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;

/// Values of one claimed piece; less work than this in all is done by the caller alone. A multiple of every block size.
const piece_values = 16384;

/// Where row number `row` of a tensor of outer dimensions shape[0 .. ndim - 1] begins.
pub fn rowOffset(t: *const check.Tensor, row: usize) usize {
    var rest = row;
    var offset: i64 = 0;
    var dim: usize = t.ndim - 1;
    while (dim > 0) {
        dim -= 1;
        const length: usize = @intCast(t.shape[dim]);
        offset += @as(i64, @intCast(rest % length)) * t.stride[dim];
        rest /= length;
    }
    return @bitCast(offset);
}

const Copy = struct {
    ctx: *ctx_mod.Ctx,
    src: *const check.Tensor,
    out: *const check.Tensor,
    src_block: check.Block,
    out_block: check.Block,
    rows: usize,
    n: usize,
    pieces_per_row: usize,
    rows_per_piece: usize,

    fn init(ctx: *ctx_mod.Ctx, src: *const check.Tensor, out: *const check.Tensor) Copy {
        var rows: usize = 1;
        for (src.shape[0 .. src.ndim - 1]) |length| rows *= @intCast(length);
        const n: usize = @intCast(src.shape[src.ndim - 1]);
        return .{
            .ctx = ctx,
            .src = src,
            .out = out,
            .src_block = check.blockOf(src.dtype).?,
            .out_block = check.blockOf(out.dtype).?,
            .rows = rows,
            .n = n,
            .pieces_per_row = std.math.divCeil(usize, n, piece_values) catch unreachable,
            .rows_per_piece = @max(1, piece_values / n),
        };
    }

    fn pieces(self: *const Copy) usize {
        return std.math.divCeil(usize, self.rows, self.rows_per_piece) catch unreachable;
    }

    fn part(self: *const Copy, row: usize, start: usize, length: usize) void {
        const from = @as([*]const u8, @ptrCast(self.src.data.?)) + rowOffset(self.src, row) + bytes(self.src_block, start);
        const to = @as([*]u8, @ptrCast(self.out.data.?)) + rowOffset(self.out, row) + bytes(self.out_block, start);
        if (self.src.dtype == self.out.dtype) {
            const size = bytes(self.src_block, length);
            @memcpy(to[0..size], from[0..size]);
        } else self.ctx.isa.convert_row.?(self.src.dtype, from, self.out.dtype, to, @intCast(length));
    }

    fn piece(self: *const Copy, index: usize) void {
        if (self.pieces_per_row > 1) {
            const start = index % self.pieces_per_row * piece_values;
            self.part(index / self.pieces_per_row, start, @min(piece_values, self.n - start));
            return;
        }
        const first = index * self.rows_per_piece;
        for (first..@min(self.rows, first + self.rows_per_piece)) |row| self.part(row, 0, self.n);
    }

    fn count(self: *const Copy) usize {
        return if (self.pieces_per_row > 1) self.rows * self.pieces_per_row else self.pieces();
    }

    fn body(self: *const Copy, member: *Member) void {
        const total = self.count();
        while (member.claim(0, total)) |index| self.piece(index);
    }
};

fn bytes(block: check.Block, values: usize) usize {
    return values / @as(usize, @intCast(block.values)) * @as(usize, @intCast(block.bytes));
}

fn isPlain(dtype: u32) bool {
    return dtype == c.KT_F32 or dtype == c.KT_F16 or dtype == c.KT_BF16 or dtype == c.KT_I32;
}

pub fn kt_copy(handle: ?*c.kt_ctx_t, src: ?*const c.kt_tensor_t, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const ndim = if (src) |t| t.ndim else 0;
    if (ndim < 1 or ndim > 4) return core.status.invalid("src has {d} dimensions, expected 1 to 4", .{ndim});
    const ts = check.tensor("src", src, ndim) orelse return invalid;
    const to = check.tensor("out", out, ndim) orelse return invalid;
    for (0..ndim) |i| if (!check.size("out", to, i, ts.shape[i])) return invalid;
    if ((ts.flags | to.flags) & c.KT_TENSOR_PACKED != 0) return core.status.unsupported("copy of a packed weight", .{});
    const converts = isPlain(to.dtype) and (isPlain(ts.dtype) or (check.isWeightType(ts.dtype) and to.dtype == c.KT_F32));
    if (ts.dtype != to.dtype and !converts)
        return core.status.unsupported("no conversion from type {d} to type {d}", .{ ts.dtype, to.dtype });
    const job = Copy.init(ctx, ts, to);
    if (job.count() == 1) job.piece(0) else ctx.pool.run(&job, Copy.body);
    return c.KT_OK;
}
