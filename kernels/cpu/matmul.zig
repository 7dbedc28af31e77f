//! What every op with a matrix product shares: activations normalised and quantised once, rows of several weights as one
//! list of tasks. The order inside a region is prepare() (phase 0), then tasks claimed from phase 1 on.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const pool = @import("pool.zig");
const Member = pool.Member;
const c = core.c;
const status = core.status;
const isa = ctx_mod.isa;

/// Up to this many tokens every thread prepares its own copy: cheaper than waiting for each other.
const max_private_tokens = 2;
/// Work between two claims in generation: enough to hide the claim, little enough to balance.
pub const bytes_per_task = 32 << 10;
/// The same where a task reads two weights in turns: longer pieces, since each begins anew for the prefetchers.
pub const bytes_per_pair = 96 << 10;
/// Rows that products of weights which are not packed take together.
const row_group = 4;
/// Many tokens: a task is rows times tokens. Few enough rows that its results stay in a cache, as many tasks as keep all threads
/// busy to the end.
const max_task_rows = 64;
const pass_tokens = 256;
const tasks_per_thread = 6;
/// Of products by tiles: the rows that activations meet before they leave the second cache.
const max_tile_task_rows = 128;
const tile_tasks_per_thread = 4;
const alignment = 64;

/// Of a tile of KT_TILE_TOKENS tokens of n values.
pub fn bf16TileBytes(n: usize) usize {
    return (n + 31) / 32 * 32 * 2 * isa.KT_TILE_TOKENS;
}

fn aligned(bytes: usize) usize {
    return std.mem.alignForward(usize, bytes, alignment);
}

/// Weight null: ones.
pub const Norm = struct { weight: ?[*]const f32, eps: f32, offset: f32 };

/// A weight matrix argument [rows, cols], checked.
pub const Weight = struct {
    tensor: *const check.Tensor,
    rows: usize,
    cols: usize,
    packed_rows: bool,
    quantized: bool,

    pub fn from(comptime name: []const u8, ctx: *const ctx_mod.Ctx, given: ?*const check.Tensor, cols: i64) ?Weight {
        const t = check.tensor(name, given, 2) orelse return null;
        if (!check.size(name, t, 1, cols)) return null;
        return fromMatrix(name, ctx, t);
    }

    fn fromMatrix(comptime name: []const u8, ctx: *const ctx_mod.Ctx, t: *const check.Tensor) ?Weight {
        if (!check.isWeightType(t.dtype)) {
            _ = status.invalid("{s} has type {d}, which is no weight type", .{ name, t.dtype });
            return null;
        }
        const is_packed = t.flags & c.KT_TENSOR_PACKED != 0;
        if (is_packed and !ctx.fast()) {
            _ = status.unsupported("{s} is packed for int8 activations; f32 precision reads unpacked weights", .{name});
            return null;
        }
        return .{
            .tensor = t,
            .rows = @intCast(t.shape[t.ndim - 2]),
            .cols = @intCast(t.shape[t.ndim - 1]),
            .packed_rows = is_packed,
            .quantized = check.blockOf(t.dtype).?.values > 1 and t.dtype != c.KT_F8_E4M3,
        };
    }

    /// A stack [experts, rows, cols]; matrix e is at stride[0] * e.
    pub fn stack(comptime name: []const u8, ctx: *const ctx_mod.Ctx, given: ?*const check.Tensor) ?Weight {
        const t = check.tensor(name, given, 3) orelse return null;
        return fromMatrix(name, ctx, t);
    }

    /// Where row 0 of matrix `index` of a stack would be if the rows of the node that has `row` were part of a whole matrix.
    /// A packed stack holds the rows of the first node of all matrices, then those of the next: a node's memory in one piece.
    pub fn matrix(self: Weight, ctx: *const ctx_mod.Ctx, index: usize, row: usize) *anyopaque {
        const start = @intFromPtr(self.tensor.data.?);
        if (!self.packed_rows) return @ptrFromInt(start + index * @as(usize, @intCast(self.tensor.stride[0])));
        const nodes = ctx.pool.num_nodes;
        const bytes: usize = @intCast(ctx.isa.packed_bytes.?(self.tensor.dtype, @intCast(self.rows), @intCast(self.cols)));
        if (nodes == 1) return @ptrFromInt(start + index * bytes);
        const count: usize = @intCast(self.tensor.shape[0]);
        var node: usize = 0;
        while (node + 1 < nodes and nodeRow(ctx, self.rows, node + 1) <= row) node += 1;
        const first = self.rowOffset(ctx, nodeRow(ctx, self.rows, node));
        const own = self.rowOffset(ctx, nodeRow(ctx, self.rows, node + 1)) - first;
        return @ptrFromInt(start + count * first + index * own -% first);
    }

    /// Of a row that begins a block, within one whole matrix; the end for all rows.
    fn rowOffset(self: Weight, ctx: *const ctx_mod.Ctx, row: usize) usize {
        if (!self.packed_rows) return row * @as(usize, @intCast(self.tensor.stride[self.tensor.ndim - 2]));
        const block: usize = @intCast(ctx.isa.row_block);
        const bytes: usize = @intCast(ctx.isa.packed_bytes.?(self.tensor.dtype, @intCast(self.rows), @intCast(self.cols)));
        return (row + block - 1) / block * (bytes / ((self.rows + block - 1) / block));
    }

    /// Where a row of a stack's matrix lies, or the block that it begins.
    pub fn rowAddress(self: Weight, ctx: *const ctx_mod.Ctx, index: usize, row: usize) usize {
        return @intFromPtr(self.matrix(ctx, index, row)) +% self.rowOffset(ctx, row);
    }

    pub fn bytesPerRow(self: Weight) usize {
        const block = check.blockOf(self.tensor.dtype).?;
        return self.cols / @as(usize, @intCast(block.values)) * @as(usize, @intCast(block.bytes));
    }
};

/// The left operand: x [tokens, n] f32, normalised on the way if asked, as int8 tiles and/or float rows, or as bf16 tiles for
/// the tile instructions.
pub const Input = struct {
    ctx: *ctx_mod.Ctx,
    x: [*]const f32,
    x_stride: usize, // floats
    tokens: usize,
    n: usize,
    norm: ?Norm,
    need_int8: bool,
    need_float: bool,
    bf16_tiles: bool,
    private: bool,
    tile_tokens: usize,
    tile_bytes: usize,
    /// Per copy: tiles, then float rows (only with a norm).
    copies: [*]u8 = undefined,
    copy_bytes: usize = 0,
    floats_offset: usize = 0,

    pub fn init(ctx: *ctx_mod.Ctx, x: check.Rows, norm: ?Norm, weights: []const Weight) Input {
        var need_int8 = false;
        var need_float = false;
        var bf16_tiles = x.count >= ctx.leastTiles();
        for (weights) |w| {
            if (w.quantized and ctx.fast()) need_int8 = true else need_float = true;
            bf16_tiles = bf16_tiles and ctx.isa.tile_takes.?(w.tensor.dtype) != 0;
        }
        if (bf16_tiles) {
            need_int8 = false;
            need_float = false;
        }
        const tile_tokens: usize = if (bf16_tiles) isa.KT_TILE_TOKENS else if (x.count <= 2) x.count else if (x.count <= 4) 4 else 8;
        const n: usize = @intCast(x.n);
        const tile_bytes = if (bf16_tiles) bf16TileBytes(n) else aligned(n / 32 * tile_tokens * @as(usize, @intCast(ctx.isa.act_token_bytes)));
        var self: Input = .{
            .ctx = ctx,
            .x = @ptrCast(@alignCast(x.data)),
            .x_stride = x.stride / 4,
            .tokens = x.count,
            .n = n,
            .norm = norm,
            .need_int8 = need_int8,
            .need_float = need_float,
            .bf16_tiles = bf16_tiles,
            .private = x.count <= max_private_tokens,
            .tile_tokens = tile_tokens,
            .tile_bytes = tile_bytes,
        };
        const tiles = if (need_int8 or bf16_tiles) self.tileCount() * tile_bytes else 0;
        // a normalised row is needed whole before it can be quantised: with shared tiles each tile has a row of its own
        const float_rows = if (norm == null) 0 else if (need_float) x.count else if (self.private) 1 else ctx.pool.num_threads;
        self.floats_offset = tiles;
        self.copy_bytes = tiles + aligned(float_rows * n * 4);
        return self;
    }

    fn tileCount(self: *const Input) usize {
        return (self.tokens + self.tile_tokens - 1) / self.tile_tokens;
    }

    pub fn scratchBytes(self: *const Input) usize {
        return self.copy_bytes * if (self.private) self.ctx.pool.num_threads else 1;
    }

    /// Makes the operand of this member; with shared tiles, waits until all are made.
    pub fn prepare(self: *const Input, member: *Member) void {
        if (self.private) {
            const copy = self.copies + member.index * self.copy_bytes;
            for (0..self.tokens) |token| self.prepareToken(copy, token, token, 0);
            return;
        }
        if (self.need_int8 or self.bf16_tiles or self.norm != null) {
            while (member.claim(0, self.tileCount())) |tile| {
                const first = tile * self.tile_tokens;
                for (first..first + self.tile_tokens) |token| self.prepareToken(self.copies, token, token, member.index);
            }
        }
        member.barrier();
    }

    fn prepareToken(self: *const Input, copy: [*]u8, token: usize, slot: usize, row_buffer: usize) void {
        var row: ?[*]const f32 = null;
        if (token < self.tokens) {
            row = self.x + token * self.x_stride;
            if (self.norm) |norm| {
                const floats: [*]f32 = @ptrCast(@alignCast(copy + self.floats_offset));
                const out = floats + self.n * if (self.need_float) token else row_buffer;
                self.ctx.isa.rms_norm_row.?(row.?, norm.weight, norm.eps, norm.offset, out, @intCast(self.n));
                row = out;
            }
        }
        const tile = copy + slot / self.tile_tokens * self.tile_bytes;
        const in_tile: i32 = @intCast(slot % self.tile_tokens);
        if (self.need_int8) self.ctx.isa.quantize_row.?(row orelse null, @intCast(self.n), tile, @intCast(self.tile_tokens), in_tile);
        if (self.bf16_tiles) self.ctx.isa.tile_row.?(row orelse null, @intCast(self.n), tile, in_tile);
    }

    /// A normalised row of a member's copy, where rows in f32 are asked for.
    pub fn floatRow(self: *const Input, member_index: u32, token: usize) [*]const f32 {
        const copy = self.copies + if (self.private) member_index * self.copy_bytes else 0;
        const floats: [*]const f32 = @ptrCast(@alignCast(copy + self.floats_offset));
        return floats + token * self.n;
    }

    /// The part of a matmul job that describes the left operand, for one weight and one member.
    pub fn job(self: *const Input, w: Weight, member_index: u32) isa.kt_matmul_t {
        const copy = self.copies + if (self.private) member_index * self.copy_bytes else 0;
        var out = weightJob(self.ctx, w);
        if (self.bf16_tiles or (w.quantized and self.ctx.fast())) {
            out.acts = copy;
            out.tile_bytes = @intCast(self.tile_bytes);
        }
        out.tile_tokens = @intCast(self.tile_tokens);
        out.rounded = @intFromBool(self.ctx.fast());
        if (self.norm == null) {
            out.x = self.x;
            out.x_stride = @intCast(self.x_stride);
        } else {
            out.x = @ptrCast(@alignCast(copy + self.floats_offset));
            out.x_stride = @intCast(self.n);
        }
        return out;
    }
};

pub fn weightJob(ctx: *const ctx_mod.Ctx, w: Weight) isa.kt_matmul_t {
    var out = std.mem.zeroes(isa.kt_matmul_t);
    out.w = w.tensor.data;
    out.row_stride = w.tensor.stride[w.tensor.ndim - 2];
    out.rows = @intCast(w.rows);
    out.cols = @intCast(w.cols);
    out.dtype = w.tensor.dtype;
    out.@"packed" = @intFromBool(w.packed_rows);
    out.ahead = ctx.ahead;
    return out;
}

/// Where the rows of a node begin: packed weights lie in their nodes' memory in such ranges, and tasks keep within them.
pub fn nodeRow(ctx: *const ctx_mod.Ctx, rows: usize, node: usize) usize {
    const nodes = ctx.pool.num_nodes;
    if (node == nodes) return rows;
    const unit: usize = @intCast(@max(32, ctx.isa.row_block));
    return @min(rows, (rows * node / nodes + unit / 2) / unit * unit);
}

fn mostNodeRows(ctx: *const ctx_mod.Ctx, rows: usize) usize {
    var most: usize = 0;
    for (0..ctx.pool.num_nodes) |node| most = @max(most, nodeRow(ctx, rows, node + 1) - nodeRow(ctx, rows, node));
    return most;
}

/// A range of rows cut into pieces of at most `per_piece` rows, none of which has rows of two nodes. Every node has equally
/// many pieces, numbered node by node; the last of a node may be empty.
pub const Pieces = struct {
    ctx: *const ctx_mod.Ctx,
    rows: usize,
    per_piece: usize,
    per_node: usize,
    total: usize,

    pub fn of(ctx: *const ctx_mod.Ctx, rows: usize, per_piece: usize) Pieces {
        const per_node = (mostNodeRows(ctx, rows) + per_piece - 1) / per_piece;
        return .{ .ctx = ctx, .rows = rows, .per_piece = per_piece, .per_node = per_node, .total = per_node * ctx.pool.num_nodes };
    }

    pub fn range(self: Pieces, piece: usize) [2]usize {
        if (self.per_node == self.total) return .{ piece * self.per_piece, @min(self.rows, (piece + 1) * self.per_piece) };
        const node = piece / self.per_node;
        const end = nodeRow(self.ctx, self.rows, node + 1);
        const start = nodeRow(self.ctx, self.rows, node) + piece % self.per_node * self.per_piece;
        return .{ @min(start, end), @min(start + self.per_piece, end) };
    }

    /// In a list that repeats all pieces again and again: the number of what was claimed, each node's part being the same
    /// list of that node's pieces.
    pub fn global(self: Pieces, at: pool.Placed) usize {
        return at.index / self.per_node * self.total + at.node * self.per_node + at.index % self.per_node;
    }
};

/// Rows of a weight times ranges of tokens, numbered.
pub const Tasks = struct {
    pieces: Pieces,
    tokens: usize,
    rows_per_task: usize,
    tokens_per_task: usize,
    total: usize,

    pub const Range = struct { row0: usize, row1: usize, token0: usize, token1: usize };

    pub fn of(ctx: *const ctx_mod.Ctx, w: Weight, tokens: usize, tile_tokens: usize) Tasks {
        return among(ctx, w, w.rows, bytes_per_task, tokens, tile_tokens);
    }

    /// Of one of several weights with `all_rows` rows that make one phase: tasks of all of them have as many rows where their
    /// types are the same. `bytes`: of one weight in a task, in generation.
    pub fn among(ctx: *const ctx_mod.Ctx, w: Weight, all_rows: usize, bytes: usize, tokens: usize, tile_tokens: usize) Tasks {
        // rows that lie apart need no whole blocks: the few of a router are enough for all threads
        const block: usize = if (w.packed_rows or tokens > 8) @intCast(ctx.isa.row_block) else row_group;
        const blocks = (w.rows + block - 1) / block;
        const threads = ctx.pool.num_threads;
        var per_task: usize = 1;
        var tokens_per_task = tokens;
        if (tokens <= 8) {
            per_task = std.math.clamp(bytes / @max(1, w.bytesPerRow() * block), 1, @max(1, all_rows / block / (4 * threads)));
        } else {
            // the kernels go through the tokens in passes of this many: cutting there costs nothing
            tokens_per_task = @min(tokens, pass_tokens);
            const passes = (tokens + tokens_per_task - 1) / tokens_per_task;
            const tiles = tile_tokens == isa.KT_TILE_TOKENS;
            const wanted = if (threads == 1) 1 else threads * @as(usize, if (tiles) tile_tasks_per_thread else tasks_per_thread);
            const most: usize = if (tiles) max_tile_task_rows else max_task_rows;
            // tiles take two blocks of rows together
            const least: usize = if (tiles) @min(blocks, 2) else 1;
            per_task = std.math.clamp(blocks * passes / wanted, least, @max(least, most / block));
            if (tiles and per_task > 2) per_task &= ~@as(usize, 1);
            const row_tasks = (blocks + per_task - 1) / per_task;
            if (row_tasks * passes < wanted) {
                const splits = (wanted + row_tasks - 1) / row_tasks;
                tokens_per_task = std.mem.alignForward(usize, @max(32, (tokens + splits - 1) / splits), tile_tokens);
            }
        }
        const rows_per_task = per_task * block;
        const pieces = Pieces.of(ctx, w.rows, rows_per_task);
        return .{
            .pieces = pieces,
            .tokens = tokens,
            .rows_per_task = rows_per_task,
            .tokens_per_task = tokens_per_task,
            .total = pieces.total * ((tokens + tokens_per_task - 1) / tokens_per_task),
        };
    }

    /// What a member does next in a phase of these tasks.
    pub fn claim(self: *const Tasks, member: *Member, phase: usize) ?Range {
        const claimed = claimAny(member, phase, self[0..1]) orelse return null;
        return claimed.range;
    }

    pub fn range(self: Tasks, task: usize) Range {
        const rows = self.pieces.range(task % self.pieces.total);
        const token0 = task / self.pieces.total * self.tokens_per_task;
        return .{ .row0 = rows[0], .row1 = rows[1], .token0 = token0, .token1 = @min(self.tokens, token0 + self.tokens_per_task) };
    }
};

pub const Claimed = struct { which: usize, range: Tasks.Range };

/// The same of several weights whose tasks make one phase.
pub fn claimAny(member: *Member, phase: usize, lists: []const Tasks) ?Claimed {
    const nodes = member.pool.num_nodes;
    var each: usize = 0;
    for (lists) |list| each += list.total / nodes;
    while (member.claimPlaced(phase, each)) |claimed| {
        var at = claimed;
        var which: usize = 0;
        while (at.index >= lists[which].total / nodes) : (which += 1) at.index -= lists[which].total / nodes;
        const range = lists[which].range(lists[which].pieces.global(at));
        if (range.row0 < range.row1) return .{ .which = which, .range = range };
    }
    return null;
}

/// Cuts one reservation of the context's scratch memory into pieces.
pub const Scratch = struct {
    bytes: usize = 0,

    pub fn add(self: *Scratch, bytes: usize) usize {
        const offset = self.bytes;
        self.bytes += aligned(bytes);
        return offset;
    }

    pub fn reserve(self: Scratch, ctx: *ctx_mod.Ctx) ?[*]u8 {
        const memory = ctx.reserve(@max(self.bytes, alignment)) catch {
            _ = status.outOfMemory(@intCast(self.bytes));
            return null;
        };
        return memory.ptr;
    }
};

pub fn matmulScratch(ctx: *const ctx_mod.Ctx, cols: usize) usize {
    return aligned(@intCast(ctx.isa.matmul_scratch.?(@intCast(cols))));
}

/// A float vector argument or NULL.
pub fn vector(comptime name: []const u8, given: ?*const check.Tensor, n: i64) error{Invalid}!?[*]const f32 {
    if (given == null) return null;
    const t = check.f32s(name, given, 1) orelse return error.Invalid;
    if (!check.size(name, t, 0, n)) return error.Invalid;
    return @ptrCast(@alignCast(t.data.?));
}
